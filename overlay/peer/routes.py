"""Over which network a node is dialled first: what dials brought so far, and the order that follows from it.

A memory of outcomes for each node and network, in which the latest outweighs all earlier ones and each fades;
the seconds that dials took over each network; and the networks that seem to be gone altogether. It is asked
before each dial and decides nothing else. `now` is an argument, seconds of any clock that only goes forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from overlay.identity import NodeIdentifier

MAX_MEMORIES = 8192
"""Pairs of node and network that are remembered, about 2 MiB; beyond it the one untouched longest goes."""

ANSWERED = 1.0
OUTRUN = -0.5
FAILED = -1.0
"""What an outcome counts: the node answered; another network was faster although this one had begun before;
it did not answer, or a channel that was open died."""

EARLIER = 0.25
"""What all earlier outcomes together count beside the latest: a long good time does not outweigh one failure,
or a network that has just died would be dialled again."""

HALF_LIFE = 600.0
"""Seconds in which an outcome loses half of its weight: most outages that heal by themselves are shorter."""

CERTAIN = 0.25
"""A memory weaker than this says nothing: after one outcome that is two half-lives."""

SUSPECT_NODES = 2
"""A network over which channels to so many nodes died, and none was opened since, is taken for gone: one node
may simply have left."""

SUSPECT_SECONDS = 600.0
"""For so long; then it is dialled again in its turn."""

MEASURED_WEIGHT = 0.25
"""What the latest dial counts in the average of a network's dials."""

HEAD_START = 2.0
"""A network has so many times its usual seconds before the next one is started beside it."""

LEAST_HEAD_START = 0.25
"""Seconds; the connection attempt delay of RFC 8305, section 5."""

MOST_HEAD_START = 8.0
"""Seconds: nobody who waits for an answer should wait longer for a second try, however slow a network is."""


@dataclass(frozen=True, slots=True)
class Way:
    """A network that leads to a node.

    Attributes:
        network: its name.
        ready: whether the transport says that it works.
        seconds: what a dial with its handshake takes, as far as the transport declares it.
        isolated: the dial waits for an address of its own; such dials are measured apart.
    """

    network: str
    ready: bool
    seconds: float
    isolated: bool = False


@dataclass(slots=True)
class _Memory:
    score: float = 0.0
    at: float = 0.0

    def faded(self, now: float) -> float:
        return self.score * math.exp2((self.at - now) / HALF_LIFE)


@dataclass(slots=True)
class _Network:
    """`lost` holds at most `SUSPECT_NODES` nodes: no more are needed to decide."""

    lost: set[NodeIdentifier] = field(default_factory=set)
    lost_at: float = 0.0

    def suspect(self, now: float) -> bool:
        return len(self.lost) >= SUSPECT_NODES and now - self.lost_at < SUSPECT_SECONDS


class RouteBook:
    """Remembers what dials brought, and orders networks by it.

    Args:
        alive: tells whether a channel over a network gives signs of life; such a network is not gone, whoever
            hung up.
    """

    def __init__(self, alive: Callable[[str], bool] = lambda _: False) -> None:
        self._alive = alive
        self._memories: dict[tuple[NodeIdentifier, str], _Memory] = {}
        self._networks: dict[str, _Network] = {}
        self._proven: set[str] = set()
        self._seconds: dict[tuple[str, bool], float] = {}

    def answered(self, node: NodeIdentifier, way: Way, seconds: float, now: float) -> None:
        """Note that a channel to `node` was opened, `seconds` after its network was started."""
        self._note(node, way.network, ANSWERED, now)
        self._networks.pop(way.network, None)
        self._proven.add(way.network)
        known = self._seconds.get((way.network, way.isolated), seconds)
        self._seconds[way.network, way.isolated] = known + MEASURED_WEIGHT * (seconds - known)

    def outrun(self, node: NodeIdentifier, network: str, now: float) -> None:
        """Note that another network, started later, was there first."""
        self._note(node, network, OUTRUN, now)

    def failed(self, node: NodeIdentifier, network: str, now: float) -> None:
        """Note that `node` was not reached at any of its locators of a network."""
        self._note(node, network, FAILED, now)

    def lost(self, node: NodeIdentifier, network: str, now: float, *, dialled: bool) -> None:
        """Note that an open channel to `node` died: no end was said, or nothing was heard for too long.

        Only channels that were dialled from here speak against a network as a whole. Anybody can call under
        two new identifiers and hang up, and would otherwise decide over which network this node dials.
        """
        self._note(node, network, FAILED, now)
        if not dialled:
            return
        gone = self._networks.setdefault(network, _Network())
        gone.lost_at = now
        if len(gone.lost) < SUSPECT_NODES:
            gone.lost.add(node)
        if len(gone.lost) == SUSPECT_NODES:
            self.stopped(network)

    def stopped(self, network: str) -> None:
        """Note that a network's transport does not work: that it did before proves nothing from now on."""
        self._proven.discard(network)

    def proven(self, network: str) -> bool:
        """Tell whether dials over a network are known to get through.

        One has, since its transport began to work and since the network last seemed to be gone. Calls from
        others prove nothing: they may come in another way than dials go out.
        """
        return network in self._proven

    def rank(self, node: NodeIdentifier, ways: Sequence[Way], now: float) -> list[Way]:
        """Put the ways to `node` in order, the best first.

        What is ready comes first; then what answered lately, then what is unknown, then what failed lately.
        An answer from before its network seemed to be gone counts no more. Equal ones stay as given.
        """

        def merit(way: Way) -> tuple[bool, int, bool]:
            network = self._networks.get(way.network, _Network())
            suspect = network.suspect(now) and not self._alive(way.network)
            verdict = self._verdict(node, way.network, now)
            return not way.ready, -(min(verdict, 0) if suspect else verdict), suspect

        return sorted(ways, key=merit)

    def usual(self, way: Way) -> float:
        """Seconds that a dial over this way takes: as measured, until then as its transport declares."""
        return self._seconds.get((way.network, way.isolated), way.seconds)

    def head_start(self, way: Way) -> float:
        """Seconds after which a way is slow enough to start the next one beside it."""
        return min(max(HEAD_START * self.usual(way), LEAST_HEAD_START), MOST_HEAD_START)

    def _verdict(self, node: NodeIdentifier, network: str, now: float) -> int:
        memory = self._memories.get((node, network))
        score = 0.0 if memory is None else memory.faded(now)
        return 0 if abs(score) < CERTAIN else 1 if score > 0 else -1

    def _note(self, node: NodeIdentifier, network: str, value: float, now: float) -> None:
        memory = self._memories.pop((node, network), _Memory())
        earlier = memory.faded(now)
        self._memories[node, network] = _Memory(EARLIER * earlier + value, now)  # now the latest in order
        if len(self._memories) > MAX_MEMORIES:
            del self._memories[next(iter(self._memories))]
