"""The outbox: carries new events to the other participants' nodes, each at its own speed."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup, TaskStatus

from overlay.chat.messages import MAX_PAGE_EVENTS, PAGE_BYTES
from overlay.chat.session import Participant, Session
from overlay.errors import NotFoundError, OverlayError, RefusedError
from overlay.identity import NodeIdentifier
from overlay.units.locators import UnitLocator

logger = logging.getLogger(__name__)

MAX_QUEUED = 256
"""Events for one node while it is dialled; later ones come to it when histories meet."""
MAX_DIALS = 16
"""Nodes at once that are brought something and are not connected: whoever has an invite may name any number
of nodes that do not exist."""
MAX_PLACES = 4
"""Participants who are tried, of those that name one node; more than one of them is a lie."""
FIRST_PAUSE = 5.0
"""Seconds before a participant whom the node that it names refused is tried again, doubled each time: a node
that starts refuses for a moment."""
LONGEST_PAUSE = 900.0
"""Seconds to which that grows."""

PushEvents = Callable[[Session, UnitLocator, Sequence[bytes]], Awaitable[None]]

_Key = tuple[bytes, NodeIdentifier]
"""A session, and a node that takes part in it."""


@dataclass(slots=True)
class _Line:
    """What waits for one node, and who is said to be there."""

    queue: deque[bytes] = field(default_factory=lambda: deque(maxlen=MAX_QUEUED))
    people: dict[bytes, Participant] = field(default_factory=dict)


class Outbox:
    """Pushes events in the order in which they were posted, to each node by a task of its own.

    A participant may name any node as its own, so each event goes to a node once, however many name it, and
    whoever's place the node does not know is tried less and less often.

    It promises nothing: what cannot be pushed is dropped, because histories are brought together anyway as
    soon as the participant is met again.

    Args:
        push: brings at most one page of events to a participant.
        connected: tells whether a channel to a node is open.
    """

    def __init__(self, push: PushEvents, *, connected: Callable[[NodeIdentifier], bool]) -> None:
        self._push = push
        self._connected = connected
        self._dials = anyio.CapacityLimiter(MAX_DIALS)
        self._lines: dict[_Key, _Line] = {}
        # Of participants: how long, and till when.
        self._pauses: dict[tuple[bytes, bytes], tuple[float, float]] = {}
        self._found: dict[_Key, bytes] = {}  # which participant each node knew last
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

    def post(self, session: Session, people: Sequence[Participant], encoded: bytes) -> None:
        """Have an event carried to participants; while the outbox does not run, nothing is carried."""
        if self._group is None:
            return
        for node in {each.node: None for each in people}:
            key = (session.public, node)
            if key not in self._lines:
                self._lines[key] = _Line()
                self._group.start_soon(self._carry, session, key)
            self._lines[key].queue.append(encoded)
        for each in people:
            self._lines[session.public, each.node].people[each.author] = each

    async def _carry(self, session: Session, key: _Key) -> None:
        line = self._lines[key]
        try:
            async with self._place(key[1]):
                while line.queue and not session.closed:
                    await self._push_page(session, key, line)
        except OverlayError as error:
            logger.debug("events were not carried to a participant: %s", error.code)
        finally:
            del self._lines[key]

    @asynccontextmanager
    async def _place(self, node: NodeIdentifier) -> AsyncGenerator[None, None]:
        if self._connected(node):
            yield
        else:
            async with self._dials:
                yield

    async def _push_page(self, session: Session, key: _Key, line: _Line) -> None:
        """Push to whoever of those people the node knows.

        Raises:
            RefusedError, NotFoundError: it knows none of those who were tried.
        """
        page = _next_page(line.queue)
        failure: OverlayError = RefusedError("the node of a participant refused it a moment ago")
        for each in self._worth_trying(key, line):
            try:
                await self._push(session, each.locator, page)
            except (RefusedError, NotFoundError) as error:
                self._pause(session, each)
                failure = error
            else:
                self._found[key] = each.author
                self._pauses.pop((session.public, each.author), None)
                return
        raise failure

    def _worth_trying(self, key: _Key, line: _Line) -> list[Participant]:
        """Whom the node knew last, then who failed least."""
        now = anyio.current_time()

        def pause(each: Participant) -> tuple[float, float]:
            return self._pauses.get((key[0], each.author), (0.0, 0.0))

        free = [each for each in line.people.values() if pause(each)[1] <= now]
        free.sort(key=lambda each: (each.author != self._found.get(key), pause(each)[0]))
        return free[:MAX_PLACES]

    def _pause(self, session: Session, participant: Participant) -> None:
        if not self._connected(participant.node):  # it did not say so itself
            return
        key = (session.public, participant.author)
        pause = min(2 * self._pauses.get(key, (FIRST_PAUSE / 2, 0.0))[0], LONGEST_PAUSE)
        self._pauses[key] = (pause, anyio.current_time() + pause)


def _next_page(queue: deque[bytes]) -> list[bytes]:
    page = [queue.popleft()]
    room = PAGE_BYTES - len(page[0])
    while queue and len(queue[0]) <= room and len(page) < MAX_PAGE_EVENTS:
        room -= len(queue[0])
        page.append(queue.popleft())
    return page
