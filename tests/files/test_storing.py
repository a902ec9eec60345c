"""Storing with holders that are doubles: they fail, are away or full as a test wants."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import anyio
import pytest

from overlay.errors import NotFoundError, RefusedError, TransportUnavailableError, UnreachableError
from overlay.files.engine.actions import Snapshot
from overlay.files.running import Running
from overlay.files.storing import COPIES, PIECE_BYTES, Stored, noting, store_file
from overlay.identity import NodeIdentifier
from overlay.peer.chunks import BATCH_CHUNKS
from overlay.peer.node import Node
from overlay.units.decode import Decoder
from overlay.units.eris import NULL_SECRET, encode_content


def holder(number: int) -> NodeIdentifier:
    return NodeIdentifier(bytes([number]) * 32)


class Holders:
    """A node that knows some others, and what those keep."""

    def __init__(self, *numbers: int) -> None:
        self.identifier = holder(0)
        self.others = [holder(number) for number in numbers]
        self.kept: dict[NodeIdentifier, dict[bytes, bytes]] = {other: {} for other in self.others}
        self.room: dict[NodeIdentifier, int] = {}
        self.away: set[NodeIdentifier] = set()
        self.elsewhere: set[NodeIdentifier] = set()
        self.offline = False
        self.tried: list[NodeIdentifier] = []
        self.batches: list[int] = []
        self._random = random.Random(1)
        self.chunks = SimpleNamespace(store=self._store)

    @property
    def node(self) -> Node:
        return cast("Node", self)

    def entropy(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def check_online(self) -> None:
        if self.offline:
            raise TransportUnavailableError("i2p is starting: its router is gone")

    def choose(self, count: int, *, without: Collection[NodeIdentifier]) -> list[NodeIdentifier]:
        return [other for other in self.others if other not in without][:count]

    async def _store(self, node: NodeIdentifier, chunks: Sequence[bytes]) -> None:
        await anyio.lowlevel.checkpoint()
        self.tried.append(node)
        if node in self.away:
            raise UnreachableError("away")
        if node in self.elsewhere:
            raise TransportUnavailableError("i2p is not ready")
        if len(self.kept[node]) + len(chunks) > self.room.get(node, 1 << 20):
            raise RefusedError("no room")
        self.batches.append(len(chunks))
        self.kept[node] |= {hashlib.blake2b(chunk, digest_size=32).digest(): chunk for chunk in chunks}

    def read(self, stored: Stored) -> bytes:
        """What the holders that are named have together."""
        chunks: dict[bytes, bytes] = {}
        for each in stored.holders:
            chunks |= self.kept[each]
        decoder = Decoder(stored.capability, size=stored.size)
        content = b""
        while not decoder.finished:
            for reference in decoder.wanted(16):
                decoder.receive(reference, chunks[reference])
            content += decoder.read()
        return content


def write_file(folder: Path, size: int) -> Path:
    path = folder / "photo.jpg"
    path.write_bytes(random.Random(size).randbytes(size))
    return path


SIZES = [0, 1, 1023, 1024, 16_384, PIECE_BYTES, 3 * PIECE_BYTES + 77]


@pytest.mark.parametrize("size", SIZES)
async def test_every_chunk_is_stored_twice(tmp_path: Path, size: int) -> None:
    world = Holders(1, 2, 3)
    path = write_file(tmp_path, size)
    steps: list[tuple[int, int]] = []
    stored = await store_file(world.node, path, lambda done, total: steps.append((done, total)), most=8)
    assert (stored.size, set(stored.holders)) == (size, {holder(1), holder(2)})
    assert world.kept[holder(1)] == world.kept[holder(2)]
    assert not world.kept[holder(3)]
    assert max(world.batches) <= BATCH_CHUNKS
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == ((0, size), (size, size))
    assert world.read(stored) == path.read_bytes()


def test_a_put_is_told_as_it_stands_when_somebody_looks() -> None:
    now = 50.0
    told: list[tuple[int, int]] = []
    running = Running("put", "photo.jpg", Path("photo.jpg"), None)
    step = noting(running, lambda done, size: told.append((done, size)), lambda: now)
    assert running.look is not None
    assert (running.look().rate, running.look().seconds_left) == (0.0, None)
    now += 2
    step(0, 4000)
    assert (running.present, running.size, running.look().rate) == (0, 4000, 0.0)
    now += 2
    step(1000, 4000)
    assert told == [(0, 4000), (1000, 4000)]
    assert running.look() == Snapshot(1000, 250.0, 12.0, circuits=0, providers=0, outstanding=0)
    now += 8  # twice as long as the step before
    assert running.look() == Snapshot(1000, 125.0, 24.0, circuits=0, providers=0, outstanding=0)


async def test_equal_files_are_not_told_from_their_chunks(tmp_path: Path) -> None:
    world = Holders(1)
    path = write_file(tmp_path, 40_000)
    await store_file(world.node, path, most=8)
    once = len(world.kept[holder(1)])
    await store_file(world.node, path, most=8)
    assert len(world.kept[holder(1)]) == 2 * once


async def test_convergent_they_are_the_same_for_everybody(tmp_path: Path) -> None:
    world = Holders(1)
    path = write_file(tmp_path, 40_000)
    found = [await store_file(world.node, path, most=8, convergent=True) for _ in range(2)]
    chunks, capability = encode_content(path.read_bytes(), secret=NULL_SECRET)
    assert [each.capability for each in found] == [capability] * 2
    assert set(world.kept[holder(1)]) == {chunk.reference for chunk in chunks}


async def test_a_holder_that_fails_is_replaced(tmp_path: Path) -> None:
    world = Holders(1, 2, 3, 4)
    world.away = {holder(1), holder(2)}
    stored = await store_file(world.node, write_file(tmp_path, 100_000), most=8)
    assert set(stored.holders) == {holder(3), holder(4)}


async def test_no_more_holders_than_can_be_told_of(tmp_path: Path) -> None:
    world = Holders(*range(1, 20))
    world.room = dict.fromkeys(world.others, 70)  # a bit more than a MiB: each fills up and is replaced
    path = write_file(tmp_path, 4 * PIECE_BYTES)
    stored = await store_file(world.node, path, most=8)
    assert COPIES < len(stored.holders) <= 8
    assert world.read(stored) == path.read_bytes()
    with pytest.raises(UnreachableError, match="want of room"):
        await store_file(world.node, path, most=COPIES)


async def test_where_all_are_full_that_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    world = Holders(1, 2)
    world.room = {holder(1): 0, holder(2): 0}
    path = write_file(tmp_path, 100)
    with pytest.raises(UnreachableError, match="want of room"):
        await store_file(world.node, path, most=8)
    assert path.stat().st_size == 100
    world.away = {holder(1)}
    with pytest.raises(UnreachableError, match="no other node"):
        await store_file(world.node, path, most=8)


async def test_one_holder_will_do_but_none_will_not(tmp_path: Path) -> None:
    world = Holders(1, 2)
    world.away = {holder(1)}
    path = write_file(tmp_path, 100)
    assert (await store_file(world.node, path, most=8)).holders == (holder(2),)
    for lonely in (Holders(), world):
        world.away = {holder(1), holder(2)}
        with pytest.raises(UnreachableError, match="no other node"):
            await store_file(lonely.node, path, most=8)


async def test_what_is_wrong_on_this_side_is_told_as_such(tmp_path: Path) -> None:
    world = Holders(1, 2, 3, 4, 5)
    path = write_file(tmp_path, 100)
    world.elsewhere = set(world.others)
    with pytest.raises(TransportUnavailableError, match="i2p is not ready"):
        await store_file(world.node, path, most=8)
    assert len(world.tried) == 5  # another of its networks might have led to one of them
    world.elsewhere.remove(holder(5))
    assert (await store_file(world.node, path, most=8)).holders == (holder(5),)
    lonely = Holders(1, 2)
    lonely.away, lonely.elsewhere = {holder(1)}, {holder(2)}
    with pytest.raises(UnreachableError, match="no other node"):
        await store_file(lonely.node, path, most=8)


async def test_a_node_that_is_on_no_network_asks_nobody(tmp_path: Path) -> None:
    world = Holders(1, 2)
    world.offline = True
    with pytest.raises(TransportUnavailableError, match="its router is gone"):
        await store_file(world.node, write_file(tmp_path, 100), most=8)
    assert world.tried == []


async def test_a_node_that_loses_its_network_does_not_ask_everybody(tmp_path: Path) -> None:
    world = Holders(*range(1, 20))

    def lose(_done: int, _total: int) -> None:
        world.away = set(world.others)  # as a dial tells that is cut off by its deadline
        world.offline = True
        world.tried.clear()

    with pytest.raises(TransportUnavailableError, match="its router is gone"):
        await store_file(world.node, write_file(tmp_path, 3 * PIECE_BYTES), lose, most=8)
    assert len(world.tried) == COPIES


async def test_what_is_no_file_is_not_stored(tmp_path: Path) -> None:
    world = Holders(1)
    with pytest.raises(NotFoundError, match="no file"):
        await store_file(world.node, tmp_path / "missing", most=8)
    with pytest.raises(RefusedError, match="not a regular file"):
        await store_file(world.node, tmp_path, most=8)
    assert not world.kept[holder(1)]


async def test_a_file_that_grows_while_it_is_read_is_not_stored(tmp_path: Path) -> None:
    world = Holders(1)
    path = write_file(tmp_path, 3 * PIECE_BYTES)

    def grow(_done: int, _total: int) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    with pytest.raises(RefusedError, match="changed"):
        await store_file(world.node, path, grow, most=8)
