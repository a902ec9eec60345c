"""The driver in virtual time, therefore on trio only."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from trio.testing import MockClock

from overlay.errors import MalformedError
from overlay.peer.bucket import MIN_RATE
from overlay.peer.limits import Limiter


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


async def test_tasks_share_a_limit_in_turn() -> None:
    limiter, begin = Limiter(MIN_RATE), anyio.current_time()
    order: list[int] = []

    async def send(number: int) -> None:
        for _ in range(5):
            await limiter.pass_on(MIN_RATE)
            order.append(number)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send, 1)
        tasks.start_soon(send, 2)
    assert 8.7 <= anyio.current_time() - begin <= 9
    assert all(order[i : i + 2] in ([1, 2], [2, 1]) for i in range(0, 10, 2))


async def test_a_change_holds_for_who_waits_already() -> None:
    limiter, begin = Limiter(MIN_RATE), anyio.current_time()
    await limiter.pass_on(1000 * MIN_RATE)
    times: list[float] = []

    async def send() -> None:
        for _ in range(2):
            await limiter.pass_on(1000 * MIN_RATE)
            times.append(anyio.current_time() - begin)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        await anyio.sleep(100)
        limiter.change(100 * MIN_RATE)
        await anyio.sleep(10)
        limiter.change(None)
    assert times == pytest.approx([100 + 9, 110], abs=0.26)


async def test_no_limit_is_no_step() -> None:
    limiter = Limiter()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await limiter.pass_on(1 << 40)  # not even a chance to be cancelled
    assert limiter.rate is None
    assert not scope.cancelled_caught


async def test_who_is_cancelled_has_passed_nothing_and_lets_others_by() -> None:
    limiter, begin = Limiter(MIN_RATE), anyio.current_time()
    await limiter.pass_on(10 * MIN_RATE)
    with anyio.move_on_after(5):
        await limiter.pass_on(1000 * MIN_RATE)
    await limiter.pass_on(1)
    assert anyio.current_time() - begin <= 10


async def test_what_is_no_limit_changes_nothing() -> None:
    limiter = Limiter(MIN_RATE)
    for rate in (-1, 0, 1 << 50):
        with pytest.raises(MalformedError):
            limiter.change(rate)
        with pytest.raises(MalformedError):
            Limiter(rate)
    assert limiter.rate == MIN_RATE


async def test_owners_have_equal_parts_however_many_tasks_each_has() -> None:
    limiter = Limiter(MIN_RATE)
    passed = {"one": 0, "many": 0}

    async def send(owner: str) -> None:
        while True:
            await limiter.pass_on(MIN_RATE, owner)
            passed[owner] += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(30):
            tasks.start_soon(send, "many")
        tasks.start_soon(send, "one")
        await anyio.sleep(40)
        tasks.cancel_scope.cancel()
    assert passed["one"] == pytest.approx(20, abs=1)
    assert passed["many"] == pytest.approx(20, abs=1)


async def test_a_newcomer_passes_after_who_waits_already_and_keeps_nobody_out() -> None:
    limiter, order = Limiter(MIN_RATE), list[int]()

    async def send(owner: int) -> None:
        await limiter.pass_on(MIN_RATE, owner)
        order.append(owner)

    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(send, 0)
            tasks.start_soon(send, number)
        await anyio.sleep(0.5)
        for number in range(4, 20):
            tasks.start_soon(send, number)
            await anyio.sleep(1)
    assert order.index(4) <= 6
    assert order[:16].count(0) >= 3


async def test_what_could_not_be_sent_has_not_passed() -> None:
    limiter, begin = Limiter(MIN_RATE), anyio.current_time()

    def fail() -> bool:
        raise LookupError

    for _ in range(10):
        assert not await limiter.pass_on(100 * MIN_RATE, "a", lambda: False)
        with pytest.raises(LookupError):
            await limiter.pass_on(100 * MIN_RATE, "a", fail)
    assert await limiter.pass_on(MIN_RATE, "a", lambda: True)
    assert anyio.current_time() == begin


async def test_nothing_is_remembered_of_owners_who_are_gone() -> None:
    limiter = Limiter(MIN_RATE)
    async with anyio.create_task_group() as tasks:
        for owner in range(9):
            tasks.start_soon(limiter.pass_on, MIN_RATE, owner % 3)
        await anyio.sleep(2.5)
        tasks.cancel_scope.cancel()
    assert not limiter._turns._waiting
    assert not limiter._turns._taken
