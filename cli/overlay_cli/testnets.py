"""What the networks of `overlay testnet` share. Each has a module, since each needs an extra of its own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Coroutine
from pathlib import Path

import anyio

from overlay_cli.signals import wait_for_signal


def folder(options: argparse.Namespace) -> Path | None:
    """Where the network keeps its files; None for a temporary place."""
    return Path(options.dir).absolute() if options.dir else None


def run_until_signal(network: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a network until SIGINT or SIGTERM."""
    anyio.run(_run, network)


async def _run(network: Callable[[], Coroutine[None, None, None]]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(network)
        await wait_for_signal()
        tasks.cancel_scope.cancel()
