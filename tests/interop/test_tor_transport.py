"""The Tor transport on a real, private Tor network."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from overlay.connection import Listener, TransportStatus
from overlay.errors import TransportUnavailableError, UnreachableError
from overlay.locators import NodeLocator
from overlay.testing.tor import PrivateTorNetwork
from overlay.transports.tor.control import ControlConnection
from overlay.transports.tor.process import find_program
from overlay.transports.tor.settings import ONION_PORT, AttachedTor, LaunchedTor, TorTimeouts
from overlay.transports.tor.transport import TorTransport

MakeTransport = Callable[[str], TorTransport]
ANOTHER_NOBODY = NodeLocator(
    "onion3", Ed25519PrivateKey.from_private_bytes(b"\1" * 32).public_key().public_bytes_raw(), ONION_PORT
)
PASSWORD = 'a "quoted" \\ password'
DIALS = 8
LARGE_BYTES = 128 * 1024 * 1024  # not sent within 0.1 s, though tor takes in 250 MiB a second


@pytest.fixture(scope="module")
async def caller(tor_transport: MakeTransport) -> AsyncIterator[TorTransport]:
    async with tor_transport("caller") as transport:
        yield transport


@pytest.fixture(scope="module")
async def receiver(tor_transport: MakeTransport) -> AsyncIterator[TorTransport]:
    async with tor_transport("receiver") as transport:
        yield transport


@pytest.fixture(scope="module")
async def listener(receiver: TorTransport) -> AsyncIterator[Listener]:
    async with await receiver.listen() as listener:
        yield listener


async def exchange(caller: TorTransport, listener: Listener, isolation: bytes) -> None:
    async with await caller.connect(listener.locators[0], isolation=isolation) as dialled:
        await dialled.send(b"question")
        async with await listener.accept() as accepted:
            assert await accepted.receive() == b"question"
            await accepted.send(b"answer")
            assert await dialled.receive() == b"answer"


async def exchange_patiently(caller: TorTransport, listener: Listener) -> None:
    """Dial with new circuits each time, as a node does after a failure."""
    for attempt in range(DIALS):
        try:
            await exchange(caller, listener, b"again" + bytes([attempt]))
        except UnreachableError:
            continue
        return
    pytest.fail(f"not reachable in {DIALS} dials")


async def test_both_can_call(caller: TorTransport, receiver: TorTransport, listener: Listener) -> None:
    await exchange(caller, listener, b"")
    async with await caller.listen() as other:
        assert other.locators[0].protocol == "onion3"
        assert caller.facts["onion"] == other.locators[0].host
        await exchange(receiver, other, b"")
    assert re.fullmatch(r"0\.4\.\d+\.\d+\S*, launched", caller.facts["tor"])
    assert caller.facts.keys() == {"tor"}


async def test_tokens_have_circuits_of_their_own(caller: TorTransport, listener: Listener) -> None:
    locator = listener.locators[0]
    connections = [await caller.connect(locator, isolation=token) for token in (b"one", b"two", b"one")]
    assert caller.session is not None
    status = await caller.session.control.get_info("stream-status")
    circuits = [
        fields[2]
        for fields in sorted((line.split() for line in status.split("\n")), key=lambda fields: int(fields[0]))
        if fields[1] == "SUCCEEDED" and locator.host in fields[3]
    ]
    for connection in connections:
        await connection.aclose()
        await (await listener.accept()).aclose()
    assert len(circuits) == 3
    assert circuits[0] != circuits[1]
    assert circuits[0] == circuits[2]


async def test_unknown_service_is_reported_at_once(caller: TorTransport, nobody: NodeLocator) -> None:
    with pytest.raises(UnreachableError, match="no such onion service"):
        await caller.connect(nobody)


async def test_repeated_failures_ask_for_new_circuits_once(
    caller: TorTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert caller.session is not None
    control = caller.session.control
    asked: list[str] = []

    async def request(command: str) -> list[str]:
        asked.append(command)
        return await ControlConnection.request(control, command)

    monkeypatch.setattr(control, "request", request)
    monkeypatch.setattr(caller, "_next_newnym", 0.0)
    for expected in ([], ["SIGNAL NEWNYM"], ["SIGNAL NEWNYM"]):
        with pytest.raises(UnreachableError):
            await caller.connect(ANOTHER_NOBODY)
        assert asked == expected


async def test_cancelled_send_harms_nothing_else(caller: TorTransport, listener: Listener) -> None:
    async with await caller.connect(listener.locators[0]) as dialled, await listener.accept():
        with anyio.move_on_after(0.1) as scope:
            await dialled.send(bytes(LARGE_BYTES))
    assert scope.cancelled_caught
    await exchange(caller, listener, b"")


async def test_killed_tor_comes_back_at_the_same_address(
    caller: TorTransport, receiver: TorTransport, listener: Listener
) -> None:
    seen: list[TransportStatus] = []
    back = anyio.Event()

    def observe(status: TransportStatus) -> None:
        seen.append(status)
        if status.state == "ready":
            back.set()

    locators = tuple(listener.locators)
    receiver.observe(observe)
    assert receiver.session is not None
    assert receiver.session.process is not None
    os.kill(receiver.session.process, signal.SIGKILL)
    await back.wait()
    assert seen[0] == TransportStatus("starting", "tor ended; starting it again (attempt 1)")
    assert tuple(listener.locators) == locators
    await exchange_patiently(caller, listener)


async def test_dial_waits_for_tor_to_come_back(caller: TorTransport, listener: Listener) -> None:
    assert caller.session is not None
    assert caller.session.process is not None
    os.kill(caller.session.process, signal.SIGKILL)
    await caller.session.control.lost.wait()
    await exchange_patiently(caller, listener)


def test_address_survives_a_restart_also_on_trio(tor_transport: MakeTransport) -> None:
    seen: list[NodeLocator] = []

    async def run() -> None:
        async with tor_transport("restarted") as transport, await transport.listen() as listener:
            seen.extend(listener.locators)
            await exchange_patiently(transport, listener)

    for backend in ("asyncio", "trio"):
        with start_blocking_portal(backend) as portal:
            portal.call(run)
    assert len(set(seen)) == 1


@pytest.fixture(scope="module")
async def foreign_tor(
    tor_network: PrivateTorNetwork, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[TorTransport, str, Path]]:
    """A running tor with a password, its control port, and its control socket."""
    directory = tmp_path_factory.mktemp("foreign")
    tor_network.seed(directory / "d")
    hashed = await anyio.run_process([find_program("tor"), "--quiet", "--hash-password", PASSWORD])
    lines = tor_network.client_torrc.read_text(encoding="utf-8")
    torrc = directory / "extra"
    torrc.write_text(f"{lines}ControlPort 127.0.0.1:auto\nHashedControlPassword {hashed.stdout.decode()}")
    async with TorTransport(LaunchedTor(directory / "d", torrc), key_path=directory / "key") as host:
        assert host.session is not None
        listening = await host.session.control.get_info("net/listeners/control")
        (port,) = re.findall(r'"(127\.0\.0\.1:\d+)"', listening)
        yield host, port, directory / "d" / "control.sock"


async def test_attaches_by_port_with_a_password(
    foreign_tor: tuple[TorTransport, str, Path], listener: Listener, tmp_path: Path
) -> None:
    host, port, _ = foreign_tor
    attached = TorTransport(AttachedTor(port, password=lambda: PASSWORD), key_path=tmp_path / "key")
    async with attached:
        await exchange(attached, listener, b"")
        assert attached.facts["tor"].endswith(f", attached at {port}")
    assert attached.facts == {}
    assert host.status.state == "ready"


async def test_attaches_by_socket_with_a_cookie_and_serves(
    foreign_tor: tuple[TorTransport, str, Path], caller: TorTransport, tmp_path: Path
) -> None:
    host, _, path = foreign_tor
    attached = TorTransport(AttachedTor(str(path), password=None), key_path=tmp_path / "key")
    async with attached, await attached.listen() as listener:
        await exchange_patiently(caller, listener)
        twin = TorTransport(AttachedTor(str(path), password=None), key_path=tmp_path / "key")
        async with twin:
            with pytest.raises(TransportUnavailableError, match="same onion key"):
                await twin.listen()
    assert host.session is not None
    await host.session.control.get_info("version")


async def test_wrong_password_is_said(foreign_tor: tuple[TorTransport, str, Path], tmp_path: Path) -> None:
    _, port, _ = foreign_tor
    attached = TorTransport(AttachedTor(port, password=lambda: "wrong"), key_path=tmp_path / "key")
    with pytest.raises(TransportUnavailableError, match="refused the control password"):
        await attached.__aenter__()
    assert attached.status.state == "failed"


async def test_attaches_again_when_tor_comes_back(
    foreign_tor: tuple[TorTransport, str, Path], caller: TorTransport, tmp_path: Path
) -> None:
    host, _, path = foreign_tor
    attached = TorTransport(AttachedTor(str(path), password=None), key_path=tmp_path / "key")
    details: list[str] = []
    back = anyio.Event()
    async with attached, await attached.listen() as listener:
        attached.observe(lambda status: details.append(status.detail))
        attached.observe(lambda status: back.set() if status.state == "ready" else None)
        assert host.session is not None
        assert host.session.process is not None
        os.kill(host.session.process, signal.SIGKILL)
        await back.wait()
        await exchange_patiently(caller, listener)
    assert details[0] == "the connection to tor was lost; attaching to it again (attempt 1)"


async def test_bad_torrc_is_explained_by_tor(tmp_path: Path) -> None:
    torrc = tmp_path / "extra"
    torrc.write_text("NoSuchOption 1\n")
    transport = TorTransport(LaunchedTor(tmp_path / "d", torrc), key_path=tmp_path / "key")
    with pytest.raises(TransportUnavailableError, match="NoSuchOption"):
        await transport.__aenter__()


async def test_missing_torrc_is_said(tmp_path: Path) -> None:
    transport = TorTransport(LaunchedTor(tmp_path / "d", tmp_path / "none"), key_path=tmp_path / "key")
    with pytest.raises(TransportUnavailableError, match=r"none cannot be read: No such file"):
        await transport.__aenter__()


@pytest.fixture
def dead_network(tmp_path: Path) -> Path:
    torrc = tmp_path / "extra"
    authority = f"DirAuthority a orport=1 no-v2 v3ident={'A' * 40} 127.0.0.1:2 {'B' * 40}"
    torrc.write_text(f"TestingTorNetwork 1\nOutboundBindAddress 127.0.0.1\n{authority}\n")
    return torrc


async def test_bootstrapping_that_gets_no_further_is_given_up(dead_network: Path, tmp_path: Path) -> None:
    transport = TorTransport(
        LaunchedTor(tmp_path / "d", dead_network), key_path=tmp_path / "key", timeouts=TorTimeouts(stall=1.0)
    )
    with pytest.raises(TransportUnavailableError, match="got no further"):
        await transport.__aenter__()


async def test_cancelled_start_leaves_no_process(
    dead_network: Path, tmp_path: Path, processes_of: Callable[[Path], list[int]]
) -> None:
    transport = TorTransport(LaunchedTor(tmp_path / "d", dead_network), key_path=tmp_path / "key")
    with anyio.CancelScope() as scope:
        transport.observe(lambda status: scope.cancel() if "bootstrapping" in status.detail else None)
        async with transport:
            pytest.fail("this network does not exist")
    assert scope.cancelled_caught
    assert processes_of(tmp_path) == []
