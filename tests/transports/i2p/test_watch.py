from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest

from overlay.errors import TransportUnavailableError, UnreachableError
from overlay.transports.i2p import watch as module
from overlay.transports.i2p.settings import I2pTimeouts
from overlay.transports.i2p.watch import MISSES, answers, while_it_answers

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from anyio.abc import TaskGroup

    from tests.transports.i2p.conftest import FakeRouter

HELLO = "HELLO VERSION"
TIMEOUTS = I2pTimeouts(hello=0.1)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GREETING_INTERVAL", 0.02)


async def given_up(watched: AbstractAsyncContextManager[TaskGroup]) -> str:
    """Wait until a block is ended, and return why."""

    async def block() -> None:
        async with watched:
            await anyio.sleep_forever()

    with anyio.fail_after(5), pytest.raises(TransportUnavailableError) as raised:
        await block()
    return str(raised.value)


async def test_router_answers_unless_it_is_silent(fake_router: FakeRouter) -> None:
    assert await answers(fake_router.address, TIMEOUTS)
    fake_router.script(HELLO, fake_router.hang_up(), fake_router.stall())
    assert await answers(fake_router.address, TIMEOUTS)  # an error of its own, which the sessions show
    assert not await answers(fake_router.address, TIMEOUTS)
    await fake_router.until(lambda: all(each.closed for each in fake_router.connections))


@pytest.mark.parametrize("result", ["CANT_REACH_PEER", "INVALID_KEY", "TIMEOUT", "I2P_ERROR", "NEW"])
async def test_router_that_refuses_a_greeting_answers(fake_router: FakeRouter, result: str) -> None:
    fake_router.always(HELLO, fake_router.reply(f"HELLO REPLY RESULT={result}"))
    async with while_it_answers(fake_router.address, TIMEOUTS, heard=int):
        await fake_router.seen(HELLO, 2 * MISSES)


async def test_router_that_is_silent_twice_in_a_row_is_given_up(fake_router: FakeRouter) -> None:
    fake_router.always(HELLO, fake_router.stall())
    said = await given_up(while_it_answers(fake_router.address, TIMEOUTS, heard=int))
    assert said == "the I2P router does not answer any more"
    assert len(await fake_router.seen(HELLO)) == MISSES == 2
    await fake_router.until(lambda: all(each.closed for each in fake_router.connections))


async def test_router_that_is_silent_now_and_then_is_kept(fake_router: FakeRouter) -> None:
    good = fake_router.reply("HELLO REPLY RESULT=OK VERSION=3.1")
    fake_router.script(HELLO, *[fake_router.stall(), good] * 3)
    async with while_it_answers(fake_router.address, TIMEOUTS, heard=int):
        await fake_router.seen(HELLO, 8)


async def test_router_that_brings_something_is_kept_until_it_does_not(fake_router: FakeRouter) -> None:
    heard = 0

    async def bring() -> None:
        nonlocal heard
        for count in range(1, 2 * MISSES + 1):  # while each of so many greetings waits for its answer
            await fake_router.seen(HELLO, count)
            heard += 1

    fake_router.always(HELLO, fake_router.stall())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bring)
        await given_up(while_it_answers(fake_router.address, TIMEOUTS, heard=lambda: heard))
    assert len(await fake_router.seen(HELLO)) == 3 * MISSES


async def test_a_complaint_ends_the_block(fake_router: FakeRouter) -> None:
    complaints = ["", "", "this is not right"]
    watched = while_it_answers(fake_router.address, TIMEOUTS, heard=int, complaint=lambda: complaints.pop(0))
    assert await given_up(watched) == "this is not right"
    assert not complaints


async def test_errors_of_the_block_come_as_they_are_and_its_tasks_end(fake_router: FakeRouter) -> None:
    error = UnreachableError("nobody")

    async def block() -> None:
        async with while_it_answers(fake_router.address, TIMEOUTS, heard=int) as tasks:
            tasks.start_soon(anyio.sleep_forever)
            raise error

    with anyio.fail_after(5), pytest.raises(UnreachableError) as raised:
        await block()
    assert raised.value is error


async def test_cancelled_while_it_greets_it_leaves_nothing_open(fake_router: FakeRouter) -> None:
    patient = replace(TIMEOUTS, hello=60.0)
    fake_router.always(HELLO, fake_router.stall())
    with anyio.CancelScope() as scope:
        async with while_it_answers(fake_router.address, patient, heard=int):
            await fake_router.seen(HELLO)
            scope.cancel()
            await anyio.sleep_forever()
    await fake_router.until(lambda: all(each.closed for each in fake_router.connections))
