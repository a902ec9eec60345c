"""Circuits that go from one borrower to the next, between simulated nodes."""

from __future__ import annotations

import anyio
import pytest

from overlay.channel.driver import Channel
from overlay.errors import RefusedError, UnreachableError
from overlay.files.fetching.keeper import CircuitKeeper, FreshCircuits, Lender, open_keeper
from overlay.identity import NodeIdentifier
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Latency


async def borrow(lender: Lender, provider: NodeIdentifier, *, keep: bool) -> Channel:
    async with lender.lend(provider) as loan:
        assert not loan.channel.closed
        loan.keep = keep
    return loan.channel


async def test_what_is_worth_keeping_is_lent_again_until_the_end() -> None:
    world = World(1, latency=Latency(0.001))
    async with (
        world.database() as one,
        world.database() as other,
        world.node("alice", one) as alice,
        world.node("bob", other) as bob,
    ):
        await introduce([alice, bob])
        async with open_keeper(alice) as keeper:
            first = await borrow(keeper, bob.identifier, keep=True)
            async with keeper.lend(bob.identifier) as loan:
                assert loan.channel is first
                second = await borrow(keeper, bob.identifier, keep=True)  # the first is in use
            assert second is not first
            await first.wait_closed()  # nobody said that it is worth keeping any more
            assert await borrow(keeper, bob.identifier, keep=False) is second
            await second.wait_closed()
            third = await borrow(keeper, bob.identifier, keep=True)
            await third.aclose()
            fourth = await borrow(keeper, bob.identifier, keep=True)
            assert fourth is not third
            assert not fourth.closed
        assert fourth.closed
        fresh = FreshCircuits(alice)
        assert (await borrow(fresh, bob.identifier, keep=True)).closed


async def test_what_fails_is_told_as_it_is_and_a_cancelled_opening_leaves_nothing() -> None:
    world = World(2, latency=Latency(0.001))
    async with (
        world.database() as one,
        world.database() as other,
        world.node("alice", one) as alice,
        world.node("bob", other) as bob,
    ):
        await introduce([alice, bob])
        with pytest.raises(RefusedError, match="this"):
            async with open_keeper(alice):
                raise RefusedError("this")
        async with open_keeper(alice) as keeper:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await borrow(keeper, bob.identifier, keep=True)
            await _lent(keeper, bob.identifier)
            world.network.take_down(world.number("bob"))
            with pytest.raises(UnreachableError):
                await borrow(keeper, bob.identifier, keep=True)


async def _lent(keeper: CircuitKeeper, provider: NodeIdentifier) -> None:
    channel = await borrow(keeper, provider, keep=False)
    await channel.wait_closed()
