from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import MalformedError
from overlay.peer.bucket import BURST_SECONDS, MAX_RATE, MIN_RATE, Bucket, check_rate

RATES = st.integers(MIN_RATE, MAX_RATE)
AMOUNTS = st.integers(1, 65_536)


def passed(bucket: Bucket, amounts: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """When each amount passes, for a sender that pauses before some and keeps to the limit."""
    now, times = 0.0, []
    for pause, amount in amounts:
        now = max(now + pause, bucket.free_at(now + pause))
        bucket.take(amount, now)
        times.append((now, amount))
    return times


@given(RATES, st.lists(st.tuples(st.floats(0, 3), AMOUNTS), min_size=1, max_size=40))
def test_over_any_interval_the_rate_is_kept_and_a_burst_is_bounded(
    rate: int, amounts: list[tuple[float, int]]
) -> None:
    times = passed(Bucket(rate, 0.0), amounts)
    for first, (begin, _) in enumerate(times):
        total = 0
        for end, amount in times[first:]:
            total += amount
            assert total <= (rate * (end - begin + BURST_SECONDS) + amount) * (1 + 1e-9) + 1


@given(RATES, st.lists(AMOUNTS, min_size=2, max_size=40))
def test_the_rate_is_reached(rate: int, amounts: list[int]) -> None:
    times = passed(Bucket(rate, 0.0), [(0.0, amount) for amount in amounts])
    assert times[-1][0] <= sum(amounts[:-1]) / rate * (1 + 1e-9)


def test_without_limit_nothing_waits() -> None:
    bucket = Bucket(None, 0.0)
    bucket.take(1 << 50, 1.0)
    assert bucket.free_at(1.0) == 1.0


def test_what_is_owed_is_paid_at_the_new_rate() -> None:
    bucket = Bucket(MIN_RATE, 0.0)
    bucket.take(10 * MIN_RATE, 1.0)  # a quarter of a second of it was saved
    assert bucket.free_at(1.0) == 10.75
    bucket.change(2 * MIN_RATE, 6.75)
    assert bucket.free_at(6.75) == 8.75
    bucket.change(None, 7.0)
    assert bucket.free_at(7.0) == 7.0
    bucket.change(MIN_RATE, 8.0)
    assert bucket.free_at(8.0) == 8.0


def test_a_change_saves_nothing_for_a_burst() -> None:
    bucket = Bucket(MIN_RATE, 0.0)
    bucket.change(1000 * MIN_RATE, 1e6)
    bucket.take(1000 * MIN_RATE, 1e6)
    assert bucket.free_at(1e6) >= 1e6 + 1 - BURST_SECONDS


@pytest.mark.parametrize("rate", [-1, 0, 1, MIN_RATE - 1, MAX_RATE + 1, 10**30])
def test_what_is_no_limit(rate: int) -> None:
    with pytest.raises(MalformedError, match="a limit is"):
        check_rate(rate)
