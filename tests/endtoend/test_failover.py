"""One identity on two networks: chat and files go on over the other when one dies, whatever was under way.

Everything is simulated, in virtual time. The first network is cut after so many pieces of bytes, so that each
phase of a dial, a handshake, a request and its answer is met; either connections break, or nothing arrives
any more and only heartbeats tell.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest

from overlay.channel.driver import Channel
from overlay.chat.messages import EVENTS_KIND
from overlay.chat.service import Chat
from overlay.chat.store import CHAT_SCHEMA
from overlay.errors import UnreachableError
from overlay.peer.accept import Delivery, Reply
from overlay.peer.chunks import BATCH_CHUNKS, FETCH, REFERENCE_BYTES, Take
from overlay.peer.node import Node, NodeOptions
from overlay.peer.requests import CHANNEL_TRIES
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Latency, SimulatedNetwork
from overlay.transports.memory import LinkConditions

VIRTUAL = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)

DETECTION = 90.0
"""Seconds after which a silent channel is dead: three heartbeats."""

WITHIN = 3.0
"""Seconds after detection within which everything that waited must have arrived."""

How = Literal["reset", "silence", "answers lost"]


class Cuttable(SimulatedNetwork):
    """Dies after so many pieces, counted from when that is said."""

    def __init__(self) -> None:
        super().__init__(1, latency=Latency(median=0.05, sigma=0.0), protocol="onion3")
        self.left: int | None = None
        self.how: How = "reset"
        self.cut_at: float | None = None
        self.deaf = False

    def cut_after(self, pieces: int, how: How) -> None:
        self.left, self.how = pieces, how
        self.count(0)

    def count(self, pieces: int) -> None:
        if self.left is None or self.cut_at is not None:
            return
        self.left -= pieces
        if self.left <= 0:
            self.cut_at = anyio.current_time()
            if self.how == "reset":
                self.partition(*([number] for number in range(1, 9)))
            else:
                self.deaf = self.how == "answers lost"
                if not self.deaf:
                    self.silence()

    def between(self, caller: int, called: int) -> LinkConditions:
        return _Counted(self, super().between(caller, called))


@dataclass
class _Counted:
    network: Cuttable
    link: LinkConditions

    def dial(self) -> float | None:
        self.network.count(1)
        return float("inf") if self.network.deaf else self.link.dial()

    def carry(self, size: int, *, outward: bool) -> float | None:
        self.network.count(1)
        if self.network.deaf and not outward:
            return float("inf")
        return self.link.carry(size, outward=outward)


@dataclass
class Person:
    node: Node
    chat: Chat
    heard: list[tuple[float, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    detected: list[float] = field(default_factory=list)
    news: anyio.Event = field(default_factory=anyio.Event)

    async def listen(self, session: str) -> None:
        async with aclosing(self.chat.follow(session)) as entries:
            async for entry in entries:
                if entry.kind == "text":
                    self.heard.append((anyio.current_time(), entry.text))
                elif entry.kind == "file":
                    self.files.append(entry.id)
                self.news.set()
                self.news = anyio.Event()

    async def hears(self, count: int) -> None:
        with anyio.fail_after(600):
            while len(self.heard) < count:
                await self.news.wait()

    async def hears_of_file(self) -> str:
        with anyio.fail_after(600):
            while not self.files:
                await self.news.wait()
        return self.files[0]


def watch(person: Person) -> None:
    """Note when the node learns that a network has died."""
    book = person.node.channels._book
    lost: Callable[..., None] = book.lost

    def noted(*arguments: Any, **how: Any) -> None:  # noqa: ANN401 - passed on as they are
        person.detected.append(anyio.current_time())
        lost(*arguments, **how)

    book.lost = noted  # type: ignore[method-assign]


@dataclass
class Story:
    tor: Cuttable
    i2p: SimulatedNetwork
    people: list[Person]
    session: str


@asynccontextmanager
async def story(*names: str) -> AsyncIterator[Story]:
    """Everybody is on both networks; the first two share a session and talk over the first network."""
    world = World(2)
    tor, i2p = Cuttable(), world.further_network("garlic32", latency=Latency(median=0.2, sigma=0.0))
    async with AsyncExitStack() as stack:
        people: list[Person] = []
        for name in names:
            number = world.number(name)
            database = await stack.enter_async_context(world.database(CHAT_SCHEMA))
            transports = [tor.transport(number=number), i2p.transport(number=number)]
            options = NodeOptions(storage_quota=1 << 30 if name in {"carol", "dave"} else 0)
            node = await stack.enter_async_context(
                world.node(name, database, transports=transports, options=options)
            )
            people.append(Person(node, Chat(node, database)))
        await introduce([person.node for person in people])
        group = await stack.enter_async_context(anyio.create_task_group())
        for person in people:
            await group.start(person.chat.run)
        session = (await people[0].chat.create("Tea", "Alice")).session
        await people[1].chat.join(await people[0].chat.invite(session), "Bob")
        for person in people[:2]:
            group.start_soon(person.listen, session)
        await people[0].chat.send(session, "warm")
        for person in people[:2]:
            await person.hears(1)
            watch(person)
        assert people[0].node.channels.route(people[1].node.identifier)[0] == "onion3"
        yield Story(tor, i2p, people, session)
        group.cancel_scope.cancel()


def spy(node: Node, kind: str) -> list[bytes]:
    """The bodies of the requests of a kind that come to a node from now on."""
    bodies: list[bytes] = []
    registration = node.accept._receivers[kind]

    async def note(delivery: Delivery) -> Reply | bytes | None:
        bodies.append(delivery.body)
        return await registration.receiver(delivery)

    node.accept._receivers[kind] = replace(registration, receiver=note)
    return bodies


def spy_chunks(node: Node) -> list[bytes]:
    """Take down each chunk that a node fetches, as often as it comes."""
    taken: list[bytes] = []
    fetch = node.chunks.fetch_over

    async def spying(channel: Channel, references: Sequence[bytes], take: Take) -> None:
        async def note(reference: bytes, chunk: bytes) -> None:
            taken.append(reference)
            await take(reference, chunk)

        await fetch(channel, references, note)

    node.chunks.fetch_over = spying  # type: ignore[method-assign]
    return taken


async def close_all(person: Person) -> None:
    for links in list(person.node.channels._links._links.values()):
        for link in list(links):
            await link.channel.aclose()
    await anyio.sleep(1)


@VIRTUAL
@pytest.mark.parametrize("how", ["reset", "silence", "answers lost"])
@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("pieces", range(24))
async def test_messages_arrive_once_and_in_order_at_whatever_point_a_network_dies(
    pieces: int,
    cold: bool,  # noqa: FBT001 - a case of the test
    how: How,
) -> None:
    async with story("alice", "bob") as tale:
        alice, bob = tale.people
        if cold:
            await close_all(alice)
        tale.tor.cut_after(pieces, how)
        began = anyio.current_time()
        for number in range(6):
            await alice.chat.send(tale.session, f"a{number}")
            await bob.chat.send(tale.session, f"b{number}")
            await anyio.sleep(0.4)
        await alice.hears(13)
        await bob.hears(13)
        arrived = anyio.current_time()
        assert tale.tor.cut_at is not None
        for person in tale.people:
            texts = [text for _, text in person.heard]
            assert len(texts) == len(set(texts)) == 13
            for writer in "ab":
                assert [text for text in texts if text[0] == writer] == [f"{writer}{n}" for n in range(6)]
        known = max([began + 2.4, *alice.detected, *bob.detected])
        assert known <= tale.tor.cut_at + DETECTION + WITHIN
        assert arrived <= known + WITHIN
        assert [entry.text for entry in await alice.chat.read(tale.session)] == [
            entry.text for entry in await bob.chat.read(tale.session)
        ]
        await anyio.sleep(200)
        assert (len(alice.heard), len(bob.heard)) == (13, 13)


@VIRTUAL
async def test_a_message_whose_answer_was_lost_comes_twice_and_is_shown_once() -> None:
    async with story("alice", "bob") as tale:
        alice, bob = tale.people
        deliveries = spy(bob.node, EVENTS_KIND)
        assert alice.node.channels.route(bob.node.identifier)[1] is None  # Bob called
        tale.tor.silence()
        await anyio.sleep(DETECTION + 1)
        tale.tor.heal()
        await alice.chat.send(tale.session, "dial")
        await bob.hears(2)
        assert alice.node.channels.route(bob.node.identifier)[0] == "garlic32"
        deliveries.clear()
        bob_answers_nothing(tale.i2p)
        await alice.chat.send(tale.session, "again")
        await anyio.sleep(2 * DETECTION)
        assert 1 < len(deliveries) <= CHANNEL_TRIES  # on each channel that was open, and on a new one
        assert [text for _, text in bob.heard] == ["warm", "dial", "again"]


def bob_answers_nothing(network: SimulatedNetwork) -> None:
    for link in network.memory._links:
        outward, inward = link._pipes
        from_bob = outward if link.caller == 2 else inward
        from_bob._delay = lambda _size: float("inf")


@VIRTUAL
async def test_a_silent_network_is_known_dead_after_three_heartbeats() -> None:
    async with story("alice", "bob") as tale:
        alice, bob = tale.people
        tale.tor.silence()
        cut = anyio.current_time()
        await alice.chat.send(tale.session, "still?")
        await bob.hears(2)
        for person in (alice, bob):
            assert person.detected
            assert max(person.detected) <= cut + DETECTION + 1
        assert bob.heard[-1][0] <= max(alice.detected) + WITHIN


@VIRTUAL
async def test_with_all_networks_down_nothing_is_lost_and_all_arrives_when_one_is_back() -> None:
    async with story("alice", "bob") as tale:
        alice, bob = tale.people
        tale.tor.partition([1], [2])
        tale.i2p.partition([1], [2])
        for number in range(3):
            await alice.chat.send(tale.session, f"a{number}")
        with pytest.raises(UnreachableError):
            await alice.node.push(bob.node.identifier, "anything")
        await anyio.sleep(600)
        assert len(bob.heard) == 1
        tale.i2p.heal()
        with anyio.fail_after(1200):
            await bob.hears(4)
        assert [text for _, text in bob.heard] == ["warm", "a0", "a1", "a2"]


@pytest.fixture
def without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read and written in place: the virtual clock does not wait for threads."""

    async def run_here(function: Callable[..., Any], *arguments: Any, **_: Any) -> Any:  # noqa: ANN401
        await anyio.lowlevel.checkpoint()
        return function(*arguments)

    monkeypatch.setattr(anyio.to_thread, "run_sync", run_here)


FILE_BYTES = 3_000_000
MOST_PIECES = 200
"""More than a transfer of that size takes."""


@VIRTUAL
@pytest.mark.usefixtures("without_threads")
@pytest.mark.parametrize("how", ["reset", "silence", "answers lost"])
@pytest.mark.parametrize("pieces", range(0, MOST_PIECES, 9))
async def test_a_file_is_fetched_whole_at_whatever_point_a_network_dies(
    tmp_path: Path, pieces: int, how: How
) -> None:
    content = random.Random(pieces).randbytes(FILE_BYTES)
    (tmp_path / "plan").write_bytes(content)
    async with story("alice", "bob", "carol", "dave") as tale:
        alice, bob, *holders = tale.people
        await alice.chat.post(tale.session, tmp_path / "plan")
        file = await bob.hears_of_file()
        asked = [spy(holder.node, FETCH) for holder in holders]
        fetched = spy_chunks(bob.node)
        tale.tor.cut_after(pieces, how)
        began = anyio.current_time()
        await bob.chat.get(tale.session, file, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content
        assert {path.name async for path in anyio.Path(tmp_path).iterdir()} == {"plan", "copy"}
        references = [
            body[at : at + REFERENCE_BYTES]
            for bodies in asked
            for body in bodies
            for at in range(0, len(body), REFERENCE_BYTES)
        ]
        # All may have been on their way when the network died; near the end a batch is asked for twice.
        assert len(references) <= 2 * len(set(references)) + BATCH_CHUNKS
        assert len(fetched) <= len(set(fetched)) + BATCH_CHUNKS
        if tale.tor.cut_at is not None:
            assert anyio.current_time() <= max(tale.tor.cut_at + DETECTION, began) + 60


@VIRTUAL
@pytest.mark.usefixtures("without_threads")
@pytest.mark.parametrize("how", ["reset", "silence", "answers lost"])
@pytest.mark.parametrize("pieces", range(0, 2 * MOST_PIECES, 29))
async def test_a_file_is_posted_at_two_nodes_at_whatever_point_a_network_dies(
    tmp_path: Path, pieces: int, how: How
) -> None:
    content = random.Random(pieces).randbytes(FILE_BYTES)
    (tmp_path / "plan").write_bytes(content)
    async with story("alice", "bob", "carol", "dave") as tale:
        alice, bob, *holders = tale.people
        tale.tor.cut_after(pieces, how)
        posted = await alice.chat.post(tale.session, tmp_path / "plan")
        one, other = [await holder.node.storage.usage() for holder in holders]
        assert one == other
        assert one.bytes >= FILE_BYTES
        assert await bob.hears_of_file() == posted.file


@VIRTUAL
@pytest.mark.usefixtures("without_threads")
async def test_a_holder_is_given_up_when_no_network_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(bytes(FILE_BYTES))
    async with story("alice", "bob", "carol", "dave") as tale:
        alice, bob, *_ = tale.people
        await alice.chat.post(tale.session, tmp_path / "plan")
        file = await bob.hears_of_file()
        tale.tor.take_down(3)
        tale.i2p.take_down(3)
        await bob.chat.get(tale.session, file, tmp_path / "copy")
        tale.tor.take_down(4)
        tale.i2p.take_down(4)
        with pytest.raises(UnreachableError):
            await bob.chat.get(tale.session, file, tmp_path / "other copy")
