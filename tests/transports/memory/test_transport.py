"""The in-memory transport where it differs from others; the rest is in the conformance suite."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest

from overlay.errors import TransportUnavailableError, UnreachableError
from overlay.locators import NodeLocator, memory_locator, parse_locator
from overlay.transports.memory import MEMORY_PROPERTIES, MemoryNetwork, MemoryTransport


async def test_pretended_properties_are_those_of_its_connections() -> None:
    hidden = replace(MEMORY_PROPERTIES, hides_sender=True, hides_receiver=True)
    network = MemoryNetwork()
    async with (
        MemoryTransport(network, properties=hidden) as caller,
        MemoryTransport(network) as receiver,
        await receiver.listen() as listener,
        await caller.connect(listener.locators[0]) as dialled,
        await listener.accept() as accepted,
    ):
        assert dialled.properties == hidden
        assert accepted.properties == MEMORY_PROPERTIES


@pytest.mark.parametrize("protocol", ["memory", "onion3", "garlic32"])
async def test_a_network_has_locators_of_its_protocol_and_carries_no_others(protocol: str) -> None:
    network, other = MemoryNetwork(protocol=protocol), MemoryNetwork(protocol="onion3")
    async with (
        MemoryTransport(network, number=7) as caller,
        MemoryTransport(network, number=8) as receiver,
        await receiver.listen() as listener,
        await caller.connect(listener.locators[0]) as dialled,
    ):
        assert (caller.name, listener.locators) == (protocol, (network.locator(8),))
        assert parse_locator(str(dialled.locator)) == network.locator(8)
        assert caller.carries(other.locator(8)) == (protocol == "onion3")


async def test_transport_keeps_its_number_over_a_restart() -> None:
    network = MemoryNetwork()
    async with MemoryTransport(network) as first:
        before = (await first.listen()).locators
    async with MemoryTransport(network, number=first.number) as second:
        assert (await second.listen()).locators == before == (memory_locator(first.number),)


async def test_transport_that_is_not_started_neither_dials_nor_listens() -> None:
    transport = MemoryTransport(MemoryNetwork())
    with pytest.raises(TransportUnavailableError, match="not started"):
        await transport.listen()
    with pytest.raises(TransportUnavailableError, match="not started"):
        await transport.connect(memory_locator(1))


async def test_stopping_the_transport_ends_its_listener() -> None:
    network = MemoryNetwork()
    async with MemoryTransport(network) as transport:
        listener = await transport.listen()
    with pytest.raises(anyio.ClosedResourceError):
        await listener.accept()
    assert transport.status.state == "stopped"


async def test_foreign_locator_is_unreachable() -> None:
    async with MemoryTransport(MemoryNetwork()) as transport:
        with pytest.raises(UnreachableError):
            await transport.connect(NodeLocator.tcp("127.0.0.1", 1))
