from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import NamedTuple

import anyio
import pytest

from overlay.channel import driver
from overlay.channel.driver import Channel
from overlay.channel.exchanges import INITIAL_WINDOW, MAX_MESSAGE_BYTES
from overlay.channel.machine import DEFAULT_LIMITS, MAX_REMOTE_EXCHANGES, ChannelLimits
from overlay.channel.streams import Exchange
from overlay.errors import ClosedError, MalformedError, OverlayError, ProtocolViolationError
from tests.channel.conftest import Ends, pipes, shake, virtual_time


class Talk(NamedTuple):
    one: Channel
    two: Channel
    ends: Ends

    async def exchange(self, *, bulk: bool = False) -> tuple[Exchange, Exchange]:
        mine = await self.one.open(bulk=bulk)
        return mine, await self.two.accept()


@asynccontextmanager
async def talking(limits: ChannelLimits = DEFAULT_LIMITS, buffer: float = 4) -> AsyncIterator[Talk]:
    """Two channels that run; both have ended, with their connections closed, afterwards."""
    ends = pipes(buffer)
    one, two = await shake(ends, limits=limits)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.run)
        tasks.start_soon(two.run)
        yield Talk(one, two, ends)
        tasks.cancel_scope.cancel()
    for channel, pipe in zip((one, two), ends, strict=True):
        assert channel.closed
        assert pipe.closed
        await channel.wait_closed()


class Outcome:
    """What became of an awaitable that was started in the background."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.value: object = None
        self.done = anyio.Event()

    async def watch(self, action: Callable[[], Awaitable[object]]) -> None:
        try:
            self.value = await action()
        except (OverlayError, anyio.EndOfStream) as error:
            self.error = error
        self.done.set()


async def outcome(action: Callable[[], Awaitable[object]], then: Callable[[], Awaitable[object]]) -> Outcome:
    """Start `action`, let it wait, do `then`, and give what became of `action`."""
    result = Outcome()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(result.watch, action)
        await anyio.wait_all_tasks_blocked()
        assert not result.done.is_set()
        await then()
    return result


async def nothing() -> None:
    await anyio.lowlevel.checkpoint()


# Exchanges


async def test_a_request_and_its_answer() -> None:
    async with talking() as talk:
        mine, theirs = await talk.exchange(bulk=True)
        assert mine.bulk
        assert theirs.bulk
        await mine.send(b"question")
        await mine.finish()
        assert await theirs.receive() == b"question"
        with pytest.raises(anyio.EndOfStream):
            await theirs.receive()
        await theirs.send(b"answer")
        await theirs.finish()
        await theirs.aclose()
        assert await mine.receive() == b"answer"
        with pytest.raises(anyio.EndOfStream):
            await mine.receive()
        await mine.aclose()
        assert talk.one._shared.inboxes == {}
        assert talk.two._shared.inboxes == {}


async def test_much_more_than_the_windows_flows_both_ways_at_once() -> None:
    message = os.urandom(MAX_MESSAGE_BYTES)

    async def send(exchange: Exchange) -> None:
        for _ in range(60):
            await exchange.send(message)
        await exchange.finish()

    async def receive(exchange: Exchange) -> None:
        for _ in range(60):
            assert await exchange.receive() == message
        with pytest.raises(anyio.EndOfStream):
            await exchange.receive()

    async with talking() as talk:
        mine, theirs = await talk.exchange()
        async with anyio.create_task_group() as tasks:
            for exchange in (mine, theirs):
                tasks.start_soon(send, exchange)
                tasks.start_soon(receive, exchange)


async def test_what_needs_no_waiting_is_sent_and_received_without() -> None:
    async with talking() as talk:
        mine, theirs = await talk.exchange()
        assert theirs.receive_nowait() is None
        sent = 0
        while mine.send_nowait(bytes(10_000)):
            sent += 1
        assert 10 <= sent < 20
        await anyio.wait_all_tasks_blocked()
        received = 0
        while (message := theirs.receive_nowait()) is not None:
            assert message == bytes(10_000)
            received += 1
        assert received == sent - (sent * 10_064 > INITIAL_WINDOW)
        await anyio.wait_all_tasks_blocked()
        assert mine.send_nowait(b"credit was given back")
        await mine.aclose()
        with pytest.raises(ClosedError):
            mine.send_nowait(b"")


async def fill(exchange: Exchange) -> int:
    """Send what may be sent to somebody who does not read; tell how many messages that was."""
    sent = 0
    while exchange.has_room:
        assert exchange.send_nowait(bytes(10_000))
        sent += 1
        await anyio.wait_all_tasks_blocked()
    return sent


async def test_a_sender_can_wait_for_room_and_until_nothing_is_queued() -> None:
    async with talking() as talk:
        mine, theirs = await talk.exchange()
        await mine.wait_for_room()
        await mine.wait_until_sent()
        sent = await fill(mine)

        async def read() -> None:
            for _ in range(sent):
                await theirs.receive()

        for wait in (mine.wait_for_room, mine.wait_until_sent):
            sent += await fill(mine)
            assert (await outcome(wait, read)).error is None
            sent = 0
        assert mine.has_room
        assert not talk.one._machine.has_queued(mine._number)


@pytest.mark.parametrize(
    "end", ["reset", "channel", "both finished", "both finished, reset", "both finished, channel"]
)
async def test_nobody_waits_for_what_will_not_be_sent(end: str) -> None:
    async with talking() as talk:
        mine, theirs = await talk.exchange()
        await fill(mine)

        async def finish() -> None:
            if end.startswith("both finished"):
                await mine.finish()
                await theirs.finish()
                await anyio.wait_all_tasks_blocked()
                if end.endswith("reset"):
                    talk.two._machine.reset(theirs._number)
                    talk.two._shared.outgoing.notify()
                else:
                    await (talk.one if end.endswith("channel") else talk.two).aclose()
            else:
                await (theirs if end == "reset" else talk.one).aclose()

        with anyio.fail_after(5):
            assert (await outcome(mine.wait_until_sent, finish)).error is None
        with pytest.raises(ClosedError):
            await mine.wait_for_room()


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_nobody_waits_for_a_peer_that_took_nothing_when_the_channel_is_over(how: str) -> None:
    ends = pipes()
    one, two = await shake(ends, limits=replace(DEFAULT_LIMITS, goodbye_timeout=0.1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.run)
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await two.run()

        tasks.start_soon(run)
        mine = await one.open()
        await mine.send(b"ask")
        await mine.finish()
        theirs = await two.accept()
        assert await theirs.receive() == b"ask"
        ends.two.stalled = True
        await fill(theirs)
        await theirs.finish()
        await anyio.wait_all_tasks_blocked()

        async def end() -> None:
            if how == "close":
                two.close()
            else:
                scope.cancel()

        with anyio.fail_after(5):
            assert (await outcome(theirs.wait_until_sent, end)).error is None
        assert not two.lost
        tasks.cancel_scope.cancel()


async def test_only_who_waits_for_room_on_an_exchange_is_woken_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with talking() as talk:
        pairs = [await talk.exchange() for _ in range(3)]
        for mine, _ in pairs:
            await fill(mine)
        looked: list[int] = []
        has_room = talk.one._machine.has_room

        def look(number: int) -> bool:
            looked.append(number)
            return has_room(number)

        monkeypatch.setattr(talk.one._machine, "has_room", look)
        async with anyio.create_task_group() as tasks:
            for mine, _ in pairs:
                tasks.start_soon(mine.wait_for_room)
            await anyio.wait_all_tasks_blocked()
            looked.clear()
            chosen, receiving = pairs[1]
            while chosen._number not in looked:
                await receiving.receive()
                await anyio.wait_all_tasks_blocked()
            assert set(looked) == {chosen._number}
            tasks.cancel_scope.cancel()


async def test_exchanges_tell_whether_they_are_of_one_channel() -> None:
    async with talking() as talk, talking() as other:
        first, second, third = [(await each.exchange())[1] for each in (talk, talk, other)]
        assert first.channel == second.channel != third.channel


async def test_a_sender_waits_for_a_receiver_that_does_not_read() -> None:
    async with talking() as talk:
        mine, theirs = await talk.exchange()
        sent = 0
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def flood() -> None:
                    nonlocal sent
                    while True:
                        await mine.send(bytes(10_000))
                        sent += 1

                tasks.start_soon(flood)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        assert 10 <= sent < 40
        for _ in range(sent):
            assert await theirs.receive() == bytes(10_000)
        await mine.send(b"after the cancelled one")
        assert await theirs.receive() == b"after the cancelled one"


async def test_another_exchange_is_not_held_up() -> None:
    async with talking() as talk:
        stuck, _ = await talk.exchange(bulk=True)
        mine, theirs = await talk.exchange()

        async def flood() -> None:
            while True:
                await stuck.send(bytes(60_000))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood)
            await anyio.wait_all_tasks_blocked()
            await mine.send(b"hello")
            assert await theirs.receive() == b"hello"
            tasks.cancel_scope.cancel()


async def test_a_cancelled_receive_loses_nothing() -> None:
    async with talking() as talk:
        mine, theirs = await talk.exchange()
        for _ in range(3):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(theirs.receive)
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await theirs.receive()
        await mine.send(b"still here")
        assert await theirs.receive() == b"still here"


async def test_a_cancelled_accept_or_open_loses_nothing() -> None:
    async with talking() as talk:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk.two.accept)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await talk.one.open()
        mine, theirs = await talk.exchange()
        await mine.send(b"x")
        assert await theirs.receive() == b"x"


async def test_a_sender_that_waits_hears_of_a_finish_here() -> None:
    async with talking() as talk:
        mine, _ = await talk.exchange()

        async def send_on() -> None:
            while True:
                await mine.send(bytes(MAX_MESSAGE_BYTES))

        waiting = await outcome(send_on, mine.finish)
        assert isinstance(waiting.error, ClosedError)


async def test_open_waits_while_the_peer_takes_no_more() -> None:
    async with talking() as talk:
        pairs = [await talk.exchange() for _ in range(MAX_REMOTE_EXCHANGES)]

        async def free_one() -> None:
            for exchange in pairs[0]:
                await exchange.aclose()

        opened = await outcome(talk.one.open, free_one)
        assert isinstance(opened.value, Exchange)


async def test_a_reset_wakes_whoever_waits() -> None:
    async with talking() as talk:
        mine, theirs = await talk.exchange()
        waiting = await outcome(mine.receive, theirs.aclose)
        assert isinstance(waiting.error, ClosedError)
        with pytest.raises(ClosedError):
            await mine.send(b"x")
        for exchange in (mine, theirs):
            await exchange.aclose()
            with pytest.raises(ClosedError):
                await exchange.receive()


async def test_closing_an_exchange_here_wakes_whoever_waits_here() -> None:
    async with talking() as talk:
        mine, _ = await talk.exchange()
        waiting = await outcome(mine.receive, mine.aclose)
        assert isinstance(waiting.error, ClosedError)


async def test_what_was_sent_before_a_finish_arrives_though_the_exchange_was_closed() -> None:
    async with talking() as talk:
        async with await talk.one.open() as mine:
            await mine.send(b"all of it")
            await mine.finish()
        theirs = await talk.two.accept()
        assert await theirs.receive() == b"all of it"
        with pytest.raises(anyio.EndOfStream):
            await theirs.receive()


async def test_an_exchange_that_was_reset_is_not_given_out() -> None:
    async with talking() as talk:
        async with await talk.one.open() as mine:
            await mine.send(b"never mind")
        await anyio.wait_all_tasks_blocked()
        mine, theirs = await talk.exchange()
        await mine.send(b"this one")
        assert await theirs.receive() == b"this one"


async def test_messages_are_bounded() -> None:
    async with talking() as talk:
        mine, _ = await talk.exchange()
        with pytest.raises(MalformedError):
            await mine.send(bytes(MAX_MESSAGE_BYTES + 1))


# How a channel ends


async def test_a_goodbye_brings_what_was_sent_before_it() -> None:
    async with talking() as talk:
        mine = await talk.one.open()
        await mine.send(b"last words")
        await mine.finish()
        await talk.one.aclose()
        assert talk.ends.one.closed
        theirs = await talk.two.accept()
        assert await theirs.receive() == b"last words"
        with pytest.raises(anyio.EndOfStream):
            await theirs.receive()
        with pytest.raises(ClosedError):
            await talk.two.accept()
        await talk.two.wait_closed()


@pytest.mark.parametrize("what", ["open", "accept", "send", "receive"])
@pytest.mark.parametrize("how", ["goodbye", "peer's goodbye", "lost"])
async def test_the_end_of_a_channel_wakes_whoever_waits(what: str, how: str) -> None:
    async with talking() as talk:
        mine, _ = await talk.exchange()
        others = [await talk.exchange() for _ in range(MAX_REMOTE_EXCHANGES - 1)]
        assert others

        async def fill() -> None:
            while True:
                await mine.send(bytes(60_000))

        waits: dict[str, Callable[[], Awaitable[object]]] = {
            "open": talk.one.open,
            "accept": talk.one.accept,
            "send": fill,
            "receive": mine.receive,
        }
        ends: dict[str, Callable[[], Awaitable[object]]] = {
            "goodbye": talk.one.aclose,
            "peer's goodbye": talk.two.aclose,
            "lost": talk.ends.two.aclose,
        }
        assert isinstance((await outcome(waits[what], ends[how])).error, ClosedError)
        with pytest.raises(ClosedError):
            await talk.one.open()


async def test_a_violation_is_told_to_whoever_waits() -> None:
    async with talking() as talk:
        mine, theirs = await talk.exchange()

        async def break_it() -> None:
            talk.ends.two.alter = lambda wire: bytes(len(wire))
            await theirs.send(b"x")

        waiting = await outcome(mine.receive, break_it)
        assert isinstance(waiting.error, ProtocolViolationError)
        assert isinstance(talk.one.error, ProtocolViolationError)
        await talk.two.wait_closed()
        assert isinstance(talk.two.error, ClosedError)


async def test_exchanges_that_nobody_accepts_do_not_pile_up() -> None:
    async with talking() as talk:

        async def push_on_and_on() -> None:
            while True:
                async with await talk.one.open() as exchange:
                    await exchange.send(bytes(1000))
                    await exchange.finish()

        with anyio.fail_after(60), pytest.raises(ClosedError):
            await push_on_and_on()
        await talk.two.wait_closed()
        assert isinstance(talk.two.error, ProtocolViolationError)
        assert len(talk.two._arrived) == driver.MAX_UNACCEPTED


async def test_a_channel_that_never_ran_can_be_closed_and_then_does_not_run() -> None:
    ends = pipes()
    one, two = await shake(ends)
    for channel in (one, two):
        await channel.aclose()
        await channel.run()
        await channel.wait_closed()
    assert ends.one.closed
    assert ends.two.closed


async def test_close_returns_at_once_and_the_goodbye_is_said_all_the_same() -> None:
    async with talking() as talk:
        mine = await talk.one.open()
        await mine.send(b"last words")
        await mine.finish()
        talk.one.close()
        with pytest.raises(ClosedError):
            await talk.one.open()
        assert await (await talk.two.accept()).receive() == b"last words"
        await talk.two.wait_closed()
        await talk.one.wait_closed()
        assert not talk.two.lost


async def test_a_channel_that_was_closed_before_it_runs_says_goodbye() -> None:
    one, two = await shake(pipes())
    one.close()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.run)
        tasks.start_soon(two.run)
    assert not two.lost


async def test_closing_twice_is_closing_once() -> None:
    async with talking() as talk:
        await talk.one.aclose()
        await talk.one.aclose()


async def test_a_cancelled_close_closes_at_once() -> None:
    async with talking() as talk:
        for pipe in talk.ends:
            pipe.stalled = True
        await talk.one.open()
        await anyio.wait_all_tasks_blocked()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await talk.one.aclose()
        await talk.one.wait_closed()
        assert talk.ends.one.closed


async def test_cancelling_run_closes_the_connection_and_wakes_waiters() -> None:
    ends = pipes()
    one, two = await shake(ends)
    result = Outcome()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(result.watch, one.accept)
        async with anyio.create_task_group() as inner:
            inner.start_soon(one.run)
            await anyio.wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
    assert isinstance(result.error, ClosedError)
    assert ends.one.closed
    await two.aclose()


# Time


@virtual_time
async def test_a_goodbye_to_a_peer_that_does_not_read_is_short() -> None:
    async with talking(buffer=0) as talk:
        talk.ends.two.stalled = True
        mine = await talk.one.open()
        await mine.send(bytes(60_000))
        began = anyio.current_time()
        await talk.one.aclose()
        assert anyio.current_time() - began <= DEFAULT_LIMITS.goodbye_timeout
        assert talk.ends.one.closed


@virtual_time
async def test_a_silent_peer_is_noticed() -> None:
    async with talking() as talk:
        mine, _ = await talk.exchange()
        talk.ends.two.stalled = True
        began = anyio.current_time()
        waiting = await outcome(mine.receive, nothing)
        assert isinstance(waiting.error, ClosedError)
        passed = anyio.current_time() - began
        assert passed == pytest.approx(3 * DEFAULT_LIMITS.heartbeat_interval)


@virtual_time
async def test_heartbeats_keep_a_quiet_channel_open() -> None:
    async with talking() as talk:
        mine, theirs = await talk.exchange()
        await anyio.sleep(24 * 3600)
        await mine.send(b"good morning")
        assert await theirs.receive() == b"good morning"


@virtual_time
async def test_a_channel_that_nobody_uses_is_closed() -> None:
    async with talking() as talk:
        mine, theirs = await talk.exchange()
        await anyio.sleep(5_000)
        for exchange in (mine, theirs):
            await exchange.finish()
        began = anyio.current_time()
        await talk.one.wait_closed()
        await talk.two.wait_closed()
        passed = anyio.current_time() - began
        assert passed == DEFAULT_LIMITS.idle_timeout


@virtual_time
async def test_an_idle_timeout_shorter_than_a_heartbeat_is_kept() -> None:
    async with talking(ChannelLimits(idle_timeout=5, heartbeat_interval=1_000)) as talk:
        mine, theirs = await talk.exchange()
        await anyio.sleep(100)
        for exchange in (mine, theirs):
            await exchange.finish()
        began = anyio.current_time()
        await talk.one.wait_closed()
        assert anyio.current_time() - began == 5
