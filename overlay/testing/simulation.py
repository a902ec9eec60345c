"""A network of many nodes in one process, with bad luck that a seed reproduces.

`SimulatedNetwork` gives in-memory connections latency, sudden deaths, refused and stalled dials,
partitions, and nodes that go down and come back. On trio with a `MockClock` none of it takes real time:

    from trio.testing import MockClock

    async def scenario() -> None:
        network = SimulatedNetwork(7, latency=Latency(median=0.3))
        async with network.transport() as alice, network.transport() as bob:
            listener = await bob.listen()
            connection = await alice.connect(listener.locators[0])  # "takes" 0.3 s

    anyio.run(scenario, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})

Keep everything inside the event loop (a database in memory, no threads, no sockets): the clock jumps as
soon as all tasks wait. On asyncio the same code runs in real time.

What reproduces: each connection draws from a generator of its own, seeded by the network's seed, the two
transports and how often they have dialled each other. So its fate depends on what it carries and on
nothing else that happens, not even on the order in which the event loop runs its tasks, which trio shuffles
on purpose. Where a test needs that order too, run it under hypothesis, which seeds trio's shuffling.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import anyio

from overlay.connection import Properties
from overlay.errors import MalformedError
from overlay.transports.memory import MEMORY_PROPERTIES, LinkConditions, MemoryNetwork, MemoryTransport


@dataclass(frozen=True, slots=True)
class Latency:
    """Lognormal delays in one direction, as measured on real networks: many short, few very long.

    Attributes:
        median: seconds; half of all pieces take longer.
        sigma: of the underlying normal distribution; at 0.5 one piece in twenty takes more than 2.3 medians.
    """

    median: float = 0.05
    sigma: float = 0.5

    def draw(self, chance: random.Random) -> float:
        """Give the delay of one piece, in seconds."""
        return chance.lognormvariate(math.log(self.median), self.sigma) if self.median > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Faults:
    """How often things go wrong; probabilities from 0 to 1.

    Attributes:
        death: for each piece sent (at most 64 KiB), that the connection dies instead of carrying it. A byte
            stream never loses some bytes and goes on.
        refusal: for each dial, that it fails at once.
        stall: for each dial, that no answer comes until the caller's time is up.
    """

    death: float = 0.0
    refusal: float = 0.0
    stall: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no probability.

        Raises:
            MalformedError: a value below 0 or above 1, or refusal and stall above 1 together.
        """
        if min(self.death, self.refusal, self.stall) < 0 or max(self.death, self.refusal + self.stall) > 1:
            raise MalformedError(
                "probabilities go from 0 to 1, also those of a refused and a stalled dial together"
            )


class SimulatedNetwork:
    """An in-memory network with a seed, and the hand of the test on its cables.

    Nodes are named by the `number` of their transport. Like the network of a memory transport it is an
    object; nothing is shared between two of them.

    Args:
        seed: same seed, same network.
        latency: of each piece in each direction; a dial takes one such delay there and one back.
        faults: what goes wrong at random; nothing by default.
        protocol: what its locators are said to be; see `MemoryNetwork`.
    """

    def __init__(
        self,
        seed: int,
        *,
        latency: Latency | None = None,
        faults: Faults | None = None,
        protocol: str = "memory",
    ) -> None:
        self._seed = seed
        self._latency = latency or Latency()
        self._faults = faults or Faults()
        self._dials: Counter[tuple[int, int]] = Counter()
        self._down: set[int] = set()
        self._sides: dict[int, int] = {}
        self._silent = False
        self.memory = MemoryNetwork(self, protocol=protocol)

    def transport(
        self, *, properties: Properties = MEMORY_PROPERTIES, number: int | None = None
    ) -> MemoryTransport:
        """Make a transport of this network; see `MemoryTransport`."""
        return MemoryTransport(self.memory, properties=properties, number=number)

    def partition(self, *groups: Iterable[int]) -> None:
        """Cut the network into groups that do not reach each other; connections between them die.

        Nodes that are in no group stay together in one of their own. A later partition replaces this one.
        """
        self._sides = {number: side for side, group in enumerate(groups, start=1) for number in group}
        self.memory.sever(lambda caller, called: not self.joined(caller, called))

    def silence(self) -> None:
        """Let everything vanish that is sent from now on: nothing fails, and nothing arrives.

        So networks die whose far ends learn nothing of it. What was on its way already arrives.
        """
        self._silent = True

    def heal(self) -> None:
        """End a partition or silence; connections that died stay dead, new dials get through."""
        self._sides = {}
        self._silent = False

    def take_down(self, number: int) -> None:
        """Cut a node off, as when its machine stops: its connections die, dials from and to it fail."""
        self._down.add(number)
        self.memory.sever(lambda caller, called: number in {caller, called})

    def bring_up(self, number: int) -> None:
        """Let a node be reached again; one that is up stays so."""
        self._down.discard(number)

    def joined(self, one: int, other: int) -> bool:
        """Tell whether two nodes are up and on the same side of a partition."""
        return not {one, other} & self._down and self._sides.get(one, 0) == self._sides.get(other, 0)

    async def churn(self, numbers: Iterable[int], *, up: float, down: float) -> None:
        """Take nodes down and bring them up again, each at its own random times, until cancelled.

        Nodes are up at first. Cancelled, it leaves all of them up.

        Args:
            numbers: the nodes that come and go.
            up: mean seconds, exponentially distributed, that a node stays.
            down: mean seconds, exponentially distributed, that it is away.
        """
        async with anyio.create_task_group() as tasks:
            for number in numbers:
                tasks.start_soon(self._come_and_go, number, up, down)

    async def _come_and_go(self, number: int, up: float, down: float) -> None:
        chance = random.Random(f"{self._seed}/churn/{number}")  # noqa: S311 - a simulation, no secret
        try:
            while True:
                await anyio.sleep(chance.expovariate(1 / up))
                self.take_down(number)
                await anyio.sleep(chance.expovariate(1 / down))
                self.bring_up(number)
        finally:
            self.bring_up(number)

    def between(self, caller: int, called: int) -> LinkConditions:
        """Give the conditions of a new connection; called by the `MemoryNetwork`."""
        self._dials[caller, called] += 1
        name = f"{self._seed}/{caller}/{called}/{self._dials[caller, called]}"
        return _SimulatedLink(
            name,
            self._latency,
            self._faults,
            reachable=lambda: self.joined(caller, called),
            silent=lambda: self._silent,
        )


class _SimulatedLink:
    """One connection's luck: a generator for the dial, and one for each direction."""

    def __init__(
        self,
        name: str,
        latency: Latency,
        faults: Faults,
        *,
        reachable: Callable[[], bool],
        silent: Callable[[], bool],
    ) -> None:
        self._latency = latency
        self._faults = faults
        self._reachable = reachable
        self._silent = silent
        self._dial, self._outward, self._inward = (
            random.Random(f"{name}/{part}")  # noqa: S311 - a simulation, no secret
            for part in ("dial", "outward", "inward")
        )

    def dial(self) -> float | None:
        """Decide on the dial."""
        luck = self._dial.random()
        if luck < self._faults.refusal or not self._reachable():
            return None
        stalled = self._silent() or luck < self._faults.refusal + self._faults.stall
        return math.inf if stalled else self._latency.draw(self._dial) + self._latency.draw(self._dial)

    def carry(self, size: int, *, outward: bool) -> float | None:  # noqa: ARG002 - a short piece dies as easily
        """Decide on a piece, whatever its size."""
        chance = self._outward if outward else self._inward
        dies = chance.random() < self._faults.death or not self._reachable()
        if self._silent():
            return math.inf
        return None if dies else self._latency.draw(chance)
