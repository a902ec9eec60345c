"""What a node has itself: taken when it is all of a content, and never shown by what it asks others for."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import pytest

from overlay.errors import NotFoundError, StorageError
from overlay.files.engine.providers import Candidates
from overlay.files.fetching.here import is_folder_here, is_here
from overlay.files.folders.order import Order
from overlay.files.links import FileLink
from overlay.files.running import Running
from overlay.files.service import FILES_SCHEMAS, Files
from overlay.files.sharing.shares import Shares
from overlay.peer.accept import Delivery, Reply
from overlay.peer.chunks import FETCH, REFERENCE_BYTES, ChunkSource
from overlay.peer.node import Node
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Latency
from overlay.units.eris import encode_content
from tests.files.conftest import Repeating

SECRET = bytes(32)


@dataclass
class Person:
    node: Node
    files: Files

    async def keep(self, data: bytes, *numbers: int) -> None:
        """Store for others what encoding `data` gives: the root, and the chunks of these numbers."""
        chunks = [chunk.data for chunk in encode_content(data, secret=SECRET)[0]]
        await self.node.storage.put([chunks[-1], *(chunks[each] for each in numbers)], now=self.node.clock())

    def asked(self) -> set[bytes]:
        """The references that it is asked for from now on."""
        asked: set[bytes] = set()
        registration = self.node.accept._receivers[FETCH]

        async def note(delivery: Delivery) -> Reply | bytes | None:
            body = delivery.body
            asked.update(body[at : at + REFERENCE_BYTES] for at in range(0, len(body), REFERENCE_BYTES))
            return await registration.receiver(delivery)

        self.node.accept._receivers[FETCH] = replace(registration, receiver=note)
        return asked


@asynccontextmanager
async def person(world: World, name: str) -> AsyncIterator[Person]:
    async with world.database(*FILES_SCHEMAS) as database, world.node(name, database) as node:
        files = Files(node, database)
        files._shares = Shares(database, entropy=lambda _: SECRET, clock=node.clock)
        await files.start()
        yield Person(node, files)


@asynccontextmanager
async def two(seed: int) -> AsyncIterator[tuple[Person, Person]]:
    """Bob, who fetches, and Mallory, who wants to know that it is he."""
    world = World(seed, latency=Latency(0.001))
    async with person(world, "bob") as bob, person(world, "mallory") as mallory:
        await introduce([bob.node, mallory.node])
        yield bob, mallory


def content(path: Path, size: int) -> bytes:
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    return data


def references(data: bytes) -> set[bytes]:
    return {chunk.reference for chunk in encode_content(data, secret=SECRET)[0]}


async def share(of: Person, path: Path) -> FileLink:
    """Share a file, encoded as `keep` does."""
    shared = await of.files._shares.add(path)
    return await of.files._link(shared)


def folder(root: Path, files: Mapping[str, int]) -> dict[str, bytes]:
    root.mkdir()
    return {name: content(root / name, size) for name, size in files.items()}


async def test_a_file_that_is_whole_here_needs_nobody(tmp_path: Path) -> None:
    data = content(tmp_path / "plan", 3_000_000)
    async with two(1) as (bob, mallory):
        link, asked = await share(bob, tmp_path / "plan"), mallory.asked()
        await share(mallory, tmp_path / "plan")
        await bob.files.get(link, tmp_path / "copy")
        pin, _ = await bob.files.pin(link)
        assert (pin.whole, asked) == (True, set())
        await bob.files.remove(link)
        await bob.files.get(link, tmp_path / "again")  # from the pin
        assert asked == set()
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "again").read_bytes() == data


async def test_what_is_kept_for_others_is_never_used(tmp_path: Path) -> None:
    data = content(tmp_path / "plan", 1_000_000)
    async with two(2) as (bob, mallory):
        link, asked = await share(mallory, tmp_path / "plan"), mallory.asked()
        await bob.keep(data, 7)
        await bob.files.get(link, tmp_path / "copy")
        assert asked == references(data)


async def test_nor_where_it_is_all_of_it(tmp_path: Path) -> None:
    data = content(tmp_path / "plan", 1_000_000)
    async with two(3) as (bob, mallory):
        link, asked = await share(mallory, tmp_path / "plan"), mallory.asked()
        await bob.keep(data, *range(len(references(data))))
        await bob.files.get(link, tmp_path / "copy")
        assert asked == references(data)


async def test_nor_when_a_fetch_goes_on_that_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content(tmp_path / "plan", 1_000_000)
    async with two(4) as (bob, mallory):
        capability = encode_content(data, secret=SECRET)[1]
        monkeypatch.setattr(  # nobody else is known
            bob.files, "_candidates", lambda _: Candidates([mallory.node.identifier])
        )
        link = FileLink(capability, providers=(mallory.node.record.encoded,), name="plan")
        await bob.keep(data, 7)
        await mallory.keep(data)  # the root alone
        with pytest.raises(NotFoundError):
            await bob.files.get(link, tmp_path / "copy")
        await mallory.keep(data, *range(len(references(data))))
        asked = mallory.asked()
        await bob.files.get(link, tmp_path / "copy")
        assert asked == references(data) - {capability.reference}  # that came with the first attempt


async def test_a_file_that_was_changed_is_fetched_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    data = content(tmp_path / "plan", 1_000_000)
    (tmp_path / "same").write_bytes(data)
    async with two(5) as (bob, mallory):
        await share(bob, tmp_path / "same")
        link, asked = await share(mallory, tmp_path / "plan"), mallory.asked()
        (tmp_path / "same").write_bytes(data[:900_000] + bytes(100_000))
        await bob.files.get(link, tmp_path / "copy")
        assert asked == references(data)
    assert (tmp_path / "copy").read_bytes() == data


async def test_a_file_here_is_fetched_all_the_same_as_a_part_of_a_folder(tmp_path: Path) -> None:
    files = folder(tmp_path / "garden", {"rose": 200_000, "tulip": 300_000})
    async with two(6) as (bob, mallory):
        link, _ = await mallory.files.share_folder(tmp_path / "garden")
        rose = (await mallory.files._shares.parts((await mallory.files._shares.list())[0].id))[0]
        assert rose.capability is not None
        await bob.files.get(FileLink(rose.capability, link.providers, "rose"), tmp_path / "rose")
        await bob.files._shares.add(tmp_path / "rose")
        (tmp_path / "to").mkdir()
        asked = mallory.asked()
        await bob.files.get_folder(Order(link, tmp_path / "to"))
        got = set(asked)
        asked.clear()
        await bob.files.pin(link)
    chunks = encode_content(files["rose"], secret=rose.secret)[0]
    assert {chunk.reference for chunk in chunks} <= got & asked


async def test_a_folder_that_is_whole_here_needs_nobody_and_else_is_fetched_whole(tmp_path: Path) -> None:
    files = folder(tmp_path / "garden", {"rose": 200_000, "tulip": 300_000})
    async with two(7) as (bob, mallory):
        link, _ = await mallory.files.share_folder(tmp_path / "garden")
        await bob.files.pin(link)
        asked = mallory.asked()
        for name, only in (("all", ()), ("one", ("rose",))):
            (tmp_path / name).mkdir()
            await bob.files.get_folder(Order(link, tmp_path / name, only))
        assert asked == set()
        assert (tmp_path / "all" / "garden" / "tulip").read_bytes() == files["tulip"]
        await bob.files.pin(link)
        assert asked == set()
        owned = await pinned(bob)
        await bob.node.storage.discard(owned[:1])
        (tmp_path / "again").mkdir()
        await bob.files.get_folder(Order(link, tmp_path / "again"))
        assert asked == set(owned)


async def test_a_folder_for_which_there_is_no_room_is_not_looked_through(tmp_path: Path) -> None:
    folder(tmp_path / "garden", {"rose": 200_000, "tulip": 300_000})
    async with two(11) as (bob, _):
        link, _ = await bob.files.share_folder(tmp_path / "garden")
        for room, here in ((499_999, False), (500_000, True)):
            assert await is_folder_here(bob.node, link.capability, link.size, room=room) is here


async def test_content_without_end_is_not_looked_through_for_ever(endless: Repeating) -> None:
    chunks, capability = endless
    async with two(9) as (bob, mallory):
        await mallory.node.storage.put([*chunks.values()], now=mallory.node.clock())
        link = FileLink(capability, (mallory.node.record.encoded,), "plan")
        bob.node.storage.quota = 10_000_000
        with pytest.raises(StorageError, match="is used up"):
            await bob.files.pin(link)
        assert set(await pinned(bob)) == set(chunks)  # all of it, however long it is
        with anyio.fail_after(10):
            assert not await is_here(bob.node, capability, None)
            assert not await is_folder_here(bob.node, capability, None, room=10_000_000)


async def test_a_pin_is_here_whole_also_where_the_quota_was_lowered(tmp_path: Path) -> None:
    content(tmp_path / "plan", 5_000_000)
    async with two(10) as (bob, mallory):
        link = await share(mallory, tmp_path / "plan")
        await bob.files.pin(link)
        bob.node.storage.quota = 1_000_000
        assert await is_here(bob.node, link.capability, None)


@pytest.mark.parametrize("way", ["get", "pin"])
async def test_what_is_taken_from_here_is_told_step_by_step(tmp_path: Path, way: str) -> None:
    data = content(tmp_path / "plan", 5_000_000)
    told: list[tuple[bool, int, int | None]] = []

    def note(running: Running) -> None:
        told.append((running.snapshot is None, running.present, running.size))

    async with two(11) as (bob, _):
        link = await share(bob, tmp_path / "plan")
        if way == "get":
            await bob.files.get(link, tmp_path / "copy", note)
        else:
            await bob.files.pin(link, note)
    assert told[0] == (True, 0, len(data))  # before it is looked through
    assert told[-1] == (True, len(data), len(data))
    assert any(0 < present < len(data) for _, present, _ in told)


@pytest.mark.parametrize("way", ["file", "folder", "pin"])
async def test_it_is_told_before_anything_is_looked_at(tmp_path: Path, way: str) -> None:
    folder(tmp_path / "garden", {"rose": 200_000})
    told: list[int] = []

    async with two(13) as (bob, _):
        source = Counting()
        bob.node.chunks.sources.insert(0, source)
        link, _ = await bob.files.share_folder(tmp_path / "garden")
        if way == "file":
            link = await share(bob, tmp_path / "garden" / "rose")
            await bob.files.get(link, tmp_path / "copy", lambda _: told.append(source.looked))
        elif way == "folder":
            await bob.files.get_folder(Order(link, tmp_path / "to"), lambda _: told.append(source.looked))
        else:
            await bob.files.pin(link, lambda _: told.append(source.looked))
    assert told[0] == 0 < source.looked


class Counting(ChunkSource):
    """Has nothing, and counts how often it is asked."""

    def __init__(self) -> None:
        self.looked = 0

    async def get(self, references: Sequence[bytes]) -> Sequence[bytes | None]:
        self.looked += 1
        return [None] * len(references)


async def test_a_content_whose_length_nobody_said_is_told_too(tmp_path: Path) -> None:
    data = content(tmp_path / "plan", 5_000_000)
    told: list[tuple[int, int | None]] = []

    async with two(12) as (bob, mallory):
        link = replace(await share(mallory, tmp_path / "plan"), size=None)
        await bob.files.get(
            link, tmp_path / "copy", lambda running: told.append((running.present, running.size))
        )
    assert told[0] == (0, None)
    assert told[-1] == (len(data), len(data))


async def pinned(of: Person) -> list[bytes]:
    """The references of all that is pinned, the last that came first."""
    rows = await of.node.storage._database.read(
        lambda connection: connection.execute(
            "SELECT reference FROM chunks WHERE own = 1 ORDER BY rowid DESC"
        ).fetchall()
    )
    return [reference for (reference,) in rows if isinstance(reference, bytes)]


async def test_a_link_that_names_this_node_shows_nothing_of_what_it_keeps(tmp_path: Path) -> None:
    data = content(tmp_path / "plan", 3_000_000)
    async with two(8) as (bob, mallory):
        link, asked = await share(mallory, tmp_path / "plan"), bob.asked()
        await bob.keep(data, *range(len(references(data))))
        both = FileLink(link.capability, (bob.node.record.encoded, *link.providers), "plan", link.size)
        await bob.files.get(both, tmp_path / "copy")
        assert len(asked) > 1  # by himself, as others would
        alone = FileLink(link.capability, (bob.node.record.encoded,), "plan", link.size)
        asked, away = bob.asked(), mallory.asked()
        await bob.files.get(alone, tmp_path / "again")
        assert (asked, away) == (references(data), set())
