"""What a node keeps for good: whole or gone on with, within the quota, and given up without a trace."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from overlay.database import Database, Schema
from overlay.errors import MalformedError, NotFoundError, RefusedError, StorageError, VerificationError
from overlay.files.disk.target import open_target
from overlay.files.engine.providers import Candidates
from overlay.files.fetching.gathering import gather
from overlay.files.fetching.sink import Sink
from overlay.files.links import FileLink
from overlay.files.manifest.codec import Entry, write_manifest
from overlay.files.pinning import index as pin_index
from overlay.files.pinning.index import NewPin
from overlay.files.pinning.pin import pin_link
from overlay.files.pinning.pins import PINS_SCHEMA, Pins
from overlay.peer.accept import Delivery, Reply
from overlay.peer.chunks import FETCH, REFERENCE_BYTES
from overlay.peer.node import Node
from overlay.peer.storage import STORAGE_SCHEMA, StorageManager, Usage
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Latency
from overlay.units.capability import ReadCapability
from overlay.units.eris import encode_content

LARGE = 32_768
NOTHING = Usage(0, 0)
Content = tuple[dict[bytes, bytes], ReadCapability]


def content(size: int, seed: int = 1, *, secret: bytes = bytes(32)) -> Content:
    chunks, capability = encode_content(random.Random(seed).randbytes(size), secret=secret)
    return {chunk.reference: chunk.data for chunk in chunks}, capability


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    async with await Database.open(None, [STORAGE_SCHEMA, PINS_SCHEMA]) as database:
        yield database


@pytest.fixture
def storage(database: Database) -> StorageManager:
    return StorageManager(database)


@pytest.fixture
def pins(database: Database, storage: StorageManager) -> Pins:
    return Pins(database, storage, clock=lambda: 7.0)


async def feed(sink: Sink, chunks: dict[bytes, bytes], *, without: Collection[bytes] = ()) -> list[bytes]:
    """Bring what a sink wants; gives what that was."""
    brought: list[bytes] = []
    while wanted := sink.tree.wanted(16, without):
        brought += wanted
        for reference in wanted:
            sink.take(reference, chunks[reference])
        await sink.flush()
    return brought


def link(it: Content, size: int | None = None) -> FileLink:
    return FileLink(it[1], name="plan", size=size)


async def pin(pins: Pins, it: Content, size: int | None = None) -> list[bytes]:
    async with pins.add(link(it, size)) as sink:
        brought = await feed(sink, it[0])
        await sink.finish()
    return brought


@pytest.mark.parametrize("size", [0, 1, 1024, 16_383, 100_000, 40_000_000])
@pytest.mark.parametrize("told", [True, False])
async def test_every_chunk_is_kept_and_served(
    pins: Pins,
    storage: StorageManager,
    size: int,
    told: bool,  # noqa: FBT001 - a case of the test
) -> None:
    it = content(size)
    brought = await pin(pins, it, size if told else None)
    assert set(brought) == set(it[0])
    (kept,) = await pins.list()
    assert (kept.name, kept.size, kept.whole, kept.added) == ("plan", size, True, 7.0)
    assert await storage.usage(own=True) == Usage(sum(map(len, it[0].values())), len(it[0]))
    assert await storage.purge(1e12) == 0
    some = list(it[0])[:200]
    assert await pins.get([*some, bytes(32)]) == [*map(it[0].__getitem__, some), None]

    assert await pin(pins, it, size if told else None) == []
    removed = await pins.remove(link(it))
    assert removed == kept
    assert (await pins.list(), await storage.usage(own=True)) == ((), NOTHING)
    assert await pins.get(some) == [None] * len(some)


async def test_nothing_else_that_the_node_keeps_for_itself_is_served(
    pins: Pins, storage: StorageManager
) -> None:
    (secret,) = await storage.put([b"s" * 1024], now=0, own=True)
    it = content(10)
    await pin(pins, it)
    (pinned,) = it[0]
    assert await pins.get([secret, pinned]) == [None, it[0][pinned]]


async def test_what_came_of_an_interrupted_pin_is_not_fetched_again(
    pins: Pins, storage: StorageManager
) -> None:
    it = content(3_000_000)
    lost = list(it[0])[20:30]
    async with pins.add(link(it)) as sink:
        await feed(sink, it[0], without=lost)
        with pytest.raises(ValueError, match="missing"):
            await sink.finish()
    (kept,) = await pins.list()
    assert (kept.whole, kept.size, kept.total) == (False, None, None)
    assert set(await pin(pins, it)) == set(lost)
    (kept,) = await pins.list()
    assert kept.whole

    other = content(3_000_000, seed=2)
    async with pins.add(link(other, 3_000_000)) as sink:
        await feed(sink, other[0], without=list(other[0])[20:30])
    assert (await pins.remove(link(other))).total == 3_000_000  # as its link says
    assert (await storage.usage(own=True)).chunks == len(it[0])


async def test_what_was_taken_before_a_cancellation_is_kept(pins: Pins, storage: StorageManager) -> None:
    it = content(100_000)
    with anyio.CancelScope() as scope:
        async with pins.add(link(it)) as sink:
            (root,) = sink.tree.wanted(1)
            sink.take(root, it[0][root])
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert await storage.owned([root]) == [True]
    assert set(await pin(pins, it)) == set(it[0]) - {root}


async def test_what_cannot_fit_is_refused_before_it_is_begun(pins: Pins, storage: StorageManager) -> None:
    storage.quota = 3_000_000
    await pin(pins, content(1_000_000), 1_000_000)
    it = content(2_000_000, seed=2)
    with pytest.raises(StorageError, match=r"takes \d\.\d MiB, .* leaves \d\.\d MiB: unpin"):
        await pin(pins, it, 2_000_000)
    assert len(await pins.list()) == 1
    storage.quota = 3_200_000
    await pin(pins, it, 2_000_000)


async def test_what_does_not_fit_ends_with_that_and_is_gone_on_with(
    pins: Pins, storage: StorageManager
) -> None:
    it = content(2_000_000)
    storage.quota = 1_000_000
    with pytest.raises(StorageError, match="quota of this node, 1 MiB, is used up: unpin"):
        await pin(pins, it)
    (kept,) = await pins.list()
    assert not kept.whole
    used = await storage.usage(own=True)
    assert 0 < used.bytes <= 1_000_000
    storage.quota = 3_000_000
    assert len(await pin(pins, it)) == len(it[0]) - used.chunks


async def test_after_a_failure_a_sink_is_of_no_more_use(pins: Pins, storage: StorageManager) -> None:
    it = content(2_000_000)
    async with pins.add(link(it)) as sink:
        await feed(sink, it[0], without=list(it[0])[:40])
        storage.quota = 0
        for reference in sink.tree.wanted(20):
            sink.take(reference, it[0][reference])
        with pytest.raises(StorageError, match="used up"):
            await sink.flush()
        storage.quota = 1 << 30
        with pytest.raises(StorageError, match="used up"):
            await sink.finish()
    assert len(await pin(pins, it)) == 40


async def test_content_that_repeats_itself_without_end_is_given_up(
    pins: Pins, storage: StorageManager, endless: Content
) -> None:
    storage.quota = 300_000_000
    with pytest.raises(StorageError, match="quota of this node, 286 MiB, is used up: allow more"):
        await pin(pins, endless)
    assert (await storage.usage(own=True)).chunks == len(endless[0])
    await pins.remove(link(endless))
    assert await storage.usage(own=True) == NOTHING


async def test_so_is_a_folder_that_has_one_file_over_and_over() -> None:
    chunks, capability = encode_content(random.Random(1).randbytes(500_000), secret=bytes(32))
    entries = [Entry((name,), capability, 500_000) for name in "abc"]
    more, root = encode_content(b"".join(write_manifest(entries)), secret=bytes(32))
    async with trio_of_nodes(World(3, latency=Latency(0.001))) as ((alice, bob, _), database):
        stored = [chunk.data for chunk in chunks + more]
        await alice.storage.put(stored, now=alice.clock())
        bob.storage.quota = 1_000_000
        pins, of = Pins(database, bob.storage, bob.clock), FileLink(root, kind="folder")
        candidates = Candidates([alice.identifier])
        with pytest.raises(StorageError, match=r"takes 1\.4 MiB and more: .*, 1 MiB, is used up: allow more"):
            await pin_link(bob, pins, of, candidates, step=lambda *_: None)
        assert (await bob.storage.usage(own=True)).chunks == len(more)
        bob.storage.quota = 1_500_000
        assert (await pin_link(bob, pins, of, candidates, step=lambda *_: None)).total == 1_500_000


async def test_one_content_is_pinned_once_at_a_time(pins: Pins) -> None:
    it = content(10)
    async with pins.add(link(it)) as sink:
        with pytest.raises(RefusedError, match="already"):
            await pin(pins, it)
        with pytest.raises(RefusedError, match="already"):
            await pins.remove(link(it))
        await feed(sink, it[0])
        await sink.finish()
    await pins.remove(link(it))
    with pytest.raises(NotFoundError, match="not pinned"):
        await pins.remove(link(it))


async def test_chunks_of_two_pins_stay_until_both_are_removed(pins: Pins, storage: StorageManager) -> None:
    data = random.Random(1).randbytes(2_000_000)
    one, two = (
        ({each.reference: each.data for each in chunks}, capability)
        for chunks, capability in (encode_content(data[:cut], secret=bytes(32)) for cut in (1_500_000, None))
    )
    await pin(pins, one)
    assert set(await pin(pins, two)) == set(two[0])  # or others could tell who has pinned the first
    await pins.remove(link(one))
    assert (await storage.usage(own=True)).chunks == len(two[0])
    assert await pins.get(list(two[0])[:60]) == list(two[0].values())[:60]
    await pins.remove(link(two))
    assert await storage.usage(own=True) == NOTHING


async def test_a_pin_that_is_removed_takes_nothing_from_one_that_is_begun(
    pins: Pins, storage: StorageManager
) -> None:
    data = random.Random(1).randbytes(20_000_000)
    old, new = (
        ({each.reference: each.data for each in chunks}, capability)
        for chunks, capability in (encode_content(data[:cut], secret=bytes(32)) for cut in (19_999_999, None))
    )
    await pin(pins, old)
    async with anyio.create_task_group() as group:
        group.start_soon(pins.remove, link(old))
        await pin(pins, new)
    assert (await storage.usage(own=True)).chunks == len(new[0])
    assert await pin(pins, new) == []


async def test_what_was_being_removed_goes_with_the_next_start(
    database: Database, pins: Pins, storage: StorageManager
) -> None:
    it = content(100_000)
    await pin(pins, it)
    (kept,) = await pins.list()
    await database.write(lambda connection: pin_index.discard(connection, kept.id))
    assert await pins.get(list(it[0])) == [None] * len(it[0])
    await Pins(database, storage, clock=lambda: 8.0).load()
    assert await storage.usage(own=True) == NOTHING
    rows = await database.read(
        lambda connection: (
            connection.execute("SELECT (SELECT count(*) FROM pins) + (SELECT count(*) FROM pin_chunks)").get
        )
    )
    assert rows == 0


async def test_a_chunk_that_was_lost_is_fetched_by_pinning_again(pins: Pins, storage: StorageManager) -> None:
    it = content(1_000_000)
    await pin(pins, it)
    lost = list(it[0])[7:9]
    await storage.discard(lost)
    assert await pins.get(lost) == [None, None]
    assert set(await pin(pins, it)) == set(lost)


async def test_a_wrong_chunk_is_refused_and_the_right_one_taken(pins: Pins) -> None:
    it = content(100_000)
    async with pins.add(link(it)) as sink:
        (root,) = sink.tree.wanted(1)
        with pytest.raises(VerificationError):
            sink.take(root, bytes(LARGE))
        await feed(sink, it[0])
        await sink.finish()


async def test_what_is_ill_formed_is_given_up(pins: Pins, storage: StorageManager) -> None:
    it = content(100_000)
    for size in (99_999, 100_001):
        with pytest.raises(MalformedError, match="has not the"):
            await pin(pins, it, size)
        assert (await pins.list(), await storage.usage(own=True)) == ((), NOTHING)
    await pin(pins, it, 100_000)
    with pytest.raises(MalformedError, match="has not the"):
        await pin(pins, it, 99_999)
    with pytest.raises(MalformedError, match="does not fit"):
        await pin(pins, it, 10**12)
    (kept,) = await pins.list()
    assert (kept.whole, kept.size) == (True, 100_000)


async def test_a_full_disk_is_told_and_nothing_is_lost(
    pins: Pins, storage: StorageManager, database: Database
) -> None:
    it = content(1_000_000)
    await pin(pins, it)
    await database.write(
        lambda connection: connection.pragma("max_page_count", connection.pragma("page_count"))
    )
    with pytest.raises(StorageError, match="the disk is full"):
        await pin(pins, content(2_000_000, seed=2))
    assert (await storage.usage(own=True)).chunks >= len(it[0])
    assert await pin(pins, it) == []


async def test_a_pinned_file_is_had_from_who_pinned_it_when_the_first_has_left(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3_000_000)
    chunks, capability = encode_content(data, secret=bytes(32))
    async with trio_of_nodes(World(1, latency=Latency(0.001))) as ((alice, bob, carol), database):
        await alice.storage.put([chunk.data for chunk in chunks], now=alice.clock())
        pins = Pins(database, bob.storage, bob.clock)
        async with pins.add(FileLink(capability)) as sink:
            await gather(bob, sink, Candidates([alice.identifier]))
            await sink.finish()
        bob.chunks.sources.append(pins)
        await alice.storage.purge(1e12)
        async with open_target(tmp_path / "copy", capability) as target:
            await gather(carol, target, Candidates([alice.identifier, bob.identifier]))
            await target.finish()
        assert (tmp_path / "copy").read_bytes() == data
        await pins.remove(FileLink(capability))
        async with open_target(tmp_path / "late", capability) as target:
            with pytest.raises(NotFoundError, match="nobody has"):
                await gather(carol, target, Candidates([bob.identifier]))


async def test_of_what_was_interrupted_only_what_came_for_this_pin_is_there(pins: Pins) -> None:
    data = random.Random(1).randbytes(3_000_000)
    one, two = (
        ({each.reference: each.data for each in chunks}, capability)
        for chunks, capability in (encode_content(data[:cut], secret=bytes(32)) for cut in (2_000_000, None))
    )
    await pin(pins, one)
    later = list(two[0])[20:30]
    async with pins.add(link(two)) as sink:
        came = await feed(sink, two[0], without=later)
    assert set(later) & set(one[0])
    assert set(await pin(pins, two)) == set(two[0]) - set(came)


async def test_a_pin_of_an_older_version_has_what_it_had(tmp_path: Path) -> None:
    before = Schema(PINS_SCHEMA.name, PINS_SCHEMA.steps[:1])
    it = content(100_000)
    async with await Database.open(tmp_path / "node.db", [STORAGE_SCHEMA, before]) as database:
        await StorageManager(database).put(list(it[0].values()), now=0, own=True)
        kept = await database.write(
            lambda connection: pin_index.begin(connection, NewPin("file", it[1], "plan", None, 7.0))
        )
        await database.write(lambda connection: pin_index.note(connection, kept.id, it[0]))
    async with await Database.open(tmp_path / "node.db", [STORAGE_SCHEMA, PINS_SCHEMA]) as database:
        assert await pin(Pins(database, StorageManager(database), clock=lambda: 8.0), it) == []


async def test_what_the_node_keeps_for_others_is_asked_for_as_by_anybody_to_pin_it() -> None:
    chunks, capability = encode_content(random.Random(1).randbytes(3_000_000), secret=bytes(32))
    data = [chunk.data for chunk in chunks]
    async with trio_of_nodes(World(2, latency=Latency(0.001))) as ((alice, bob, _), database):
        await bob.storage.put(data[7:9], now=bob.clock())
        await alice.storage.put(data, now=alice.clock())
        asked = asked_of(alice)
        pins = Pins(database, bob.storage, bob.clock)
        async with pins.add(FileLink(capability)) as sink:
            await gather(bob, sink, Candidates([alice.identifier]))
            await sink.finish()
        assert asked == {chunk.reference for chunk in chunks}
        await bob.storage.purge(1e12)
        assert (await bob.storage.usage(own=True)).chunks == len(chunks)


def asked_of(node: Node) -> set[bytes]:
    """The references that a node is asked for from now on."""
    asked: set[bytes] = set()
    registration = node.accept._receivers[FETCH]

    async def note(delivery: Delivery) -> Reply | bytes | None:
        body = delivery.body
        asked.update(body[at : at + REFERENCE_BYTES] for at in range(0, len(body), REFERENCE_BYTES))
        return await registration.receiver(delivery)

    node.accept._receivers[FETCH] = replace(registration, receiver=note)
    return asked


@asynccontextmanager
async def trio_of_nodes(world: World) -> AsyncIterator[tuple[list[Node], Database]]:
    """Alice, Bob and Carol, and Bob's database."""
    async with AsyncExitStack() as stack:
        databases = [await stack.enter_async_context(world.database(PINS_SCHEMA)) for _ in range(3)]
        nodes = [
            await stack.enter_async_context(world.node(name, database))
            for name, database in zip(("alice", "bob", "carol"), databases, strict=True)
        ]
        await introduce(nodes)
        yield nodes, databases[1]
