"""`overlay testnet tor`: a private Tor network in the foreground."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path

import anyio

from overlay_cli import testnet
from overlay_cli.exit_codes import DONE
from overlay_cli.output import Output, printable
from overlay_cli.signals import wait_for_signal


def tor(options: argparse.Namespace, output: Output) -> int:
    """Run a private Tor network until SIGINT or SIGTERM."""

    def announce(torrc: Path) -> None:
        output.data({"torrc": str(torrc)}, f"overlay up --torrc {printable(str(torrc))}")

    folder = Path(options.dir).absolute() if options.dir else None
    anyio.run(_run, partial(testnet.run, folder, options.relays, announce))
    return DONE


async def _run(network: Callable[[], Coroutine[None, None, None]]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(network)
        await wait_for_signal()
        tasks.cancel_scope.cancel()
