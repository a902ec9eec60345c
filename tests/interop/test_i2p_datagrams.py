"""Messages between routers of a private I2P network."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from overlay.connection import Parcel
from overlay.errors import UnreachableError
from overlay.locators import NodeLocator
from overlay.testing.i2p import PrivateI2pNetwork
from overlay.transports.i2p.datagram_session import MAX_MESSAGE_BYTES
from overlay.transports.i2p.datagrams import I2pDatagrams
from overlay.transports.i2p.settings import AttachedRouter, I2pTimeouts, TunnelOptions

TIMEOUTS = I2pTimeouts(dial=60.0, create=90.0, round_trip=1.0)
ONE_HOP = TunnelOptions(length=1)
AGAIN = 2.0
"""Seconds after which a message counts as lost: nobody promises that any arrives."""
EXPIRY_PACE = 20.0
"""Seconds of the routers' clock to a true one at which tunnels expire within half a minute."""


@asynccontextmanager
async def two_sides(
    network: PrivateI2pNetwork, folder: Path
) -> AsyncIterator[tuple[I2pDatagrams, I2pDatagrams]]:
    """Messages on two routers; some went both ways already."""
    one, other = (
        I2pDatagrams(
            AttachedRouter(network.sam_addresses[index]),
            key_path=folder / f"{index}.key",
            tunnels=ONE_HOP,
            timeouts=TIMEOUTS,
        )
        for index in (0, 1)
    )
    async with one, other:
        await network.set_pace(
            EXPIRY_PACE
        )  # what was not published the first time is again after 20 s and more
        try:
            await carry(one, other, b"are you there?")
            await carry(other, one, b"I am")
        finally:
            await network.set_pace(1.0)
        yield one, other


async def carry(sender: I2pDatagrams, receiver: I2pDatagrams, body: bytes) -> Parcel:
    """Send until it arrives."""
    with anyio.fail_after(60):
        while True:
            with anyio.move_on_after(AGAIN):
                try:
                    await sender.send(receiver.locator, body)
                except UnreachableError:  # not published yet
                    await anyio.sleep(0.3)
                    continue
                while (parcel := await receiver.receive()).body != body:
                    pass
                return parcel


async def test_messages_arrive_whole_and_say_who_sent_them(
    i2p_network: PrivateI2pNetwork, tmp_path: Path
) -> None:
    async with two_sides(i2p_network, tmp_path) as (one, other):
        for size in (1, 1000, MAX_MESSAGE_BYTES):
            body = (b"%d\n" % size * size)[:size]
            assert await carry(one, other, body) == Parcel(body, one.locator)
            assert await carry(other, one, body) == Parcel(body, other.locator)


@pytest.mark.parametrize("size", [20, MAX_MESSAGE_BYTES])
async def test_a_burst_is_neither_forgotten_nor_garbled(
    i2p_network: PrivateI2pNetwork, tmp_path: Path, size: int
) -> None:
    sent = {(b"%5d " % number) + bytes(size - 6) for number in range(100)}
    arrived: set[bytes] = set()
    async with two_sides(i2p_network, tmp_path) as (one, other):
        for body in sorted(sent):
            await one.send(other.locator, body)
        with anyio.move_on_after(10):
            while arrived != sent:
                parcel = await other.receive()
                if parcel.body != b"are you there?":  # a late one
                    arrived.add(parcel.body)
    assert arrived <= sent
    assert len(arrived) >= 90  # nothing is lost on one machine; but the network may lose some


async def test_address_survives_the_router(tmp_path: Path, i2p_network: PrivateI2pNetwork) -> None:
    async with two_sides(i2p_network, tmp_path) as (one, other):
        locator, lost = one.locator, anyio.Event()
        one.observe(lambda _: lost.set())
        await i2p_network.kill_router(0)
        try:
            with anyio.fail_after(20):
                await lost.wait()
        finally:
            await i2p_network.start_router(0)
        # Tunnels of the other may have led through that router. Nobody acknowledges a datagram: a sender does
        # not notice, and uses them until they expire, after ten minutes of the routers' clock.
        await i2p_network.set_pace(EXPIRY_PACE)
        try:
            assert (await carry(one, other, b"back again")).sender == locator
        finally:
            await i2p_network.set_pace(1.0)


async def test_destination_that_does_not_exist(tmp_path: Path, i2p_network: PrivateI2pNetwork) -> None:
    messages = I2pDatagrams(
        AttachedRouter(i2p_network.sam_addresses[0]),
        key_path=tmp_path / "key",
        tunnels=ONE_HOP,
        timeouts=TIMEOUTS,
    )
    async with messages:
        with pytest.raises(UnreachableError, match="nobody publishes it"):
            await messages.send(NodeLocator("garlic32", bytes(range(32))), b"hello?")
