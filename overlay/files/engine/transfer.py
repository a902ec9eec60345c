"""The engine of a transfer: who is asked for which chunks, over how many circuits, and what is late.

It does no I/O and knows no clock. A driver does what `Transfer.next_actions` lists, tells what happened, and
asks again after each event and at `Transfer.deadline` at the latest:

    for action in transfer.next_actions(now):
        match action:
            case Open(circuit, provider): ...    # then opened() or open_failed()
            case Ask(circuit, request, references): ...    # progressed() of each, answered() or failed()
            case Close(circuit): ...    # with all its requests; no event is expected any more

As many circuits are begun at once as the work pays for, two where it is not known yet: a transfer of some
seconds is over before it could be tried whether they help. In longer ones `Trials` find out how many do, and
the rest is closed; where all together are so fast that no network limits them, two are left. Each batch goes
to the circuit that is expected to bring it first. Near the end, when nothing is left that is not asked for
(the *endgame*), circuits that have room ask again for what others would bring much later, so that a slow or
dead one costs a few round trips and not its time-out.

Events of circuits and requests that are over, or never were, are ignored: they may cross with a `Close`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from itertools import count
from statistics import median

from overlay.files.engine.actions import Action, Close, Open, Snapshot
from overlay.files.engine.circuits import Circuit
from overlay.files.engine.goodput import Goodput, Trials, laggard
from overlay.files.engine.providers import Candidates, Providers, Reason
from overlay.files.engine.schedule import Schedule, Source
from overlay.identity import NodeIdentifier

MAX_CIRCUITS = 8
"""Circuits of one transfer: raw onion streams gained little beyond, and each burdens six relays."""

FIRST_CIRCUITS = 2
"""Circuits begun at least: opening one takes 1 to 10 s over Tor, and the faster of two is rarely slow."""

FAST = 48 * 1024 * 1024
"""Bytes per second of all circuits from which the processors are what limits them, and two do as much as
eight: over TCP on one machine two carried 119 MB/s and eight, which cost more of the processors, 85."""

FAST_SECONDS = 0.5
"""Seconds of goodput after which that can be told."""

MAX_OUTSTANDING = 32 * 1024 * 1024
"""Bytes asked for at once on all circuits: what may be in memory before it is written."""

PAYING_BYTES = 1024 * 1024
"""Bytes for each circuit from which it pays, before anything is measured: what another one carries (0.7 MB/s)
in the time that opening takes (1.5 s)."""

MIN_PAYING_BYTES = 256 * 1024
"""The least of that once rate and time to open are known: eight large chunks, two requests."""

SLOW_OPENING = 10.0
"""Seconds after which a circuit that is still not open is not counted on, so that another is begun."""

MAX_OPENING = 120.0
"""Seconds after which it is given up: no dial over Tor that succeeds takes longer."""

MAX_FAILED = 3
"""Requests in a row that fail before their circuit is closed; in between it rests."""

FAILED_PAUSE = 1.0
"""Seconds that a circuit rests after a request failed; doubled with each in a row."""

REPLACE_PAUSE = 5.0
"""Seconds between circuits that are replaced for being slow, and for which the transfer must last on."""

REVIEW_SECONDS = 0.1
"""Seconds between looks at the circuits, unless something happened to one: a chunk alone changes little."""

VISIBLE_CHUNKS = 1024
"""Chunks that count as work left while the size is not known, the most that a source is asked to name."""

TICK = 1.0
"""Seconds between calls of `next_actions` at most, while there is work: nothing is decided much later."""

MIN_TICK = 0.02
"""Seconds at least: a deadline that has passed makes no busy loop."""


class Transfer:
    """Fetches what a source wants from whoever has it.

    Args:
        source: names the chunks, for example a `TreeReader`.
        candidates: who may have them.
        chunk_bytes: size of each chunk.
        max_circuits: circuits at once.

    Attributes:
        failure: why the transfer is over and not done; None otherwise.
    """

    def __init__(
        self,
        source: Source,
        candidates: Candidates,
        *,
        chunk_bytes: int,
        max_circuits: int = MAX_CIRCUITS,
    ) -> None:
        self.failure: Reason | None = None
        self._source = source
        self._providers = Providers(candidates.named, candidates.past)
        self._others = candidates.others
        self._chunk = chunk_bytes
        self._schedule = Schedule(source, self._providers, chunk_bytes, MAX_OUTSTANDING)
        self._circuits = self._schedule.circuits
        self._requests = self._schedule.requests
        self._goodput = Goodput()
        self._trials = Trials(max_circuits)
        self._max_circuits = max_circuits
        self._replaced_at = -math.inf
        self._work = 0
        self._reviewed_at = -math.inf
        self._hopeless = False  # whether some chunk cannot be had: nothing more is asked for
        self._due = True  # whether the circuits have to be looked at before that
        self._numbers = count(1)
        self._actions: list[Action] = []
        self._now = 0.0

    @property
    def done(self) -> bool:
        """Whether all chunks have come."""
        return self._source.finished

    def limit_outstanding(self, count: int) -> None:
        """Ask for at most `count` bytes at once, from now on: less where what comes is held up here.

        Until then it is `MAX_OUTSTANDING`.
        """
        self._schedule.max_outstanding = max(count, self._chunk)

    def next_actions(self, now: float) -> list[Action]:
        """Decide what is to be done now; when it is over, every circuit is closed.

        Args:
            now: seconds, never less than before.
        """
        self._now = now
        if self._due or now - self._reviewed_at >= REVIEW_SECONDS:
            self._due, self._reviewed_at = False, now
            self._review()
        if self.done or self.failure:
            for circuit in list(self._circuits.values()):
                self._close(circuit)
        elif not self._hopeless:
            self._actions.extend(self._schedule.plan(now))
        actions, self._actions = self._actions, []
        return actions

    def deadline(self) -> float:
        """When `next_actions` has something to do without an event; infinity when the transfer is over."""
        if self.done or self.failure:
            return math.inf if not self._circuits else self._now
        times = [self._providers.retry_at(self._now), self._trials.next, self._now + TICK]
        times += [circuit.late_at for circuit in self._circuits.values()]
        times += [circuit.rests_until for circuit in self._circuits.values()]
        return max(self._now + MIN_TICK, min(time for time in times if time > self._now))

    def snapshot(self, now: float) -> Snapshot:
        """Describe how far it is."""
        rate, missing = self._goodput.rate(now), self._source.missing
        circuits = self._open_circuits()
        goes_on = circuits and rate > 0  # where nobody is reached it takes nobody knows how long
        return Snapshot(
            received=self._goodput.total,
            rate=rate,
            seconds_left=missing / rate if missing is not None and goes_on else None,
            circuits=len(circuits),
            providers=len({circuit.provider for circuit in circuits}),
            outstanding=len(self._schedule.asked),
            absent=self._providers.absent if self.failure else (),
            liars=self._providers.liars,
        )

    def opened(self, number: int, now: float) -> None:
        """A circuit is open."""
        circuit = self._circuits.get(number)
        if circuit is not None and circuit.opened_at is None:
            circuit.opened_at = now
            self._due = True
            self._providers.reached(circuit.provider)
            self._goodput.begin(now)

    def open_failed(self, number: int, now: float, *, permanent: bool = False) -> None:
        """A circuit could not be opened; `permanent` if trying again does not help."""
        circuit = self._circuits.get(number)
        if circuit is not None:
            self._remove(circuit)
            pending = any(
                it.provider == circuit.provider and it.opened_at is None for it in self._circuits.values()
            )
            self._providers.failed(circuit.provider, now, permanent=permanent, pending=pending)

    def lost(self, number: int, now: float) -> None:
        """A circuit died, with all its requests."""
        circuit = self._circuits.get(number)
        if circuit is not None:
            self._remove(circuit)
            if not circuit.delivered:
                self._providers.failed(circuit.provider, now)

    def progressed(self, number: int, reference: bytes, now: float) -> bool:
        """A chunk came, was verified, and the source has it.

        Returns:
            whether its circuit has room for another request, so that `next_actions` should not wait.
        """
        self._providers.arrived(reference)
        request = self._requests.get(number)
        if request is None:
            return False
        circuit = self._circuits[request.circuit]
        if circuit.arrive(request, reference, now):
            self._providers.served(request.provider, circuit.mean_rate)
            if self._schedule.arrive(request, reference):
                self._goodput.add(self._chunk, now)
        return self._schedule.can_ask(circuit, now)

    def answered(self, number: int, arrived: Collection[bytes], now: float) -> None:
        """A request is over; the provider has none of its chunks but those that `arrived`."""
        for reference in arrived:
            self.progressed(number, reference, now)
        request = self._requests.get(number)
        if request is None:
            return
        circuit = self._circuits[request.circuit]
        self._providers.lacking(request.provider, request.missing)
        barren = len(request.missing) == len(request.references)
        self._schedule.end(request)
        self._due = self._due or self._hopeless or bool(request.missing)
        if barren:
            circuit.rests_until = self._providers.barren(request.provider, now)
            for each in [it for it in self._circuits.values() if it.provider == request.provider]:
                if not each.requests:
                    self._close(each)

    def failed(self, number: int, now: float, *, lied: bool) -> None:
        """A request ended without an answer for each chunk; `lied` if one came that was not asked for."""
        request = self._requests.get(number)
        if request is None:
            return
        circuit = self._circuits[request.circuit]
        self._schedule.end(request)
        if lied:
            self._providers.lied(request.provider)
            self._due = True  # all its circuits are closed
            return
        if now < circuit.rests_until:
            return  # requests that fail together, for example because their circuit dies, have failed once
        circuit.rests_until = now + FAILED_PAUSE * 2**circuit.failures
        circuit.failures += 1
        if circuit.failures >= MAX_FAILED:
            self._providers.failed(circuit.provider, now)
            self._close(circuit)

    def _open_circuits(self) -> list[Circuit]:
        return [circuit for circuit in self._circuits.values() if circuit.opened_at is not None]

    def _give_up_stalled(self) -> None:
        self._schedule.asked.stalled = False
        for circuit in list(self._circuits.values()):
            stalled = circuit.opened_at is None and self._now - circuit.began > MAX_OPENING
            patience = circuit.patience
            for request, since in circuit.stalled():
                request.overdue = self._now - since > patience
                self._schedule.asked.stalled |= request.overdue
                stalled = stalled or self._now - since > 2 * patience
            if stalled:
                self._close(circuit)
                self._providers.failed(circuit.provider, self._now)

    def _review(self) -> None:
        """Look at the circuits: which are over, which do not pay, and how many more would."""
        self._give_up_stalled()
        liars = set(self._providers.liars)  # some may have lied to another transfer of the same fetch
        for circuit in [it for it in self._circuits.values() if it.provider in liars]:
            self._close(circuit)
        if self._others and not self.done and self._providers.verdict is not None:
            for provider in self._others:
                self._providers.add(provider)
            self._others = ()
        verdict = None if self.done else self.failure or self._providers.verdict
        self._hopeless = verdict is not None
        self.failure = None if self._requests else verdict  # what is on its way is still taken
        if self.done or self._hopeless:
            return
        self._work = self._source.missing or len(self._source.wanted(VISIBLE_CHUNKS)) * self._chunk
        self._close_those_that_do_not_pay()
        self._open()

    def _close_those_that_do_not_pay(self) -> None:
        circuits, rate = self._open_circuits(), self._goodput.rate(self._now)
        left = self._work / rate if rate > 0 else 0.0
        if rate >= FAST and self._goodput.seconds(self._now) >= FAST_SECONDS:
            self._trials.limit(FIRST_CIRCUITS)
        steady = len(circuits) == len(self._circuits) >= self._target()
        total = self._goodput.total
        for circuit in self._trials.review(circuits, total, left, self._now, steady=steady):
            self._close(circuit)
        slow = laggard(self._open_circuits())
        if slow is not None and min(left, self._now - self._replaced_at) > REPLACE_PAUSE:
            self._replaced_at = self._now
            self._close(slow)

    def _target(self) -> int:
        """Circuits that there should be: as many as pay for the work that is left."""
        circuits, allowed = self._open_circuits(), self._trials.allowed
        paying: float = PAYING_BYTES
        measured = [circuit.bandwidth for circuit in circuits if circuit.measured]
        if measured:
            opening = median((circuit.opened_at or 0.0) - circuit.began for circuit in circuits)
            paying = max(MIN_PAYING_BYTES, median(measured) * opening)
        least = 1 if circuits else FIRST_CIRCUITS
        return min(allowed, max(least, int(self._work / paying)))

    def _open(self) -> None:
        useless = self._leave_those_without()
        target = self._target()
        late = self._now - SLOW_OPENING
        counted = [it for it in self._circuits.values() if it.opened_at is not None or it.began > late]
        for circuit in self._surplus(counted, target):
            self._close(circuit)
        begun = Counter(circuit.provider for circuit in self._circuits.values())
        fresh = {circuit.provider for circuit in self._circuits.values() if circuit.began > late}
        for _ in range(min(target - len(counted), self._max_circuits - len(self._circuits))):
            provider = self._providers.pick(begun, fresh, self._trials.allowed, self._now, useless)
            if provider is None:
                return
            begun[provider] += 1
            circuit = Circuit(next(self._numbers), provider, self._chunk, self._now)
            self._circuits[circuit.number] = circuit
            self._actions.append(Open(circuit.number, provider))

    def _leave_those_without(self) -> set[NodeIdentifier]:
        """Give up circuits to providers that have nothing of what is wanted, and tell which these are.

        They would stay for good, as nothing is asked on them that could fail, and take the places of
        circuits to somebody who was not reached yet and may have it.
        """
        if not self._providers.lacked:
            return set()
        useless = self._providers.useless(self._source.wanted(VISIBLE_CHUNKS))
        for circuit in list(self._circuits.values()):
            if circuit.provider in useless and not circuit.requests:
                self._close(circuit)
        return useless

    def _surplus(self, circuits: list[Circuit], target: int) -> list[Circuit]:
        """Circuits that are not worth opening any more, and open ones that are not allowed any more."""
        ready = sorted(self._open_circuits(), key=lambda circuit: circuit.bandwidth)
        opening = [circuit for circuit in circuits if circuit.opened_at is None]
        allowed = self._trials.allowed
        # What was begun is opened unless those that are open suffice: the target wavers with measurements,
        # and whoever was reached first may have nothing.
        enough = target <= sum(circuit.delivered > 0 for circuit in ready)
        surplus = opening if enough else opening[max(0, allowed - len(ready)) :]
        return surplus + ready[: max(0, len(ready) - allowed)]

    def _remove(self, circuit: Circuit) -> None:
        self._schedule.remove(circuit)
        self._due = True

    def _close(self, circuit: Circuit) -> None:
        self._remove(circuit)
        self._actions.append(Close(circuit.number))
