"""The outbox: carries new events to the other participants, each at its own speed."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import anyio
from anyio.abc import TaskGroup, TaskStatus

from overlay.chat.messages import MAX_PAGE_EVENTS, PAGE_BYTES
from overlay.chat.session import Participant, Session
from overlay.errors import OverlayError
from overlay.units.locators import UnitLocator

logger = logging.getLogger(__name__)

MAX_QUEUED = 256
"""Events for one participant while its node is dialled; later ones come to it when histories meet."""

PushEvents = Callable[[Session, UnitLocator, Sequence[bytes]], Awaitable[None]]


class Outbox:
    """Pushes events in the order in which they were posted, to each participant by a task of its own.

    It promises nothing: what cannot be pushed is dropped, because histories are brought together anyway as
    soon as the participant is met again.

    Args:
        push: brings at most one page of events to a participant.
    """

    def __init__(self, push: PushEvents) -> None:
        self._push = push
        self._queues: dict[tuple[bytes, bytes], deque[bytes]] = {}
        self._group: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Carry until cancelled."""
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                task_status.started()
                await anyio.sleep_forever()
        finally:
            self._group = None

    def post(self, session: Session, to: Participant, encoded: bytes) -> None:
        """Have an event carried to a participant; while the outbox does not run, nothing is carried."""
        if self._group is None:
            return
        key = (session.public, to.author)
        if key not in self._queues:
            self._queues[key] = deque(maxlen=MAX_QUEUED)
            self._group.start_soon(self._carry, session, to)
        self._queues[key].append(encoded)

    async def _carry(self, session: Session, to: Participant) -> None:
        key = (session.public, to.author)
        queue = self._queues[key]
        try:
            while queue and not session.closed:
                await self._push(session, to.locator, _next_page(queue))
        except OverlayError as error:
            logger.debug("events were not carried to a participant: %s", error.code)
        finally:
            del self._queues[key]


def _next_page(queue: deque[bytes]) -> list[bytes]:
    page = [queue.popleft()]
    room = PAGE_BYTES - len(page[0])
    while queue and len(queue[0]) <= room and len(page) < MAX_PAGE_EVENTS:
        room -= len(queue[0])
        page.append(queue.popleft())
    return page
