"""Tasks of one piece of work: where one of them fails, the others are of no use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from overlay.errors import OverlayError

Work = Callable[[], Awaitable[None]]
"""What one task does."""

Start = Callable[[Work], None]
"""Starts one more task."""


@asynccontextmanager
async def together() -> AsyncIterator[Start]:
    """Run the tasks that are started in a block, or by one of them, and wait for all.

    The first failure cancels the others, and the block.

    Raises:
        OverlayError: the first that a task has raised, as it is and not in a group.
    """
    failures: list[OverlayError] = []
    async with anyio.create_task_group() as tasks:

        async def attempt(work: Work) -> None:
            try:
                await work()
            except OverlayError as error:
                failures.append(error)
                tasks.cancel_scope.cancel()

        def start(work: Work) -> None:
            tasks.start_soon(attempt, work)

        yield start
    if failures:
        raise failures[0]
