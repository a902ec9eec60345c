"""`overlay testnet`: private networks in the foreground."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from overlay.testing.i2p import PrivateI2pNetwork
from overlay.testing.serving import serve
from overlay.testing.tor import PrivateTorNetwork


async def run_tor(
    directory: Path | None,
    relays: int,
    announce: Callable[[Path], None],
    *,
    link_delay: float = 0.0,
    link_rate: int | None = None,
) -> None:
    """Run a private Tor network until cancelled.

    Args:
        directory: where its nodes keep their files; None for a temporary one, removed at the end.
        relays: relays beside the authority, at least 3.
        announce: called with the path of `client.torrc` when clients can start.
        link_delay: seconds that bytes are on their way to a relay, and back.
        link_rate: bytes a second that go to a relay, and back; None for no limit.

    Raises:
        MalformedError: a delay or a rate that no link can have.
        TransportUnavailableError: tor is missing, or the network did not start.
    """
    network = PrivateTorNetwork(directory, relays, link_delay=link_delay, link_rate=link_rate)
    await serve(network, lambda ready: announce(ready.client_torrc))


async def run_i2p(directory: Path | None, routers: int, announce: Callable[[Sequence[str]], None]) -> None:
    """Run a private I2P network until cancelled.

    Args:
        directory: where its routers keep their files; None for a temporary one, removed at the end.
        routers: all of them, at least 8.
        announce: called with the SAM addresses of the client routers when clients can start.

    Raises:
        TransportUnavailableError: i2pd is missing, or the network did not start.
    """
    await serve(PrivateI2pNetwork(directory, routers), lambda ready: announce(ready.sam_addresses))
