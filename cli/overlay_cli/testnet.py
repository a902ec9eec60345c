"""`overlay testnet tor`: a private Tor network in the foreground."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from overlay.testing.tor import serve_private_network


async def run(directory: Path | None, relays: int, announce: Callable[[Path], None]) -> None:
    """Run a private Tor network until cancelled.

    Args:
        directory: where its nodes keep their files; None for a temporary one, removed at the end.
        relays: relays beside the authority, at least 3.
        announce: called with the path of `client.torrc` when clients can start.

    Raises:
        TransportUnavailableError: tor is missing, or the network did not start.
    """
    await serve_private_network(directory, relays, lambda network: announce(network.client_torrc))
