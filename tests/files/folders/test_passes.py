"""How many files of a folder are open at once, and that each is closed."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import anyio
import pytest

from overlay.errors import StorageError
from overlay.files.fetching.bell import Bell
from overlay.files.fetching.gathering import Report, Supply
from overlay.files.fetching.sink import Sink
from overlay.files.folders import passes
from overlay.files.folders.bundle import Bundle
from overlay.files.folders.inventory import File, Inventory, Need
from overlay.files.folders.missing import Missing
from overlay.files.folders.passes import Pass
from overlay.files.manifest.codec import Entry
from overlay.units.capability import SMALL_BLOCK
from overlay.units.eris import encode_content
from overlay.units.tree import TreeReader


class Folder:
    """Files of some sizes: an inventory that says which these are, and a supply that has them."""

    landing = None

    def __init__(self, sizes: Sequence[int]) -> None:
        self.chunks: dict[bytes, bytes] = {}
        self._files = [self._make(number, size) for number, size in enumerate(sizes)]

    def _make(self, number: int, size: int) -> File:
        chunks, capability = encode_content(random.Random(number).randbytes(size), secret=bytes(32))
        self.chunks |= dict(chunks)
        entry = Entry((f"{number:03}",), capability, size)
        return File(number, entry, Path(entry.text), capability)

    def choose(self, need: Need, block_size: int) -> Folder:
        assert (need, block_size) == (Need.FETCH, SMALL_BLOCK)
        return self

    async def next(self) -> list[File] | None:
        await anyio.lowlevel.checkpoint()
        some, self._files = self._files[:5], self._files[5:]
        return some or None

    async def bring(self, sink: Sink, _: Report, bell: Bell | None = None) -> None:
        assert bell is not None
        while not sink.tree.finished:
            changed = bell.next
            if wanted := sink.tree.wanted(1):
                sink.take(wanted[0], self.chunks[wanted[0]])
                await anyio.sleep(0.001)
            else:
                await changed.wait()


class Part:
    """A file in memory."""

    def __init__(self, file: File) -> None:
        self.path = file.path
        self.tree = TreeReader(file.capability, size=file.entry.size)

    def take(self, reference: bytes, data: bytes) -> int:
        return sum(len(piece.content) for piece in self.tree.receive(reference, data))

    async def flush(self) -> None:
        """There is nothing to write."""


class Watched(Pass):
    """Notes what is open."""

    need = Need.FETCH
    fails_at = -1

    def __init__(self, folder: Folder, bundle: Bundle) -> None:
        super().__init__(cast("Inventory", folder), cast("Supply", folder), bundle, Missing(), lambda _: None)
        self.open: list[int] = []
        self.opened: list[int] = []
        self.most = self.done = 0

    def _open(self, _: Entry) -> int:
        handle = os.open(os.devnull, os.O_RDONLY)
        self.open.append(handle)
        self.opened.append(handle)
        return handle

    async def _work(self, file: File, handle: int) -> None:
        self.most = max(self.most, len(self.open))
        if file.number == self.fails_at:
            raise StorageError("full")
        try:
            assert await self._bundle.bring(Part(file))
            self.done += 1
        finally:
            os.fstat(handle)
            self.open.remove(handle)


def watched(sizes: Sequence[int]) -> Watched:
    return Watched(Folder(sizes), Bundle(SMALL_BLOCK, sum(sizes)))


async def test_so_many_files_are_open_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MAX_OPEN_FILES", 3)
    going = watched([1500] * 20)
    await going.run()
    assert (going.done, going.open) == (20, [])
    assert going.most == 3


@pytest.mark.parametrize(("most", "at_once"), [(1, 1), (6000, 2), (100_000, 12)])
async def test_files_that_lack_much_are_fewer(
    monkeypatch: pytest.MonkeyPatch, most: int, at_once: int
) -> None:
    monkeypatch.setattr(passes, "MAX_OPEN_BYTES", most)
    going = watched([5000] * 12)
    await going.run()
    assert (going.done, going.open) == (12, [])
    assert going.most == at_once


async def test_what_one_file_ends_with_ends_all_and_every_file_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    going, closed, close = watched([1500] * 20), list[int](), os.close

    def note(handle: int) -> None:
        closed.append(handle)
        close(handle)

    monkeypatch.setattr(os, "close", note)
    going.fails_at = 7
    with pytest.raises(StorageError, match="full"):
        await going.run()
    assert len(going.opened) > going.fails_at
    assert sorted(handle for handle in closed if handle in going.opened) == sorted(going.opened)


async def test_without_a_file_there_is_nothing_to_bring() -> None:
    going = watched([])
    await going.run()
    assert going.done == 0
