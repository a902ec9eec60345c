"""The calculation behind links with distance, in virtual time."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import MalformedError
from overlay.testing.delay_line import MAX_QUEUE_TIME, DelayLine, Distance, Pace

CONNECTIONS = 3
ROUNDING = 1e-9
"""Seconds by which sums of floating-point numbers may be wrong."""

delays = st.floats(0, 1)
rates = st.integers(1, 100_000_000)
feeds = st.lists(
    st.tuples(st.floats(0, 0.1), st.integers(0, CONNECTIONS - 1), st.binary(min_size=1, max_size=2000)),
    min_size=1,
    max_size=30,
)
"""How long after the last, on which connection, and what."""


def arrivals(line: DelayLine) -> list[tuple[float, bytes]]:
    """Everything that is on its way, as it arrives."""
    taken = []
    while (due := line.due) is not None:
        assert line.take(math.nextafter(due, -math.inf)) == b""
        taken.append((due, line.take(due)))
    return taken


@pytest.mark.parametrize(
    ("delay", "rate"),
    [(-0.1, None), (math.nan, None), (math.inf, None), (1.1, None), (0.0, 0), (0.0, -1)],
)
def test_a_distance_that_no_link_has_is_refused(delay: float, rate: int | None) -> None:
    with pytest.raises(MalformedError, match=r"a link's (delay|rate) is"):
        Distance(delay, rate)


def test_no_distance_is_false() -> None:
    assert not Distance()
    assert Distance(delay=0.01)
    assert Distance(rate=1)


@given(feeds, delays, st.none() | rates)
def test_all_arrives_in_order_after_its_delay_and_then_the_end(
    sent: list[tuple[float, int, bytes]], delay: float, rate: int | None
) -> None:
    pace, now = Pace(rate), 0.0
    lines = [DelayLine(Distance(delay, rate), pace) for _ in range(CONNECTIONS)]
    times: list[list[float]] = [[] for _ in lines]
    for gap, number, data in sent:
        now += gap
        lines[number].feed(data, now)
        times[number] += [now] * len(data)
    for number, line in enumerate(lines):
        line.end(now)
        arrived, taken = arrivals(line), 0
        assert line.ended
        assert b"".join(data for _, data in arrived) == b"".join(d for _, n, d in sent if n == number)
        for at, data in arrived:
            taken += len(data)
            assert not data or at >= times[number][taken - 1] + delay


@given(feeds, delays, rates)
def test_no_interval_sees_more_than_the_rate(
    sent: list[tuple[float, int, bytes]], delay: float, rate: int
) -> None:
    pace, now = Pace(rate), 0.0
    lines = [DelayLine(Distance(delay, rate), pace) for _ in range(CONNECTIONS)]
    for gap, number, data in sent:
        now += gap
        lines[number].feed(data, now)
    arrived = sorted((at, len(data)) for line in lines for at, data in arrivals(line))
    for first, (begun, _) in enumerate(arrived):
        size = 0
        for at, more in arrived[first + 1 :]:
            size += more
            assert size <= rate * (at - begun + ROUNDING) + 1


@given(feeds, delays)
def test_without_a_rate_nothing_waits_for_anything(
    sent: list[tuple[float, int, bytes]], delay: float
) -> None:
    line, now = DelayLine(Distance(delay), Pace(None)), 0.0
    expected = []
    for gap, _, data in sent:
        now += gap
        line.feed(data, now)
        expected.append(now + delay)
    assert sorted({at for at, _ in arrivals(line)}) == sorted(set(expected))


@given(st.floats(0, 0.2), st.integers(1_000_000, 50_000_000), st.integers(1, 2))
def test_a_sender_that_waits_as_it_is_told_keeps_the_link_busy(
    delay: float, rate: int, connections: int
) -> None:
    distance, pace, now, total, arrived = Distance(delay, rate), Pace(rate), 0.0, 2_000_000, 0
    lines, unsent = [DelayLine(distance, pace) for _ in range(connections)], total
    turns = itertools.cycle(lines)
    while arrived < total:
        while unsent and not (line := next(turns)).full and line.open_at <= now:
            size = min(unsent, distance.piece_bytes)
            line.feed(bytes(size), now)
            unsent -= size
        assert total - unsent - arrived <= connections * (distance.most_bytes + distance.piece_bytes)
        events = [line.due for line in lines if line.due is not None]
        now = min([*events, pace.open_at] if unsent and pace.open_at > now else events)
        arrived += sum(len(line.take(now)) for line in lines)
    assert now == pytest.approx(total / rate + delay)


def test_who_finds_a_busy_link_waits_for_a_short_queue_only() -> None:
    line = DelayLine(Distance(0.5, 1_000_000), Pace(1_000_000))
    assert line.open_at < 0.0
    line.feed(bytes(100_000), 0.0)
    assert line.open_at == pytest.approx(0.1 - MAX_QUEUE_TIME)
    assert line.due == pytest.approx(0.6)


def test_what_nobody_takes_is_bounded() -> None:
    distance = Distance(0.1, 1_000_000)
    line, fed = DelayLine(distance, Pace(1_000_000)), 0
    while not line.full:
        line.feed(bytes(distance.piece_bytes), fed)
        fed += distance.piece_bytes
    assert fed <= distance.most_bytes + distance.piece_bytes
    assert line.take(fed * 2)
    assert not line.full
