"""Which circuit is asked for which chunks, and near the end for which of those that others still hold."""

from __future__ import annotations

from collections.abc import Container, Iterator
from heapq import nlargest
from itertools import count
from typing import Protocol

from overlay.files.engine.actions import Ask
from overlay.files.engine.asked import Asked
from overlay.files.engine.circuits import MIN_BATCH, Circuit, Request
from overlay.files.engine.providers import Providers

SOONER = 0.7
"""Part of the expected time in which another circuit must bring a chunk to be asked for it too: expectations
are not exact, and an answer that comes twice is bandwidth of volunteers."""

MIN_GAIN = 0.2
"""Seconds by which it must be sooner: nobody notices less."""

FREE_WASTE = 8
"""Chunks that may come twice, beside every fiftieth: so many the endgame needs where circuits are slow for
reasons of their own. Where they share what limits them, nothing comes sooner for being asked for twice."""

WASTE_PART = 50

MAX_LATE = 256
"""Chunks looked at that are expected last: more than circuits have room for near the end."""


class Source(Protocol):
    """What is transferred: names the chunks that are needed, and is given each before the engine is told."""

    @property
    def finished(self) -> bool:
        """Whether no chunk is needed any more."""

    @property
    def missing(self) -> int | None:
        """Bytes still to come, if known."""

    def wanted(self, limit: int, asked: Container[bytes] = ()) -> list[bytes]:
        """Name chunks that are needed and not `asked` for, the most urgent first."""


class Schedule:
    """The requests of a transfer, on circuits that are added and taken away.

    Args:
        source: names the chunks that are needed.
        providers: know who has not what.
        chunk_bytes: size of each chunk.
        max_outstanding: bytes asked for at once.

    Attributes:
        circuits: by number.
        requests: that are under way, by number.
        asked: the chunks that they ask for.
        max_outstanding: as given; may be changed.
        arrived, wasted: chunks that came, and those of them that came once more.
    """

    def __init__(self, source: Source, providers: Providers, chunk_bytes: int, max_outstanding: int) -> None:
        self.circuits: dict[int, Circuit] = {}
        self.requests: dict[int, Request] = {}
        self.asked = Asked()
        self._source = source
        self._providers = providers
        self._chunk = chunk_bytes
        self.max_outstanding = max_outstanding
        self.arrived = self.wasted = 0
        self._numbers = count(1)
        self._exhausted = False  # whether the source named all that it wants when it was asked last

    def plan(self, now: float) -> Iterator[Ask]:
        """Ask for as much as there is room for."""
        if not self._exhausted and self._soonest((), now) is None:
            return
        limit = min(sum(circuit.room(now) for circuit in self.circuits.values()), self._budget())
        if limit <= 0:
            return
        # Named beyond the limit, because not everybody can be asked for these.
        awkward = self._providers.lacked + sum(
            len(request.missing) for request in self.requests.values() if request.overdue
        )
        pending = self._source.wanted(limit + awkward, self.asked)
        self._exhausted = len(pending) < limit
        yield from self._ask(pending, now)
        if self._exhausted:
            yield from self._ask_again(now)

    def can_ask(self, circuit: Circuit, now: float) -> bool:
        """Tell whether `plan` would ask for something on this circuit, if others leave it anything."""
        return not self._exhausted and circuit.room(now) >= circuit.batch and self._budget() > 0

    def arrive(self, request: Request, reference: bytes) -> bool:
        """Note that a chunk came that was asked for; returns whether it is the first time."""
        first = self.asked.arrive(request, reference)
        self.arrived += first
        self.wasted += not first
        return first

    def end(self, request: Request) -> None:
        """Note that nothing more comes for a request: what is missing of it can be asked for elsewhere."""
        self.asked.end(request)
        self.circuits[request.circuit].end(request)
        del self.requests[request.number]

    def remove(self, circuit: Circuit) -> None:
        """Take a circuit away, with all its requests."""
        for request in list(circuit.requests.values()):
            self.end(request)
        del self.circuits[circuit.number]

    def _ask(self, pending: list[bytes], now: float) -> Iterator[Ask]:
        """Give each batch to the circuit that is expected to bring it first."""
        barred: set[int] = set()
        while pending and (circuit := self._soonest(barred, now)) is not None:
            size = min(circuit.batch, self._budget())
            batch = [name for name in pending if self._may_ask(circuit, name)][:size]
            if batch:
                yield self._request(circuit, batch, now)
                sent = set(batch)
                pending = [name for name in pending if name not in sent]
            else:
                barred.add(circuit.number)

    def _ask_again(self, now: float) -> Iterator[Ask]:
        """Ask, a few at a time, for what others would bring much later: the endgame."""
        room = FREE_WASTE + self.arrived // WASTE_PART - self.wasted - self.asked.doubled
        if room <= 0:
            return
        circuits = self.circuits.values()
        late = [(seconds, name) for circuit in circuits for _, name, seconds in circuit.expected(now)]
        late = nlargest(MAX_LATE, late)
        barred: set[int] = set()
        while late and room and (circuit := self._soonest(barred, now, endgame=True)) is not None:
            again = self._late_for(circuit, late, now)[:room]
            if again:
                room -= len(again)
                yield self._request(circuit, again, now)
                late = [(seconds, name) for seconds, name in late if name not in again]
            else:
                barred.add(circuit.number)

    def _late_for(self, circuit: Circuit, late: list[tuple[float, bytes]], now: float) -> list[bytes]:
        """Choose what this circuit would bring much sooner, of what is expected last."""
        size = min(MIN_BATCH, circuit.room(now), self._budget())
        again: list[bytes] = []
        for seconds, name in late:
            finish = circuit.finish(len(again) + 1)
            if len(again) == size or finish > min(SOONER * seconds, seconds - MIN_GAIN):
                break
            if name not in again and self._may_ask(circuit, name):
                again.append(name)
        return again

    def _soonest(self, barred: Container[int], now: float, *, endgame: bool = False) -> Circuit | None:
        """Find the circuit that would bring a batch first, of those that have room for one."""

        def has_room(circuit: Circuit) -> bool:
            room = circuit.room(now)
            return room >= circuit.batch or (room > 0 and (endgame or not circuit.outstanding))

        ready = [it for it in self.circuits.values() if it.number not in barred and has_room(it)]
        return min(ready, key=lambda it: it.finish(it.batch), default=None) if self._budget() > 0 else None

    def _request(self, circuit: Circuit, names: list[bytes], now: float) -> Ask:
        request = Request(next(self._numbers), circuit.number, circuit.provider, tuple(names), now)
        self.requests[request.number] = request
        self.asked.add(request)
        circuit.ask(request)
        return Ask(circuit.number, request.number, request.references)

    def _may_ask(self, circuit: Circuit, name: bytes) -> bool:
        return self._providers.may_have(circuit.provider, name) and self.asked.may_ask(name, circuit.number)

    def _budget(self) -> int:
        """Chunks that can be asked for within the limit of all circuits."""
        outstanding = sum(circuit.outstanding for circuit in self.circuits.values())
        return (self.max_outstanding - outstanding) // self._chunk
