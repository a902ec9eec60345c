"""Greetings that show whether a router still answers: one that hangs keeps its sockets open."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup

from overlay.errors import OverlayError, TransportUnavailableError
from overlay.transports.i2p.sam import open_sam
from overlay.transports.i2p.settings import I2pTimeouts

GREETING_INTERVAL = 30.0
"""Seconds between greetings, which cost two short lines each. With `MISSES` of them, a router that hangs is
noticed before a dial through it has failed."""

MISSES = 2
"""Greetings in a row without an answer after which a router is given up: one may come of a computer
that is busy, and giving up ends all connections."""

_MUTE = "the I2P router does not answer any more"


def _nothing() -> str:
    return ""


@asynccontextmanager
async def while_it_answers(
    address: tuple[str, int],
    timeouts: I2pTimeouts,
    *,
    heard: Callable[[], int],
    complaint: Callable[[], str] = _nothing,
) -> AsyncIterator[TaskGroup]:
    """Greet a router for the length of a block, and end the block when it does not answer.

    Args:
        address: of the router's SAM bridge.
        timeouts: `hello` is the limit for an answer.
        heard: how often something came from the router; one that brings something is not given up.
        complaint: asked after each greeting; what it says ends the block too, unless it is empty.

    Yields:
        a group for tasks that end with the block.

    Raises:
        TransportUnavailableError: the router does not answer, or there was a complaint, which is the message.
        failure: an OverlayError of the block, as it is.
    """
    failure: OverlayError | None = None
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            nonlocal failure
            failure = TransportUnavailableError(await _wait_complaint(address, timeouts, heard, complaint))
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            yield tasks
        except OverlayError as error:
            failure = failure or error  # the group would wrap it
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _wait_complaint(
    address: tuple[str, int], timeouts: I2pTimeouts, heard: Callable[[], int], complaint: Callable[[], str]
) -> str:
    misses, why = 0, ""
    while not why:
        await anyio.sleep(GREETING_INTERVAL)
        before = heard()
        alive = await answers(address, timeouts) or heard() != before
        misses = 0 if alive else misses + 1
        why = _MUTE if misses == MISSES else complaint()
    return why


async def answers(address: tuple[str, int], timeouts: I2pTimeouts) -> bool:
    """Tell whether a router that was open still answers.

    Args:
        address: of its SAM bridge.
        timeouts: `hello` is the limit.

    Returns:
        False when nothing came in time. What fails otherwise is no sign of that: a router that ended closes
        its sessions' sockets, which is seen there, and this process may have no descriptor left.
    """
    try:
        await (await open_sam(address, timeouts)).aclose()
    except TransportUnavailableError as error:
        return not isinstance(error.__cause__, TimeoutError)
    return True
