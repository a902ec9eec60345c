"""`overlay testnet tor`: a private Tor network in the foreground."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from overlay.testing.serving import serve
from overlay.testing.tor import PrivateTorNetwork
from overlay_cli.exit_codes import DONE
from overlay_cli.output import Output, printable
from overlay_cli.testnets import folder, run_until_signal


def tor(options: argparse.Namespace, output: Output) -> int:
    """Run a private Tor network until SIGINT or SIGTERM."""

    def announce(torrc: Path) -> None:
        output.data({"torrc": str(torrc)}, f"overlay up --torrc {printable(str(torrc))}")

    run = partial(run_tor, link_delay=options.link_delay, link_rate=options.link_rate)
    run_until_signal(partial(run, folder(options), options.relays, announce))
    return DONE


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
