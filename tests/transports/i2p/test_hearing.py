from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from overlay.locators import NodeLocator
from overlay.transports.i2p.hearing import (
    DEAF_PEERS,
    DEAF_SECONDS,
    FIRST_PAUSE,
    MAX_PAUSE,
    MAX_SILENT,
    TUNNEL_SECONDS,
    Hearing,
    Rebuilds,
)


def peer(number: int) -> NodeLocator:
    return NodeLocator("garlic32", number.to_bytes(32, "big"))


def dial_in_vain(hearing: Hearing, peers: int, *times: float) -> None:
    for now in times:
        for number in range(peers):
            hearing.in_vain(peer(number), now)


def test_deaf_when_two_peers_are_silent_for_two_minutes() -> None:
    hearing = Hearing()
    dial_in_vain(hearing, 2, 0.0, DEAF_SECONDS - 1)
    assert not hearing.deaf(DEAF_SECONDS)
    hearing.in_vain(peer(0), DEAF_SECONDS)
    assert not hearing.deaf(DEAF_SECONDS)
    hearing.in_vain(peer(1), DEAF_SECONDS)
    assert hearing.deaf(DEAF_SECONDS)


def test_one_peer_may_simply_be_gone() -> None:
    hearing = Hearing()
    dial_in_vain(hearing, 1, *(10.0 * count for count in range(100)))
    hearing.in_vain(peer(1), 990.0)  # and another may have an accident
    assert not hearing.deaf(990.0)


def test_whatever_is_heard_from_whomever_starts_the_count_anew() -> None:
    hearing = Hearing()
    dial_in_vain(hearing, 2, 0.0)
    hearing.heard()
    dial_in_vain(hearing, 2, DEAF_SECONDS)
    assert not hearing.deaf(DEAF_SECONDS)
    dial_in_vain(hearing, 2, 2 * DEAF_SECONDS)
    assert hearing.deaf(2 * DEAF_SECONDS)
    hearing.heard()
    assert not hearing.deaf(2 * DEAF_SECONDS)


def test_each_thing_that_is_heard_counts() -> None:
    hearing = Hearing()
    for count in range(3):
        assert hearing.count == count
        hearing.heard()


def test_idle_node_is_not_deaf() -> None:
    hearing = Hearing()
    assert not hearing.deaf(1e9)
    dial_in_vain(hearing, 5, 0.0)
    assert not hearing.deaf(DEAF_SECONDS)
    assert not hearing.deaf(1e9)


def test_what_went_through_tunnels_that_are_gone_does_not_count() -> None:
    hearing = Hearing()
    dial_in_vain(hearing, 2, 0.0, TUNNEL_SECONDS + 1)
    assert not hearing.deaf(TUNNEL_SECONDS + 1)
    dial_in_vain(hearing, 2, TUNNEL_SECONDS + 1 + DEAF_SECONDS)
    last = TUNNEL_SECONDS + 1 + DEAF_SECONDS
    assert hearing.deaf(last + TUNNEL_SECONDS)
    assert not hearing.deaf(last + TUNNEL_SECONDS + 1)


def test_memory_is_bounded_and_forgets_who_was_not_dialled_for_longest() -> None:
    hearing = Hearing()
    dial_in_vain(hearing, MAX_SILENT, 0.0)
    hearing.in_vain(peer(0), 1.0)
    hearing.in_vain(peer(MAX_SILENT), 1.0)  # in place of 1
    for number in (0, 1):
        hearing.in_vain(peer(number), DEAF_SECONDS)
    assert not hearing.deaf(DEAF_SECONDS)
    hearing.in_vain(peer(MAX_SILENT - 1), DEAF_SECONDS)
    assert hearing.deaf(DEAF_SECONDS)


STEPS = st.lists(
    st.tuples(st.floats(0.0, 200.0), st.sampled_from([None, 0, 1, 2])),  # seconds later; heard, or in vain
    max_size=60,
)


@given(STEPS)
def test_deaf_only_with_evidence(steps: list[tuple[float, int | None]]) -> None:
    hearing, now, since = Hearing(), 0.0, 0.0
    vain: dict[int, list[float]] = {}
    for later, number in steps:
        now += later
        if number is None:
            hearing.heard()
            vain.clear()
            since = now
        else:
            hearing.in_vain(peer(number), now)
            vain.setdefault(number, []).append(now)
        if hearing.deaf(now):
            assert now - since >= DEAF_SECONDS
            long = [times for times in vain.values() if times[-1] - times[0] >= DEAF_SECONDS]
            assert len(long) >= DEAF_PEERS


@given(st.integers(0, 1_000_000), st.integers(0, 20))
def test_peers_who_are_all_gone_have_sessions_made_at_growing_pauses(start: int, count: int) -> None:
    rebuilds, now = Rebuilds(), start
    times: list[int] = []
    while len(times) < count:
        if rebuilds.take(now):
            times.append(now)
        now += 30
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses == [min(FIRST_PAUSE * 2**number, MAX_PAUSE) for number in range(len(pauses))]


def test_asking_too_early_puts_nothing_off() -> None:
    rebuilds = Rebuilds()
    assert rebuilds.take(0.0)
    assert not any(rebuilds.take(now) for now in (0.0, 100.0, FIRST_PAUSE - 1))
    assert rebuilds.take(FIRST_PAUSE)


def test_after_a_long_rest_the_pauses_begin_anew() -> None:
    rebuilds = Rebuilds()
    assert rebuilds.take(0.0)
    assert rebuilds.take(FIRST_PAUSE)
    rested = FIRST_PAUSE + 2 * FIRST_PAUSE + MAX_PAUSE
    assert rebuilds.take(rested)
    assert rebuilds.take(rested + FIRST_PAUSE)
