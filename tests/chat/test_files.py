"""Posting and fetching with holders that are doubles: they fail, lie and forget as a test wants."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from overlay.chat.events import File
from overlay.chat.fetching import REQUESTS, fetch_file
from overlay.chat.posting import COPIES, PIECE_BYTES, post_file
from overlay.errors import (
    MalformedError,
    NotFoundError,
    RefusedError,
    StorageError,
    TransportUnavailableError,
    UnreachableError,
    VerificationError,
)
from overlay.identity import NodeIdentifier
from overlay.peer.chunks import BATCH_CHUNKS
from overlay.peer.node import Node


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Files are read and written in threads, so time is real here."""
    return request.param, {}


def holder(number: int) -> NodeIdentifier:
    return NodeIdentifier(bytes([number]) * 32)


class Holders:
    """A node that knows some others, and what those keep."""

    def __init__(self, *numbers: int) -> None:
        self.identifier = holder(0)
        self.others = [holder(number) for number in numbers]
        self.kept: dict[NodeIdentifier, dict[bytes, bytes]] = {other: {} for other in self.others}
        self.own: dict[bytes, bytes] = {}
        self.away: set[NodeIdentifier] = set()
        self.elsewhere: set[NodeIdentifier] = set()
        self.offline = False
        self.liars: set[NodeIdentifier] = set()
        self.asked: list[NodeIdentifier] = []
        self.tried: list[NodeIdentifier] = []
        self.batches: list[int] = []
        self._random = random.Random(1)
        self.chunks = SimpleNamespace(store=self._store, fetch=self._fetch)
        self.storage = SimpleNamespace(get=self._get)
        self.reputation = SimpleNamespace(rank=self._rank)

    @property
    def node(self) -> Node:
        return cast("Node", self)

    def clock(self) -> float:
        return 0.0

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
        self._check_there(node)
        self.batches.append(len(chunks))
        self.kept[node] |= {hashlib.blake2b(chunk, digest_size=32).digest(): chunk for chunk in chunks}

    def _check_there(self, node: NodeIdentifier) -> None:
        if node in self.away:
            raise UnreachableError("away")
        if node in self.elsewhere:
            raise TransportUnavailableError("i2p is not ready")

    async def _fetch(self, node: NodeIdentifier, references: Sequence[bytes]) -> dict[bytes, bytes]:
        await anyio.lowlevel.checkpoint()
        self.asked.append(node)
        self._check_there(node)
        if node in self.liars:
            raise VerificationError("a lie")
        return {name: self.kept[node][name] for name in references if name in self.kept[node]}

    async def _get(self, references: Sequence[bytes]) -> list[bytes | None]:
        return [self.own.get(reference) for reference in references]

    def _rank(self, nodes: Iterable[NodeIdentifier], _now: float) -> list[NodeIdentifier]:
        return list(nodes)


def write_file(folder: Path, size: int, name: str = "photo.jpg") -> Path:
    path = folder / name
    path.write_bytes(random.Random(size).randbytes(size))
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


SIZES = [0, 1, 1023, 1024, 16_384, PIECE_BYTES, 3 * PIECE_BYTES + 77]


@pytest.mark.parametrize("size", SIZES)
async def test_what_is_posted_is_what_is_fetched(tmp_path: Path, size: int) -> None:
    world = Holders(1, 2, 3)
    path = write_file(tmp_path, size)
    steps: list[tuple[int, int]] = []
    posted = await post_file(world.node, path, lambda done, total: steps.append((done, total)))
    assert (posted.name, posted.size) == ("photo.jpg", size)
    assert {NodeIdentifier(each) for each in posted.holders} == {holder(1), holder(2)}
    assert world.kept[holder(1)] == world.kept[holder(2)]
    assert not world.kept[holder(3)]
    assert max(world.batches) <= BATCH_CHUNKS
    assert steps == sorted(steps)
    assert steps[-1:] == ([(size, size)] if size else [])

    target, fetched = await fetch_file(world.node, posted, tmp_path / "copy")
    assert (target, fetched) == (tmp_path / "copy", size)
    assert target.read_bytes() == path.read_bytes()
    assert names_in(tmp_path) == ["copy", "photo.jpg"]


async def test_equal_files_are_not_told_from_their_chunks(tmp_path: Path) -> None:
    world = Holders(1)
    path = write_file(tmp_path, 40_000)
    await post_file(world.node, path)
    once = len(world.kept[holder(1)])
    await post_file(world.node, path)
    assert len(world.kept[holder(1)]) == 2 * once


async def test_a_holder_that_fails_is_replaced(tmp_path: Path) -> None:
    world = Holders(1, 2, 3, 4)
    world.away = {holder(1), holder(2)}
    posted = await post_file(world.node, write_file(tmp_path, 100_000))
    assert {NodeIdentifier(each) for each in posted.holders} == {holder(3), holder(4)}


async def test_one_holder_will_do_but_none_will_not(tmp_path: Path) -> None:
    world = Holders(1, 2)
    world.away = {holder(1)}
    path = write_file(tmp_path, 100)
    assert (await post_file(world.node, path)).holders == (holder(2).value,)
    for lonely in (Holders(), world):
        world.away = {holder(1), holder(2)}
        with pytest.raises(UnreachableError, match="no other node"):
            await post_file(lonely.node, path)


async def test_what_is_wrong_on_this_side_is_told_as_such(tmp_path: Path) -> None:
    world = Holders(1, 2, 3, 4, 5)
    path = write_file(tmp_path, 100)
    world.elsewhere = set(world.others)
    with pytest.raises(TransportUnavailableError, match="i2p is not ready"):
        await post_file(world.node, path)
    assert len(world.tried) == 5  # another of its networks might have led to one of them
    world.elsewhere.remove(holder(5))
    posted = await post_file(world.node, path)
    assert posted.holders == (holder(5).value,)
    world.away, world.elsewhere = {holder(1)}, {holder(2)}
    lonely = Holders(1, 2)
    lonely.away, lonely.elsewhere = world.away, world.elsewhere
    with pytest.raises(UnreachableError, match="no other node"):
        await post_file(lonely.node, path)
    world.elsewhere = {holder(5)}
    with pytest.raises(TransportUnavailableError, match="i2p is not ready"):
        await fetch_file(world.node, posted, tmp_path / "copy")


async def test_a_node_that_is_on_no_network_asks_nobody(tmp_path: Path) -> None:
    world = Holders(1, 2)
    world.offline = True
    with pytest.raises(TransportUnavailableError, match="its router is gone"):
        await post_file(world.node, write_file(tmp_path, 100))
    assert world.tried == []


async def test_a_node_that_loses_its_network_does_not_ask_everybody(tmp_path: Path) -> None:
    world = Holders(*range(1, 20))

    def lose(_done: int, _total: int) -> None:
        world.away = set(world.others)  # as a dial tells that is cut off by its deadline
        world.offline = True
        world.tried.clear()

    with pytest.raises(TransportUnavailableError, match="its router is gone"):
        await post_file(world.node, write_file(tmp_path, 3 * PIECE_BYTES), lose)
    assert len(world.tried) == COPIES


async def test_a_fetch_without_a_network_ends_with_the_first_holder(tmp_path: Path) -> None:
    world = Holders(1, 2)
    posted = await post_file(world.node, write_file(tmp_path, 100))
    world.away, world.offline = set(world.others), True
    with pytest.raises(TransportUnavailableError, match="its router is gone"):
        await fetch_file(world.node, posted, tmp_path / "copy")
    assert len(set(world.asked)) == 1
    world.own = world.kept[holder(1)]
    assert (await fetch_file(world.node, posted, tmp_path / "copy"))[1] == 100


async def test_chunks_come_from_the_next_holder_when_one_lies_or_is_away(tmp_path: Path) -> None:
    world = Holders(1, 2)
    path = write_file(tmp_path, 5 * PIECE_BYTES)
    posted = await post_file(world.node, path)
    for first in (world.liars, world.away):
        first.add(holder(1))
        world.asked.clear()
        target, _ = await fetch_file(world.node, posted, tmp_path / "copy")
        assert target.read_bytes() == path.read_bytes()
        assert 1 <= world.asked.count(holder(1)) <= REQUESTS  # and is not asked for every batch again
        first.clear()
        target.unlink()


async def test_two_holders_share_the_work(tmp_path: Path) -> None:
    world = Holders(1, 2)
    posted = await post_file(world.node, write_file(tmp_path, 8 * PIECE_BYTES))
    await fetch_file(world.node, posted, tmp_path / "copy")
    assert min(world.asked.count(holder(1)), world.asked.count(holder(2))) > 2


async def test_what_this_node_keeps_itself_is_not_asked_for(tmp_path: Path) -> None:
    world = Holders(1, 2)
    posted = await post_file(world.node, write_file(tmp_path, 50_000))
    world.own = world.kept[holder(1)]
    await fetch_file(world.node, posted, tmp_path / "copy")
    assert world.asked == []


async def test_a_file_that_is_not_all_there_leaves_nothing(tmp_path: Path) -> None:
    world = Holders(1, 2)
    posted = await post_file(world.node, write_file(tmp_path, 5 * PIECE_BYTES))
    lost = next(iter(world.kept[holder(1)]))
    for kept in world.kept.values():
        del kept[lost]
    with pytest.raises(NotFoundError, match="nobody has"):
        await fetch_file(world.node, posted, tmp_path / "copy")
    world.away = {holder(2)}
    with pytest.raises(UnreachableError, match="not reached"):
        await fetch_file(world.node, posted, tmp_path / "copy")
    assert names_in(tmp_path) == ["photo.jpg"]


async def test_a_cancelled_fetch_leaves_nothing(tmp_path: Path) -> None:
    world = Holders(1)
    posted = await post_file(world.node, write_file(tmp_path, 8 * PIECE_BYTES))
    scope = anyio.CancelScope()
    with scope:
        await fetch_file(world.node, posted, tmp_path / "copy", lambda _done, _total: scope.cancel())
    assert scope.cancelled_caught
    assert names_in(tmp_path) == ["photo.jpg"]


async def test_a_lie_about_the_size_is_noticed(tmp_path: Path) -> None:
    world = Holders(1)
    posted = await post_file(world.node, write_file(tmp_path, 100_000))
    for size in (99_999, 100_001, 10, 2**40):
        with pytest.raises(VerificationError):
            await fetch_file(world.node, replace_size(posted, size), tmp_path / "copy")
    assert names_in(tmp_path) == ["photo.jpg"]


def replace_size(posted: File, size: int) -> File:
    return File(name=posted.name, size=size, capability=posted.capability, holders=posted.holders)


async def test_a_folder_gets_the_file_under_a_safe_name_and_nothing_is_overwritten(tmp_path: Path) -> None:
    world = Holders(1)
    posted = await post_file(world.node, write_file(tmp_path, 10, ".bashrc"))
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    target, _ = await fetch_file(world.node, posted, inbox)
    assert target == inbox / "_bashrc"
    with pytest.raises(RefusedError, match="exists already"):
        await fetch_file(world.node, posted, inbox)
    with pytest.raises(NotFoundError, match="no folder"):
        await fetch_file(world.node, posted, tmp_path / "missing" / "copy")
    device = File(name="con.txt", size=10, capability=posted.capability, holders=posted.holders)
    with pytest.raises(MalformedError, match="device"):
        await fetch_file(world.node, device, inbox)


async def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Holders(1)
    posted = await post_file(world.node, write_file(tmp_path, 10))

    def fail(_partial: Path, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StorageError, match="No space left"):
        await fetch_file(world.node, posted, tmp_path / "copy")
    assert names_in(tmp_path) == ["photo.jpg"]


async def test_what_is_no_file_is_not_posted(tmp_path: Path) -> None:
    world = Holders(1)
    with pytest.raises(NotFoundError, match="no file"):
        await post_file(world.node, tmp_path / "missing")
    with pytest.raises(RefusedError, match="not a regular file"):
        await post_file(world.node, tmp_path)
    with pytest.raises(MalformedError):
        await post_file(world.node, write_file(tmp_path, 1, "two\nlines"))
    assert not world.kept[holder(1)]


async def test_a_file_that_grows_while_it_is_read_is_not_posted(tmp_path: Path) -> None:
    world = Holders(1)
    path = write_file(tmp_path, 3 * PIECE_BYTES)

    def grow(_done: int, _total: int) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    with pytest.raises(RefusedError, match="changed"):
        await post_file(world.node, path, grow)
