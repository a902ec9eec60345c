"""Circuits with rates, round trips and faults, in virtual time without an event loop: what a transfer meets.

A `SimulatedTransfer` drives a `Transfer` of `overlay.files.engine` through a discrete-event simulation. Each
circuit is a queue that sends chunks of the requests on it in turn, at its own rate; all may share one
bottleneck behind them. A minute of a transfer takes some tenths of a second, and the same run gives the same
result.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count, islice
from typing import NamedTuple

from overlay.files.engine.actions import Ask, Close, Open
from overlay.files.engine.transfer import Transfer
from overlay.identity import NodeIdentifier

CHUNK = 32768
"""Bytes of each simulated chunk."""

WEATHER_SECONDS = 2.0
"""Seconds after which the rate of a circuit changes, where it does."""

ARITY = 512
"""Children of a node of the simulated tree."""


@dataclass(frozen=True, slots=True)
class Link:
    """How one circuit behaves.

    Attributes:
        rate: bytes per second.
        round_trip: seconds.
        opening: seconds until it is open; infinity if it never is.
        refused: whether it is not open then, but failed.
        dies: seconds after the start of the simulation when it is lost.
        stalls: seconds from and until which it carries nothing.
        sigma: of the lognormal factor by which the rate differs, drawn anew every two seconds.
        window: chunks of a request that travel without credit, doubled each time they were taken; 0 for any.
    """

    rate: float = 700e3
    round_trip: float = 0.43
    opening: float = 1.0
    refused: bool = False
    dies: float = math.inf
    stalls: tuple[float, float] = (math.inf, math.inf)
    sigma: float = 0.0
    window: int = 0


@dataclass(frozen=True, slots=True)
class Peer:
    """How one provider behaves.

    Attributes:
        link: gives the circuit that is opened as number 0, 1, 2, ... to it.
        has: which chunks it has.
        lies: whether it sends wrong chunks.
        fails: whether it ends each request without an answer.
        permanent: whether a refused circuit can never be opened.
    """

    link: Callable[[int], Link] = field(default=lambda _: Link())
    has: Callable[[bytes], bool] = field(default=lambda _: True)
    lies: bool = False
    fails: bool = False
    permanent: bool = False


class SimulatedTree:
    """A tree of chunks that are only names: a root, nodes that lead to 512 leaves each, and leaves.

    Args:
        leaves: how many.
        sized: whether the size is known from the beginning.
        window: leaves that are named ahead.
    """

    def __init__(self, leaves: int, *, sized: bool = True, window: int = 4096) -> None:
        self._leaves = leaves
        self._sized = sized
        self._window = window
        self._nodes = {b"root": 0}
        self._open: dict[bytes, int] = {}  # leaves, in the order of the content
        self._next_node = 0
        self._present = 0
        self.received: Counter[bytes] = Counter()

    @property
    def finished(self) -> bool:
        """Whether every leaf is here."""
        return self._present == self._leaves

    @property
    def missing(self) -> int | None:
        """Bytes of leaves still to come, if the size is known."""
        return (self._leaves - self._present) * CHUNK if self._sized else None

    @property
    def chunks(self) -> int:
        """Chunks of the whole tree."""
        return 1 + -(-self._leaves // ARITY) + self._leaves

    def wanted(self, limit: int, asked: Container[bytes] = ()) -> list[bytes]:
        """Name what is needed next, nodes first."""
        open_names = chain(self._nodes, self._open)
        return list(islice((name for name in open_names if name not in asked), limit))

    def receive(self, name: bytes) -> None:
        """Take a chunk; one that is not needed (any more) changes nothing."""
        self.received[name] += 1
        if self._open.pop(name, None) is not None:
            self._present += 1
        elif self._nodes.pop(name, None) is not None and name != b"root":
            first = int(name[4:]) * ARITY
            self._open |= {b"leaf%d" % n: n for n in range(first, min(first + ARITY, self._leaves))}
        if b"root" not in self._nodes:
            self._open_nodes()

    def _open_nodes(self) -> None:
        while self._next_node * ARITY < self._leaves and self._window >= ARITY * (len(self._nodes) + 1) + len(
            self._open
        ):
            self._nodes[b"node%d" % self._next_node] = self._next_node
            self._next_node += 1


class _Request:
    def __init__(self, ask: Ask, window: int) -> None:
        self.ask = ask
        self.waiting = deque(ask.references)
        self.arrived: list[bytes] = []
        self.window = window or len(ask.references)
        self.travelling = 0
        self.taken = 0


class _Circuit:
    def __init__(self, provider: NodeIdentifier, peer: Peer, link: Link, number: int) -> None:
        self.provider = provider
        self.peer = peer
        self.link = link
        self.turns: deque[_Request] = deque()
        self.requests: dict[int, _Request] = {}
        self.sending = False
        self.open = False
        self.number = number

    def rate(self, now: float) -> float:
        if not self.link.sigma:
            return self.link.rate
        chance = random.Random(f"{self.number} {now // WEATHER_SECONDS}")  # noqa: S311 - a simulation
        return self.link.rate * chance.lognormvariate(0.0, self.link.sigma)


class _Crossing(NamedTuple):
    """A chunk on its way through the bottleneck."""

    circuit: _Circuit
    request: _Request
    name: bytes
    last: bool


class SimulatedTransfer:
    """Runs one transfer to its end.

    Args:
        transfer: the engine.
        tree: its source.
        peers: the providers.
        bottleneck: bytes per second of what all circuits share.

    Attributes:
        now: seconds since the start.
        opened, asked: every circuit and request that the engine ordered.
        opened_at: seconds, when it ordered each circuit.
        most_outstanding, most_holders, most_circuits: the highest number of bytes asked for at once, of
            requests for one chunk at once, and of circuits at once.
        first_ask: when the first request was made.
        circuits: those that are open or opening, by number.
        bottleneck: bytes per second of what all circuits share; it can be changed on the way.
    """

    def __init__(
        self,
        transfer: Transfer,
        tree: SimulatedTree,
        peers: Sequence[tuple[NodeIdentifier, Peer]],
        *,
        bottleneck: float = math.inf,
    ) -> None:
        self.now = 0.0
        self.opened: list[Open] = []
        self.opened_at: list[float] = []
        self.asked: list[tuple[NodeIdentifier, Ask]] = []
        self.most_outstanding = self.most_holders = self.most_circuits = 0
        self.first_ask = math.inf
        self.circuits: dict[int, _Circuit] = {}
        self._transfer = transfer
        self._tree = tree
        self._peers = dict(peers)
        self._opened_to: Counter[NodeIdentifier] = Counter()
        self.bottleneck = bottleneck
        self._queues: dict[int, deque[_Crossing]] = {}  # before the bottleneck, by circuit, the next first
        self._crossing = False
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._holders: Counter[bytes] = Counter()

    def run(self, until: float = 3600.0) -> float:
        """Run until the transfer is done or failed.

        Returns:
            the seconds it took; `until` if it is not over then.

        Raises:
            AssertionError: the engine gave a deadline that has passed, or none.
        """
        self._act()
        while not (self._transfer.done or self._transfer.failure):
            deadline = self._transfer.deadline()
            if not self.now < deadline < math.inf:
                raise AssertionError(f"at {self.now} the next deadline is {deadline}")
            if self._events and self._events[0][0] <= deadline:
                self.now, _, event = heapq.heappop(self._events)
                event()
            else:
                self.now = deadline
            if self.now >= until:
                return until
            self._act()
        return self.now

    def at(self, time: float, event: Callable[[], None]) -> None:
        """Let something happen."""
        heapq.heappush(self._events, (max(time, self.now), next(self._order), event))

    def _act(self) -> None:
        for action in self._transfer.next_actions(self.now):
            match action:
                case Open():
                    self._open(action)
                case Ask():
                    self._ask(action)
                case Close(number):
                    self._drop(number)
        outstanding = sum(
            len(request.ask.references) - len(request.arrived)
            for circuit in self.circuits.values()
            for request in circuit.requests.values()
        )
        self.most_outstanding = max(self.most_outstanding, outstanding * CHUNK)
        self.most_circuits = max(self.most_circuits, len(self.circuits))

    def _open(self, action: Open) -> None:
        self.opened.append(action)
        self.opened_at.append(self.now)
        peer = self._peers[action.provider]
        link = peer.link(self._opened_to[action.provider])
        self._opened_to[action.provider] += 1
        self.circuits[action.circuit] = _Circuit(action.provider, peer, link, action.circuit)
        if link.opening < math.inf:
            self.at(self.now + link.opening, lambda: self._opened(action.circuit))
        if link.dies < math.inf:
            self.at(link.dies, lambda: self._lose(action.circuit))

    def _opened(self, number: int) -> None:
        circuit = self.circuits.get(number)
        if circuit is None:
            return
        if circuit.link.refused:
            self._drop(number)
            self._transfer.open_failed(number, self.now, permanent=circuit.peer.permanent)
        else:
            circuit.open = True
            self._transfer.opened(number, self.now)

    def _lose(self, number: int) -> None:
        if number in self.circuits:
            self._drop(number)
            self._transfer.lost(number, self.now)

    def _drop(self, number: int) -> None:
        circuit = self.circuits.pop(number)
        for request in circuit.requests.values():
            self._holders.subtract(set(request.ask.references) - set(request.arrived))

    def _ask(self, action: Ask) -> None:
        circuit = self.circuits[action.circuit]
        if not circuit.open:
            raise AssertionError("a circuit that is not open was asked")
        self.first_ask = min(self.first_ask, self.now)
        self.asked.append((circuit.provider, action))
        self._holders.update(action.references)
        self.most_holders = max(self.most_holders, *(self._holders[name] for name in action.references))
        request = _Request(action, circuit.link.window)
        circuit.requests[action.request] = request
        self.at(self.now + circuit.link.round_trip / 2, lambda: self._serve(circuit, request))

    def _serve(self, circuit: _Circuit, request: _Request) -> None:
        circuit.turns.append(request)
        self._send(circuit)

    def _send(self, circuit: _Circuit) -> None:
        """Send the next chunk of the next request whose turn it is, unless one is being sent."""
        if circuit.sending:
            return
        for _ in range(len(circuit.turns)):
            request = circuit.turns.popleft()
            while request.waiting and not circuit.peer.has(request.waiting[0]):
                request.waiting.popleft()
            if not request.waiting:
                self.at(self.now + circuit.link.round_trip / 2, partial(self._finish, circuit, request))
                continue
            circuit.turns.append(request)
            if request.travelling < request.window:
                self._send_chunk(circuit, request)
                return

    def _send_chunk(self, circuit: _Circuit, request: _Request) -> None:
        name = request.waiting.popleft()
        request.travelling += 1
        circuit.sending = True
        stalls, ends = circuit.link.stalls
        begin = ends if stalls <= self.now < ends else self.now
        if begin < math.inf:
            self.at(begin + CHUNK / circuit.rate(self.now), lambda: self._sent(circuit, request, name))

    def _sent(self, circuit: _Circuit, request: _Request, name: bytes) -> None:
        circuit.sending = False
        last = not request.waiting
        if last:
            circuit.turns.remove(request)
        crossing = _Crossing(circuit, request, name, last)
        self._queues.setdefault(circuit.number, deque()).append(crossing)
        if not self._crossing:
            self._cross()
        self._send(circuit)

    def _cross(self) -> None:
        """Let one chunk pass the bottleneck: the circuits take turns, as in a relay."""
        number, queue = next(iter(self._queues.items()))
        del self._queues[number]
        crossing = queue.popleft()
        if queue:
            self._queues[number] = queue
        self._crossing = True
        self.at(self.now + CHUNK / self.bottleneck, lambda: self._crossed(crossing))

    def _crossed(self, crossing: _Crossing) -> None:
        self._crossing = False
        circuit, request, name, last = crossing
        arrival = self.now + circuit.link.round_trip / 2
        self.at(arrival, lambda: self._arrive(circuit, request, name))
        if last:
            self.at(arrival, lambda: self._finish(circuit, request))
        if self._queues:
            self._cross()

    def _arrive(self, circuit: _Circuit, request: _Request, name: bytes) -> None:
        if request.ask.request not in circuit.requests or request.ask.circuit not in self.circuits:
            return
        number = request.ask.request
        if circuit.peer.lies or circuit.peer.fails:
            self._end(circuit, request)
            self._transfer.failed(number, self.now, lied=circuit.peer.lies)
            return
        request.arrived.append(name)
        self._holders[name] -= 1
        self._tree.receive(name)
        self._transfer.progressed(number, name, self.now)
        self.at(self.now + circuit.link.round_trip / 2, lambda: self._credit(circuit, request))

    def _credit(self, circuit: _Circuit, request: _Request) -> None:
        request.travelling -= 1
        request.taken += 1
        if request.taken >= request.window:
            request.window, request.taken = 2 * request.window, 0
        self._send(circuit)

    def _finish(self, circuit: _Circuit, request: _Request) -> None:
        if request.ask.request in circuit.requests and request.ask.circuit in self.circuits:
            self._end(circuit, request)
            self._transfer.answered(request.ask.request, request.arrived, self.now)

    def _end(self, circuit: _Circuit, request: _Request) -> None:
        del circuit.requests[request.ask.request]
        self._holders.subtract(set(request.ask.references) - set(request.arrived))
