from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast

import anyio

from overlay.chat.messages import PAGE_BYTES
from overlay.chat.outbox import MAX_QUEUED, Outbox
from overlay.chat.session import Participant, Session
from overlay.errors import UnreachableError
from overlay.identity import NodeIdentifier
from overlay.units.locators import UnitLocator


def participant(number: int) -> Participant:
    key = bytes([number]) * 32
    return Participant(key, "somebody", NodeIdentifier(key), bytes(92), 0, (2, key))


SESSION = cast("Session", SimpleNamespace(public=b"s" * 32, closed=False))


class Line:
    """Where pushes end; nothing goes through until the test lets it."""

    def __init__(self) -> None:
        self.came: list[tuple[NodeIdentifier, list[bytes]]] = []
        self.away: set[NodeIdentifier] = set()
        self.open = anyio.Event()
        self.more = anyio.Event()

    async def push(self, _session: Session, other: UnitLocator, events: Sequence[bytes]) -> None:
        await self.open.wait()
        if other.node in self.away:
            raise UnreachableError("away")
        self.came.append((other.node, list(events)))
        self.more.set()
        self.more = anyio.Event()

    async def wait_for(self, count: int) -> None:
        with anyio.fail_after(5):
            while sum(len(events) for _, events in self.came) < count:
                await self.more.wait()


@asynccontextmanager
async def carrying(line: Line) -> AsyncIterator[Outbox]:
    outbox = Outbox(line.push)
    async with anyio.create_task_group() as group:
        await group.start(outbox.run)
        yield outbox
        group.cancel_scope.cancel()


async def test_events_arrive_in_order_and_what_waits_travels_together() -> None:
    line = Line()
    async with carrying(line) as outbox:
        for number in range(10):
            outbox.post(SESSION, participant(1), bytes([number]))
            await anyio.lowlevel.checkpoint()
        line.open.set()
        await line.wait_for(10)
    assert b"".join(event for _, events in line.came for event in events) == bytes(range(10))
    assert len(line.came) == 2


async def test_a_page_has_its_largest_size() -> None:
    line = Line()
    line.open.set()
    async with carrying(line) as outbox:
        for _ in range(5):
            outbox.post(SESSION, participant(1), bytes(PAGE_BYTES // 2))
        await line.wait_for(5)
    assert [len(events) for _, events in line.came] == [2, 2, 1]


async def test_one_who_is_away_holds_up_nobody_and_is_forgotten() -> None:
    line = Line()
    line.away.add(participant(1).node)
    line.open.set()
    async with carrying(line) as outbox:
        for number in (1, 2):
            outbox.post(SESSION, participant(number), b"hello")
        await line.wait_for(1)
        line.away.clear()
        outbox.post(SESSION, participant(1), b"again")
        await line.wait_for(2)
    assert line.came == [(participant(2).node, [b"hello"]), (participant(1).node, [b"again"])]


async def test_what_waits_for_one_who_does_not_answer_is_bounded() -> None:
    line = Line()
    async with carrying(line) as outbox:
        for number in range(3 * MAX_QUEUED):
            outbox.post(SESSION, participant(1), number.to_bytes(2))
        line.open.set()
        await line.wait_for(MAX_QUEUED)
    assert line.came[-1][1][-1] == (3 * MAX_QUEUED - 1).to_bytes(2)
    assert sum(len(events) for _, events in line.came) == MAX_QUEUED


async def test_nothing_is_carried_for_a_session_that_was_left_or_while_nothing_runs() -> None:
    line = Line()
    line.open.set()
    Outbox(line.push).post(SESSION, participant(1), b"too early")
    closed = cast("Session", SimpleNamespace(public=b"c" * 32, closed=True))
    async with carrying(line) as outbox:
        outbox.post(closed, participant(1), b"too late")
        outbox.post(SESSION, participant(1), b"hello")
        await line.wait_for(1)
    assert line.came == [(participant(1).node, [b"hello"])]
