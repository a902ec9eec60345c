"""Whole nodes on a simulated network: many in one process, with a seed, in virtual time.

    world = World(seed=7)
    async with world.database() as database, world.node("alice", database) as alice:
        ...

Everything a node is given comes from the world's seed: keys, random bytes, latency, bad luck. A node that
leaves and enters again with the same name and the same database has restarted.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio

from overlay.connection import ConnectionLayer, Properties, Transport
from overlay.database import Database, Schema
from overlay.identity import NodeSecret
from overlay.peer.node import NODE_SCHEMAS, Node, NodeOptions
from overlay.testing.simulation import Faults, Latency, SimulatedNetwork
from overlay.transports.memory import MEMORY_PROPERTIES

EPOCH = 1_800_000_000.0
"""What a world's wall clock shows when its event loop's clock shows zero."""


class World:
    """Where simulated nodes live.

    Args:
        seed: same seed, same keys and same network.
        latency, faults: of the network; see `SimulatedNetwork`.
        properties: what the network's connections pretend to give.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        latency: Latency | None = None,
        faults: Faults | None = None,
        properties: Properties = MEMORY_PROPERTIES,
    ) -> None:
        self._seed = seed
        self._properties = properties
        self._numbers: dict[str, int] = {}
        self._entropy = random.Random(seed)  # noqa: S311 - a simulation must be reproducible
        self._latency = latency
        self.network = SimulatedNetwork(seed, latency=latency, faults=faults)

    def further_network(self, protocol: str, *, latency: Latency | None = None) -> SimulatedNetwork:
        """Make another network, for nodes on several: `onion3` or `garlic32`; see `MemoryNetwork`."""
        return SimulatedNetwork(self._seed, latency=latency or self._latency, protocol=protocol)

    def clock(self) -> float:
        """Seconds since 1970, as this world sees it; it runs with the event loop's clock."""
        return EPOCH + anyio.current_time()

    def entropy(self, count: int) -> bytes:
        """Random bytes out of the seed."""
        return self._entropy.randbytes(count)

    def secret(self, name: str) -> NodeSecret:
        """The keys of the node called `name`: the same for the same seed and name."""
        label = f"{self._seed}/{name}".encode()
        return NodeSecret.from_bytes(hashlib.blake2b(label, digest_size=64).digest())

    def number(self, name: str) -> int:
        """The address of the node called `name` on the simulated network."""
        return self._numbers.setdefault(name, len(self._numbers) + 1)

    @asynccontextmanager
    async def database(self, *schemas: Schema) -> AsyncIterator[Database]:
        """A database in memory with a node's schemas and `schemas`."""
        async with await Database.open(None, [*NODE_SCHEMAS, *schemas]) as database:
            yield database

    @asynccontextmanager
    async def node(
        self,
        name: str,
        database: Database,
        *,
        options: NodeOptions | None = None,
        anonymous: bool = False,
        transports: Sequence[Transport] | None = None,
    ) -> AsyncIterator[Node]:
        """Run the node called `name` for the length of a block; it listens when the block begins.

        Args:
            name: names its keys and its address.
            database: see `database`.
            options: what kind of node it is.
            anonymous: whether it hides where it is.
            transports: those of other networks, in its user's order; this world's network by default.
        """
        own = self.network.transport(properties=self._properties, number=self.number(name))
        node = Node(
            secret=self.secret(name),
            layer=ConnectionLayer([own] if transports is None else transports, anonymous=anonymous),
            database=database,
            clock=self.clock,
            entropy=self.entropy,
            options=options or NodeOptions(),
        )
        async with anyio.create_task_group() as group:
            await group.start(node.run)
            yield node
            group.cancel_scope.cancel()


async def introduce(nodes: Sequence[Node]) -> None:
    """Let every node know where every other is, without any model."""
    for node in nodes:
        for other in nodes:
            if other is not node:
                await node.locators.learn(other.record.encoded)
