"""`overlay testnet`: private networks in the foreground."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from overlay.testing.i2p import serve_private_i2p_network
from overlay.testing.tor import serve_private_network


async def run_tor(directory: Path | None, relays: int, announce: Callable[[Path], None]) -> None:
    """Run a private Tor network until cancelled.

    Args:
        directory: where its nodes keep their files; None for a temporary one, removed at the end.
        relays: relays beside the authority, at least 3.
        announce: called with the path of `client.torrc` when clients can start.

    Raises:
        TransportUnavailableError: tor is missing, or the network did not start.
    """
    await serve_private_network(directory, relays, lambda network: announce(network.client_torrc))


async def run_i2p(directory: Path | None, routers: int, announce: Callable[[Sequence[str]], None]) -> None:
    """Run a private I2P network until cancelled.

    Args:
        directory: where its routers keep their files; None for a temporary one, removed at the end.
        routers: all of them, at least 8.
        announce: called with the SAM addresses of the client routers when clients can start.

    Raises:
        TransportUnavailableError: i2pd is missing, or the network did not start.
    """
    await serve_private_i2p_network(directory, routers, lambda network: announce(network.sam_addresses))
