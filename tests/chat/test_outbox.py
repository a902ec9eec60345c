from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import anyio
import pytest

from overlay.chat.messages import PAGE_BYTES
from overlay.chat.outbox import LONGEST_PAUSE, MAX_DIALS, MAX_PLACES, MAX_QUEUED, Outbox
from overlay.chat.session import Participant, Session
from overlay.errors import RefusedError, UnreachableError
from overlay.identity import NodeIdentifier
from overlay.units.locators import UnitLocator


def participant(number: int) -> Participant:
    key = bytes([number]) * 32
    return Participant(key, "somebody", NodeIdentifier(key), bytes(92), 0, (2, key))


def impostors(count: int) -> list[Participant]:
    """They name the node of number 1, with places that are not of it."""
    keys = [bytes([2, number]).ljust(32, b"\0") for number in range(count)]
    return [Participant(key, "liar", participant(1).node, b"?" * 92, 0, (2, key)) for key in keys]


SESSION = cast("Session", SimpleNamespace(public=b"s" * 32, closed=False))


class Line:
    """Where pushes end; nothing goes through until the test lets it."""

    def __init__(self) -> None:
        self.came: list[tuple[NodeIdentifier, list[bytes]]] = []
        self.away: set[NodeIdentifier] = set()
        self.refused = 0
        self.dialling = self.most_dialling = 0
        self.open = anyio.Event()
        self.more = anyio.Event()

    async def push(self, _session: Session, other: UnitLocator, events: Sequence[bytes]) -> None:
        if other.place != bytes(92):
            self.refused += 1
            raise RefusedError("no such place")
        self.dialling += 1
        self.most_dialling = max(self.most_dialling, self.dialling)
        await self.open.wait()
        self.dialling -= 1
        if other.node in self.away:
            raise UnreachableError("away")
        self.came.append((other.node, list(events)))
        self.more.set()
        self.more = anyio.Event()

    def connected(self, node: NodeIdentifier) -> bool:
        return node not in self.away

    async def wait_for(self, count: int) -> None:
        with anyio.fail_after(5):
            while sum(len(events) for _, events in self.came) < count:
                await self.more.wait()


@asynccontextmanager
async def carrying(line: Line) -> AsyncIterator[Outbox]:
    outbox = Outbox(line.push, connected=line.connected)
    async with anyio.create_task_group() as group:
        await group.start(outbox.run)
        yield outbox
        group.cancel_scope.cancel()


async def test_events_arrive_in_order_and_what_waits_travels_together() -> None:
    line = Line()
    async with carrying(line) as outbox:
        for number in range(10):
            outbox.post(SESSION, [participant(1)], bytes([number]))
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
            outbox.post(SESSION, [participant(1)], bytes(PAGE_BYTES // 2))
        await line.wait_for(5)
    assert [len(events) for _, events in line.came] == [2, 2, 1]


async def test_one_who_is_away_holds_up_nobody_and_is_forgotten() -> None:
    line = Line()
    line.away.add(participant(1).node)
    line.open.set()
    async with carrying(line) as outbox:
        for number in (1, 2):
            outbox.post(SESSION, [participant(number)], b"hello")
        await line.wait_for(1)
        await anyio.wait_all_tasks_blocked()
        line.away.clear()
        outbox.post(SESSION, [participant(1)], b"again")
        await line.wait_for(2)
    assert line.came == [(participant(2).node, [b"hello"]), (participant(1).node, [b"again"])]


async def test_what_waits_for_one_who_does_not_answer_is_bounded() -> None:
    line = Line()
    async with carrying(line) as outbox:
        for number in range(3 * MAX_QUEUED):
            outbox.post(SESSION, [participant(1)], number.to_bytes(2))
        line.open.set()
        await line.wait_for(MAX_QUEUED)
    assert line.came[-1][1][-1] == (3 * MAX_QUEUED - 1).to_bytes(2)
    assert sum(len(events) for _, events in line.came) == MAX_QUEUED


async def test_nothing_is_carried_for_a_session_that_was_left_or_while_nothing_runs() -> None:
    line = Line()
    line.open.set()
    Outbox(line.push, connected=line.connected).post(SESSION, [participant(1)], b"too early")
    closed = cast("Session", SimpleNamespace(public=b"c" * 32, closed=True))
    async with carrying(line) as outbox:
        outbox.post(closed, [participant(1)], b"too late")
        outbox.post(SESSION, [participant(1)], b"hello")
        await line.wait_for(1)
    assert line.came == [(participant(1).node, [b"hello"])]


async def test_a_node_that_many_participants_name_gets_each_event_once() -> None:
    line = Line()
    line.open.set()
    copies = [replace(participant(1), author=bytes([2, number]) * 16) for number in range(50)]
    async with carrying(line) as outbox:
        outbox.post(SESSION, [participant(1), *copies], b"hello")
        await line.wait_for(1)
        await anyio.wait_all_tasks_blocked()
    assert line.came == [(participant(1).node, [b"hello"])]


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)  # an hour of virtual time
async def test_participants_whom_their_node_does_not_know_are_hardly_tried() -> None:
    line = Line()
    line.open.set()
    async with carrying(line) as outbox:
        for _ in range(3600):
            before = line.refused
            outbox.post(SESSION, impostors(20), b"hello")
            await anyio.sleep(1)
            assert line.refused - before <= MAX_PLACES
    assert line.refused <= 20 * (8 + 3600 / LONGEST_PAUSE)


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
async def test_impostors_do_not_keep_events_from_whoever_is_at_a_node() -> None:
    line = Line()
    line.open.set()
    async with carrying(line) as outbox:
        for number in range(100):
            outbox.post(SESSION, [*impostors(20), participant(1)], bytes([number]))
            await anyio.sleep(30)
    lost = 20 // MAX_PLACES
    assert [events for _, events in line.came] == [[bytes([number])] for number in range(lost, 100)]
    assert line.refused == 20


async def test_nodes_that_are_dialled_at_once_are_few_and_hold_up_nobody_else() -> None:
    line = Line()
    friend = participant(255)
    strangers = [participant(number) for number in range(100)]
    line.away = {each.node for each in strangers}
    async with carrying(line) as outbox:
        outbox.post(SESSION, [*strangers, friend], b"hello")
        await anyio.wait_all_tasks_blocked()
        assert line.most_dialling == MAX_DIALS + 1
        line.open.set()
        await line.wait_for(1)
    assert line.came == [(friend.node, [b"hello"])]
