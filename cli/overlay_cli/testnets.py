"""`overlay testnet tor` and `i2p`: private networks in the foreground."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Coroutine, Sequence
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

    run = partial(testnet.run_tor, link_delay=options.link_delay, link_rate=options.link_rate)
    anyio.run(_run, partial(run, _folder(options), options.relays, announce))
    return DONE


def i2p(options: argparse.Namespace, output: Output) -> int:
    """Run a private I2P network until SIGINT or SIGTERM."""

    def announce(addresses: Sequence[str]) -> None:
        lines = [f"overlay up --transport i2p --sam {address}" for address in addresses]
        output.data({"sam": list(addresses)}, "\n".join(lines))

    anyio.run(_run, partial(testnet.run_i2p, _folder(options), options.routers, announce))
    return DONE


def _folder(options: argparse.Namespace) -> Path | None:
    return Path(options.dir).absolute() if options.dir else None


async def _run(network: Callable[[], Coroutine[None, None, None]]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(network)
        await wait_for_signal()
        tasks.cancel_scope.cancel()
