from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from overlay.errors import UnreachableError
from overlay.locators import NodeLocator
from overlay.testing.pair import read_exactly
from overlay.transports.i2p import listener as module
from overlay.transports.i2p.listener import MAX_QUEUED, I2pListener
from overlay.transports.i2p.session import SessionMaker, StreamSession
from overlay.transports.i2p.settings import I2pTimeouts, TunnelOptions
from overlay.transports.i2p.streams import AcceptedConnection, connect_to_self
from overlay.transports.i2p.transport import I2P_PROPERTIES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from anyio.abc import TaskGroup

    from overlay.transports.i2p.destination import Destination, PrivateDestination
    from tests.transports.i2p.conftest import FakeRouter

OWN = NodeLocator("garlic32", bytes(32))
ACCEPT = "STREAM ACCEPT"


class Served:
    """A listener that runs, and the sessions that it is given one after the other."""

    def __init__(self, router: FakeRouter, tasks: TaskGroup) -> None:
        self.closed: list[bool] = []
        self.heard: list[bool] = []
        self.listener = I2pListener(
            OWN, I2P_PROPERTIES, lambda: self.heard.append(True), lambda: self.closed.append(True)
        )
        self.waiting = anyio.Event()
        self._maker = SessionMaker(router.address, TunnelOptions(), I2pTimeouts(), os.urandom)
        self._tasks = tasks
        self._current: StreamSession | None = None

    async def next_session(self) -> StreamSession:
        if self._current is None or self._current.lost.is_set():
            self._current = await self._tasks.start(self._keep_session)
        assert self._current is not None
        return self._current

    async def _keep_session(self, *, task_status: anyio.abc.TaskStatus[StreamSession]) -> None:
        async with self._maker.transient() as session:
            task_status.started(session)
            await session.watch()


@asynccontextmanager
async def serving(router: FakeRouter) -> AsyncIterator[Served]:
    async with anyio.create_task_group() as tasks:
        served = Served(router, tasks)
        tasks.start_soon(served.listener.run, served.next_session, served.waiting)
        with anyio.fail_after(10):
            await served.waiting.wait()
        yield served
        await served.listener.aclose()
        tasks.cancel_scope.cancel()
    await router.until(lambda: all(connection.closed for connection in router.connections))


@pytest.fixture
def caller(make_destination: Callable[[int], PrivateDestination]) -> Destination:
    return make_destination(7).public


def session_of(router: FakeRouter) -> str:
    (identifier,) = router.sessions
    return identifier


async def test_who_calls_and_what_comes_early(fake_router: FakeRouter, caller: Destination) -> None:
    async with serving(fake_router) as served:
        far = await fake_router.call(session_of(fake_router), caller, b"early")
        async with await served.listener.accept() as accepted:
            assert isinstance(accepted, AcceptedConnection)
            assert accepted.caller == caller.locator
            assert accepted.locator == OWN == served.listener.locators[0]
            assert accepted.properties == I2P_PROPERTIES
            assert served.heard == [True]
            assert await read_exactly(accepted, 5) == b"early"
            assert served.heard == [True, True]
            await accepted.send(b"answer")
            assert await far.receive_exactly(6) == b"answer"
        await far.ended()


async def test_one_accept_waits_at_a_time(fake_router: FakeRouter, caller: Destination) -> None:
    async with serving(fake_router) as served:
        for count in range(1, 20):
            await fake_router.seen(ACCEPT, count)
            await anyio.wait_all_tasks_blocked()
            assert len(fake_router.waiting()) == 1
            await fake_router.call(session_of(fake_router), caller)
        for _ in range(19):
            await (await served.listener.accept()).aclose()


async def test_a_full_queue_leaves_callers_to_the_router(
    fake_router: FakeRouter, caller: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED", 2)
    async with serving(fake_router) as served:
        for _ in range(2):
            await fake_router.call(session_of(fake_router), caller)
        await anyio.wait_all_tasks_blocked()
        assert fake_router.waiting() == []
        await (await served.listener.accept()).aclose()
        await fake_router.call(session_of(fake_router), caller)
    assert MAX_QUEUED == 128


async def test_a_cancelled_accept_loses_nobody(fake_router: FakeRouter, caller: Destination) -> None:
    async with serving(fake_router) as served:
        for pause in (0, 0.001, 0.01):
            with anyio.move_on_after(pause):
                await served.listener.accept()
        await fake_router.call(session_of(fake_router), caller, b"one")
        for _ in range(5):
            with anyio.move_on_after(0):
                await served.listener.accept()
        async with await served.listener.accept() as first:
            assert await read_exactly(first, 3) == b"one"
        await fake_router.call(session_of(fake_router), caller, b"two")
        async with await served.listener.accept() as second:
            assert await read_exactly(second, 3) == b"two"


async def test_several_tasks_accept(fake_router: FakeRouter, caller: Destination) -> None:
    async with serving(fake_router) as served:
        seen = []

        async def accept() -> None:
            async with await served.listener.accept() as accepted:
                seen.append(await read_exactly(accepted, 1))

        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(accept)
                await fake_router.call(session_of(fake_router), caller, bytes([number]))
        assert sorted(seen) == [b"\0", b"\1", b"\2"]


@pytest.mark.parametrize("line", [b"hello\n", b"A" * 524 + b"\n", b"\n", b"x" * 10_000])
async def test_a_line_that_is_no_destination_is_dropped(
    fake_router: FakeRouter, caller: Destination, line: bytes
) -> None:
    async with serving(fake_router) as served:
        (liar,) = fake_router.waiting()
        liar.caller = caller
        await liar.send(line)
        await liar.ended()
        await fake_router.call(session_of(fake_router), caller, b"next")
        async with await served.listener.accept() as accepted:
            assert await read_exactly(accepted, 4) == b"next"


async def test_a_slow_line_holds_nobody_up(
    fake_router: FakeRouter, caller: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(fake_router) as served:
        (slow,) = fake_router.waiting()
        slow.caller = caller
        await slow.send(caller.base64.encode()[:100])
        await fake_router.call(session_of(fake_router), caller, b"next")
        async with await served.listener.accept() as accepted:
            assert await read_exactly(accepted, 4) == b"next"
        await slow.send(caller.base64.encode()[100:] + b"\nlate")
        async with await served.listener.accept() as late:
            assert await read_exactly(late, 4) == b"late"
        monkeypatch.setattr(module, "LINE_TIMEOUT", 0.01)
        await fake_router.until(fake_router.waiting)
        (stuck,) = fake_router.waiting()
        await stuck.send(b"A")
        await stuck.ended()


async def test_a_dropped_accept_is_made_again(
    fake_router: FakeRouter, caller: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    async with serving(fake_router) as served:
        (dropped,) = fake_router.waiting()
        fake_router.script(
            ACCEPT,
            fake_router.hang_up(),
            fake_router.reply('STREAM STATUS RESULT=I2P_ERROR MESSAGE="Already accepting"', close=True),
            fake_router.cut("STREAM STATUS RESULT=OK", 10),
        )
        await dropped.aclose()
        await fake_router.seen(ACCEPT, 5)
        await fake_router.call(session_of(fake_router), caller)
        await (await served.listener.accept()).aclose()


async def test_pauses_between_dropped_accepts_grow(
    fake_router: FakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    async with serving(fake_router):
        (dropped,) = fake_router.waiting()
        fake_router.always(ACCEPT, fake_router.hang_up())
        await dropped.aclose()
        began = anyio.current_time()
        await fake_router.seen(ACCEPT, 5)
        assert anyio.current_time() - began >= 0.01 + 0.02 + 0.04 + 0.08


async def test_a_session_that_the_router_forgot_is_given_up(
    fake_router: FakeRouter, caller: Destination
) -> None:
    async with serving(fake_router) as served:
        first = session_of(fake_router)
        fake_router.script(ACCEPT, fake_router.reply("STREAM STATUS RESULT=INVALID_ID", close=True))
        await fake_router.call(first, caller)
        await fake_router.until(
            lambda: first not in fake_router.sessions and any(map(fake_router.waiting, fake_router.sessions))
        )
        await fake_router.call(session_of(fake_router), caller)
        for _ in range(2):
            await (await served.listener.accept()).aclose()


async def test_goes_on_with_the_next_session(fake_router: FakeRouter, caller: Destination) -> None:
    async with serving(fake_router) as served:
        first = session_of(fake_router)
        await fake_router.lose(first)
        await fake_router.until(
            lambda: first not in fake_router.sessions and any(map(fake_router.waiting, fake_router.sessions))
        )
        await fake_router.call(session_of(fake_router), caller, b"again")
        async with await served.listener.accept() as accepted:
            assert await read_exactly(accepted, 5) == b"again"


async def test_closing_ends_waits_and_turns_the_queue_away(
    fake_router: FakeRouter, caller: Destination
) -> None:
    async with serving(fake_router) as served:
        kept = await fake_router.call(session_of(fake_router), caller)
        accepted = await served.listener.accept()
        ended = []

        async def accept() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await served.listener.accept()
            ended.append(True)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(accept)
            await anyio.wait_all_tasks_blocked()
            await served.listener.aclose()
        assert ended == served.closed == [True]
        await accept()
        await served.listener.aclose()
        assert fake_router.waiting() == []
        await accepted.send(b"still here")
        assert await kept.receive_exactly(10) == b"still here"
        await accepted.aclose()


async def test_closing_turns_away_who_is_in_the_queue(fake_router: FakeRouter, caller: Destination) -> None:
    async with serving(fake_router) as served:
        queued = await fake_router.call(session_of(fake_router), caller)
        await fake_router.until(fake_router.waiting)
        (slow,) = fake_router.waiting()
        await slow.send(b"A")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await served.listener.aclose()
        await served.listener.aclose()
        await queued.ended()
        await slow.ended()


async def test_connections_from_within(fake_router: FakeRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED", 2)  # one is for the ACCEPT that waits
    async with serving(fake_router) as served:
        near, far = await connect_to_self()
        served.listener.offer(far, OWN)
        async with near, await served.listener.accept() as accepted:
            await near.send(b"hello")
            assert await accepted.receive() == b"hello"
        near, far = await connect_to_self()
        async with near, far:
            served.listener.offer(far, OWN)
            with pytest.raises(UnreachableError, match="takes no more connections"):
                served.listener.offer(far, OWN)
