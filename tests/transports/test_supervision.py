from __future__ import annotations

from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import anyio
import pytest

from overlay.connection import TransportStatus
from overlay.errors import MalformedError, OverlayError, TransportUnavailableError
from overlay.transports import supervision
from overlay.transports.supervision import FIRST_BACKOFF, MAX_BACKOFF, Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from overlay.transports.supervision import Lost

VIRTUAL = ["trio"]  # anyio has no virtual time on asyncio
GONE = TransportUnavailableError("the router is gone")


@pytest.fixture(autouse=True)
def quick_without_virtual_time(monkeypatch: pytest.MonkeyPatch, anyio_backend_name: str) -> None:
    if anyio_backend_name == "asyncio":
        monkeypatch.setattr(supervision, "FIRST_BACKOFF", 0.002)
        monkeypatch.setattr(supervision, "MAX_BACKOFF", 0.01)


class Outside:
    """What a transport rests on: is there unless a test says otherwise, and is lost when a test says so.

    Attributes:
        supervisor: of this.
        refuses: what the attempts to get online raise, from the first on; None for one that waits for ever.
        attempts: when each was begun.
        online: how often it is entered at the moment.
        statuses: all that were reported, with what `online` was then.
    """

    def __init__(self) -> None:
        self.supervisor = Supervisor(self._go_online, self._report, again="calling it")
        self.refuses: list[Exception | None] = []
        self.attempts: list[float] = []
        self.online = 0
        self.statuses: list[tuple[TransportStatus, int]] = []
        self._loss: Exception | str = ""
        self._lost = anyio.Event()
        self._changed = anyio.Event()

    def lose(self, why: Exception | str) -> None:
        self._loss = why
        self._lost.set()

    async def seen(self, state: str, count: int = 1) -> None:
        """Wait until a status was reported that often."""
        with anyio.fail_after(1000):
            while sum(status.state == state for status, _ in self.statuses) < count:
                await self._changed.wait()

    async def tried(self, count: int) -> None:
        """Wait until getting online was tried that often."""
        with anyio.fail_after(1000):
            while len(self.attempts) < count:
                await self._changed.wait()

    def _report(self, status: TransportStatus) -> None:
        self.statuses.append((status, self.online))
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    @asynccontextmanager
    async def _go_online(self) -> AsyncIterator[Lost]:
        self.attempts.append(anyio.current_time())
        self._wake()
        self.online += 1
        try:
            if self.refuses:
                refusal = self.refuses.pop(0)
                if refusal is None:
                    await anyio.sleep_forever()
                else:
                    raise refusal
            self._lost = anyio.Event()
            yield self._wait_lost
        finally:
            self.online -= 1

    async def _wait_lost(self) -> str:
        await self._lost.wait()
        if isinstance(self._loss, Exception):
            raise self._loss
        return self._loss


@pytest.fixture
def outside() -> Outside:
    return Outside()


def starting(why: str, attempt: int) -> TransportStatus:
    return TransportStatus("starting", f"{why}; calling it again (attempt {attempt})")


READY, STOPPED = TransportStatus("ready", progress=100), TransportStatus("stopped")


async def test_online_from_start_to_stop_and_again(outside: Outside) -> None:
    for _ in range(2):
        await outside.supervisor.start()
        assert outside.online == 1
        await outside.supervisor.stop()
        assert outside.online == 0
    assert outside.statuses == [(READY, 1), (STOPPED, 0)] * 2
    assert outside.supervisor.why == ""


@pytest.mark.parametrize("failure", [GONE, MalformedError("the key is damaged")])
async def test_first_failure_is_raised_and_nothing_is_tried_again(
    outside: Outside, failure: OverlayError
) -> None:
    outside.refuses = [failure]
    with pytest.raises(type(failure)) as raised:
        await outside.supervisor.start()
    assert raised.value is failure
    assert outside.statuses == [(TransportStatus("failed", str(failure)), 0)]
    assert len(outside.attempts) == 1
    await outside.supervisor.start()
    assert outside.statuses[-1] == (READY, 1)
    await outside.supervisor.stop()


@pytest.mark.parametrize("why", ["the router ended", TransportUnavailableError("the router ended")])
async def test_what_is_lost_is_got_again(outside: Outside, why: Exception | str) -> None:
    await outside.supervisor.start()
    outside.lose(why)
    await outside.seen("ready", 2)
    assert outside.supervisor.why == "the router ended"
    await outside.supervisor.stop()
    # What was entered is left before people are told, and before it is entered again.
    assert outside.statuses == [(READY, 1), (starting("the router ended", 1), 0), (READY, 1), (STOPPED, 0)]


async def test_attempts_are_counted_from_the_last_success(outside: Outside) -> None:
    await outside.supervisor.start()
    for _ in range(2):
        outside.refuses = [GONE, MalformedError("the key is damaged")]
        outside.lose("it ended")
        ready = sum(status == READY for status, _ in outside.statuses)
        await outside.seen("ready", ready + 1)
    await outside.supervisor.stop()
    once = [starting("it ended", 1), starting(str(GONE), 2), starting("the key is damaged", 3), READY]
    assert [status for status, _ in outside.statuses] == [READY, *once, *once, STOPPED]


@pytest.mark.parametrize("anyio_backend", VIRTUAL, indirect=True)
async def test_pauses_are_doubled_up_to_the_longest(outside: Outside) -> None:
    await outside.supervisor.start()
    for _ in range(2):  # and they begin anew after a success
        await anyio.sleep(100)
        outside.refuses = [GONE] * 8
        outside.attempts = [anyio.current_time()]
        outside.lose("it ended")
        await outside.tried(10)
        pauses = [later - earlier for earlier, later in pairwise(outside.attempts)]
        assert pauses == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30, 30])
    assert (FIRST_BACKOFF, MAX_BACKOFF) == (0.5, 30.0)
    await outside.supervisor.stop()


async def test_stopped_while_it_gets_online_again(outside: Outside) -> None:
    await outside.supervisor.start()
    outside.refuses = [None]
    outside.lose("it ended")
    await outside.tried(2)
    await outside.supervisor.stop()
    assert (outside.statuses[-1], outside.online) == ((STOPPED, 0), 0)


async def test_stopped_during_a_pause(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_BACKOFF", 1000.0)
    monkeypatch.setattr(supervision, "MAX_BACKOFF", 1000.0)
    await outside.supervisor.start()
    outside.lose("it ended")
    await outside.seen("starting")
    await anyio.wait_all_tasks_blocked()
    await outside.supervisor.stop()
    assert outside.statuses[-1] == (STOPPED, 0)
    assert len(outside.attempts) == 1


async def test_start_that_is_cancelled_leaves_nothing(outside: Outside) -> None:
    outside.refuses = [None]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outside.supervisor.start)
        await outside.tried(1)
        assert outside.online == 1
        tasks.cancel_scope.cancel()
    assert outside.statuses == [(STOPPED, 0)]
    await outside.supervisor.start()
    assert outside.online == 1
    await outside.supervisor.stop()


async def test_stop_that_is_cancelled_stops_all_the_same(outside: Outside) -> None:
    with anyio.CancelScope() as scope:
        await outside.supervisor.start()
        scope.cancel()
        await outside.supervisor.stop()
    assert outside.statuses == [(READY, 1), (STOPPED, 0)]


async def test_tasks_end_with_it(outside: Outside) -> None:
    ended = []

    async def live() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(anyio.current_time())

    await outside.supervisor.start()
    outside.supervisor.tasks.start_soon(live)
    outside.lose("it ended")
    await outside.seen("ready", 2)
    assert not ended
    await outside.supervisor.stop()
    assert ended


async def test_bug_in_the_first_attempt_is_not_swallowed(outside: Outside) -> None:
    outside.refuses = [ZeroDivisionError()]
    with pytest.raises(ZeroDivisionError):
        await outside.supervisor.start()
    assert outside.statuses == [(STOPPED, 0)]


async def test_bug_in_a_later_attempt_ends_what_the_transport_is_used_in(outside: Outside) -> None:
    async def use() -> None:
        await outside.supervisor.start()
        try:
            outside.refuses = [ZeroDivisionError()]
            outside.lose("it ended")
            await anyio.sleep_forever()
        finally:
            await outside.supervisor.stop()

    with pytest.raises(BaseExceptionGroup) as raised:
        await use()
    assert raised.group_contains(ZeroDivisionError)
    assert outside.statuses[-1] == (STOPPED, 0)
    assert len(outside.attempts) == 2
