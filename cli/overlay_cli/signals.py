"""Ending a command by a signal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import anyio


async def wait_for_signal() -> None:
    """Wait for SIGINT or SIGTERM.

    A second one finds the default handlers again, and ends a process that does not end by itself.
    """
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            break


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as an error would for the length of a block, which then cleans up.

    One that is ignored, as SIGHUP under nohup, stays so.

    Raises:
        SystemExit: one of them came; the exit code is 128 and its number, as shells have it.
    """
    heeded = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]
    before = {number: signal.signal(number, _leave) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
