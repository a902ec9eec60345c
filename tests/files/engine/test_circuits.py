"""How much is asked on one circuit at once: what it measures, and what it makes of that."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.files.engine.circuits import (
    FIRST_DEPTH,
    MAX_BATCH,
    MAX_DEPTH,
    MAX_REQUESTS,
    MIN_BATCH,
    MIN_DEPTH,
    PERIODS,
    RTT_LIFETIME,
    ArrivalMeter,
    Circuit,
    Request,
)
from overlay.identity import NodeIdentifier

CHUNK = 32768
PROVIDER = NodeIdentifier(bytes(32))


def _open(now: float = 0.0) -> Circuit:
    circuit = Circuit(1, PROVIDER, CHUNK, now)
    circuit.opened_at = now
    return circuit


def _ask(circuit: Circuit, number: int, chunks: int, now: float) -> Request:
    references = tuple(b"%d.%d" % (number, index) for index in range(chunks))
    request = Request(number, circuit.number, PROVIDER, references, now)
    circuit.ask(request)
    return request


def _deliver(circuit: Circuit, request: Request, now: float, gap: float = 0.0) -> float:
    for reference in request.references:
        assert circuit.arrive(request, reference, now)
        now += gap
    circuit.end(request)
    return now - gap


def _saturate(circuit: Circuit, rate: float, round_trip: float, seconds: float) -> float:
    """Let the circuit be a pipe of this rate that is never empty, as far as the engine fills it."""
    now, free, numbers = 0.0, 0.0, iter(range(10**6))
    pipe: list[tuple[float, Request, bytes]] = []
    while now < seconds:
        while circuit.room(now) >= circuit.batch:
            request = _ask(circuit, next(numbers), circuit.batch, now)
            for reference in request.references:
                free = max(free, now + round_trip) + CHUNK / rate
                pipe.append((free, request, reference))
        now, request, reference = pipe.pop(0)
        circuit.arrive(request, reference, now)
        if not request.missing:
            circuit.end(request)
    return now


def test_a_meter_takes_the_best_of_its_last_periods() -> None:
    meter = ArrivalMeter()
    meter.add(100, 1.0, 0.0)  # only begins the first period
    assert meter.highest == 0.0
    assert meter.add(500, 1.0, 1.0) == 500.0
    assert meter.add(200, 1.0, 2.0) == 200.0
    assert meter.highest == 500.0
    assert meter.mean is None
    for second in range(3, 3 + PERIODS):
        meter.add(300, 1.0, float(second))
    assert meter.highest == meter.mean == 300.0


def test_a_period_in_which_too_little_was_asked_for_says_nothing_against_a_circuit() -> None:
    meter = ArrivalMeter()
    meter.add(0, 1.0, 0.0)
    meter.add(500, 1.0, 1.0)
    for second in range(2, 12):
        meter.limit()
        assert meter.add(100, 1.0, float(second)) is None
    assert meter.highest == 500.0
    meter.limit()
    meter.add(900, 1.0, 12.0)
    assert meter.highest == 900.0  # but what it carried, it can carry


def test_time_in_which_nothing_is_asked_for_is_not_measured() -> None:
    meter = ArrivalMeter()
    meter.add(0, 1.0, 0.0)
    meter.pause()
    meter.add(500, 1.0, 100.0)
    assert meter.add(500, 1.0, 101.0) == 500.0


def test_asks_at_once_for_what_a_common_circuit_holds() -> None:
    circuit = Circuit(1, PROVIDER, CHUNK, 0.0)
    assert circuit.room(0.0) == 0
    circuit.opened_at = 1.0
    assert circuit.room(1.0) == FIRST_DEPTH // CHUNK
    assert circuit.batch == MIN_BATCH


def test_the_round_trip_is_that_of_the_empty_circuit() -> None:
    circuit = _open()
    first, second = _ask(circuit, 1, 4, 0.0), _ask(circuit, 2, 4, 0.0)
    _deliver(circuit, first, 0.5, 0.1)
    assert circuit.rtt == 0.5
    _deliver(circuit, second, 2.0, 0.1)  # waited behind the first
    assert circuit.rtt == 0.5


@pytest.mark.parametrize(
    ("rate", "round_trip"), [(0.2e6, 2.0), (0.7e6, 0.43), (1.5e6, 0.2), (1.5e6, 2.0), (4e6, 1.0)]
)
def test_asks_for_three_times_the_bandwidth_delay_product(rate: float, round_trip: float) -> None:
    circuit = _open()
    _saturate(circuit, rate, round_trip, 30 * round_trip)
    assert circuit.bandwidth == pytest.approx(rate, rel=0.1)
    assert circuit.round_trip == pytest.approx(round_trip, abs=2 * CHUNK / rate)
    assert circuit.measured
    expected = min(MAX_DEPTH, 3 * rate * circuit.round_trip)
    assert circuit.depth == pytest.approx(expected, rel=0.1)


def test_a_new_circuit_is_full_after_a_few_round_trips() -> None:
    circuit = _open()
    now = _saturate(circuit, 4e6, 1.0, 7.0)
    assert now < 7.1
    assert circuit.delivered > 7e6  # of 24e6; with the first depth for ever it were 3e6
    assert circuit.outstanding > 4e6


def test_a_fast_near_circuit_is_asked_for_large_batches() -> None:
    circuit = _open()
    _saturate(circuit, 100e6, 0.001, 2.0)
    assert circuit.batch == MAX_BATCH
    assert circuit.depth >= 4 * MAX_BATCH * CHUNK


def test_a_slow_circuit_holds_little() -> None:
    circuit = _open()
    _saturate(circuit, 20e3, 0.3, 60.0)
    assert circuit.depth == MIN_DEPTH


def test_a_circuit_that_was_never_empty_is_left_to_run_dry_once() -> None:
    circuit = _open()
    _ask(circuit, 1, 4, 0.0)
    late = RTT_LIFETIME + 1.0
    _ask(circuit, 2, 4, 0.5)
    assert circuit.room(late) == 0
    for request in list(circuit.requests.values()):
        _deliver(circuit, request, late, 0.1)
    assert circuit.room(late + 1) > 0
    again = _ask(circuit, 3, 4, late + 1)
    assert circuit.room(late + 1) > 0  # it fills up without waiting for the answer
    _deliver(circuit, again, late + 1 + 0.8)
    assert circuit.rtt == pytest.approx(0.8)


def test_requests_under_way_are_bounded() -> None:
    circuit = _open()
    _saturate(circuit, 4e6, 1.0, 20.0)
    for request in list(circuit.requests.values()):
        circuit.end(request)
    for number in range(MAX_REQUESTS):
        assert circuit.room(20.0) > 0
        _ask(circuit, 10**7 + number, 1, 20.0)
    assert circuit.room(20.0) == 0


def test_a_resting_circuit_has_no_room() -> None:
    circuit = _open()
    circuit.resting = True
    assert circuit.room(0.0) == 0
    circuit.resting, circuit.rests_until = False, 5.0
    assert circuit.room(4.9) == 0
    assert circuit.room(5.0) > 0


def test_expects_chunks_in_the_order_of_asking_and_none_from_a_silent_circuit() -> None:
    circuit = _open()
    now = _saturate(circuit, 1e6, 0.5, 10.0)
    seconds = [expected for _, _, expected in circuit.expected(now)]
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(circuit.outstanding / circuit.bandwidth, rel=0.01)
    assert circuit.finish(0) == pytest.approx(seconds[-1], rel=0.01)
    assert now < circuit.late_at < now + 2.0
    late = [expected for _, _, expected in circuit.expected(circuit.late_at + 0.01)]
    assert set(late) == {math.inf}


def test_a_request_that_waits_for_earlier_ones_has_not_stalled() -> None:
    circuit = _open()
    first, second = _ask(circuit, 1, 2, 0.0), _ask(circuit, 2, 2, 0.0)
    circuit.arrive(first, first.references[0], 30.0)
    assert [since for _, since in circuit.stalled()] == [30.0, 30.0]
    circuit.arrive(second, second.references[0], 50.0)
    assert [since for _, since in circuit.stalled()] == [30.0, 50.0]  # a later one excuses nothing
    assert circuit.patience >= 10.0


@given(st.lists(st.tuples(st.sampled_from("aAde"), st.integers(0, 9), st.floats(0, 100)), max_size=60))
def test_what_is_outstanding_is_never_miscounted(steps: list[tuple[str, int, float]]) -> None:
    circuit, now = _open(), 0.0
    for number, (step, pick, seconds) in enumerate(steps):
        now += seconds
        requests = list(circuit.requests.values())
        if step in "aA":
            _ask(circuit, number, 1 + pick, now)
        elif requests and step == "d":
            request = requests[pick % len(requests)]
            circuit.arrive(request, request.references[pick % len(request.references)], now)
            assert not circuit.arrive(request, b"never asked", now)
        elif requests:
            circuit.end(requests[pick % len(requests)])
        missing = sum(len(request.missing) for request in circuit.requests.values())
        assert circuit.outstanding == missing * CHUNK
        assert MIN_DEPTH <= circuit.depth <= MAX_DEPTH
        assert MIN_BATCH <= circuit.batch <= MAX_BATCH
        assert circuit.room(now) >= 0
        assert circuit.finish(1) > 0
