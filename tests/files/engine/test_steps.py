from __future__ import annotations

import pytest

from overlay.files.engine.steps import SMOOTHING, Steps

MIB = 1 << 20


@pytest.mark.parametrize("seconds", [0.01, 1.0, 10.0, 100.0])
def test_the_rate_does_not_swing_with_the_steps(seconds: float) -> None:
    steps, now = Steps(5.0), 5.0
    for _ in range(10):
        now += seconds
        steps.add(MIB, now)
        assert steps.rate(now) == pytest.approx(MIB / seconds)
        assert steps.rate(now + seconds) == pytest.approx(MIB / seconds)


def test_a_step_that_takes_longer_slows_it() -> None:
    steps = Steps(0.0)
    steps.add(MIB, 2.0)
    assert steps.rate(6.0) == pytest.approx(MIB / 4)
    assert steps.rate(1000.0) < MIB / 900


def test_the_last_steps_count_most() -> None:
    steps = Steps(0.0)
    steps.add(MIB, 1.0)
    for second in range(2, int(4 * SMOOTHING), 2):
        steps.add(MIB, 1.0 + second)
    assert steps.rate(4 * SMOOTHING) == pytest.approx(MIB / 2, rel=0.05)


def test_before_the_first_step_and_in_no_time_there_is_no_rate() -> None:
    steps = Steps(1.0)
    assert steps.rate(9.0) == 0.0
    steps.add(MIB, 1.0)
    assert steps.rate(1.0) == 0.0
    assert steps.rate(3.0) == pytest.approx(MIB / 2)
