from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.chat import history as history_module
from overlay.chat.events import MAX_PARENTS, Content, Created, Event, Joined, Left, Text
from overlay.chat.history import MAX_SUMMARY, Accepted, Duplicate, History, Waiting
from overlay.chat.keys import SessionKeys
from overlay.chat.pending import MAX_PENDING_PER_SENDER
from overlay.errors import RefusedError, VerificationError
from overlay.identity import SigningSecret

SESSION = SigningSecret(b"s" * 32)
KEYS = SessionKeys(b"k" * 32, SESSION.public)
ROOT = Event.sign(SESSION, session=SESSION.public, clock=1, parents=[], at=0, content=Created(title="Tea"))


def secret(name: str) -> SigningSecret:
    return SigningSecret(name.encode().ljust(32, b"\0"))


ALICE, BOB, MALLORY = secret("alice"), secret("bob"), secret("mallory")


def joining(author: SigningSecret, keys: SessionKeys = KEYS) -> Joined:
    return Joined(name="somebody", proof=keys.prove(author.public), node=b"n" * 32, place=bytes(92))


def sign(author: SigningSecret, content: Content, *parents: Event, clock: int | None = None) -> Event:
    return Event.sign(
        author,
        session=SESSION.public,
        clock=clock or 1 + max(parent.clock for parent in parents),
        parents=[parent.id for parent in parents],
        at=0,
        content=content,
    )


class Replica:
    """A participant's history, with the events that a store would keep beside it."""

    def __init__(self) -> None:
        self.history = History(ROOT, KEYS)
        self.events = {ROOT.id: ROOT}

    def add(self, event: Event) -> None:
        outcome = self.history.add(event)
        if isinstance(outcome, Accepted):
            self.events |= {each.id: each for each in outcome.events}

    def say(self, author: SigningSecret, content: Content) -> Event:
        clock, parents = self.history.next_parents(author.public)
        event = Event.sign(
            author, session=SESSION.public, clock=clock, parents=parents, at=0, content=content
        )
        self.add(event)
        return event

    def take_from(self, other: Replica, limit: int = 3) -> int:
        """One direction of an exchange, page by page; how many events were sent."""
        summary, after, sent = self.history.summary(), None, 0
        while page := other.history.missing_from(summary, after=after, limit=limit):
            for event_id in page:
                self.add(other.events[event_id])
            after = other.events[page[-1]].position
            sent += len(page)
        return sent


def history_with(*events: Event) -> History:
    history = History(ROOT, KEYS)
    for event in events:
        assert isinstance(history.add(event), Accepted)
    return history


JOINED = sign(ALICE, joining(ALICE), ROOT)
HELLO = sign(ALICE, Text(text="hello"), JOINED)


def test_events_are_ordered_by_clock_then_identifier() -> None:
    bob = sign(BOB, joining(BOB), ROOT)
    history = history_with(JOINED, HELLO, bob)
    first = sorted((JOINED, bob), key=lambda event: event.id)
    assert history.order == (ROOT.id, first[0].id, first[1].id, HELLO.id)
    assert history.heads == (HELLO.id, bob.id)


def test_the_same_event_twice_is_a_duplicate() -> None:
    history = history_with(JOINED, HELLO)
    assert history.add(HELLO) == Duplicate()
    late = sign(ALICE, Text(text="late"), sign(ALICE, Text(text="unknown"), HELLO))
    assert (history.add(late), history.add(late)) == (Waiting(), Duplicate())


def test_events_wait_for_their_parents_and_come_in_with_them() -> None:
    second = sign(ALICE, Text(text="second"), HELLO)
    third = sign(ALICE, Text(text="third"), HELLO, second)
    history = history_with(JOINED)
    assert history.add(third) == Waiting()
    assert history.add(second) == Waiting()
    assert history.waiting == 2
    assert history.add(HELLO) == Accepted((HELLO, second, third))
    assert history.waiting == 0
    assert history.heads == (third.id,)


LEFT = sign(ALICE, Left(), HELLO)
BOB_JOINED = sign(BOB, joining(BOB), HELLO)
FORBIDDEN = {
    "by somebody who had not joined": sign(BOB, Text(text="hi"), HELLO),
    "whose clock does not follow": sign(ALICE, Text(text="hi"), HELLO, clock=7),
    "joining a second time": sign(ALICE, joining(ALICE), HELLO),
    "joining without the secret": sign(BOB, joining(BOB, SessionKeys(bytes(32), SESSION.public)), HELLO),
    "joining with the proof of another": sign(BOB, joining(ALICE), HELLO),
    "by somebody who joined elsewhere": sign(BOB, Text(text="hi"), JOINED),
    "by the session's own key": sign(SESSION, Text(text="hi"), HELLO),
}


@pytest.mark.parametrize("event", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_an_event_that_breaks_a_rule_is_refused_by_everybody(event: Event) -> None:
    history = history_with(JOINED, HELLO, BOB_JOINED)
    before = history.order
    with pytest.raises(VerificationError):
        history.add(event)
    assert history.order == before
    late = History(ROOT, KEYS)  # where it waits first, it is dropped as soon as it can be judged
    for each in (event, JOINED, HELLO, BOB_JOINED):
        late.add(each)
    assert event.id not in late
    assert late.waiting == 0


@pytest.mark.parametrize("content", [Text(text="hi"), Left(), joining(ALICE)], ids=["text", "left", "joined"])
def test_nothing_follows_after_leaving(content: Content) -> None:
    history = history_with(JOINED, HELLO, LEFT, sign(BOB, joining(BOB), LEFT))
    with pytest.raises(VerificationError, match="had left"):
        history.add(sign(ALICE, content, LEFT))


def test_what_was_said_before_somebody_left_counts_even_when_it_comes_later() -> None:
    aside = sign(ALICE, Text(text="at the same time"), JOINED)
    assert isinstance(history_with(JOINED, HELLO, LEFT).add(aside), Accepted)


def test_events_of_another_session_and_second_beginnings_are_refused() -> None:
    other = secret("other")
    strange = Event.sign(other, session=other.public, clock=1, parents=[], at=0, content=Created(title="x"))
    second = Event.sign(
        SESSION, session=SESSION.public, clock=1, parents=[], at=9, content=Created(title="x")
    )
    elsewhere = Event.sign(ALICE, session=other.public, clock=2, parents=[ROOT.id], at=0, content=Left())
    for event in (strange, second, elsewhere):
        with pytest.raises(VerificationError):
            History(ROOT, KEYS).add(event)


def test_a_flood_of_orphans_stays_bounded() -> None:
    history = history_with(JOINED)
    for number in range(5 * MAX_PENDING_PER_SENDER):
        orphan = sign(MALLORY, Text(text=str(number)), sign(MALLORY, Text(text="never sent"), JOINED))
        history.add(orphan, b"mallory")
    assert history.waiting <= MAX_PENDING_PER_SENDER


def test_many_heads_are_joined_bit_by_bit_and_everybody_can_speak() -> None:
    crowd = [secret(f"guest {number}") for number in range(4 * MAX_PARENTS)]
    replica = Replica()
    arrivals = {guest.seed: sign(guest, joining(guest), ROOT) for guest in crowd}
    for event in arrivals.values():
        replica.add(event)
    assert len(replica.history.heads) == len(crowd)
    crowd.sort(key=lambda guest: arrivals[guest.seed].id)  # first those whose heads come last
    assert len(replica.history.summary()) <= MAX_SUMMARY
    for guest in crowd:
        event = replica.say(guest, Text(text="hello"))
        assert event.id in replica.history
        assert len(event.parents) <= MAX_PARENTS
    for _ in range(4):
        replica.say(crowd[0], Text(text="all together"))
    assert len(replica.history.heads) == 1


def test_equal_histories_send_nothing_and_a_newcomer_gets_all() -> None:
    one, other = Replica(), Replica()
    for event in (JOINED, HELLO, BOB_JOINED):
        one.add(event)
    assert other.take_from(one) == 3
    assert other.history.order == one.history.order
    assert other.take_from(one) == one.take_from(other) == 0


def test_an_exchange_costs_what_differs_not_what_is_common() -> None:
    one, other = Replica(), Replica()
    for event in (JOINED, BOB_JOINED, HELLO):
        one.add(event)
    for number in range(500):
        one.say(ALICE, Text(text=str(number)))
    other.take_from(one, limit=100)
    for number in range(10):
        one.say(ALICE, Text(text=f"one {number}"))
        other.say(BOB, Text(text=f"other {number}"))
    assert 10 <= other.take_from(one) <= 40
    assert 10 <= one.take_from(other) <= 40
    assert one.history.order == other.history.order


def test_a_summary_of_nonsense_only_costs_a_full_answer() -> None:
    history = history_with(JOINED, HELLO)
    nonsense = [bytes([number]) * 32 for number in range(MAX_SUMMARY)]
    assert history.missing_from(nonsense, after=None, limit=10) == list(history.order)
    assert history.missing_from([HELLO.id, *nonsense], after=None, limit=10) == []


def test_a_thousand_branches_in_which_somebody_joins_cost_little_memory() -> None:
    history, last = History(ROOT, KEYS), ROOT
    for number in range(1000):
        guest = secret(f"guest {number}")
        last = sign(guest, joining(guest), last)
        history.add(last)
    strangers = [secret(f"stranger {number}") for number in range(1000)]
    branches = [sign(stranger, joining(stranger), last) for stranger in strangers]
    tracemalloc.start()
    try:
        for branch in branches:
            assert isinstance(history.add(branch), Accepted)
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_full_session_takes_no_more_and_is_restored_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [JOINED, HELLO]
    monkeypatch.setattr(history_module, "MAX_BYTES", 2000 + sum(len(event.encoded) for event in kept))
    history = history_with(*kept)
    while len(kept) < 100:
        kept.append(sign(ALICE, Text(text=f"number {len(kept)}"), kept[-1]))
        try:
            history.add(kept[-1])
        except RefusedError:
            break
    assert 4 <= len(kept) < 12
    assert history.order == (ROOT.id, *(event.id for event in kept[:-1]))
    again = History(ROOT, KEYS)
    for event in kept:
        again.restore(event)
    assert again.order == (ROOT.id, *(event.id for event in kept))


def test_branches_with_long_rosters_count_towards_what_a_session_may_keep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crowd = [secret(f"guest {number}") for number in range(1000)]
    joins = [sign(guest, joining(guest), ROOT) for guest in crowd]
    monkeypatch.setattr(history_module, "MAX_BYTES", 100_000 + sum(len(event.encoded) for event in joins))
    history = History(ROOT, KEYS)
    while len(history) < 1000:
        try:
            history.add(joins[len(history) - 1])
        except RefusedError:
            break
    assert 300 < len(history) < 900


class Judge:
    """The rules of acceptance, word by word, by going through all ancestors of each event."""

    def __init__(self) -> None:
        self.events = {ROOT.id: ROOT}

    def accept(self, event: Event) -> bool:
        ancestors: dict[bytes, Event] = {}
        waiting = list(event.parents)
        while waiting:
            each = self.events[waiting.pop()]
            if each.id not in ancestors:
                ancestors[each.id] = each
                waiting += each.parents
        joined = {each.author for each in ancestors.values() if isinstance(each.content, Joined)}
        left = {each.author for each in ancestors.values() if isinstance(each.content, Left)}
        if isinstance(event.content, Joined):
            fits = event.author not in joined and len(joined) < history_module.MAX_MEMBERS
        else:
            fits = event.author in joined
        if fits and event.author not in left:
            self.events[event.id] = event
            return True
        return False


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 80), most=st.integers(1, 6))
def test_what_is_accepted_follows_from_the_ancestors_alone(seed: int, steps: int, most: int) -> None:
    chance = random.Random(seed)
    authors = [secret(f"author {number}") for number in range(8)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history_module, "MAX_MEMBERS", most)
        judge, history = Judge(), History(ROOT, KEYS)
        for step in range(steps):
            known = list(judge.events.values())
            parents = chance.sample(known, min(len(known), chance.randint(1, 4)))
            author = chance.choice(authors)
            contents: list[Content] = [joining(author), joining(author), Left(), Text(text=f"step {step}")]
            content = chance.choice(contents)
            event = sign(author, content, *parents)
            expected = event.id in judge.events or judge.accept(event)
            try:
                history.add(event)
            except VerificationError:
                assert not expected
            assert (event.id in history) == expected


def build(seed: int, steps: int, replicas: Sequence[Replica]) -> None:
    """Participants talk, leave, meet at random; one of them signs different branches at different places."""
    chance = random.Random(seed)
    authors = [secret(f"author {number}") for number in range(len(replicas))]
    gone: set[int] = set()
    for author, replica in zip(authors, replicas, strict=True):
        replica.say(author, joining(author))
    for step in range(steps):
        number = chance.randrange(len(replicas))
        match chance.choice(["say", "say", "meet", "fork", "leave"]):
            case "say" if number not in gone:
                replicas[number].say(authors[number], Text(text=f"step {step}"))
            case "meet":
                replicas[number].take_from(chance.choice(replicas))
            case "fork":
                # The liar's key is everywhere; it never takes note of what it signed elsewhere.
                joined = [r for r in replicas if knows(r, authors[0])] if 0 not in gone else []
                for replica in joined:
                    replica.say(authors[0], Text(text=f"fork {step} {chance.random()}"))
            case "leave" if number and chance.random() < 0.2 and number not in gone:
                gone.add(number)
                replicas[number].say(authors[number], Left())


def knows(replica: Replica, author: SigningSecret) -> bool:
    return any(event.author == author.public for event in replica.events.values())


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32), steps=st.integers(0, 60), count=st.integers(2, 4), limit=st.integers(1, 50)
)
def test_whoever_exchanges_ends_with_one_order(seed: int, steps: int, count: int, limit: int) -> None:
    replicas = [Replica() for _ in range(count)]
    build(seed, steps, replicas)
    for one, other in pairwise(replicas):
        other.take_from(one, limit)
    for replica in replicas[:-1]:
        replica.take_from(replicas[-1], limit)
    assert {replica.history.order for replica in replicas} == {replicas[0].history.order}
    assert set(replicas[0].events) == set(replicas[0].history.order)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), shuffle=st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(seed: int, shuffle: random.Random) -> None:
    source = [Replica(), Replica(), Replica()]
    build(seed, 30, source)
    for replica in source[1:]:
        source[0].take_from(replica)
    events = list(source[0].events.values())[1:]
    shuffle.shuffle(events)
    copy = Replica()
    for event in events:
        copy.add(event)
    copy.take_from(source[0])  # what did not fit among those that waited
    assert copy.history.order == source[0].history.order


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_page_never_holds_a_child_before_its_parent(seed: int) -> None:
    replica = Replica()
    build(seed, 40, [replica, Replica()])
    known: set[bytes] = {ROOT.id}
    for event_id in replica.history.missing_from([ROOT.id], after=None, limit=1000):
        assert known >= set(replica.events[event_id].parents)
        known.add(event_id)
