"""`overlay testnet i2p`: a private I2P network in the foreground."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from overlay.testing.i2p import PrivateI2pNetwork
from overlay.testing.serving import serve
from overlay_cli.exit_codes import DONE
from overlay_cli.output import Output
from overlay_cli.testnets import folder, run_until_signal


def i2p(options: argparse.Namespace, output: Output) -> int:
    """Run a private I2P network until SIGINT or SIGTERM."""

    def announce(addresses: Sequence[str]) -> None:
        lines = [f"overlay up --transport i2p --sam {address}" for address in addresses]
        output.data({"sam": list(addresses)}, "\n".join(lines))

    run_until_signal(partial(run_i2p, folder(options), options.routers, announce))
    return DONE


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
