"""What circuits are worth: the goodput of all together, and the trials that show whether one pays.

More circuits are faster where each is slow for reasons of its own, and only a burden on the network where all
of them share what limits them, such as the provider's uplink. No single circuit shows which it is, so it is
tried: some circuits *rest* for a few round trips, and if the goodput hardly falls, they are closed; later one
is *added*, and it stays if the goodput rises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum, auto
from statistics import median

from overlay.files.engine.circuits import Circuit

PAYS = 1.1
"""Goodput with a circuit over that without it, from which it pays: each burdens six relays."""

TRIAL_TRIPS = 6
"""Round trips over which goodput is measured: the requests under way come to an end in two."""

TRIAL_SECONDS = 3.0
"""Seconds of a measurement at least: shorter ones of fast circuits would weigh hiccups."""

TRIAL_PAUSE = 20.0
"""Seconds until the next trial after one that changed nothing; doubled each time in a row."""

MAX_TRIAL_PAUSE = 320.0
"""Seconds of the longest such pause: trials take about a fiftieth of the time of a long transfer."""

WORTHWHILE = 8
"""Measurements for which the transfer must last on, or what a trial finds out is of no more use."""

CROWDED = 0.6
"""Rate of a circuit over the best it ever had, below which all are thought to share a bottleneck: then half
of them rest in the first trial, and not one."""

SMOOTHING = 5.0
"""Seconds over which the shown rate is smoothed: what a person can read, and what a hiccup does not shake."""

SLOW = 0.25
"""A circuit below this part of the median is replaced: a new one most likely carries four times as much."""

MIN_COMPARED = 3
"""Circuits from which on there is a median to compare with."""


class Goodput:
    """Bytes that came for the first time, in all and per second.

    Attributes:
        total: bytes.
    """

    def __init__(self) -> None:
        self.total = 0
        self._weight = 0.0
        self._began: float | None = None
        self._at = 0.0

    def begin(self, now: float) -> None:
        """Count the time from here."""
        if self._began is None:
            self._began = self._at = now

    def add(self, count: int, now: float) -> None:
        """Note `count` bytes."""
        self.begin(now)
        self._weight = self._faded(now) + count
        self._at = now
        self.total += count

    def rate(self, now: float) -> float:
        """Bytes per second: those of the last seconds count most."""
        if self._began is None or now <= self._began:
            return 0.0
        return self._faded(now) / (SMOOTHING * -math.expm1((self._began - now) / SMOOTHING))

    def seconds(self, now: float) -> float:
        """Seconds since the time is counted."""
        return 0.0 if self._began is None else now - self._began

    def _faded(self, now: float) -> float:
        return self._weight * math.exp((self._at - now) / SMOOTHING)


class _Phase(Enum):
    WAITING = auto()
    BASELINE = auto()
    SETTLING = auto()
    MEASURING = auto()


class Trials:
    """Finds out how many circuits pay.

    Args:
        most: circuits that are allowed at all.

    Attributes:
        allowed: circuits that pay as far as is known; at first `most`.
    """

    def __init__(self, most: int) -> None:
        self.allowed = most
        self._most = most
        self._phase = _Phase.WAITING
        self._next = 0.0  # when the next phase begins
        self._pause = TRIAL_PAUSE
        self._mark = (0.0, 0)  # when the measurement began, and the total then
        self._baseline = 0.0
        self._measured: frozenset[int] = frozenset()
        self._subjects: list[Circuit] = []
        self._adding = False
        self._single = False  # whether half of the circuits at once were too many

    @property
    def next(self) -> float:
        """When `review` has something to do."""
        return self._next

    def limit(self, count: int) -> None:
        """Allow at most `count` circuits; whether one more pays is tried as usual."""
        self.allowed = min(self.allowed, count)

    def review(
        self, circuits: Sequence[Circuit], total: int, left: float, now: float, *, steady: bool
    ) -> list[Circuit]:
        """Go on with the trial.

        Args:
            circuits: those that are open.
            total: bytes of goodput so far.
            left: seconds that the transfer lasts on, as far as is known.
            now: seconds.
            steady: whether as many circuits are open as are meant to be: no trial begins before.

        Returns:
            circuits that do not pay: they are closed.
        """
        span = max(TRIAL_SECONDS, TRIAL_TRIPS * max((it.round_trip for it in circuits), default=0.0))
        numbers = frozenset(circuit.number for circuit in circuits)
        if not circuits or left < WORTHWHILE * span or self._disturbed(numbers, steady=steady):
            self._give_up(span, now)
        elif now >= self._next:
            return self._advance(circuits, total, span, now)
        return []

    def _disturbed(self, numbers: frozenset[int], *, steady: bool) -> bool:
        if self._phase is _Phase.WAITING:
            return not steady
        if self._phase is _Phase.SETTLING and self._adding:
            return not self._measured <= numbers or len(numbers) > len(self._measured) + 1
        return numbers != self._measured

    def _advance(self, circuits: Sequence[Circuit], total: int, span: float, now: float) -> list[Circuit]:
        if self._phase is _Phase.WAITING:
            self._measured = frozenset(circuit.number for circuit in circuits)
            self._measure(_Phase.BASELINE, total, span, now)
        elif self._phase is _Phase.BASELINE:
            self._baseline = self._rate(total, now)
            self._change(circuits, span, now)
        elif self._phase is _Phase.SETTLING:
            self._settle(circuits, total, span, now)
        else:
            return self._judge(self._rate(total, now), now)
        return []

    def _change(self, circuits: Sequence[Circuit], span: float, now: float) -> None:
        self._phase, self._next = _Phase.SETTLING, now + span
        if self._adding and self.allowed < self._most:
            self.allowed = len(circuits) + 1
            return
        self._adding = False
        slowest = sorted(circuits, key=lambda circuit: circuit.bandwidth)
        crowded = min(circuit.bandwidth / max(circuit.peak, 1.0) for circuit in circuits) < CROWDED
        count = len(circuits) // 2 if crowded and not self._single else min(1, len(circuits) - 1)
        self._subjects = slowest[:count]
        for circuit in self._subjects:
            circuit.resting = True

    def _settle(self, circuits: Sequence[Circuit], total: int, span: float, now: float) -> None:
        """Begin to measure when those that rest have delivered, or the one that was added is warm."""
        if self._adding:
            self._subjects = [circuit for circuit in circuits if circuit.number not in self._measured]
            warm = any(now - (circuit.opened_at or now) >= span for circuit in self._subjects)
        else:
            warm = not any(circuit.outstanding for circuit in self._subjects)
        if warm:
            self._measured = frozenset(circuit.number for circuit in circuits)
            self._measure(_Phase.MEASURING, total, span, now)
        else:
            self._next = now + span / TRIAL_TRIPS

    def _judge(self, rate: float, now: float) -> list[Circuit]:
        subjects, adding = self._subjects, self._adding
        if adding:
            close = subjects if rate < PAYS * self._baseline else []
        else:
            close = subjects if rate * PAYS > self._baseline else []
        self._single = self._single or (not adding and not close)
        self.allowed = len(self._measured) - len(close)
        # What succeeded is tried again at once; after what failed the other is tried, later.
        failed = adding == bool(close)
        self._adding = adding != failed
        self._pause = min(MAX_TRIAL_PAUSE, 2 * self._pause) if failed else TRIAL_PAUSE
        self._end(now + self._pause if failed else now)
        return close

    def _measure(self, phase: _Phase, total: int, span: float, now: float) -> None:
        self._phase, self._mark, self._next = phase, (now, total), now + span

    def _rate(self, total: int, now: float) -> float:
        began, before = self._mark
        return (total - before) / max(now - began, 1e-9)

    def _give_up(self, span: float, now: float) -> None:
        """End a trial without a verdict: a circuit was lost, or nothing is left to ask for."""
        if self._phase is _Phase.WAITING:
            self._next = max(self._next, now + span)
            return
        if self._adding and self._phase is not _Phase.BASELINE:
            self.allowed = max(1, self.allowed - 1)
        self._end(now + span)

    def _end(self, at: float) -> None:
        for circuit in self._subjects:
            circuit.resting = False
        self._subjects = []
        self._phase, self._next = _Phase.WAITING, at


def laggard(circuits: Sequence[Circuit]) -> Circuit | None:
    """The slowest circuit, if it is far below the median of those that were full for some round trips."""
    rates = [(rate, circuit) for circuit in circuits if (rate := circuit.mean_rate) is not None]
    if len(rates) < MIN_COMPARED:
        return None
    rate, slowest = min(rates, key=lambda pair: pair[0])
    return slowest if rate < SLOW * median(rate for rate, _ in rates) else None
