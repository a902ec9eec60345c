"""What all circuits carry together, and the trials of which of them pay."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from overlay.files.engine.circuits import PERIODS, Circuit, Request
from overlay.files.engine.goodput import SMOOTHING, TRIAL_PAUSE, Goodput, Trials, laggard
from overlay.identity import NodeIdentifier

CHUNK = 32768
PROVIDER = NodeIdentifier(bytes(32))


def _circuit(number: int, rate: float, now: float = 0.0) -> Circuit:
    """A circuit that was full for some periods of its round trip, one second."""
    circuit = Circuit(number, PROVIDER, CHUNK, now)
    circuit.opened_at = now
    chunks = int(rate / CHUNK)
    full = Request(10**6, number, PROVIDER, tuple(b"%d" % index for index in range(1000)), now)
    for period in range(PERIODS + 3):
        references = tuple(b"%d.%d" % (period, index) for index in range(chunks))
        request = Request(period, number, PROVIDER, references, now + period)
        circuit.ask(request)
        if not period:
            circuit.ask(full)
        for index, reference in enumerate(references):
            circuit.arrive(request, reference, now + period + 1 + index / chunks)
        circuit.end(request)
    circuit.end(full)
    return circuit


def test_the_rate_follows_within_seconds_and_counts_from_the_beginning() -> None:
    goodput = Goodput()
    assert goodput.rate(0.0) == 0.0
    goodput.begin(0.0)
    for second in range(1, 31):
        goodput.add(1000, float(second))
        if second > 2:
            assert goodput.rate(float(second)) == pytest.approx(1000, rel=0.15)
    assert goodput.rate(30 + 3 * SMOOTHING) < 100
    assert goodput.total == 30_000


class _Fleet:
    """Circuits whose goodput is a function of how many are not resting."""

    def __init__(self, count: int, goodput: Callable[[int], float], most: int = 8) -> None:
        self.goodput = goodput
        self.circuits = [_circuit(number, 1e6) for number in range(count)]
        self.trials = Trials(most)
        self.now, self.total = 100.0, 0.0
        self.closed = 0

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            active = sum(not circuit.resting for circuit in self.circuits)
            self.total += 0.5 * self.goodput(active)
            self.now += 0.5
            closing = self.trials.review(self.circuits, int(self.total), 1e6, self.now, steady=True)
            self.closed += len(closing)
            self.circuits = [circuit for circuit in self.circuits if circuit not in closing]
            if self.trials.allowed > len(self.circuits):
                self.circuits.append(_circuit(1000 + int(self.now), 1e6, self.now))


def test_circuits_that_carry_nothing_more_are_closed_one_after_the_other() -> None:
    fleet = _Fleet(8, lambda active: min(active, 3) * 1e6)
    fleet.run(200.0)
    assert len(fleet.circuits) == 3
    assert fleet.trials.allowed == 3


def test_circuits_that_pay_stay_and_are_tried_more_and_more_rarely() -> None:
    fleet = _Fleet(8, lambda active: active * 1e6)
    fleet.run(1000.0)
    assert len(fleet.circuits) == 8
    assert fleet.closed == 0
    assert fleet.total >= 0.98 * 8e6 * 1000


def test_a_crowd_is_halved_at_once() -> None:
    fleet = _Fleet(8, lambda _: 1e6)
    for circuit in fleet.circuits:
        circuit.peak = 4e6  # once it carried more
    fleet.run(40.0)
    assert len(fleet.circuits) <= 4


def test_another_circuit_is_added_where_it_pays_now() -> None:
    fleet = _Fleet(8, lambda active: min(active, 2) * 1e6)
    fleet.run(200.0)
    assert len(fleet.circuits) == 2
    fleet.goodput = lambda active: active * 1e6
    fleet.run(16 * TRIAL_PAUSE + 200.0)
    assert len(fleet.circuits) == 8


def test_a_trial_ends_without_a_verdict_when_a_circuit_is_lost() -> None:
    fleet = _Fleet(8, lambda active: active * 1e6)
    while not any(circuit.resting for circuit in fleet.circuits):
        fleet.run(0.5)
    fleet.circuits = fleet.circuits[1:]
    fleet.trials.review(fleet.circuits, int(fleet.total), 1e6, fleet.now, steady=False)
    assert not any(circuit.resting for circuit in fleet.circuits)
    assert fleet.trials.allowed == 8


def test_nothing_is_tried_in_a_transfer_that_is_soon_over() -> None:
    fleet = _Fleet(8, lambda _: 1e6)
    for second in range(100):
        fleet.trials.review(fleet.circuits, second * 10**6, 20.0, 100.0 + second, steady=True)
        assert not any(circuit.resting for circuit in fleet.circuits)


def test_only_a_circuit_far_below_the_median_lags() -> None:
    even = [_circuit(number, 1e6) for number in range(3)]
    assert even[0].mean_rate == pytest.approx(1e6, rel=0.1)
    slow, slower = _circuit(7, 0.5e6), _circuit(8, 0.15e6)
    assert laggard([*even, slow]) is None
    assert laggard([*even, slow, slower]) is slower
    assert laggard([even[0], slower]) is None  # there is no median of two
