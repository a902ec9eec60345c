"""Nodes of different networks in one directory: each knows all, and is given to dial what it reaches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import anyio
import pytest

from overlay.errors import RefusedError
from overlay.peer.accept import Delivery
from overlay.peer.links import Lane
from overlay.peer.node import Node, NodeOptions
from overlay.testing.nodes import World
from overlay.testing.simulation import Latency, SimulatedNetwork


@dataclass
class Everybody:
    tor: SimulatedNetwork
    i2p: SimulatedNetwork
    nodes: dict[str, Node]

    def names(self, found: list[object]) -> set[str]:
        return {name for name, node in self.nodes.items() if node.identifier in found}


LIVES = {"hub": ("tor", "i2p"), "onion": ("tor",), "garlic": ("i2p",), "dual": ("tor", "i2p")}


@asynccontextmanager
async def everybody() -> AsyncIterator[Everybody]:
    world = World(11, latency=Latency(0.001))
    networks = {"tor": world.further_network("onion3"), "i2p": world.further_network("garlic32")}
    async with AsyncExitStack() as stack:
        nodes: dict[str, Node] = {}
        for name, where in LIVES.items():
            join = nodes["hub"].record if nodes else None
            options = NodeOptions(directory=join is None, join=join, relays=name == "dual")
            transports = [networks[each].transport(number=world.number(name)) for each in where]
            database = await stack.enter_async_context(world.database())
            nodes[name] = await stack.enter_async_context(
                world.node(name, database, options=options, transports=transports)
            )
        with anyio.fail_after(60):
            for node in nodes.values():
                while len(node.peers()) < len(LIVES) - 1 or node.status.state != "ready":
                    await node.wait_changed()
        yield Everybody(networks["tor"], networks["i2p"], nodes)


async def test_all_are_known_but_only_those_within_reach_are_chosen() -> None:
    async with everybody() as all_:
        reach = {"hub": {"onion", "garlic", "dual"}, "onion": {"hub", "dual"}, "garlic": {"hub", "dual"}}
        for name, expected in reach.items():
            node = all_.nodes[name]
            assert all_.names([peer.identifier for peer in node.peers()]) == set(LIVES) - {name}
            assert all_.names([*node.choose(10)]) == expected
            assert all_.names([record.identifier for record in node.locators.reachable()]) == expected


@pytest.mark.parametrize(("caller", "called"), [("onion", "garlic"), ("garlic", "onion")])
async def test_what_is_out_of_reach_is_refused_without_any_dial(caller: str, called: str) -> None:
    async with everybody() as all_:
        before = (all_.tor._dials.copy(), all_.i2p._dials.copy())
        for lane in Lane:
            with pytest.raises(RefusedError, match="no address that this node may dial"):
                await all_.nodes[caller].push(all_.nodes[called].identifier, "echo", lane=lane)
        assert (all_.tor._dials, all_.i2p._dials) == before
        score = all_.nodes[caller].reputation.score(all_.nodes[called].identifier, all_.nodes[caller].clock())
        assert score == 0


@pytest.mark.parametrize(("caller", "called"), [("onion", "garlic"), ("garlic", "onion")])
async def test_a_node_on_both_networks_passes_messages_between(caller: str, called: str) -> None:
    async def echo(delivery: Delivery) -> bytes:
        return b"echo " + delivery.body

    async with everybody() as all_:
        target, via = all_.nodes[called], all_.nodes["dual"].identifier
        target.accept.register("echo", echo, anonymous=True)
        answer = await all_.nodes[caller].forward.bidirectional([via], target.public, "echo", b"across")
        assert answer == b"echo across"
