"""What transports share that rest on something outside: it has to be there, it ends, and it comes back.

Getting online is one async context manager of the transport's. A `Supervisor` enters it, says how that
stands, and enters it again, with growing pauses, whenever what it rests on is lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import anyio
from anyio.abc import TaskGroup, TaskStatus

from overlay.connection import TransportStatus
from overlay.errors import OverlayError

FIRST_BACKOFF = 0.5
"""Seconds before the second attempt to get online; each further one waits twice as long."""

MAX_BACKOFF = 30.0
"""Seconds between attempts at most: a user who repairs something does not wait longer."""

Lost = Callable[[], Awaitable[str]]
"""Waits until a transport is online no more, and says why, in a sentence without full stop; or raises why."""


class Supervisor:
    """Keeps a transport online from `start` to `stop`. May be started again afterwards.

    Args:
        go_online: gets the transport online for the length of a block, and yields what waits for its end.
        report: told of each status.
        again: what is done when it was lost, for people: `starting it`.

    Attributes:
        tasks: for whatever lives as long as the transport is entered; only between `start` and `stop`.
        why: why the transport was lost the last time; empty if it never was.
    """

    tasks: TaskGroup

    def __init__(
        self,
        go_online: Callable[[], AbstractAsyncContextManager[Lost]],
        report: Callable[[TransportStatus], None],
        *,
        again: str,
    ) -> None:
        self._go_online = go_online
        self._report = report
        self._again = again
        self.why = ""

    async def start(self) -> None:
        """Get online, and stay so.

        Raises:
            failure: OverlayError: what went wrong the first time; later failures are tried again.
            Cancelled, nothing runs.
        """
        self.tasks = anyio.create_task_group()
        await self.tasks.__aenter__()
        try:
            failure = await self.tasks.start(self._run)
        except BaseException:  # cancelled, or a bug: what runs in the group must not outlive this
            await self.stop()
            raise
        if failure is not None:
            await self._end()
            self._report(TransportStatus("failed", str(failure)))
            raise failure

    async def stop(self) -> None:
        """End everything; cancelled or not, nothing runs afterwards, and the status says so."""
        try:
            await self._end()
        finally:
            self._report(TransportStatus("stopped"))

    async def _end(self) -> None:
        self.tasks.cancel_scope.cancel()
        # The exception of the transport's block is not the group's business, which would wrap it.
        await self.tasks.__aexit__(None, None, None)

    async def _run(self, *, task_status: TaskStatus[OverlayError | None]) -> None:
        attempt, ready = 0, False
        while True:
            try:
                async with self._go_online() as lost:
                    self._report(TransportStatus("ready", progress=100))
                    if not ready:
                        ready = True
                        task_status.started(None)
                    attempt = 0
                    self.why = await lost()
            except OverlayError as error:
                if not ready:
                    task_status.started(error)
                    return
                self.why = str(error)
            attempt += 1
            self._report(TransportStatus("starting", f"{self.why}; {self._again} again (attempt {attempt})"))
            await anyio.sleep(min(FIRST_BACKOFF * 2 ** (attempt - 1), MAX_BACKOFF))
