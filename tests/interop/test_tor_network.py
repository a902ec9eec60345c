"""The private Tor network that tests and demonstrations use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from overlay.errors import TransportUnavailableError
from overlay.testing import tor
from overlay.testing.tor import PrivateTorNetwork, serve_private_network
from overlay.transports.tor import process

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

    async def serve() -> None:
        with anyio.CancelScope() as scope:

            def ready(network: PrivateTorNetwork) -> None:
                left.append(network.directory)
                assert len(processes_of(network.directory)) == 4
                scope.cancel()

            await serve_private_network(None, 3, ready)

    assert tor_network.client_torrc.exists()  # two networks live side by side
    with start_blocking_portal("trio") as portal:
        portal.call(serve)
    assert not left[0].exists()
    assert processes_of(left[0]) == []


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
