"""The engine of a transfer, against simulated circuits in virtual time and against random events."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from overlay.files.engine import providers
from overlay.files.engine.actions import Ask, Close, Open
from overlay.files.engine.circuits import MAX_BATCH
from overlay.files.engine.providers import MAX_FAILURES, MAX_FIRST_FAILURES, Candidates, Reason
from overlay.files.engine.schedule import FREE_WASTE, WASTE_PART
from overlay.files.engine.transfer import FIRST_CIRCUITS, MAX_CIRCUITS, MAX_OUTSTANDING, Transfer
from overlay.identity import NodeIdentifier
from overlay.testing.simulated_links import CHUNK, Link, Peer, SimulatedTransfer, SimulatedTree

ALICE, BOB, CAROL = (NodeIdentifier(bytes([value]) * 32) for value in range(3))

LEAVES_16_MIB = 512
OPENING = 1.0
TREE_TRIPS = 2
"""Round trips before the first leaf can be asked for: the root, then its nodes."""


def _simulate(
    leaves: int,
    *peers: Peer,
    max_circuits: int = MAX_CIRCUITS,
    bottleneck: float = math.inf,
    sized: bool = True,
    max_outstanding: int = MAX_OUTSTANDING,
) -> tuple[SimulatedTransfer, Transfer, SimulatedTree]:
    nodes = [ALICE, BOB, CAROL][: len(peers)]
    tree = SimulatedTree(leaves, sized=sized)
    transfer = Transfer(tree, Candidates(nodes), chunk_bytes=CHUNK, max_circuits=max_circuits)
    transfer.limit_outstanding(max_outstanding)
    pairs = list(zip(nodes, peers, strict=True))
    return SimulatedTransfer(transfer, tree, pairs, bottleneck=bottleneck), transfer, tree


def _run(leaves: int, *peers: Peer, **options: object) -> tuple[float, SimulatedTransfer, Transfer]:
    simulation, transfer, tree = _simulate(leaves, *peers, **options)  # type: ignore[arg-type]  # passed on
    seconds = simulation.run()
    assert simulation.most_holders <= 2
    assert simulation.most_circuits <= MAX_CIRCUITS
    assert simulation.most_outstanding <= MAX_OUTSTANDING == 32 * 1024 * 1024
    if transfer.done:
        assert len(tree.received) == tree.chunks
        assert simulation.circuits == {}  # every circuit was closed
    return seconds, simulation, transfer


def _each(link: Link) -> Peer:
    return Peer(link=lambda _: link)


def _ideal(leaves: int, circuits: int, link: Link) -> float:
    """Seconds with all circuits from the first moment, each full from its first leaf to its last."""
    tree = TREE_TRIPS * (link.round_trip + CHUNK / link.rate)
    return link.opening + tree + link.round_trip + leaves * CHUNK / (circuits * link.rate)


def _duplicates(tree: SimulatedTree) -> int:
    return sum(tree.received.values()) - tree.chunks


# -- goodput ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sized", [True, False])
def test_eight_independent_circuits_carry_what_they_can(sized: bool) -> None:  # noqa: FBT001 - a parameter
    link = Link()
    single, _, _ = _run(LEAVES_16_MIB, _each(link), max_circuits=1)
    seconds, simulation, _ = _run(LEAVES_16_MIB, _each(link), sized=sized)
    assert single >= 3 * seconds
    # Nobody knows before the nodes are here that content of unknown size is worth more than two circuits.
    unknown = 0 if sized else OPENING + link.round_trip
    assert _ideal(LEAVES_16_MIB, 8, link) + unknown >= 0.85 * seconds
    assert simulation.most_circuits == 8
    assert simulation.opened_at.count(0.0) == (8 if sized else FIRST_CIRCUITS)


@pytest.mark.parametrize(
    ("rate", "round_trip"),
    [(0.2e6, 0.2), (0.2e6, 2.0), (0.7e6, 0.43), (1.5e6, 0.2), (1.5e6, 2.0), (2e6, 2.0), (4e6, 1.0)],
)
def test_one_circuit_is_kept_full(rate: float, round_trip: float) -> None:
    leaves = int(150 * rate / CHUNK)
    link = Link(rate=rate, round_trip=round_trip)
    seconds, _, _ = _run(leaves, _each(link), max_circuits=1)
    assert leaves * CHUNK / seconds >= 0.9 * rate


def test_one_circuit_is_kept_full_while_windows_of_exchanges_grow() -> None:
    leaves, link = 2048, Link(rate=1e6, round_trip=1.0, window=4)
    seconds, _, _ = _run(leaves, _each(link), max_circuits=1)
    assert leaves * CHUNK / seconds >= 0.9 * link.rate


def test_circuits_that_share_a_bottleneck_are_closed() -> None:
    link, bottleneck = Link(), 1e6
    simulation, transfer, tree = _simulate(4096, _each(link), bottleneck=bottleneck)
    simulation.run(until=75.0)
    assert transfer.snapshot(75.0).circuits == 2  # one carries 0.7 of it, three no more than two
    seconds = simulation.run()
    assert 4096 * CHUNK / seconds >= 0.9 * bottleneck
    assert _duplicates(tree) <= 8


def test_two_circuits_are_left_where_only_the_processors_limit_them() -> None:
    local = Link(rate=60e6, round_trip=0.001, opening=0.01)
    simulation, transfer, _ = _simulate(8192, _each(local), bottleneck=90e6)
    simulation.run(until=1.5)
    assert len(simulation.opened) == 8
    assert transfer.snapshot(1.5).circuits == 2
    assert simulation.run() <= 1.1 * 8192 * CHUNK / 90e6


def test_a_circuit_that_fails_while_others_are_opened_says_nothing_of_the_provider() -> None:
    links = [replace(Link(), opening=1.0 + 3 * number, refused=number < 7) for number in range(8)]
    _, _, transfer = _run(LEAVES_16_MIB, Peer(link=lambda number: links[min(number, 7)]))
    assert transfer.done


def test_circuits_that_pay_are_kept() -> None:
    leaves = 8192
    seconds, simulation, _ = _run(leaves, _each(Link()))
    assert _ideal(leaves, 8, Link()) >= 0.9 * seconds
    assert len(simulation.opened) == 8


@pytest.mark.parametrize(("leaves", "part"), [(64, 0.75), (512, 0.95)])
def test_circuits_that_share_a_slow_provider_take_turns_and_little_is_asked_twice(
    leaves: int, part: float
) -> None:
    simulation, _, tree = _simulate(leaves, _each(Link()), bottleneck=100e3)
    seconds = simulation.run()
    assert leaves * CHUNK / seconds >= part * 100e3
    assert _duplicates(tree) <= FREE_WASTE + leaves // WASTE_PART
    assert len(simulation.opened) <= MAX_CIRCUITS  # each waits long for its turn, and none of them stalls


def test_a_bottleneck_that_is_gone_is_noticed() -> None:
    simulation, transfer, _ = _simulate(16384, _each(Link()), bottleneck=1e6)
    simulation.run(until=75.0)
    assert transfer.snapshot(75.0).circuits == 2
    simulation.bottleneck = math.inf
    simulation.run(until=200.0)
    assert transfer.snapshot(200.0).circuits >= 5


# -- small files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("leaves", [1, 4, 16, 31])
def test_a_small_file_takes_no_more_than_the_first_circuits(leaves: int, sized: bool) -> None:  # noqa: FBT001
    seconds, simulation, _ = _run(leaves, _each(Link()), sized=sized)
    assert len(simulation.opened) == FIRST_CIRCUITS
    assert simulation.first_ask == OPENING  # as soon as a circuit is open
    assert seconds <= _ideal(leaves, 1, Link()) + 0.01


def test_the_faster_opening_is_used_and_the_slower_given_up() -> None:
    links = [Link(opening=8.0), Link(opening=0.8)]
    seconds, simulation, _ = _run(16, Peer(link=lambda number: links[number]))
    assert simulation.first_ask == 0.8
    assert seconds < 3.5


def test_nothing_is_asked_for_where_nothing_is_wanted() -> None:
    transfer = Transfer(SimulatedTree(0), Candidates([ALICE]), chunk_bytes=CHUNK)
    assert transfer.done
    assert transfer.next_actions(0.0) == []
    assert transfer.deadline() == math.inf


# -- circuits that fail -----------------------------------------------------------------------------------


def test_a_circuit_that_stalls_at_the_end_costs_a_few_round_trips() -> None:
    link = Link()
    usual, _, _ = _run(LEAVES_16_MIB, _each(link))
    stuck = replace(link, stalls=(usual - 1.2, math.inf))
    seconds, simulation, _ = _run(LEAVES_16_MIB, Peer(link=lambda n: stuck if n == 3 else link))
    assert usual < seconds <= usual + 4 * link.round_trip
    assert simulation.most_holders == 2


def test_a_circuit_that_stalls_on_the_way_costs_its_share() -> None:
    link = Link()
    stuck = replace(link, stalls=(5.0, math.inf))
    leaves = 4096
    seconds, simulation, _ = _run(leaves, Peer(link=lambda n: stuck if n == 3 else link))
    without = 24.0  # seconds: twice the 10 s of a stall, then another is opened and grows
    assert seconds <= _ideal(leaves, 8, link) + without / 8 + 1.0
    assert len(simulation.opened) == 9


def test_dead_circuits_are_replaced() -> None:
    link = Link()
    dying = replace(link, dies=6.0)
    seconds, simulation, _ = _run(2048, Peer(link=lambda n: dying if n < 8 else link))
    assert len(simulation.opened) >= 16
    # The time to open others, the round trips to fill them, and what was on its way.
    assert seconds <= _ideal(2048, 8, link) + 4.0


def test_a_circuit_far_below_the_median_is_replaced() -> None:
    link = Link()
    slow = replace(link, rate=0.1e6)
    _, simulation, _ = _run(4096, Peer(link=lambda n: slow if n == 3 else link))
    assert len(simulation.opened) == 9
    assert 4 not in simulation.circuits


def test_a_slow_circuit_does_not_hold_up_the_end() -> None:
    link = Link()
    slow = replace(link, rate=0.03e6)
    seconds, _, _ = _run(LEAVES_16_MIB, Peer(link=lambda n: slow if n == 3 else link))
    assert seconds <= _ideal(LEAVES_16_MIB, 7, link) + 3 * link.round_trip


def test_a_pause_of_the_network_is_survived() -> None:
    seconds, _, transfer = _run(1024, _each(Link(stalls=(4.0, 64.0))))
    assert transfer.done
    assert seconds <= 64.0 + 20.0


def test_an_endgame_asks_for_little_twice() -> None:
    rates = [0.2e6, 0.4e6, 0.7e6, 1.5e6, 0.3e6, 0.9e6, 0.5e6, 1.1e6]
    simulation, transfer, tree = _simulate(1024, Peer(link=lambda n: Link(rate=rates[n % 8])))
    simulation.run()
    assert transfer.done
    assert _duplicates(tree) <= 0.05 * tree.chunks


def test_what_is_outstanding_is_bounded() -> None:
    link = Link(rate=4e6, round_trip=1.0)
    bound = 4 * 1024 * 1024
    _, simulation, _ = _run(2048, _each(link), max_outstanding=bound)
    assert bound - CHUNK * MAX_BATCH <= simulation.most_outstanding <= bound


def test_requests_that_fail_because_their_circuit_dies_count_as_one() -> None:
    tree = SimulatedTree(512)
    transfer = Transfer(tree, Candidates([ALICE]), chunk_bytes=CHUNK, max_circuits=1)
    transfer.next_actions(0.0)
    transfer.opened(1, 1.0)
    names: tuple[bytes, ...] = ()
    for now in (1.0, 2.0, 3.0):  # the root, the nodes, then many requests for leaves
        asks = [action for action in transfer.next_actions(now) if isinstance(action, Ask)]
        for ask in asks if now < 3.0 else []:
            names = ask.references
            for name in names:
                tree.receive(name)
            transfer.answered(ask.request, names, now + 0.5)
    assert len(asks) >= 3
    for ask in asks:
        transfer.failed(ask.request, 4.0, lied=False)
    transfer.lost(1, 4.0)
    actions = transfer.next_actions(4.0)
    assert [type(action) for action in actions] == [Open]  # at once, for the provider did nothing wrong


def test_circuits_whose_rates_change_are_used_well() -> None:
    link = Link(sigma=0.5)
    seconds, simulation, _ = _run(4096, _each(link))
    assert seconds <= _ideal(4096, 8, link) / 0.85
    assert len(simulation.opened) <= 10


_LINKS = st.builds(
    Link,
    rate=st.sampled_from([0.05e6, 0.3e6, 0.7e6, 1.5e6]),
    round_trip=st.sampled_from([0.05, 0.4, 2.0]),
    opening=st.sampled_from([0.1, 1.0, 5.0, math.inf]),
    refused=st.sampled_from([False, False, False, True]),
    dies=st.sampled_from([math.inf, math.inf, 3.0, 10.0]),
    stalls=st.sampled_from([(math.inf, math.inf), (2.0, 20.0), (5.0, math.inf)]),
    window=st.sampled_from([0, 4]),
)


@settings(max_examples=40)
@given(st.lists(_LINKS, min_size=1, max_size=12), st.integers(1, 700), st.sampled_from([0.5e6, math.inf]))
def test_every_transfer_ends_over_any_circuits_as_long_as_new_ones_work(
    links: list[Link], leaves: int, bottleneck: float
) -> None:
    peer = Peer(link=lambda number: links[number] if number < len(links) else Link())
    seconds, _, transfer = _run(leaves, peer, bottleneck=bottleneck)
    assert seconds < 3600.0
    assert transfer.done or (transfer.failure is Reason.UNREACHABLE and len(links) >= MAX_FIRST_FAILURES)


# -- providers --------------------------------------------------------------------------------------------


def test_a_liar_is_never_asked_again_and_its_chunk_comes_from_another() -> None:
    seconds, simulation, transfer = _run(1024, Peer(lies=True), Peer())
    assert transfer.done
    asked = Counter(provider for provider, _ in simulation.asked)
    assert asked[ALICE] == 1  # the root, from the first circuit that was open
    assert seconds <= _ideal(1024, 8, Link()) + 2.0
    lie = next(at for at, (provider, _) in enumerate(simulation.asked) if provider == ALICE)
    lied_about = set(simulation.asked[lie][1].references)
    assert lied_about <= {
        name for provider, ask in simulation.asked if provider == BOB for name in ask.references
    }
    assert transfer.snapshot(seconds).liars == [ALICE]


def test_who_lied_to_another_transfer_of_the_same_fetch_has_no_circuits_and_keeps_nobody_out() -> None:
    tree = SimulatedTree(512)
    candidates = Candidates([ALICE, BOB])
    transfer = Transfer(tree, candidates, chunk_bytes=CHUNK)
    begun = {
        action.provider: action.circuit for action in transfer.next_actions(0.0) if isinstance(action, Open)
    }
    transfer.opened(begun[ALICE], 0.5)
    transfer.open_failed(begun[BOB], 0.5)
    more = transfer.next_actions(0.5)
    (ask,) = (action for action in more if isinstance(action, Ask))
    begun_since = {action.circuit for action in more if isinstance(action, Open) and action.provider == ALICE}
    candidates.past.liars.add(ALICE)
    closed = {action.circuit for action in transfer.next_actions(1.0) if isinstance(action, Close)}
    assert closed == {begun[ALICE], *begun_since}
    transfer.answered(ask.request, (), 1.5)  # too late to matter
    opened = [action.provider for action in transfer.next_actions(60.0) if isinstance(action, Open)]
    assert set(opened) == {BOB}


def test_several_providers_share() -> None:
    seconds, simulation, _ = _run(2048, Peer(), Peer())
    asked = Counter(provider for provider, _ in simulation.asked)
    assert min(asked.values()) >= 0.3 * sum(asked.values())
    assert seconds <= _ideal(2048, 8, Link()) / 0.85


def test_most_is_asked_of_the_faster_provider() -> None:
    _, simulation, _ = _run(2048, _each(Link(rate=0.1e6)), Peer())
    asked = Counter(provider for provider, ask in simulation.asked for _ in ask.references)
    assert asked[BOB] >= 5 * asked[ALICE]


def _in_first_half(name: bytes) -> bool:
    return not name.startswith(b"leaf") or int(name[4:]) < 512


def _in_second_half(name: bytes) -> bool:
    return not name.startswith(b"leaf") or not _in_first_half(name)


@pytest.mark.parametrize("others", [Peer(), Peer(has=_in_second_half)])
def test_what_a_provider_lacks_comes_from_another(others: Peer) -> None:
    seconds, _, transfer = _run(1024, Peer(has=_in_first_half), others)
    assert transfer.done
    assert seconds <= 2 * _ideal(1024, 8, Link())


@pytest.mark.parametrize(
    "broken",
    [
        Peer(link=lambda _: Link(opening=math.inf)),
        Peer(link=lambda _: Link(stalls=(0.0, math.inf))),
        Peer(link=lambda _: Link(refused=True)),
        Peer(fails=True),
        Peer(lies=True),
    ],
    ids=["never opens", "never answers", "refuses", "fails", "lies"],
)
def test_one_good_provider_is_enough(broken: Peer) -> None:
    seconds, _, transfer = _run(1024, broken, Peer())
    assert transfer.done
    assert seconds <= 2.5 * _ideal(1024, 8, Link())


UNREACHED = [
    Peer(link=lambda _: Link(refused=True)),
    Peer(link=lambda _: Link(refused=True), permanent=True),
    Peer(link=lambda _: Link(opening=math.inf)),
    Peer(link=lambda _: Link(stalls=(0.0, math.inf))),
    Peer(fails=True),
]


@pytest.mark.parametrize(
    ("peers", "reason"),
    [
        *(([peer], Reason.UNREACHABLE) for peer in UNREACHED),
        ([Peer(has=_in_first_half)], Reason.ABSENT),
        ([Peer(has=_in_first_half), Peer(has=_in_first_half)], Reason.ABSENT),
        ([Peer(lies=True)], Reason.LIED),
        ([Peer(lies=True), Peer(lies=True)], Reason.LIED),
        ([Peer(lies=True), Peer(has=_in_first_half)], Reason.ABSENT),
        ([Peer(has=_in_first_half), UNREACHED[0]], Reason.UNREACHABLE),
        ([Peer(lies=True), UNREACHED[0]], Reason.UNREACHABLE),
        ([], Reason.NOBODY),
    ],
)
def test_says_why_it_failed(peers: Sequence[Peer], reason: Reason) -> None:
    seconds, simulation, transfer = _run(1024, *peers)
    assert transfer.failure is reason
    assert not transfer.done
    assert seconds < 900
    assert simulation.circuits == {}
    assert transfer.deadline() == math.inf


def test_what_is_on_its_way_is_taken_before_it_is_given_up() -> None:
    simulation, transfer, tree = _simulate(1024, Peer(has=_in_first_half))
    simulation.run()
    assert transfer.failure is Reason.ABSENT
    asked = {name for _, ask in simulation.asked for name in ask.references if _in_first_half(name)}
    assert asked == set(tree.received)


@pytest.mark.parametrize("has", [lambda _: False, lambda name: not name.startswith(b"leaf"), _in_first_half])
@pytest.mark.parametrize("failures", [2, 3, 4])
@pytest.mark.parametrize("leaves", [4, 1024])
def test_those_who_have_nothing_that_is_wanted_keep_nobody_else_out(
    has: Callable[[bytes], bool], failures: int, leaves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "MAX_FIRST_FAILURES", MAX_FAILURES)

    def link(number: int) -> Link:
        """Fail some times, each of them late, so that the others' pauses are over sooner."""
        return Link(opening=9.0, refused=True) if number < failures else Link()

    seconds, simulation, transfer = _run(leaves, Peer(has=has), Peer(link=link))
    assert transfer.done
    assert seconds <= failures * (9.0 + providers.MAX_PAUSE)
    assert len(simulation.opened) <= 3 * MAX_CIRCUITS


def test_what_is_not_reached_is_tried_with_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "MAX_FIRST_FAILURES", MAX_FAILURES)
    simulation, _, _ = _simulate(64, Peer(link=lambda _: Link(refused=True, opening=0.0)), max_circuits=1)
    simulation.run()
    times = simulation.opened_at
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses == sorted(pauses)
    assert pauses[-1] >= 8 * pauses[0] > 0


def _with_others(first: Peer, other: Peer, leaves: int = 256) -> tuple[SimulatedTransfer, Transfer]:
    tree = SimulatedTree(leaves)
    transfer = Transfer(tree, Candidates([ALICE], [BOB]), chunk_bytes=CHUNK)
    return SimulatedTransfer(transfer, tree, [(ALICE, first), (BOB, other)]), transfer


def test_others_hear_nothing_of_what_those_bring_who_are_named() -> None:
    simulation, transfer = _with_others(
        Peer(link=lambda n: Link(opening=30.0, dies=50.0 if n else 1e9)), Peer()
    )
    simulation.run()
    assert transfer.done
    assert {action.provider for action in simulation.opened} == {ALICE}


@pytest.mark.parametrize(
    "first",
    [
        Peer(link=lambda _: Link(refused=True)),
        Peer(has=lambda name: not name.startswith(b"leaf")),
        Peer(has=lambda _: False),
        Peer(lies=True),
    ],
)
@pytest.mark.parametrize("leaves", [4, 256])
def test_others_are_asked_for_what_those_cannot_bring_who_are_named(first: Peer, leaves: int) -> None:
    simulation, transfer = _with_others(first, Peer(), leaves)
    simulation.run()
    assert transfer.done
    assert simulation.opened[0].provider == ALICE
    assert simulation.opened[-1].provider == BOB


def test_an_opening_circuit_is_not_given_up_for_one_that_has_nothing() -> None:
    empty = Peer(link=lambda _: Link(opening=0.5), has=lambda _: False)
    seconds, _, transfer = _run(4, empty, Peer(link=lambda _: Link(opening=3.0)))
    assert transfer.done
    assert seconds <= 3.0 + 5 * Link().round_trip


# -- what is shown ----------------------------------------------------------------------------------------


def test_a_snapshot_shows_rate_and_remaining_time() -> None:
    simulation, transfer, _ = _simulate(4096, Peer(), Peer())
    assert transfer.snapshot(0.0).seconds_left is None
    simulation.run(until=15.0)
    seen = transfer.snapshot(15.0)
    assert seen.rate == pytest.approx(8 * 0.7e6, rel=0.1)
    assert (seen.circuits, len(simulation.circuits), seen.providers) == (8, 8, 2)
    assert 8 <= seen.outstanding <= 8 * 64
    assert seen.seconds_left is not None
    assert simulation.run() - 15.0 == pytest.approx(seen.seconds_left, rel=0.1)
    assert transfer.snapshot(60.0).received == 4096 * CHUNK + 9 * CHUNK


def test_no_remaining_time_is_shown_while_nobody_is_reached() -> None:
    away = Peer(link=lambda number: Link(opening=1.0 if number < 8 else 99.0, dies=5.0))
    simulation, transfer, _ = _simulate(4096, away)
    simulation.run(until=5.5)
    seen = transfer.snapshot(5.5)
    assert seen.circuits == 0
    assert seen.rate > 0
    assert seen.seconds_left is None


def test_no_remaining_time_is_shown_while_the_size_is_unknown() -> None:
    simulation, transfer, _ = _simulate(1024, Peer(), sized=False)
    simulation.run(until=6.0)
    assert transfer.snapshot(6.0).rate > 0
    assert transfer.snapshot(6.0).seconds_left is None


# -- any events -------------------------------------------------------------------------------------------


class _Chaos:
    """A driver that tells whatever comes to mind, also of what is over or never was."""

    def __init__(self, leaves: int, bound: int) -> None:
        self.tree = SimulatedTree(leaves)
        self.transfer = Transfer(self.tree, Candidates([ALICE, BOB]), chunk_bytes=CHUNK)
        self.transfer.limit_outstanding(bound)
        self.now = 0.0
        self.bound = bound
        self.opening: dict[int, NodeIdentifier] = {}
        self.open: dict[int, NodeIdentifier] = {}
        self.closed: list[int] = []
        self.asks: dict[int, Ask] = {}
        self.over: list[Ask] = []
        self.liars: set[NodeIdentifier] = set()

    def act(self) -> None:
        for action in self.transfer.next_actions(self.now):
            match action:
                case Open(number, provider):
                    assert provider not in self.liars
                    self.opening[number] = provider
                case Ask(number, request, references):
                    assert 1 <= len(references) == len(set(references)) <= MAX_BATCH
                    assert self.open[number] not in self.liars
                    self.asks[request] = action
                case Close(number):
                    if number not in self.closed:  # decided before it was told that the circuit was over
                        self.drop(number)
        assert len(self.opening) + len(self.open) <= MAX_CIRCUITS
        held = Counter(name for ask in self.asks.values() for name in ask.references)
        assert max(held.values(), default=0) <= 2
        over = self.transfer.done or self.transfer.failure is not None
        assert over or self.now < self.transfer.deadline() < math.inf

    def drop(self, number: int) -> None:
        assert (self.opening.pop(number, None) or self.open.pop(number, None)) is not None
        self.closed.append(number)
        gone = [ask for ask in self.asks.values() if ask.circuit == number]
        self.over += gone
        for ask in gone:
            del self.asks[ask.request]

    def circuit_event(self, kind: str, pick: int) -> None:
        numbers = [*self.opening, *self.open, *self.closed, 10**6]
        number = numbers[pick % len(numbers)]
        if kind == "opened":
            if number in self.opening:
                self.open[number] = self.opening.pop(number)
            self.transfer.opened(number, self.now)
        elif kind == "lost":
            if number in self.open:
                self.drop(number)
            self.transfer.lost(number, self.now) if number not in self.opening else None
        elif number not in self.open:
            if number in self.opening:
                self.drop(number)
            self.transfer.open_failed(number, self.now, permanent=False)

    def request_event(self, kind: str, pick: int) -> None:
        asks = [*self.asks.values(), *self.over, Ask(10**6, 10**6, (b"leaf0",))]
        ask = asks[pick % len(asks)]
        name = ask.references[pick % len(ask.references)]
        if kind in ("progressed", "answered", "short"):
            names = (
                [name] if kind == "progressed" else ask.references[: None if kind == "answered" else pick % 3]
            )
            for each in names:
                self.tree.receive(each)
            if kind == "progressed":
                self.transfer.progressed(ask.request, name, self.now)
                return
            self.transfer.answered(ask.request, names, self.now)
        else:
            if kind == "lied" and ask.request in self.asks:
                self.liars.add(self.open[ask.circuit])
            self.transfer.failed(ask.request, self.now, lied=kind == "lied")
        if self.asks.pop(ask.request, None) is not None:
            self.over.append(ask)

    def finish(self) -> None:
        """From now on everything goes well."""
        for _ in range(2000):
            if self.transfer.done or self.transfer.failure is not None:
                return
            for number in list(self.opening):
                self.open[number] = self.opening.pop(number)
                self.transfer.opened(number, self.now)
            for request, ask in list(self.asks.items()):
                for name in ask.references:
                    self.tree.receive(name)
                self.transfer.answered(request, ask.references, self.now)
                self.over.append(self.asks.pop(request))
            self.now = min(self.transfer.deadline(), self.now + 1.0)
            self.act()


_CIRCUIT = ["opened", "lost", "open_failed"]
_REQUEST = ["progressed", "answered", "short", "failed", "lied"]
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["opened", *_CIRCUIT, "progressed", "answered", *_REQUEST, "wait"]),
        st.integers(0, 200),
        st.sampled_from([0.0, 0.01, 0.3, 2.0, 30.0]),
    ),
    max_size=60,
)


@settings(max_examples=150)
@example(
    steps=[
        ("opened", 76, 30.0),
        ("progressed", 200, 30.0),
        ("wait", 54, 30.0),
        ("short", 63, 30.0),
        ("wait", 54, 30.0),
        ("short", 63, 30.0),
        ("failed", 185, 30.0),
    ],
    leaves=550,
    bound=8 * CHUNK,
)
@given(_STEPS, st.integers(1, 700), st.sampled_from([CHUNK, 8 * CHUNK, 1024 * CHUNK]))
def test_whatever_happens_nothing_is_lost(
    steps: list[tuple[str, int, float]], leaves: int, bound: int
) -> None:
    chaos = _Chaos(leaves, bound)
    chaos.act()
    for kind, pick, seconds in steps:
        chaos.now += seconds
        if kind in _CIRCUIT:
            chaos.circuit_event(kind, pick)
        elif kind in _REQUEST:
            chaos.request_event(kind, pick)
        if pick % 3:
            chaos.act()
        assert chaos.transfer.snapshot(chaos.now).outstanding * CHUNK <= bound
    chaos.act()
    chaos.finish()
    assert chaos.transfer.done or chaos.transfer.failure is not None
    if chaos.transfer.failure is None:
        assert chaos.tree.finished
        assert not chaos.opening
        assert not chaos.open
