"""What is known of one circuit, and how much is asked on it at once.

A circuit is full when as many bytes are on their way as fit into it, its bandwidth-delay product: less, and
it idles; more, and what is asked only waits in somebody's queue. Both factors are measured. The *bandwidth*
is the highest arrival rate of the last periods, one round trip each, and three times the product is asked
for, so that a circuit that can carry more shows it. A new circuit is asked for one chunk more with each that
arrives, which doubles what is under way in a round trip, until the rate does not grow any more. The *round
trip* is taken from requests that found the circuit empty, so that our own queue is never mistaken for
distance; a circuit that has not been empty for long is left to run dry once.

Source: the model of BBR (Cardwell et al., ACM Queue 14(5), 2016), with requests in the place of segments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from overlay.identity import NodeIdentifier

MIN_BATCH = 4
"""Chunks of the smallest request: 128 KiB of large ones, which fit the first window of an exchange."""

MAX_BATCH = 64
"""Chunks of the largest request: as many as a provider takes."""

BATCHES = 16
"""Requests that a full circuit is cut into. Each is an exchange with a window of its own, which begins
small: many small ones fill the circuit where a few large ones would wait for their windows to grow."""

MAX_REQUESTS = 24
"""Requests under way on one circuit, below the 32 exchanges that a channel takes from each side."""

BATCH_SECONDS = 0.15
"""A request holds at least what arrives in this time: on a fast circuit its own cost counts, a millisecond of
the processor at both ends together."""

QUEUE_SECONDS = 0.45
"""What arrives in this time is asked for at once at least: three such requests, also without distance."""

FIRST_DEPTH = 512 * 1024
"""Bytes asked for at once on a circuit that is not measured yet: the bandwidth-delay product of a good onion
circuit (0.7 MB/s, 0.7 s), so that a common one is full from its first round trip."""

MIN_DEPTH = 256 * 1024
"""Bytes asked for at once at least: two of the smallest requests, one travels while one is answered."""

MAX_DEPTH = 8 * 1024 * 1024
"""Bytes asked for at once on any circuit: three times 2.7 MiB, which is 1.4 MB/s at 2 s."""

DEPTH_GAIN = 3.0
"""Bandwidth-delay products asked for at once: 1 to fill the circuit, 1 to see whether it carries more, and 1
because a full circuit's round trip is longer than that of an empty one, which is what is measured. With 2 one
circuit stayed at two thirds of a raw stream; with 4 too much waits for a provider that is silent."""

STARTUP_GROWTH = 1.25
"""Rate of a period over the best before, below which a new circuit is full: while it is not, it doubles."""

PERIODS = 6
"""Measured periods whose highest rate is the bandwidth: a hiccup of fewer round trips costs nothing."""

MIN_PERIOD = 0.1
"""Seconds of the shortest period: shorter ones would measure the gaps between chunks."""

RTT_LIFETIME = 60.0
"""Seconds after which a round trip is measured anew; Tor circuits change slowly."""

RTT_LIFETIME_TRIPS = 50
"""Round trips that this takes at least: running dry costs one of them, so at most 2 % of the goodput."""

STALL_SECONDS = 10.0
"""Silence after which a request has stalled, where four round trips are less: the worst hiccups of Tor."""

STALL_TRIPS = 4

GUESSED_RTT = 1.0
"""Seconds: the median round trip of onion circuits, until a circuit's own is known."""

GUESSED_RATE = 256 * 1024.0
"""Bytes per second: what a mediocre circuit carries, likewise."""


@dataclass(slots=True)
class Request:
    """Chunks asked for on one circuit.

    Attributes:
        number: names it in actions and events.
        provider: who was asked.
        references: what was asked for.
        missing: what has not come yet, in the order in which it was asked for.
        asked_at, heard_at: seconds; when it was asked, and when something of it last came.
        alone: whether it found the circuit empty, so that its first chunk shows the round trip.
        overdue: whether it has stalled, so that others are asked for the same.
    """

    number: int
    circuit: int
    provider: NodeIdentifier
    references: tuple[bytes, ...]
    asked_at: float
    heard_at: float = 0.0
    alone: bool = False
    overdue: bool = False
    missing: dict[bytes, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Nothing has come yet."""
        self.heard_at = self.asked_at
        self.missing = dict.fromkeys(self.references)


class ArrivalMeter:
    """Rates at which chunks arrived on a circuit, one for each of its last periods.

    Attributes:
        highest: bytes per second of the best of them; 0 while there is none.
    """

    def __init__(self) -> None:
        self.highest = 0.0
        self._rates: deque[float] = deque(maxlen=PERIODS)
        self._began: float | None = None
        self._bytes = 0
        self._limited = False

    @property
    def mean(self) -> float | None:
        """Bytes per second over the last periods; None before all of them are there."""
        return sum(self._rates) / PERIODS if len(self._rates) == PERIODS else None

    def add(self, count: int, span: float, now: float) -> float | None:
        """Note `count` bytes; a period ends with the first arrival that is `span` seconds after its begin.

        Returns:
            the rate of the period that has ended, if it says what the circuit carries.
        """
        if self._began is None:
            self._begin(now)
            return None
        self._bytes += count
        elapsed = now - self._began
        if elapsed < max(span, MIN_PERIOD):
            return None
        rate, valid = self._bytes / elapsed, not self._limited
        self._begin(now)
        if valid or rate > self.highest:
            self._rates.append(rate)
            self.highest = max(self._rates)
        return rate if valid else None

    def limit(self) -> None:
        """Note that less was asked for than the circuit carries: this period says nothing against it."""
        self._limited = True

    def pause(self) -> None:
        """Note that nothing is asked for: the period is given up."""
        self._began = None

    def _begin(self, now: float) -> None:
        self._began, self._bytes, self._limited = now, 0, False


class Circuit:
    """One circuit to one provider.

    Args:
        number: names it in actions and events.
        provider: whom it leads to.
        chunk_bytes: size of each chunk.
        now: when it was begun.

    Attributes:
        began, opened_at: seconds; when it was begun, and when it was open, None before.
        requests: what is under way, by number, in the order in which it was asked.
        outstanding: bytes that were asked for and have not come.
        delivered: bytes that came.
        peak: bytes per second that it ever carried at its best.
        rtt: seconds from a request to its first chunk on the empty circuit; None before the first.
        resting: whether nothing is asked on it for the moment, to see what it is worth.
        rests_until, failures: when it is asked again, after so many failed requests in a row.
    """

    def __init__(self, number: int, provider: NodeIdentifier, chunk_bytes: int, now: float) -> None:
        self.number = number
        self.provider = provider
        self.began = now
        self.opened_at: float | None = None
        self.requests: dict[int, Request] = {}
        self.outstanding = 0
        self.delivered = 0
        self.rtt: float | None = None
        self.peak = 0.0
        self.resting = False
        self.rests_until = now
        self.failures = 0
        self._chunk = chunk_bytes
        self._meter = ArrivalMeter()
        self._growing = FIRST_DEPTH  # bytes to ask for at once; 0 when the circuit has been full
        self._rtt_at = now
        self._heard_at = now
        self._ended = now, now  # of the request of those that ended which was heard last: asked and heard at

    @property
    def bandwidth(self) -> float:
        """Bytes per second that it has lately carried at its best; a guess before it was measured."""
        return self._meter.highest or GUESSED_RATE

    @property
    def mean_rate(self) -> float | None:
        """Bytes per second over the last periods in which it was full; None before there are enough."""
        return self._meter.mean

    @property
    def measured(self) -> bool:
        """Whether it has been full, so that its bandwidth is known."""
        return not self._growing

    @property
    def round_trip(self) -> float:
        """Seconds, a guess before it was measured."""
        return GUESSED_RTT if self.rtt is None else self.rtt

    @property
    def depth(self) -> int:
        """Bytes that are asked for at once: `DEPTH_GAIN` bandwidth-delay products, within bounds."""
        seconds = max(QUEUE_SECONDS, DEPTH_GAIN * self.round_trip)
        measured = int(self._meter.highest * seconds)
        return min(MAX_DEPTH, max(MIN_DEPTH, measured, self._growing))

    @property
    def batch(self) -> int:
        """Chunks of one request."""
        size = max(self.depth / BATCHES, self._meter.highest * BATCH_SECONDS)
        return max(MIN_BATCH, min(MAX_BATCH, int(size // self._chunk)))

    def room(self, now: float) -> int:
        """Count the chunks that can be asked for now."""
        if self.opened_at is None or self.resting or now < self.rests_until:
            return 0
        if self.outstanding and (len(self.requests) >= MAX_REQUESTS or self._runs_dry(now)):
            return 0
        return max(0, self.depth - self.outstanding) // self._chunk

    def ask(self, request: Request) -> None:
        """Note that `request` is under way."""
        if not self.outstanding:
            request.alone, self._rtt_at = True, request.asked_at
        self.requests[request.number] = request
        self.outstanding += len(request.references) * self._chunk

    def arrive(self, request: Request, reference: bytes, now: float) -> bool:
        """Note that a chunk came; returns False if it had come before, or was not asked for."""
        if reference not in request.missing:
            return False
        del request.missing[reference]
        if request.alone:
            self.rtt, request.alone = now - request.asked_at, False
        request.heard_at = self._heard_at = now
        request.overdue = False
        self.outstanding -= self._chunk
        self.delivered += self._chunk
        self.failures = 0
        self._measure(now)
        return True

    def end(self, request: Request) -> None:
        """Note that nothing more comes for `request`."""
        del self.requests[request.number]
        if request.heard_at > self._ended[1]:
            self._ended = request.asked_at, request.heard_at
        self.outstanding -= len(request.missing) * self._chunk
        if not self.outstanding:
            self._meter.pause()

    def finish(self, more: int) -> float:
        """Estimate the seconds until `more` chunks are here that would be asked for now."""
        return max(self.round_trip, self.outstanding / self.bandwidth) + more * self._chunk / self.bandwidth

    def expected(self, now: float) -> Iterator[tuple[Request, bytes, float]]:
        """Estimate for each chunk under way in how many seconds it is here; without end if it is late."""
        patience = 2 * (self.round_trip + self._chunk / self.bandwidth)
        ahead = 0
        for request in self.requests.values():
            late = request.overdue or now - max(self._heard_at, request.asked_at) > patience
            for reference in request.missing:
                ahead += self._chunk
                travel = request.asked_at + self.round_trip - now
                yield request, reference, float("inf") if late else max(travel, ahead / self.bandwidth)

    @property
    def late_at(self) -> float:
        """When silence begins to look like a stall: then, near the end, others are asked as well."""
        if not self.requests:
            return float("inf")
        since = max(self._heard_at, next(reversed(self.requests.values())).asked_at)
        return since + 2 * (self.round_trip + self._chunk / self.bandwidth)

    def stalled(self) -> Iterator[tuple[Request, float]]:
        """Tell for each request since when nothing came that was asked for with it or before it."""
        asked_at, since = self._ended
        for request in self.requests.values():
            before = since if asked_at <= request.asked_at else 0.0
            since = max(before, request.heard_at)
            asked_at = request.asked_at
            yield request, since

    @property
    def patience(self) -> float:
        """Seconds of silence after which a request has stalled; four slow chunks are no stall either."""
        return max(STALL_SECONDS, STALL_TRIPS * max(self.round_trip, self._chunk / self.bandwidth))

    def _measure(self, now: float) -> None:
        before = self._meter.highest
        if self.outstanding < before * self.round_trip:
            self._meter.limit()
        rate = self._meter.add(self._chunk, self.round_trip, now)
        self.peak = max(self.peak, self._meter.highest)
        if self._growing:
            self._growing = min(MAX_DEPTH, self._growing + self._chunk)
            if rate is not None and rate < STARTUP_GROWTH * before:
                self._growing = 0
        if not self.outstanding:
            self._meter.pause()

    def _runs_dry(self, now: float) -> bool:
        return now - self._rtt_at > max(RTT_LIFETIME, RTT_LIFETIME_TRIPS * self.round_trip)
