from __future__ import annotations

import anyio
import pytest

from overlay.locators import NodeLocator
from overlay.transports.i2p.dial import ANSWER_ROUND_TRIPS
from overlay.transports.i2p.streams import DialledConnection, connect_to_self
from overlay.transports.i2p.transport import I2P_PROPERTIES

PEER = NodeLocator("garlic32", bytes(32))


@pytest.fixture
def told() -> list[str]:
    return []


async def dialled(
    told: list[str], *, patience: float = 0.0, heard: list[bool] | None = None
) -> tuple[DialledConnection, anyio.abc.ByteStream]:
    heard = [] if heard is None else heard
    near, far = await connect_to_self()
    connection = DialledConnection(
        near,
        locator=PEER,
        properties=I2P_PROPERTIES,
        heard=lambda: heard.append(True),
        verdict=lambda answered: told.append("answered" if answered else "silent"),
        release=lambda: told.append("released"),
        patience=patience,
    )
    return connection, far


async def test_first_byte_is_an_answer_and_the_end_is_not_told(told: list[str]) -> None:
    connection, far = await dialled(told)
    async with connection:
        async with far:
            await far.send(b"ab")
            assert await connection.receive(1) == b"a"
            assert told == ["answered"]
        assert await connection.receive() == b"b"
        with pytest.raises(anyio.EndOfStream):
            await connection.receive()
    assert told == ["answered", "released"]


async def test_end_without_a_byte_is_silence_told_once(told: list[str]) -> None:
    connection, far = await dialled(told)
    async with connection:
        await far.aclose()
        for _ in range(2):
            with pytest.raises(anyio.EndOfStream):
                await connection.receive()
        assert told == ["silent"]
    assert told == ["silent", "released"]


async def test_closing_after_a_while_without_a_byte_is_silence(told: list[str]) -> None:
    connection, far = await dialled(told)
    async with far:
        await connection.aclose()
    assert told == ["silent", "released"]


async def test_closing_soon_says_nothing(told: list[str]) -> None:
    connection, far = await dialled(told, patience=ANSWER_ROUND_TRIPS * I2P_PROPERTIES.round_trip)
    async with far:
        await connection.aclose()
    assert told == ["released"]


async def test_cancelled_receive_and_close(told: list[str]) -> None:
    connection, far = await dialled(told, patience=60.0)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await connection.receive()
    await anyio.aclose_forcefully(connection)
    async with far:
        with pytest.raises(anyio.EndOfStream):
            await far.receive()
    assert told == ["released"]


async def test_all_that_comes_is_heard_and_the_end_is_not(told: list[str]) -> None:
    heard: list[bool] = []
    connection, far = await dialled(told, heard=heard)
    async with connection:
        async with far:
            for count in range(1, 4):
                await far.send(b"a")
                await connection.receive()
                assert len(heard) == count
        with pytest.raises(anyio.EndOfStream):
            await connection.receive()
    assert len(heard) == 3
