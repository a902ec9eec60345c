"""The in-memory transport keeps what every transport promises, with and without latency."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from overlay.locators import memory_locator
from overlay.testing.conformance import CHECKS, Check
from overlay.testing.pair import TransportPair
from overlay.testing.simulation import Latency, SimulatedNetwork


@pytest.fixture(params=[0.0, 0.0005], ids=["perfect", "delayed"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[TransportPair]:
    network = SimulatedNetwork(1, latency=Latency(median=request.param))
    async with network.transport() as caller, network.transport() as receiver:
        async with TransportPair(caller, receiver, nobody=memory_locator(99)) as pair:
            yield pair
        assert network.memory.open_connections == 0


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_memory_conforms(check: Check, pair: TransportPair) -> None:
    await check(pair)
