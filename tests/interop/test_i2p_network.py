"""The private I2P network that tests and demonstrations use."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from overlay.errors import MalformedError, TransportUnavailableError
from overlay.testing import i2p_readiness
from overlay.testing.i2p import PrivateI2pNetwork
from overlay.testing.serving import serve
from overlay.transports.i2p import protocol, router
from overlay.transports.i2p.sam import open_sam
from overlay.transports.i2p.settings import I2pTimeouts, TunnelOptions

TIMEOUTS = I2pTimeouts()

KILLED_PARENT = """
import anyio
from overlay.testing.i2p import PrivateI2pNetwork
from overlay.testing.serving import serve
anyio.run(serve, PrivateI2pNetwork(), lambda network: print(network.directory, flush=True))
"""


def routers_of(directory: Path, name: str = "router") -> list[int]:
    """The processes of routers that keep their files in a directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:  # ended meanwhile
            continue
        if os.fsencode(f"--datadir={directory}/{name}") in command:
            found.append(int(entry.name))
    return found


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text(encoding="ascii").split()[3])


async def gone(directory: Path) -> None:
    with anyio.fail_after(10):
        while routers_of(directory):  # noqa: ASYNC110 - other processes' children: nothing tells
            await anyio.sleep(0.05)


def ports(addresses: Sequence[str]) -> list[int]:
    return [int(address.rpartition(":")[2]) for address in addresses]


def is_refused(address: str) -> bool:
    with socket.socket() as client:
        client.settimeout(5)
        return client.connect_ex(("127.0.0.1", ports([address])[0])) != 0


async def prove(network: PrivateI2pNetwork, addresses: Sequence[str]) -> None:
    """Carry bytes between routers, at a pace at which a lookup that was in vain is soon repeated."""
    await network.set_pace(20.0)
    try:
        await i2p_readiness.prove(ports(addresses))
    finally:
        await network.set_pace(1.0)


async def make_session(address: str) -> float:
    """Make a session; returns how long it took."""
    async with await open_sam(("127.0.0.1", ports([address])[0]), TIMEOUTS) as sam:
        begun = time.monotonic()
        command = protocol.session_create("quick", "STREAM", "TRANSIENT", TunnelOptions(length=1).options())
        assert (await sam.request(command, 60.0)).ok
        return time.monotonic() - begun


def test_nothing_can_leave_the_namespace(i2p_network: PrivateI2pNetwork) -> None:
    pids = routers_of(i2p_network.directory)
    assert len(pids) == 8
    for pid in pids:
        assert Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
        interfaces = Path(f"/proc/{pid}/net/dev").read_text(encoding="ascii").splitlines()[2:]
        assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
        assert len(Path(f"/proc/{pid}/net/route").read_text(encoding="ascii").splitlines()) <= 2


async def test_bytes_go_both_ways_between_all_client_routers(i2p_network: PrivateI2pNetwork) -> None:
    assert len(set(i2p_network.sam_addresses)) == 5
    await prove(i2p_network, i2p_network.sam_addresses)


async def test_a_session_does_not_take_the_routers_20_seconds(i2p_network: PrivateI2pNetwork) -> None:
    assert await make_session(i2p_network.sam_addresses[0]) < 15


async def test_a_killed_router_refuses_and_comes_back_at_the_same_address(
    i2p_network: PrivateI2pNetwork,
) -> None:
    address = i2p_network.sam_addresses[4]
    await i2p_network.kill_router(4)
    await i2p_network.kill_router(4)
    assert is_refused(address)
    assert len(routers_of(i2p_network.directory)) == 7
    await i2p_network.start_router(4)
    await i2p_network.start_router(4)
    assert len(routers_of(i2p_network.directory)) == 8
    await prove(i2p_network, [i2p_network.sam_addresses[0], address])


async def test_a_router_that_ended_by_itself_is_started_again(i2p_network: PrivateI2pNetwork) -> None:
    (victim,) = routers_of(i2p_network.directory, "router6\0")
    os.kill(victim, signal.SIGKILL)
    with anyio.fail_after(10):
        while victim in routers_of(i2p_network.directory):  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.01)
        while len(routers_of(i2p_network.directory)) < 8:  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.01)
    await i2p_network.start_router(3)  # waits until it answers
    assert not is_refused(i2p_network.sam_addresses[3])
    await prove(i2p_network, i2p_network.sam_addresses[2:4])


async def test_numbers_out_of_range_are_refused(i2p_network: PrivateI2pNetwork) -> None:
    with pytest.raises(MalformedError, match="numbered 0 to 4"):
        await i2p_network.kill_router(5)
    with pytest.raises(MalformedError, match="pace"):
        await i2p_network.set_pace(0.0)


async def test_cancelled_network_leaves_nothing(i2p_network: PrivateI2pNetwork) -> None:
    left: list[Path] = []
    with anyio.CancelScope() as scope:

        def ready(network: PrivateI2pNetwork) -> None:
            left.append(network.directory)
            assert len(routers_of(network.directory)) == 8
            scope.cancel()

        await serve(PrivateI2pNetwork(), ready)
    assert not left[0].exists()
    assert routers_of(left[0]) == []
    assert len(routers_of(i2p_network.directory)) == 8  # two networks live side by side


async def test_network_cancelled_while_it_starts_leaves_nothing(
    i2p_network: PrivateI2pNetwork, tmp_path: Path
) -> None:
    async def start() -> None:
        async with PrivateI2pNetwork(tmp_path):
            pytest.fail("it was to be cancelled")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start)
        with anyio.fail_after(20):
            while not routers_of(tmp_path):  # noqa: ASYNC110 - nothing tells
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert routers_of(tmp_path) == []
    assert not is_refused(i2p_network.sam_addresses[0])


async def test_routers_end_with_a_killed_parent_or_keeper(i2p_network: PrivateI2pNetwork) -> None:
    assert not is_refused(i2p_network.sam_addresses[0])
    async with await anyio.open_process([sys.executable, "-c", KILLED_PARENT]) as parent:
        assert parent.stdout is not None
        try:
            directory = Path((await parent.stdout.receive()).decode().strip())
            running = routers_of(directory)
        finally:
            parent.kill()
    assert len(running) == 8
    await gone(directory)
    with anyio.fail_after(10):
        while await anyio.Path(directory).exists():  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.05)


async def test_a_killed_keeper_takes_its_routers_along_and_is_reported(
    i2p_network: PrivateI2pNetwork, tmp_path: Path
) -> None:
    assert not is_refused(i2p_network.sam_addresses[0])
    async with PrivateI2pNetwork(tmp_path) as network:
        os.kill(parent_of(routers_of(tmp_path)[0]), signal.SIGKILL)
        await gone(tmp_path)
        with pytest.raises(TransportUnavailableError, match="has ended"):
            await network.kill_router(0)


async def test_router_that_dies_at_its_start_is_named_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "i2pd"
    program.write_text("#!/bin/sh\necho first >&2\necho no luck today >&2\nexit 1\n", encoding="ascii")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(TransportUnavailableError, match="router0 ended while making its keys: no luck today"):
        await PrivateI2pNetwork().__aenter__()


async def test_a_router_that_dies_at_its_start_is_given_a_second_chance(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program, before = tmp_path / "i2pd", tmp_path / "before"
    real = router.find_i2pd("i2pd")
    program.write_text(
        f'#!/bin/sh\n[ -e {before} ] || {{ : >{before}; exit 1; }}\nexec {real} "$@"\n', encoding="ascii"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    async with PrivateI2pNetwork() as network:
        assert before.exists()
        assert len(routers_of(network.directory)) == 8


async def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "i2pd").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TransportUnavailableError, match="apt install gcc"):
        await PrivateI2pNetwork().__aenter__()
    (tmp_path / "i2pd").unlink()
    monkeypatch.setattr(router, "_MORE_PLACES", ())
    with pytest.raises(TransportUnavailableError, match="apt install i2pd"):
        await PrivateI2pNetwork().__aenter__()


async def test_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TransportUnavailableError, match="below cannot be used: Not a directory"):
        await PrivateI2pNetwork(tmp_path / "file" / "below").__aenter__()


async def test_too_few_routers_are_refused() -> None:
    with pytest.raises(TransportUnavailableError, match="8 to 200 routers"):
        await PrivateI2pNetwork(routers=7).__aenter__()


def test_the_command_prints_addresses_and_ends_on_ctrl_c(i2p_network: PrivateI2pNetwork) -> None:
    assert not is_refused(i2p_network.sam_addresses[0])
    command = [sys.executable, "-m", "overlay_cli", "--json", "testnet", "i2p"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert line.count("127.0.0.1:") == 5


async def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    for name in ("router-configs", "router0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
    with pytest.raises(TransportUnavailableError, match="router0 is of no private I2P network"):
        await PrivateI2pNetwork(tmp_path).__aenter__()
    assert len(list(tmp_path.glob("router*/precious"))) == 2  # noqa: ASYNC240 - of a test
