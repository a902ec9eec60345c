"""Ending a command that runs in the foreground."""

from __future__ import annotations

import signal

import anyio


async def wait_for_signal() -> None:
    """Wait for SIGINT or SIGTERM.

    A second one finds the default handlers again, and ends a process that does not end by itself.
    """
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            break
