"""Pipes: order, bounds, delays and ends, in virtual time where it matters."""

from __future__ import annotations

import math

import anyio
import pytest

from overlay.testing.pair import pattern, read_to_end
from overlay.transports.memory.conditions import PerfectConditions
from overlay.transports.memory.network import Link
from overlay.transports.memory.pipe import BUFFER_BYTES


class Scripted(PerfectConditions):
    """Gives each piece the next of a list of delays."""

    def __init__(self, *delays: float | None) -> None:
        self.delays = list(delays)

    def carry(self, size: int, *, outward: bool) -> float | None:  # type: ignore[override]  # noqa: ARG002
        return self.delays.pop(0)


def link(*delays: float | None) -> Link:
    conditions = Scripted(*delays) if delays else PerfectConditions()
    return Link(1, 2, conditions, lambda link: None)  # noqa: ARG005 - who is over does not matter


async def test_sender_waits_for_the_buffer_and_goes_on_when_there_is_room() -> None:
    ends = link()
    sent = anyio.Event()

    async def send() -> None:
        await ends.caller_end.send(pattern(0, BUFFER_BYTES + 10))
        sent.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        assert not sent.is_set()
        first = await ends.called_end.receive(10)
        await sent.wait()
        await ends.caller_end.aclose()
        assert first + await read_to_end(ends.called_end) == pattern(0, BUFFER_BYTES + 10)


async def test_pieces_do_not_overtake_each_other() -> None:
    ends = link(0.02, 0.0, 0.0)
    start = anyio.current_time()
    await ends.caller_end.send(b"slow ")
    await ends.caller_end.send(b"fast")
    await ends.caller_end.send_eof()
    assert await read_to_end(ends.called_end) == b"slow fast"
    assert anyio.current_time() - start >= 0.02


async def test_bytes_that_never_arrive_hold_up_those_behind_them() -> None:
    ends = link(math.inf, 0.0)
    await ends.caller_end.send(b"lost in")
    await ends.caller_end.send(b"the dark")
    with anyio.move_on_after(0.01) as scope:
        await ends.called_end.receive()
    assert scope.cancelled_caught


async def test_connection_that_dies_breaks_both_ends_and_loses_what_was_on_the_way() -> None:
    ends = link(0.0, None)
    await ends.caller_end.send(b"on the way")
    await ends.caller_end.send(b"the last straw")
    for end in (ends.caller_end, ends.called_end):
        with pytest.raises(anyio.BrokenResourceError):
            await end.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await end.send(b"more")


async def test_death_wakes_a_waiting_receiver() -> None:
    ends = link(None)

    async def receive() -> None:
        with pytest.raises(anyio.BrokenResourceError):
            await ends.called_end.receive()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        await ends.caller_end.send(b"x")


async def test_closing_the_reader_wakes_a_waiting_sender() -> None:
    ends = link()

    async def send() -> None:
        with pytest.raises(anyio.BrokenResourceError):
            await ends.caller_end.send(bytes(2 * BUFFER_BYTES))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        await ends.called_end.aclose()


async def test_two_tasks_may_not_read_at_once() -> None:
    ends = link()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ends.called_end.receive)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await ends.called_end.receive()
        tasks.cancel_scope.cancel()


async def test_link_is_over_when_both_ends_have_closed_once() -> None:
    over: list[Link] = []
    ends = Link(1, 2, PerfectConditions(), over.append)
    await ends.caller_end.aclose()
    await ends.caller_end.aclose()
    assert not over
    await ends.called_end.aclose()
    assert over == [ends]
