"""The private Tor network that tests and demonstrations use."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from overlay.connection import Connection
from overlay.errors import MalformedError, TransportUnavailableError
from overlay.testing import tor
from overlay.testing.serving import serve
from overlay.testing.tor import PrivateTorNetwork
from overlay.transports.tor import process
from overlay.transports.tor.settings import LaunchedTor, TorTimeouts
from overlay.transports.tor.transport import TorTransport

FindProcesses = Callable[[Path], list[int]]


def listening_addresses(pid: int) -> set[str]:
    """The local addresses, in hexadecimal, on which a process listens by TCP."""
    inodes = {str(handle.readlink()) for handle in Path(f"/proc/{pid}/fd").iterdir() if handle.exists()}
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]
    ]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


def make_transport(network: PrivateTorNetwork, home: Path) -> TorTransport:
    network.seed(home / "tor")
    launched = LaunchedTor(home / "tor", extra_torrc=network.client_torrc)
    timeouts = TorTimeouts(dial=60.0, start=60.0, stall=60.0, publish=60.0, reply=20.0)
    return TorTransport(launched, key_path=home / "onion.key", timeouts=timeouts)


async def round_trip(near: Connection, far: Connection) -> float:
    begun = anyio.current_time()
    await near.send(b"x")
    await far.send(await far.receive(1))
    await near.receive(1)
    return anyio.current_time() - begun


def advertised_port(client_torrc: Path) -> int:
    """The port of the authority that clients are told."""
    (port,) = re.findall(r"orport=(\d+)", client_torrc.read_text(encoding="utf-8"))
    return int(port)


def is_listening(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def test_only_loopback_is_listened_on(tor_network: PrivateTorNetwork, processes_of: FindProcesses) -> None:
    pids = processes_of(tor_network.directory)
    assert len(pids) == 4
    for pid in pids:
        assert listening_addresses(pid) == {"0100007F"}


def test_client_torrc_names_no_place_of_a_client(tor_network: PrivateTorNetwork) -> None:
    options = {line.split()[0] for line in tor_network.client_torrc.read_text(encoding="utf-8").splitlines()}
    assert {"TestingTorNetwork", "DirAuthority", "OutboundBindAddress"} <= options
    assert not {"DataDirectory", "SocksPort", "ControlPort", "ControlSocket"} & options


def test_no_relay_weighs_more_than_another(tor_network: PrivateTorNetwork) -> None:
    consensus = (tor_network.directory / "auth0" / "cached-microdesc-consensus").read_text(encoding="ascii")
    weights = [line for line in consensus.splitlines() if line.startswith("w ")]
    assert len(weights) == 4
    # What they claim is above what an authority believes, so what they carry later makes no difference.
    assert set(weights) == {"w Bandwidth=10000 Unmeasured=1"}


def test_cancelled_network_leaves_nothing(
    tor_network: PrivateTorNetwork, processes_of: FindProcesses
) -> None:
    left: list[Path] = []

    async def run() -> None:
        with anyio.CancelScope() as scope:

            def ready(network: PrivateTorNetwork) -> None:
                left.append(network.directory)
                assert len(processes_of(network.directory)) == 4
                scope.cancel()

            await serve(PrivateTorNetwork(), ready)

    assert tor_network.client_torrc.exists()  # two networks live side by side
    with start_blocking_portal("trio") as portal:
        portal.call(run)
    assert not left[0].exists()
    assert processes_of(left[0]) == []


async def test_distance_is_felt_on_every_link_and_ends_with_the_network(tmp_path: Path) -> None:
    delay, links = 0.05, 7  # three of the caller's circuit, four of the service's
    async with PrivateTorNetwork(link_delay=delay, link_rate=20_000_000) as network:
        port = advertised_port(network.client_torrc)
        async with (
            make_transport(network, tmp_path / "a") as caller,
            make_transport(network, tmp_path / "b") as service,
        ):
            listener = await service.listen()
            async with (
                await caller.connect(listener.locators[0]) as near,
                await listener.accept() as far,
            ):
                times = [await round_trip(near, far) for _ in range(3)]
        assert is_listening(port)
    assert min(times) >= 2 * delay * links
    assert not is_listening(port)


def test_a_link_that_cannot_be_is_refused() -> None:
    with pytest.raises(MalformedError, match=r"delay is 0 to 1 seconds, not -0\.1"):
        PrivateTorNetwork(link_delay=-0.1)
    with pytest.raises(MalformedError, match="rate is at least 1 byte a second, not 0"):
        PrivateTorNetwork(link_rate=0)


async def test_failed_step_is_named_and_cleaned_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, processes_of: FindProcesses
) -> None:
    monkeypatch.setattr(tor, "STEP_TIMEOUT", 0.0)
    with pytest.raises(TransportUnavailableError, match="making the authority's keys"):
        await PrivateTorNetwork(tmp_path).__aenter__()
    assert processes_of(tmp_path) == []


async def test_too_few_relays_are_refused() -> None:
    with pytest.raises(TransportUnavailableError, match="at least 3 relays"):
        await PrivateTorNetwork(relays=2).__aenter__()


async def test_long_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TransportUnavailableError, match="too long"):
        await PrivateTorNetwork(tmp_path / ("x" * 100)).__aenter__()


async def test_missing_tor_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(process, "_MORE_PLACES", ())
    with pytest.raises(TransportUnavailableError, match="apt install tor"):
        await PrivateTorNetwork().__aenter__()


def test_the_command_keeps_the_links_that_it_was_told() -> None:
    words = [sys.executable, "-m", "overlay_cli", "--json", "testnet", "tor"]
    with subprocess.Popen([*words, "--link-delay", "0.01"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        torrc = Path(json.loads(process.stdout.readline())["torrc"])
        port = advertised_port(torrc)
        assert "NoListen" in (torrc.parent / "relay0" / "torrc").read_text(encoding="utf-8")
        assert is_listening(port)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert not is_listening(port)
    assert not torrc.exists()
