"""Storing chunks at other nodes and fetching them, with nodes that are full, that forget and that lie."""

from __future__ import annotations

import random
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress

import anyio
import pytest

from overlay.channel.driver import Channel
from overlay.errors import (
    ClosedError,
    MalformedError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    VerificationError,
)
from overlay.locators import memory_locator
from overlay.peer import dialling
from overlay.peer.accept import MAX_STREAMS_OF_CHANNEL, Delivery, Reply
from overlay.peer.chunks import (
    BATCH_CHUNKS,
    FETCH,
    MAX_STORES,
    MAX_STORES_OF_CHANNEL,
    MAX_UNFOLDED,
    STORE,
    STORE_SECONDS,
    UNFOLD,
    ChunkSource,
)
from overlay.peer.links import Lane
from overlay.peer.node import Node, NodeOptions
from overlay.peer.places import STILL_SECONDS
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Latency
from overlay.units.eris import chunk_reference


@asynccontextmanager
async def nodes(*names: str, quota: int = 1 << 30) -> AsyncIterator[Sequence[Node]]:
    world = World(2, latency=Latency(0.001))
    async with AsyncExitStack() as stack:
        options = NodeOptions(storage_quota=quota)
        found = [
            await stack.enter_async_context(
                world.node(name, await stack.enter_async_context(world.database()), options=options)
            )
            for name in names
        ]
        await introduce(found)
        yield found


def chunks(count: int, size: int = 1024, seed: int = 1) -> list[bytes]:
    source = random.Random(seed)
    return [source.randbytes(size) for _ in range(count)]


def references(of: Sequence[bytes]) -> list[bytes]:
    return [chunk_reference(chunk) for chunk in of]


def answer_fetches(liar: Node, answer: Sequence[bytes], kind: str = FETCH) -> None:
    """Let a node answer every request for chunks with these parts, whatever was asked for."""

    async def parts() -> AsyncGenerator[bytes, None]:
        for part in answer:
            yield part

    async def receive(_: Delivery) -> Reply:
        return Reply(parts=parts())

    liar.accept._receivers.pop(kind)
    liar.accept.register(kind, receive, anonymous=True)


async def test_what_was_stored_is_fetched_and_what_was_not_is_left_out() -> None:
    async with nodes("alice", "bob") as (alice, bob):
        kept = [*chunks(40, 32_768), *chunks(24)]
        await alice.chunks.store(bob.identifier, kept)
        assert await bob.storage.get(references(kept)) == kept
        wanted = [*references(kept)[:40], *references(chunks(4, seed=2))]
        found = await alice.chunks.fetch(bob.identifier, wanted)
        assert found == dict(zip(wanted[:40], kept[:40], strict=True))


async def test_two_nodes_hold_a_copy_each_so_one_may_go() -> None:
    async with nodes("alice", "bob", "carol", "dave") as (alice, *others):
        kept = chunks(8)
        holders = alice.choose(2)
        for holder in holders:
            await alice.chunks.store(holder, kept)
        usages = [(await node.storage.usage()).chunks for node in others]
        assert sorted(usages) == [0, 8, 8]
        assert (await alice.storage.usage()).chunks == 0
        for holder in holders:
            assert len(await alice.chunks.fetch(holder, references(kept))) == 8


async def test_the_holder_does_not_learn_who_fetches() -> None:
    async with nodes("alice", "bob") as (alice, bob):
        seen: list[Delivery] = []
        receive = bob.accept._receivers.pop(FETCH).receiver

        async def watch(delivery: Delivery) -> Reply | bytes | None:
            seen.append(delivery)
            return await receive(delivery)

        bob.accept.register(FETCH, watch, anonymous=True)
        await bob.storage.put(chunks(1), now=bob.clock())
        assert len(await alice.chunks.fetch(bob.identifier, references(chunks(1)))) == 1
        assert [delivery.sender for delivery in seen] == [None]
        assert bob.locators.known(alice.identifier) is not None
        assert not bob.channels.connected(alice.identifier)


async def test_nobody_stores_without_showing_who_it_is() -> None:
    async with nodes("alice", "bob") as (alice, bob):
        with pytest.raises(RefusedError):
            await alice.push(bob.identifier, STORE, lane=Lane.ANONYMOUS)


async def test_what_a_node_keeps_for_itself_it_gives_to_nobody() -> None:
    async with nodes("alice", "bob") as (alice, bob):
        await bob.storage.put(chunks(2), now=bob.clock(), own=True)
        assert await alice.chunks.fetch(bob.identifier, references(chunks(2))) == {}


class Source(ChunkSource):
    """Has some chunks, and remembers what it was asked for."""

    def __init__(self, has: Sequence[bytes]) -> None:
        self._has = dict(zip(references(has), has, strict=True))
        self.asked: list[list[bytes]] = []

    async def get(self, references: Sequence[bytes]) -> list[bytes | None]:
        self.asked.append(list(references))
        return [self._has.get(reference) for reference in references]


async def test_other_sources_are_asked_in_turn_for_what_is_not_stored() -> None:
    async with nodes("alice", "bob") as (alice, bob):
        first, second, third, nowhere = chunks(4)
        await bob.storage.put([first], now=bob.clock())
        sources = [Source([first, second]), Source([second, third])]
        bob.chunks.sources += sources
        wanted = references([third, first, nowhere, second])
        found = await alice.chunks.fetch(bob.identifier, wanted)
        assert found == dict(zip(references([first, second, third]), [first, second, third], strict=True))
        assert sources[0].asked == [references([third, nowhere, second])]
        assert sources[1].asked == [references([third, nowhere])]


async def test_no_source_is_asked_for_more_than_is_sent_at_once_nor_for_nothing() -> None:
    async with nodes("alice", "bob") as (alice, bob):
        shared, stored = chunks(18), chunks(4, seed=2)
        await bob.storage.put(stored, now=bob.clock())
        source, last = Source(shared), Source([])
        bob.chunks.sources += [source, last]
        found = await alice.chunks.fetch(bob.identifier, references([*stored, *shared]))
        assert list(found.values()) == [*stored, *shared]
        assert [len(asked) for asked in source.asked] == [4, 8, 6]
        assert last.asked == []


@pytest.mark.parametrize("fails", ["never", "always"])
async def test_the_storage_is_asked_for_what_it_has_and_stood_in_for_where_it_fails(fails: str) -> None:
    async with nodes("alice", "bob") as (alice, bob):
        shared, stored = chunks(10), chunks(2, seed=2)
        await bob.storage.put(stored, now=bob.clock())
        asked: list[list[bytes]] = []
        get_stored = bob.storage.get

        async def watch(references: Sequence[bytes], *, own: bool = False) -> list[bytes | None]:
            asked.append(list(references))
            return [None] * len(references) if fails == "always" else await get_stored(references, own=own)

        bob.storage.get = watch  # type: ignore[method-assign]
        source = Source([*shared, *stored])
        bob.chunks.sources.append(source)
        wanted = [*shared[:8], *stored, *shared[8:]]
        assert list((await alice.chunks.fetch(bob.identifier, references(wanted))).values()) == wanted
        assert asked == [references([*stored, *shared[8:]])]
        assert len(source.asked[-1]) == (4 if fails == "always" else 2)


async def test_a_full_quota_refuses_and_keeps_what_it_had() -> None:
    async with nodes("alice", "bob", quota=10 * 1024) as (alice, bob):
        first = chunks(8)
        await alice.chunks.store(bob.identifier, first)
        with pytest.raises(RefusedError, match="no room"):
            await alice.chunks.store(bob.identifier, chunks(3, seed=2))
        assert (await bob.storage.usage()).chunks == 8
        await alice.chunks.store(bob.identifier, [*first, *chunks(2, seed=3)])
        assert len(await alice.chunks.fetch(bob.identifier, references(first))) == 8
        assert alice.reputation.trusted(bob.identifier, alice.clock())  # to refuse is its right


async def test_who_refused_to_store_something_is_not_asked_first_again() -> None:
    async with nodes("alice", "bob", "carol", quota=1024) as (alice, bob, carol):
        with pytest.raises(RefusedError, match="no room"):
            await alice.chunks.store(bob.identifier, chunks(2))
        assert alice.choose(2) == [carol.identifier, bob.identifier]  # although bob has answered before


async def test_who_takes_what_is_stored_earns_no_more_than_who_answers() -> None:
    async with nodes("alice", "bob") as (alice, bob):
        await alice.chunks.store(bob.identifier, chunks(1))
        before = alice.reputation.score(bob.identifier, alice.clock())
        for seed in range(2, 6):
            await alice.chunks.store(bob.identifier, chunks(1, seed=seed))
        assert alice.reputation.score(bob.identifier, alice.clock()) <= before


async def test_whom_this_node_may_not_dial_has_refused_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes("alice", "bob") as (alice, bob):

        async def refuse(*_: object, **__: object) -> object:
            raise RefusedError("that node has no address that this node may dial")

        monkeypatch.setattr(alice.channels._dialler, "dial", refuse)
        with pytest.raises(RefusedError):
            await alice.chunks.store(bob.identifier, chunks(1))
        assert alice.reputation.score(bob.identifier, alice.clock()) == 0


@pytest.mark.parametrize(
    "lie",
    [
        chunks(2, seed=9),
        [chunks(2)[1], chunks(2)[0]],
        [chunks(2)[0], chunks(2)[1][:-1]],
        [*chunks(2), chunks(2)[0]],
        [*chunks(2), b""],
    ],
    ids=["other chunks", "swapped", "cut", "one more", "one empty more"],
)
async def test_whoever_sends_a_wrong_chunk_is_found_out_and_cannot_see_by_whom(lie: list[bytes]) -> None:
    async with nodes("alice", "liar", "bob") as (alice, liar, bob):
        answer_fetches(liar, lie)
        with pytest.raises(VerificationError):
            await alice.chunks.fetch(liar.identifier, references(chunks(2)))
        assert [peer.score for peer in alice.peers()] == [0, 0]
        assert set(alice.choose(2)) == {liar.identifier, bob.identifier}


async def test_an_answer_that_stops_early_is_no_answer() -> None:
    async with nodes("alice", "liar") as (alice, liar):
        answer_fetches(liar, chunks(1))
        with pytest.raises(UnreachableError):
            await alice.chunks.fetch(liar.identifier, references(chunks(2)))


async def test_a_node_of_a_tree_is_given_by_who_knows_it_and_by_nobody_else() -> None:
    async with nodes("alice", "bob") as (alice, bob):
        root, *nodes_below = chunks(3)

        async def unfold(of: bytes, number: int) -> bytes | None:
            return nodes_below[number - 1] if of == chunk_reference(root) else None

        await bob.storage.put([root], now=bob.clock())
        async with alice.channels.circuit(bob.identifier) as circuit:
            with pytest.raises(NotFoundError):
                await alice.chunks.unfold_over(circuit, chunk_reference(root), 1)
            bob.chunks.unfolding.append(unfold)
            for number, expected in enumerate(nodes_below, start=1):
                found = await alice.chunks.unfold_over(circuit, chunk_reference(root), number)
                assert found == expected
            for number in (0, MAX_UNFOLDED):
                with pytest.raises(RefusedError, match="a number of 1 to 7"):
                    await alice.chunks.unfold_over(circuit, bytes(32), number)


@pytest.mark.parametrize(
    "lie",
    [[], [b"short"], chunks(2), [b"", *chunks(1)], [*chunks(1), b""], [b"", b""]],
    ids=["none", "short", "two", "absent and one", "one and absent", "twice absent"],
)
async def test_who_unfolds_to_something_that_is_no_chunk_is_found_out(lie: list[bytes]) -> None:
    async with nodes("alice", "liar") as (alice, liar):
        answer_fetches(liar, lie, UNFOLD)
        async with alice.channels.circuit(liar.identifier) as circuit:
            with pytest.raises(VerificationError):
                await alice.chunks.unfold_over(circuit, bytes(32), 1)
        assert [peer.score for peer in alice.peers()] == [0]


@pytest.mark.parametrize("kept", [chunks(1), []], ids=["served", "absent"])
async def test_what_a_node_does_for_somebody_anonymous_does_not_make_it_preferred(kept: list[bytes]) -> None:
    async with nodes("alice", "bob", "carol") as (alice, bob, carol):
        await carol.storage.put(kept, now=carol.clock())
        with pytest.raises(NotFoundError):
            await alice.push(bob.identifier, "nonsense")  # it answers, which is something
        for _ in range(5):
            await alice.chunks.fetch(carol.identifier, references(chunks(1)))
            async with alice.channels.circuit(carol.identifier) as circuit:
                await alice.chunks.fetch_over(circuit, references(chunks(1)), nothing)
        assert alice.reputation.score(carol.identifier, alice.clock()) == 0
        assert alice.choose(1) == [bob.identifier]


async def test_who_is_not_reached_anonymously_is_not_shunned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "DIAL_ATTEMPTS", 1)
    async with nodes("alice", "bob") as (alice, bob):
        with alice.locators.lend([bob.locators.serve([memory_locator(99)])]):
            with pytest.raises(UnreachableError):
                await alice.chunks.fetch(bob.identifier, references(chunks(1)))
            with pytest.raises(UnreachableError):
                async with alice.channels.circuit(bob.identifier):
                    pass
        assert alice.reputation.score(bob.identifier, alice.clock()) == 0
        assert await alice.chunks.fetch(bob.identifier, references(chunks(1))) == {}


async def test_a_node_can_ask_itself_as_anybody_asks_it() -> None:
    async with nodes("alice") as (alice,):
        await alice.storage.put(chunks(2), now=alice.clock())
        assert len(await alice.chunks.fetch(alice.identifier, references(chunks(2)))) == 2


async def nothing(_reference: bytes, _chunk: bytes) -> None:
    """Takes a chunk and does nothing with it."""


@pytest.mark.parametrize(
    "parts",
    [[bytes(1023)], [bytes(32_769)], [bytes(1024), b""], [bytes(1024)] * (BATCH_CHUNKS + 1)],
    ids=["too short", "too long", "one empty", "too many"],
)
async def test_what_are_no_chunks_is_refused_whole(parts: list[bytes]) -> None:
    async with nodes("alice", "bob") as (alice, bob):

        async def each() -> AsyncGenerator[bytes, None]:
            for part in parts:
                yield part

        with pytest.raises(RefusedError):
            await alice.push(bob.identifier, STORE, lane=Lane.BULK, parts=each)
        assert (await bob.storage.usage()).chunks == 0


@pytest.mark.parametrize("size", [0, 31, 33, 32 * (BATCH_CHUNKS + 1)])
async def test_a_request_that_lists_no_references_is_refused(size: int) -> None:
    async with nodes("alice", "bob") as (alice, bob):
        with pytest.raises(RefusedError):
            await alice.pull(bob.identifier, FETCH, bytes(size))


async def test_batches_are_bounded_here_too() -> None:
    async with nodes("alice", "bob") as (alice, bob):
        with pytest.raises(MalformedError):
            await alice.chunks.store(bob.identifier, chunks(BATCH_CHUNKS + 1))
        with pytest.raises(MalformedError):
            await alice.chunks.fetch(bob.identifier, references(chunks(BATCH_CHUNKS + 1)))


async def test_a_node_that_is_not_known_cannot_be_asked() -> None:
    async with nodes("alice") as (alice,):
        stranger = World(99).secret("stranger").identifier
        with pytest.raises(NotFoundError):
            await alice.chunks.fetch(stranger, references(chunks(1)))


LIMIT = 65_536
PATIENCE = 0.3
"""Seconds that a limit of 64 KiB a second saves of two large chunks, and the network's own."""


@pytest.mark.parametrize("way", ["stored", "served", "fetched", "fetched over a circuit"])
async def test_a_limit_is_kept_and_lifted(way: str) -> None:
    async with nodes("alice", "bob") as (alice, bob):
        kept = chunks(4, 32_768)
        wanted = references(kept)
        if way != "stored":
            await alice.chunks.store(bob.identifier, kept)

        async def move() -> None:
            if way == "stored":
                for chunk in kept:
                    await alice.chunks.store(bob.identifier, [chunk])
            elif way == "fetched over a circuit":
                async with alice.channels.circuit(bob.identifier) as channel:
                    await alice.chunks.fetch_over(channel, wanted, took)
            else:
                await alice.chunks.fetch(bob.identifier, wanted)

        async def took(_reference: bytes, _chunk: bytes) -> None:
            pass

        limiter = {"stored": alice.chunks.up, "served": bob.chunks.up}.get(way, alice.chunks.down)
        limiter.change(LIMIT)
        begin = anyio.current_time()
        await move()
        assert anyio.current_time() - begin >= 1.5 - PATIENCE  # the last of four chunks waits for three
        limiter.change(None)
        with anyio.fail_after(1):
            await move()


VIRTUAL = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)


class Watched(bytes):
    """A chunk that tells its source when nobody holds it any more."""

    source: WatchedSource

    def __del__(self) -> None:
        self.source.held -= 1


class WatchedSource(ChunkSource):
    """Makes a chunk anew whenever it is asked for, and knows how many of them somebody holds."""

    def __init__(self, chunk: bytes) -> None:
        self._chunk = chunk
        self.made = self.held = 0

    async def get(self, references: Sequence[bytes]) -> list[bytes | None]:
        return [self._make() for _ in references]

    async def unfold(self, _root: bytes, _number: int) -> bytes | None:
        return self._make()

    def _make(self) -> bytes:
        chunk = Watched(self._chunk)
        chunk.source = self
        self.made += 1
        self.held += 1
        return chunk


async def ignore(_reference: bytes, _chunk: bytes) -> None:
    """Take a chunk and do nothing with it."""


async def fetch_for_ever(node: Node, circuit: Channel, wanted: Sequence[bytes]) -> None:
    while True:
        await node.chunks.fetch_over(circuit, wanted, ignore)


@VIRTUAL
async def test_who_asks_on_many_streams_gets_no_larger_part_of_a_limit() -> None:
    async with nodes("alice", "bob", "mallory") as (alice, bob, mallory):
        kept = chunks(8, 32_768)
        wanted = references(kept)
        await alice.chunks.store(bob.identifier, kept)
        bob.chunks.up.change(LIMIT)
        async with (
            mallory.channels.circuit(bob.identifier) as theirs,
            alice.channels.circuit(bob.identifier) as ours,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(30):
                tasks.start_soon(fetch_for_ever, mallory, theirs, wanted)
            await anyio.sleep(10)
            begin = anyio.current_time()
            await alice.chunks.fetch_over(ours, wanted, ignore)
            assert anyio.current_time() - begin <= 2 * 8 * 32_768 / LIMIT + PATIENCE + 0.5
            tasks.cancel_scope.cancel()


@VIRTUAL
async def test_what_is_asked_for_and_not_awaited_uses_up_no_limit() -> None:
    async with nodes("alice", "bob") as (alice, bob):
        kept = chunks(8, 32_768)
        wanted = references(kept)
        await alice.chunks.store(bob.identifier, kept)
        bob.chunks.up.change(LIMIT)
        async with alice.channels.circuit(bob.identifier) as ours:
            async with alice.channels.circuit(bob.identifier) as circuit:
                with anyio.move_on_after(0.1):
                    async with anyio.create_task_group() as tasks:
                        for _ in range(20):
                            tasks.start_soon(fetch_for_ever, alice, circuit, wanted)
            begin = anyio.current_time()
            await alice.chunks.fetch_over(ours, wanted, ignore)
            assert anyio.current_time() - begin <= 10 * 32_768 / LIMIT + PATIENCE


@VIRTUAL
@pytest.mark.parametrize("after", [1.0, 60.0])
async def test_who_brings_a_chunk_now_and_then_keeps_nobody_else_from_storing(after: float) -> None:
    crowd = [f"mallory {number}" for number in range(MAX_STORES // MAX_STORES_OF_CHANNEL)]
    ended: list[float] = []

    async def drip() -> AsyncGenerator[bytes, None]:
        for chunk in chunks(BATCH_CHUNKS):
            yield chunk
            await anyio.sleep(STILL_SECONDS - 1)

    async def hold(mallory: Node, bob: Node) -> None:
        with suppress(RefusedError):
            await mallory.push(bob.identifier, STORE, lane=Lane.BULK, parts=drip)
        ended.append(anyio.current_time())

    async with nodes("alice", "bob", *crowd) as (alice, bob, *them), anyio.create_task_group() as tasks:
        for mallory in them:
            for _ in range(MAX_STORES_OF_CHANNEL):
                tasks.start_soon(hold, mallory, bob)
        await anyio.sleep(after)
        assert not ended  # nobody else wants a place
        begin = anyio.current_time()
        await alice.chunks.store(bob.identifier, chunks(2, seed=2))
        assert anyio.current_time() - begin <= max(0.0, STORE_SECONDS - after) + 1
        await anyio.sleep(1)
        assert len(ended) == 1  # as many as were in the way
        tasks.cancel_scope.cancel()


@VIRTUAL
@pytest.mark.parametrize("kind", [FETCH, UNFOLD])
async def test_requests_that_wait_for_their_turn_hold_no_chunks(kind: str) -> None:
    async with nodes("alice", "bob") as (alice, bob):
        (chunk,) = chunks(1, 32_768)
        source = WatchedSource(chunk)
        bob.chunks.sources.append(source)
        bob.chunks.unfolding.append(source.unfold)
        bob.chunks.up.change(LIMIT)
        await bob.chunks.up.pass_on(100 * LIMIT)
        async with alice.channels.circuit(bob.identifier) as circuit, anyio.create_task_group() as tasks:
            for _ in range(30):
                if kind == FETCH:
                    tasks.start_soon(alice.chunks.fetch_over, circuit, references([chunk]) * 4, ignore)
                else:
                    tasks.start_soon(alice.chunks.unfold_over, circuit, bytes(32), 1)
            await anyio.sleep(50)
            assert 0 < source.held <= MAX_STREAMS_OF_CHANNEL * (4 if kind == FETCH else 1)
            tasks.cancel_scope.cancel()


async def test_chunks_that_went_out_are_not_held_until_the_next_turn() -> None:
    async with nodes("bob") as (bob,):
        (chunk,) = chunks(1)
        source = WatchedSource(chunk)
        bob.chunks.sources.append(source)
        reply = await bob.chunks._receive_fetch(Delivery(None, FETCH, references([chunk])[0] * 8))
        assert reply.parts is not None
        async with aclosing(reply.parts) as parts:
            for _ in range(reply.together):
                assert await anext(parts) == chunk
            assert (source.held, source.made) == (0, reply.together)


async def test_a_tree_that_is_gone_when_its_turn_comes_is_no_lie() -> None:
    async with nodes("alice", "bob") as (alice, bob):
        asked: list[int] = []

        async def unfold(_root: bytes, number: int) -> bytes | None:
            asked.append(number)
            return None

        bob.chunks.unfolding.append(unfold)
        async with alice.channels.circuit(bob.identifier) as circuit:
            with pytest.raises(NotFoundError, match="does not know the tree"):
                await alice.chunks.unfold_over(circuit, bytes(32), 1)
        assert asked == [1]  # once, and in its turn


async def test_an_error_holds_none_of_the_chunks_that_were_to_be_stored() -> None:
    async with nodes("bob") as (bob,):
        delivery = Broken(None, STORE, b"")
        with pytest.raises(ClosedError) as caught:
            await bob.chunks._receive_store(delivery)
        frames = [frame.f_locals for frame, _ in traceback.walk_tb(caught.tb)]
        held = [local["chunks"] for local in frames if "chunks" in local]
        assert delivery.sent
        assert held
        assert held == [[]] * len(held)


class Broken(Delivery):
    """Brings some chunks and is gone."""

    sent = False

    async def parts(self) -> AsyncGenerator[bytes, None]:
        for chunk in chunks(3):
            yield chunk
        object.__setattr__(self, "sent", True)
        raise ClosedError("gone")
