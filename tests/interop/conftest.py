"""Real networks for the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from overlay.locators import NodeLocator
from overlay.testing.i2p import PrivateI2pNetwork
from overlay.testing.tor import PrivateTorNetwork
from overlay.transports.i2p.settings import AttachedRouter, I2pTimeouts, TunnelOptions
from overlay.transports.i2p.transport import I2pTransport
from overlay.transports.tor.settings import ONION_PORT, LaunchedTor, TorTimeouts
from overlay.transports.tor.transport import TorTransport

NOBODY_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()

LOCAL_TIMEOUTS = TorTimeouts(dial=15.0, start=30.0, stall=30.0, publish=30.0, reply=20.0)
"""A private network is fast; a machine that runs other tests beside is not."""


LOCAL_I2P_TIMEOUTS = I2pTimeouts(dial=12.0, create=60.0, round_trip=0.1)
"""A dial outlasts one search for a destination that nobody publishes, which takes 10 s."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the first test of a session time to start the network."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(180))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Real sockets and processes need a real clock; a whole session shares what is costly to start."""
    return "asyncio"


@pytest.fixture(scope="session")
def nobody() -> NodeLocator:
    """An onion service that could be, and is not."""
    return NodeLocator("onion3", NOBODY_KEY, ONION_PORT)


@pytest.fixture(scope="session")
def tor_transport(
    tor_network: PrivateTorNetwork, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], TorTransport]:
    """Make transports on the private network, by a name that stands for their directory; not yet entered."""

    def make(name: str) -> TorTransport:
        home = tmp_path_factory.getbasetemp() / f"tor-{name}"
        if not home.exists():
            tor_network.seed(home / "tor")
        launched = LaunchedTor(home / "tor", extra_torrc=tor_network.client_torrc)
        return TorTransport(launched, key_path=home / "onion.key", timeouts=LOCAL_TIMEOUTS)

    return make


@pytest.fixture(scope="session")
def i2p_transport(
    i2p_network: PrivateI2pNetwork, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], I2pTransport]:
    """Make transports on the private network, by a name that stands for their key, and a router's number."""

    def make(name: str, router: int) -> I2pTransport:
        return I2pTransport(
            AttachedRouter(i2p_network.sam_addresses[router]),
            key_path=tmp_path_factory.getbasetemp() / f"i2p-{name}.key",
            tunnels=TunnelOptions(length=1),
            timeouts=LOCAL_I2P_TIMEOUTS,
        )

    return make


@pytest.fixture(scope="session")
def processes_of() -> Callable[[Path], list[int]]:
    """Find the tors that were started with a file of a directory as their configuration."""

    def find(directory: Path) -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:  # ended meanwhile
                continue
            if os.fsencode(f"{directory}/") in command and b"tor\0" in command:
                found.append(int(entry.name))
        return found

    return find
