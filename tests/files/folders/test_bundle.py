"""Several files in one transfer: what was taken is written whatever is cancelled, and files go freely."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import anyio
import pytest

from overlay.errors import StorageError
from overlay.files.folders.bundle import Bundle
from overlay.units.eris import encode_content
from overlay.units.tree import TreeReader

BLOCK = 1024


class Slow:
    """A part whose flushes wait until they are let go on, and may fail; `written` counts what they wrote."""

    def __init__(self, name: str, chunks: int) -> None:
        content = random.Random(name).randbytes(chunks * BLOCK - 1)
        encoded, capability = encode_content(content, secret=bytes(32))
        self.path = Path(name)
        self.chunks = {chunk.reference: chunk.data for chunk in encoded}
        self.tree = TreeReader(capability, size=len(content))
        self.begun, self.go_on = anyio.Event(), anyio.Event()
        self.failure: StorageError | None = None
        self.taken = self.written = 0

    def take(self, reference: bytes, data: bytes) -> int:
        self.taken += 1
        return sum(len(piece.content) for piece in self.tree.receive(reference, data))

    async def flush(self) -> None:
        self.begun.set()
        await self.go_on.wait()
        if self.failure is not None:
            raise self.failure
        self.written = self.taken


def feed(bundle: Bundle, *parts: Slow) -> None:
    """Give a bundle the next chunk that it wants of each part."""
    for part in parts:
        (reference,) = part.tree.wanted(1)
        bundle.take(reference, part.chunks[reference])


async def bring(bundle: Bundle, part: Slow, brought: list[bool]) -> None:
    bundle.announce(part.path, 1)
    brought.append(await bundle.bring(part))


async def test_what_a_flush_that_is_cancelled_left_is_written_by_the_next() -> None:
    bundle, one, two = Bundle(BLOCK, 1 << 20), Slow("one", 5), Slow("two", 5)
    async with anyio.create_task_group() as files:
        for part in (one, two):
            files.start_soon(bring, bundle, part, [])
        await anyio.wait_all_tasks_blocked()
        feed(bundle, one, two)
        async with anyio.create_task_group() as flush:
            flush.start_soon(bundle.flush)
            await one.begun.wait()
            flush.cancel_scope.cancel()
        assert (one.written, two.written) == (0, 0)
        one.go_on.set()
        two.go_on.set()
        await bundle.flush()
        assert (one.written, two.written) == (1, 1)
        files.cancel_scope.cancel()


async def test_what_a_flush_that_failed_left_fails_again() -> None:
    bundle, part = Bundle(BLOCK, 1 << 20), Slow("one", 5)
    part.go_on.set()
    part.failure = StorageError("the disk is full")
    async with anyio.create_task_group() as files:
        files.start_soon(bring, bundle, part, [])
        await anyio.wait_all_tasks_blocked()
        feed(bundle, part)
        for _ in range(2):
            with pytest.raises(StorageError, match="the disk is full"):
                await bundle.flush()
        files.cancel_scope.cancel()


async def test_a_file_that_has_gone_during_a_flush_is_written_no_more() -> None:
    bundle, part = Bundle(BLOCK, 1 << 20), Slow("one", 5)
    async with anyio.create_task_group() as files:
        files.start_soon(bring, bundle, part, [])
        await anyio.wait_all_tasks_blocked()
        feed(bundle, part)
        async with anyio.create_task_group() as flush:
            flush.start_soon(bundle.flush)
            await part.begun.wait()
            files.cancel_scope.cancel()
            await anyio.wait_all_tasks_blocked()
            flush.cancel_scope.cancel()
    part.begun = anyio.Event()
    with anyio.fail_after(1):
        await bundle.flush()  # of nothing: whoever had the file has closed it
    assert not part.begun.is_set()


async def test_a_file_is_given_up_once_and_not_after_it_came() -> None:
    bundle, came, lost = Bundle(BLOCK, 1 << 20), Slow("one", 1), Slow("two", 5)
    given: dict[str, list[bool]] = {"one": [], "two": []}
    async with anyio.create_task_group() as files:
        for part in (came, lost):
            part.go_on.set()
            files.start_soon(partial(bring, bundle, part, given[part.path.name]))
        await anyio.wait_all_tasks_blocked()
        feed(bundle, came)
        await bundle.flush()
        await anyio.wait_all_tasks_blocked()
        assert given == {"one": [True], "two": []}
        bundle.give_up(came)
        assert bundle.lacking == [lost]
        bundle.give_up(lost)
    bundle.give_up(lost)
    assert given == {"one": [True], "two": [False]}
    bundle.end()
    assert (bundle.finished, bundle.lacking) == (True, [])
