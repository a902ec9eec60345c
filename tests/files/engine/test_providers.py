"""Who is asked next, who is left alone, and why nobody is left."""

from __future__ import annotations

import pytest

from overlay.files.engine.providers import (
    BARREN_PAUSE,
    FIRST_PAUSE,
    MAX_FAILURES,
    MAX_FIRST_FAILURES,
    MAX_PAUSE,
    Candidates,
    Providers,
    Reason,
)
from overlay.identity import NodeIdentifier

ALICE, BOB, CAROL = (NodeIdentifier(bytes([value]) * 32) for value in range(3))


def test_tries_everybody_once_and_keeps_a_share_for_who_is_still_being_reached() -> None:
    providers = Providers([ALICE, BOB])
    assert providers.pick({}, (), 8, 0.0) == ALICE
    assert providers.pick({ALICE: 1}, {ALICE}, 8, 0.0) == BOB
    providers.reached(ALICE)
    both = {ALICE, BOB}
    assert providers.pick({ALICE: 3, BOB: 1}, both, 8, 1.0) == ALICE
    assert providers.pick({ALICE: 4, BOB: 1}, both, 8, 1.0) is None
    assert providers.pick({ALICE: 4, BOB: 1}, {ALICE}, 8, 11.0) == ALICE  # it had its time


def test_most_circuits_lead_to_who_carries_most_on_each() -> None:
    providers = Providers([ALICE, BOB])
    circuits = {ALICE: 1, BOB: 1}
    for node, rate in ((ALICE, 1e6), (BOB, 3e6)):
        providers.reached(node)
        providers.served(node, rate)
    for _ in range(6):
        chosen = providers.pick(circuits, (), 8, 0.0)
        assert chosen is not None
        circuits[chosen] += 1
    assert circuits == {ALICE: 2, BOB: 6}


@pytest.mark.parametrize(("met", "most"), [(True, MAX_FAILURES), (False, MAX_FIRST_FAILURES)])
def test_pauses_grow_until_a_provider_is_given_up_and_circuits_that_fail_together_count_once(
    met: bool,  # noqa: FBT001 - a parameter of the test
    most: int,
) -> None:
    providers, now, pauses = Providers([ALICE]), 0.0, []
    if met:
        providers.reached(ALICE)
    for _ in range(most):
        assert providers.verdict is None
        providers.failed(ALICE, now)
        providers.failed(ALICE, now)
        if providers.verdict is None:
            assert providers.pick({}, (), 8, now) is None
            pauses.append(providers.retry_at(now) - now)
            now = providers.retry_at(now)
            assert providers.pick({}, (), 8, now) == ALICE
    assert pauses == [min(MAX_PAUSE, FIRST_PAUSE * 2**times) for times in range(most - 1)]
    assert providers.verdict is Reason.UNREACHABLE


def test_of_circuits_that_are_opened_together_the_last_that_fails_counts() -> None:
    providers = Providers([ALICE])
    for attempt in range(MAX_FIRST_FAILURES):
        assert providers.verdict is None
        begun = 100.0 * attempt
        for number in range(8):
            providers.failed(ALICE, begun + number, pending=number < 7)
            assert providers.pick({}, (), 8, begun + number) is None
    assert providers.verdict is Reason.UNREACHABLE


def test_who_is_not_named_is_given_up_at_the_first_failure() -> None:
    providers = Providers([])
    providers.add(BOB)
    providers.failed(BOB, 0.0)
    assert providers.verdict is Reason.UNREACHABLE


def test_who_serves_after_all_is_asked_again() -> None:
    providers = Providers([ALICE])
    providers.failed(ALICE, 0.0, permanent=True)
    assert providers.verdict is Reason.UNREACHABLE
    providers.served(ALICE, None)
    assert providers.verdict is None


def test_a_barren_provider_is_left_alone_until_another_lacks_something_too() -> None:
    providers = Providers([ALICE, BOB])
    providers.lacking(ALICE, [b"1"])
    until = providers.barren(ALICE, 5.0)
    assert until == 5.0 + BARREN_PAUSE
    assert not providers.may_have(ALICE, b"1")
    assert providers.pick({BOB: 1}, (), 8, 6.0) == BOB
    providers.lacking(BOB, [b"2"])
    providers.barren(BOB, 6.0)
    assert providers.pick({}, (), 8, 6.0) == ALICE
    assert providers.verdict is None  # each has what the other lacks


def test_who_has_nothing_that_is_wanted_is_useless_and_can_be_left_out() -> None:
    providers = Providers([ALICE, BOB])
    providers.lacking(ALICE, [b"1", b"2"])
    assert providers.useless([b"1", b"2"]) == {ALICE}
    assert providers.useless([b"1", b"2", b"3"]) == set()
    assert providers.useless([]) == set()  # nothing is wanted just now: that says nothing of anybody
    assert providers.pick({}, (), 8, 0.0) == ALICE
    assert providers.pick({}, (), 8, 0.0, {ALICE}) == BOB
    assert providers.pick({}, (), 8, 0.0, {ALICE, BOB}) is None
    providers.arrived(b"2")
    assert providers.useless([b"2"]) == set()


def test_what_everybody_lacks_is_absent_until_it_comes_all_the_same() -> None:
    providers = Providers([ALICE, BOB])
    providers.lacking(ALICE, [b"1", b"2"])
    providers.lacking(BOB, [b"2"])
    assert providers.lacked == 3
    assert providers.verdict is Reason.ABSENT
    assert providers.absent == {b"2"}
    providers.arrived(b"2")
    assert providers.verdict is None
    assert not providers.absent


@pytest.mark.parametrize(("failed", "reason"), [(True, Reason.UNREACHABLE), (False, Reason.LIED)])
def test_a_liar_hides_nobody_who_was_not_reached(*, failed: bool, reason: Reason) -> None:
    providers = Providers([ALICE, BOB])
    providers.lied(ALICE)
    assert providers.verdict is None
    if failed:
        providers.failed(BOB, 0.0, permanent=True)
    else:
        providers.lied(BOB)
    providers.served(ALICE, 1e6)  # a chunk that was on its way does not redeem a liar
    assert providers.verdict is reason
    assert providers.liars == ([ALICE] if failed else [ALICE, BOB])


def test_what_one_transfer_has_shown_is_known_in_the_next_of_the_same_fetch() -> None:
    candidates = Candidates([ALICE, BOB, CAROL])
    first = Providers(candidates.named, candidates.past)
    first.lied(ALICE)
    first.served(CAROL, 1e6)
    first.failed(BOB, 0.0, permanent=True)
    second = Providers(candidates.named, candidates.past)
    assert second.pick({}, (), 8, 0.0) == CAROL  # before whoever was of no use
    assert second.pick({CAROL: 1}, (), 8, 0.0) == BOB  # who may be back
    second.add(ALICE)
    assert second.liars == [ALICE]
    for each in (CAROL, BOB):
        second.failed(each, 0.0, permanent=True)
    assert second.pick({}, (), 8, 100.0) is None
    assert Providers(candidates.named).pick({}, (), 8, 0.0) == ALICE  # another fetch knows nothing of it
    assert Candidates([ALICE]).past.liars == set()


@pytest.mark.parametrize("lacking", [True, False])
def test_whoever_is_asked_besides_does_not_hide_that_the_named_one_lied(*, lacking: bool) -> None:
    providers = Providers([ALICE])
    providers.add(BOB)
    if lacking:
        providers.lacking(BOB, [b"1"])
    else:
        providers.failed(BOB, 0.0, permanent=True)
    providers.lied(ALICE)
    assert providers.verdict is Reason.LIED


@pytest.mark.parametrize("is_away", [True, False])
def test_a_lie_of_somebody_who_is_not_named_says_nothing_of_those_who_are(*, is_away: bool) -> None:
    providers = Providers([ALICE])
    providers.add(BOB)
    providers.lied(BOB)
    if is_away:
        providers.failed(ALICE, 0.0, permanent=True)
    else:
        providers.lacking(ALICE, [b"1"])
    assert providers.verdict is (Reason.UNREACHABLE if is_away else Reason.ABSENT)
