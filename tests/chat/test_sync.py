"""The requests about sessions between nodes that are doubles, one of which may lie."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import cast

import anyio
import pytest

from overlay.chat import session as session_module
from overlay.chat.events import Content, Created, Event, Joined, Left, Text
from overlay.chat.keys import SALT_BYTES, BoxContext
from overlay.chat.messages import (
    EVENTS_KIND,
    MAX_PLAIN_BYTES,
    SYNC_KIND,
    Envelope,
    EventBatch,
    SyncPage,
    SyncRequest,
    decode_envelope,
)
from overlay.chat.pending import MAX_PENDING_PER_SENDER
from overlay.chat.session import Session
from overlay.chat.store import CHAT_SCHEMA, ChatStore, SessionRow
from overlay.chat.sync import MAX_ROUND_PAGES, Sync, session_place
from overlay.database import Database
from overlay.errors import (
    MalformedError,
    NotFoundError,
    OverlayError,
    RefusedError,
    UnreachableError,
    VerificationError,
)
from overlay.identity import NodeIdentifier, SigningSecret
from overlay.peer.accept import Delivery
from overlay.peer.node import Node
from overlay.units.locators import PlaceSeal, UnitLocator
from overlay.wire.codec import decode, encode

KEY = SigningSecret(b"s" * 32)
SECRET = b"k" * 32
ROOT = Event.sign(KEY, session=KEY.public, clock=1, parents=[], at=0, content=Created(title="Tea"))

Receiver = Callable[[Delivery], Awaitable[bytes | None]]


class Network:
    """Nodes that call each other's receivers directly, and a record of what they said."""

    def __init__(self) -> None:
        self.nodes: dict[NodeIdentifier, Neighbour] = {}
        self.said: list[tuple[NodeIdentifier, NodeIdentifier, str, bytes]] = []

    async def carry(self, sender: NodeIdentifier, to: NodeIdentifier, kind: str, body: bytes) -> bytes:
        if to not in self.nodes:
            raise UnreachableError("nobody is there")
        self.said.append((sender, to, kind, body))
        try:
            return await self.nodes[to].receivers[kind](Delivery(sender, kind, body)) or b""
        except NotFoundError:
            raise
        except OverlayError as error:  # as a real node tells it
            raise RefusedError(str(error)) from error


class Neighbour:
    """As much of a node as the chat's requests need."""

    def __init__(self, network: Network, name: str) -> None:
        self.identifier = NodeIdentifier(name.encode().ljust(32, b"\0"))
        self.receivers: dict[str, Receiver] = {}
        self.blamed: list[NodeIdentifier] = []
        self.learned: list[bytes] = []
        self._network = network
        self._random = random.Random(name)
        self._seal = PlaceSeal(self.identifier.value)
        self.accept = SimpleNamespace(register=self.receivers.__setitem__)
        self.reputation = SimpleNamespace(note=lambda node, _deed, _now: self.blamed.append(node))
        self.locators = SimpleNamespace(learn=self._learn)
        network.nodes[self.identifier] = self

    def clock(self) -> float:
        return 1_800_000_000.0

    def entropy(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def seal_place(self, place: bytes) -> UnitLocator:
        return UnitLocator(self.identifier, self._seal.seal(place, self.entropy))

    def open_place(self, sealed: bytes) -> bytes:
        return self._seal.open(sealed)

    async def push(self, to: NodeIdentifier, kind: str, body: bytes) -> bytes:
        return await self._network.carry(self.identifier, to, kind, body)

    pull = push

    async def _learn(self, record: bytes) -> None:
        self.learned.append(record)
        raise VerificationError("this record has expired")


class Member:
    """A neighbour with a session, its own participant in it, and the requests about it."""

    def __init__(self, network: Network, name: str, database: Database) -> None:
        self.name = name
        self.neighbour = Neighbour(network, name)
        self.author = SigningSecret(name.encode().ljust(32, b"\1"))
        self.behind: list[UnitLocator] = []
        self.heard: list[tuple[bytes, NodeIdentifier]] = []
        self._store = ChatStore(database)
        self._row = SessionRow(KEY.public, SECRET, self.author.seed)
        self.session = Session(self._row, self._store)
        self.sync = Sync(cast("Node", self.neighbour), find=self._find, behind=self._note, heard=self._hear)

    @classmethod
    async def make(cls, network: Network, name: str, root: Event = ROOT) -> Member:
        member = cls(network, name, await Database.open(None, [CHAT_SCHEMA]))
        await member._store.create(member._row, [root])
        return member

    @property
    def locator(self) -> UnitLocator:
        return session_place(cast("Node", self.neighbour), KEY.public)

    async def join(self) -> Event:
        node, place = self.locator.node.value, self.locator.place
        proof = self.session.keys.prove(self.author.public)
        return await self.say(Joined(name=self.name, proof=proof, node=node, place=place, record=b"record"))

    async def _hear(self, _session: Session, events: Sequence[Event], sender: NodeIdentifier) -> None:
        self.heard += [(event.id, sender) for event in events]

    async def say(self, content: Content) -> Event:
        return await self.session.say(content, self.neighbour.clock())

    async def texts(self) -> list[str]:
        events, _ = await self._store.last(KEY.public, 10_000)
        return [event.content.text for event in events if isinstance(event.content, Text)]

    def _find(self, public: bytes) -> Session:
        if public != KEY.public:
            raise NotFoundError("no such session")
        return self.session

    async def _note(self, _session: Session, other: UnitLocator) -> None:
        self.behind.append(other)


async def pair() -> tuple[Network, Member, Member]:
    network = Network()
    return network, await Member.make(network, "alice"), await Member.make(network, "bob")


async def ids(member: Member) -> list[bytes]:
    events, _ = await member._store.last(KEY.public, 10_000)
    return [event.id for event in events]


async def test_one_exchange_brings_both_what_they_lack() -> None:
    _, alice, bob = await pair()
    await alice.join()
    await alice.say(Text(text="from alice"))
    await bob.join()
    await bob.say(Text(text="from bob"))
    assert await alice.sync.exchange(alice.session, bob.locator)
    assert await ids(alice) == await ids(bob)
    assert sorted(await alice.texts()) == ["from alice", "from bob"]
    assert alice.neighbour.learned == bob.neighbour.learned == [b"record"]
    assert {sender for _, sender in bob.heard} == {alice.neighbour.identifier}
    assert len(alice.heard) == len(bob.heard) == 2


async def test_a_long_history_comes_in_pages_and_goes_in_pages() -> None:
    network, alice, bob = await pair()
    await alice.join()
    for number in range(20):
        await alice.say(Text(text=f"{number} " + "x" * 10_000))
    assert await bob.sync.exchange(bob.session, alice.locator)
    assert len(await bob.texts()) == 20
    assert max(len(body) for *_, body in network.said) < 65_536
    carol = await Member.make(network, "carol")
    assert await alice.sync.exchange(alice.session, carol.locator)
    assert await ids(carol) == await ids(alice)


async def test_equal_histories_exchange_one_request() -> None:
    network, alice, bob = await pair()
    await alice.join()
    await alice.sync.exchange(alice.session, bob.locator)
    before = len(network.said)
    assert await bob.sync.exchange(bob.session, alice.locator)
    assert len(network.said) == before + 1


async def test_events_ahead_of_their_parents_make_the_receiver_ask() -> None:
    _, alice, bob = await pair()
    await alice.join()
    late = await alice.say(Text(text="late"))
    await alice.sync.push(alice.session, bob.locator, [late.encoded])
    assert [locator.node for locator in bob.behind] == [alice.neighbour.identifier]
    assert await bob.sync.exchange(bob.session, bob.behind[0])
    assert await bob.texts() == ["late"]


async def test_nothing_between_nodes_shows_what_is_said() -> None:
    network, alice, bob = await pair()
    await alice.join()
    await alice.say(Text(text="a secret plan"))
    await bob.sync.exchange(bob.session, alice.locator)
    assert not any(b"secret plan" in body or KEY.public in body for *_, body in network.said)


async def test_a_member_of_another_session_is_refused_and_learns_nothing() -> None:
    network, alice, _ = await pair()
    await alice.join()
    mallory = await Member.make(network, "mallory")
    mallory.session = Session(SessionRow(KEY.public, bytes(32), mallory.author.seed), mallory._store)
    with pytest.raises(RefusedError):
        await mallory.sync.exchange(mallory.session, alice.locator)
    with pytest.raises(RefusedError):
        await mallory.sync.push(mallory.session, alice.locator, [ROOT.encoded])
    assert len(await ids(mallory)) == 1


@pytest.mark.parametrize("kind", [EVENTS_KIND, SYNC_KIND])
async def test_what_is_overheard_cannot_be_replayed_by_another_node(kind: str) -> None:
    network, alice, bob = await pair()
    await bob.join()
    await bob.sync.exchange(bob.session, alice.locator)
    mallory = Neighbour(network, "mallory")
    overheard = [each for each in network.said if each[2] == kind]
    assert overheard
    for _, to, _, body in overheard:
        with pytest.raises(RefusedError, match="not sealed"):
            await mallory.push(to, kind, body)
        envelope = decode_envelope(body)
        elsewhere = encode(Envelope(place=bob.locator.place, box=envelope.box))
        with pytest.raises(RefusedError, match="not sealed"):
            await network.carry(bob.neighbour.identifier, bob.neighbour.identifier, kind, elsewhere)


async def test_a_replay_by_the_sender_itself_changes_nothing() -> None:
    network, alice, bob = await pair()
    await bob.join()
    await bob.sync.exchange(bob.session, alice.locator)
    before = await ids(alice)
    for sender, to, kind, body in list(network.said):
        await network.carry(sender, to, kind, body)
    assert await ids(alice) == before


async def test_strange_places_and_anonymous_callers_are_refused() -> None:
    _, alice, bob = await pair()
    receive = alice.neighbour.receivers[SYNC_KIND]
    box = bytes(100)
    for place in (bob.locator.place, bytes(92)):
        with pytest.raises(VerificationError):
            await receive(
                Delivery(bob.neighbour.identifier, SYNC_KIND, encode(Envelope(place=place, box=box)))
            )
    for content in (KEY.public, b"something else", b"chat-session/" + b"x" * 32):
        place = alice.neighbour.seal_place(content).place
        with pytest.raises(NotFoundError):
            await receive(
                Delivery(bob.neighbour.identifier, SYNC_KIND, encode(Envelope(place=place, box=box)))
            )
    with pytest.raises(RefusedError):
        await receive(Delivery(None, SYNC_KIND, encode(Envelope(place=alice.locator.place, box=box))))
    with pytest.raises(MalformedError):
        await receive(Delivery(bob.neighbour.identifier, SYNC_KIND, b"junk"))


class Liar:
    """A member who answers requests for pages with whatever it likes."""

    def __init__(self, network: Network, answer: Callable[[SyncRequest, int], SyncPage | bytes]) -> None:
        self.neighbour = Neighbour(network, "liar")
        self.author = SigningSecret(b"liar".ljust(32, b"\1"))
        self.asked = 0
        self._keys = Session(SessionRow(KEY.public, SECRET, bytes(32)), cast("ChatStore", None)).keys
        self._answer = answer
        self.neighbour.receivers[SYNC_KIND] = self._page
        self.neighbour.receivers[EVENTS_KIND] = self._ignore

    @property
    def locator(self) -> UnitLocator:
        return session_place(cast("Node", self.neighbour), KEY.public)

    def sign(self, content: Content, parents: Sequence[bytes], clock: int) -> Event:
        return Event.sign(
            self.author, session=KEY.public, clock=clock, parents=parents, at=0, content=content
        )

    def joined(self, name: str = "liar") -> Event:
        proof = self._keys.prove(self.author.public)
        content = Joined(
            name=name, proof=proof, node=self.neighbour.identifier.value, place=self.locator.place
        )
        return self.sign(content, [ROOT.id], 2)

    async def push(self, to: UnitLocator, events: Sequence[bytes]) -> None:
        context = BoxContext("events", self.neighbour.identifier, to.node)
        plain = encode(EventBatch(events=tuple(events), place=self.locator.place))
        box = self._keys.seal(plain, context, self.neighbour.entropy)
        await self.neighbour.push(to.node, EVENTS_KIND, encode(Envelope(place=to.place, box=box)))

    async def _page(self, delivery: Delivery) -> bytes:
        assert delivery.sender is not None
        box = decode_envelope(delivery.body).box
        plain = self._keys.open(box, BoxContext("sync", delivery.sender, self.neighbour.identifier))
        self.asked += 1
        answer = self._answer(decode(SyncRequest, plain, limit=MAX_PLAIN_BYTES), self.asked)
        if isinstance(answer, bytes):
            return answer
        context = BoxContext("page", self.neighbour.identifier, delivery.sender, box[:SALT_BYTES])
        return self._keys.seal(encode(answer), context, self.neighbour.entropy)

    async def _ignore(self, _delivery: Delivery) -> None:
        return None


def page(*events: Event, more: bool = False) -> SyncPage:
    return SyncPage(events=tuple(event.encoded for event in events), summary=(ROOT.id,), more=more)


async def test_pages_without_an_end_are_cut_off_and_blamed() -> None:
    network, alice, _ = await pair()
    for answer in (page(more=True), page(ROOT, more=True)):
        liar = Liar(network, lambda _request, _count, answer=answer: answer)  # type: ignore[misc]
        with pytest.raises(VerificationError, match="without an end"):
            await alice.sync.exchange(alice.session, liar.locator)
        assert liar.asked <= 2
        assert alice.neighbour.blamed[-1:] == [liar.neighbour.identifier]


async def test_an_endless_row_of_orphans_ends_soon_and_stays_bounded() -> None:
    network, alice, _ = await pair()
    liar = Liar(
        network,
        lambda _request, count: page(
            liar.sign(Text(text="orphan"), [count.to_bytes(32)], 10 + count), more=True
        ),
    )
    assert not await alice.sync.exchange(alice.session, liar.locator)
    assert liar.asked <= MAX_ROUND_PAGES
    assert len(await ids(alice)) == 1


@pytest.mark.parametrize("answer", [b"", b"junk", bytes(200), bytes(60_001)])
async def test_answers_that_are_no_box_are_blamed(answer: bytes) -> None:
    network, alice, _ = await pair()
    liar = Liar(network, lambda _request, _count: answer)
    with pytest.raises((VerificationError, MalformedError)):
        await alice.sync.exchange(alice.session, liar.locator)
    assert alice.neighbour.blamed == [liar.neighbour.identifier]


async def test_an_old_answer_is_no_answer_to_a_new_request() -> None:
    _network, alice, bob = await pair()
    old: list[bytes] = []
    receive = bob.neighbour.receivers[SYNC_KIND]

    async def replay(delivery: Delivery) -> bytes | None:
        old.append(await receive(delivery) or b"")
        return old[0]

    bob.neighbour.receivers[SYNC_KIND] = replay
    assert await alice.sync.exchange(alice.session, bob.locator)
    with pytest.raises(VerificationError):
        await alice.sync.exchange(alice.session, bob.locator)


async def test_a_forged_event_spoils_nothing_that_came_before_it() -> None:
    network, alice, _ = await pair()
    liar = Liar(network, lambda _request, _count: page())
    joined = liar.joined()
    hello = liar.sign(Text(text="hello"), [joined.id], 3)
    forged = hello.encoded.replace(b"hello", b"other")
    with pytest.raises(RefusedError):
        await liar.push(alice.locator, [joined.encoded, hello.encoded, forged, ROOT.encoded])
    assert await alice.texts() == ["hello"]
    assert alice.neighbour.blamed == [liar.neighbour.identifier]


async def test_a_flood_of_pushed_orphans_stays_bounded_and_costs_no_history() -> None:
    network, alice, _ = await pair()
    liar = Liar(network, lambda _request, _count: page())
    for start in range(0, 500, 50):
        orphans = [
            liar.sign(Text(text="orphan"), [number.to_bytes(32)], 5).encoded
            for number in range(start, start + 50)
        ]
        await liar.push(alice.locator, orphans)
    state = alice.session._state
    assert state is not None
    assert state.history.waiting <= MAX_PENDING_PER_SENDER
    assert len(await ids(alice)) == 1


async def test_branches_signed_for_different_people_reach_everybody_in_one_order() -> None:
    network, alice, bob = await pair()
    liar = Liar(network, lambda _request, _count: page())
    joined = liar.joined()
    for member, text in ((alice, "to alice"), (bob, "to bob")):
        branch = liar.sign(Text(text=text), [joined.id], 3)
        await liar.push(member.locator, [joined.encoded, branch.encoded])
    await alice.join()
    await bob.join()
    assert await alice.sync.exchange(alice.session, bob.locator)
    assert await ids(alice) == await ids(bob)
    assert sorted(await alice.texts()) == ["to alice", "to bob"]


async def test_one_who_joins_in_two_branches_is_called_the_same_by_everybody() -> None:
    network, alice, bob = await pair()
    liar = Liar(network, lambda _request, _count: page())
    joins = [liar.joined("one"), liar.joined("other")]
    await liar.push(alice.locator, [event.encoded for event in joins])
    await liar.push(bob.locator, [event.encoded for event in reversed(joins)])
    names = [(await member.session.people())[liar.author.public].name for member in (alice, bob)]
    assert names[0] == names[1]


async def test_after_a_failed_write_the_session_goes_on_from_what_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, alice, bob = await pair()
    await alice.join()
    await bob.sync.exchange(bob.session, alice.locator)

    async def full(_events: Sequence[Event]) -> None:
        raise OverlayError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(alice._store, "append", full)
        with pytest.raises(OverlayError, match="full"):
            await alice.say(Text(text="lost"))
    assert len(await alice.session.summary()) == 2
    await alice.say(Text(text="kept"))
    await bob.sync.exchange(bob.session, alice.locator)
    assert await bob.texts() == await alice.texts() == ["kept"]


async def test_a_cancelled_message_is_said_or_not_said_but_never_half() -> None:
    _, alice, _ = await pair()
    await alice.join()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await alice.say(Text(text="perhaps"))
    await alice.say(Text(text="surely"))
    reloaded = Session(alice._row, alice._store)
    assert await reloaded.summary() == await alice.session.summary()
    assert await reloaded.size() == len(await ids(alice))


async def test_a_crowd_that_joins_in_branches_takes_no_place_of_those_who_came_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "MAX_MEMBERS", 4)
    network, alice, bob = await pair()
    await alice.join()
    await bob.sync.exchange(bob.session, alice.locator)
    await alice.say(Text(text="before"))
    for number in range(10):
        liar = Liar(network, lambda _request, _count: page())
        liar.author = SigningSecret(bytes([number]) * 32)
        joined = liar.joined()  # on the first event: earlier in the order than most
        text = liar.sign(Text(text=f"crowd {number}"), [joined.id], 3)
        await liar.push(alice.locator, [joined.encoded, text.encoded])
    people = await alice.session.people()
    assert len(people) == 4
    assert alice.author.public in people
    again = Session(alice._row, alice._store)
    assert (await again.people()).keys() == people.keys()
    assert await again.size() == 23  # what they say counts all the same, so all have one history
    await bob.sync.exchange(bob.session, alice.locator)
    assert await ids(bob) == await ids(alice)
    await bob.join()  # one who comes later counts itself
    assert bob.author.public in await bob.session.people()


async def test_whoever_left_says_nothing_more() -> None:
    _, alice, _ = await pair()
    await alice.join()
    await alice.say(Left())
    with pytest.raises(VerificationError):
        await alice.say(Text(text="one more thing"))
