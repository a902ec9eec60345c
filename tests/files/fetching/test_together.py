from __future__ import annotations

from functools import partial

import anyio
import pytest

from overlay.errors import NotFoundError, RefusedError
from overlay.files.fetching.together import Start, together


async def fail(error: Exception) -> None:
    raise error


async def test_all_are_waited_for_also_those_that_others_have_started() -> None:
    done: list[str] = []

    async def second() -> None:
        await anyio.lowlevel.checkpoint()
        done.append("second")

    async def first(start: Start) -> None:
        await anyio.lowlevel.checkpoint()
        start(second)
        done.append("first")

    async with together() as start:
        start(partial(first, start))
    assert done == ["first", "second"]


async def test_the_first_failure_ends_the_others_and_the_block_and_is_raised_as_it_is() -> None:
    first, ended = NotFoundError("first"), []

    async def other() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("other")
            raise RefusedError("what the end of this one brings says nothing")

    with pytest.raises(NotFoundError) as caught:  # noqa: PT012 - the block is what is tested
        async with together() as start:
            start(other)
            start(partial(fail, first))
            try:
                await anyio.sleep_forever()
            finally:
                ended.append("block")
    assert caught.value is first
    assert sorted(ended) == ["block", "other"]


async def test_what_is_no_failure_of_this_kind_is_not_hidden() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with together() as start:
            start(partial(fail, ValueError("a mistake")))
    assert caught.group_contains(ValueError)


async def test_cancelled_from_outside_it_ends_all_without_an_error() -> None:
    ended = []

    async def task() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("task")

    with anyio.CancelScope() as scope:
        async with together() as start:
            start(task)
            await anyio.lowlevel.checkpoint()
            scope.cancel()
    assert scope.cancelled_caught
    assert ended == ["task"]
