"""Peers that send forever and read nothing, against a real node over TCP: its memory stays bounded."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from overlay.channel.driver import Channel
from overlay.channel.opening import call
from overlay.channel.streams import Exchange
from overlay.connection import Connection
from overlay.identity import NodeSecret
from overlay.locators import LocatorRecord
from overlay.peer.chunks import BATCH_CHUNKS, FETCH, MAX_STORES, STORE
from overlay.peer.messages import MAX_PART_BYTES, Answer, Request
from overlay.peer.ticket import check_ticket
from overlay.testing.programs import Home, MakeHome
from overlay.transports.tcp.transport import TcpTransport
from overlay.units.eris import chunk_reference
from overlay.wire.codec import decode, encode

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory from /proc"),
]

MIB = 1 << 20
ROOM = 48 * MIB
"""What a node may grow by under any of these floods: each of them offers several times as much."""
PATIENCE = 60


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """One real clock: the other side is a process of its own."""
    return "asyncio", {}


class Flood:
    """Somebody who opens channels to a node, each with keys of its own, and reads none of them."""

    def __init__(self, record: LocatorRecord, transport: TcpTransport, stack: AsyncExitStack) -> None:
        self.record = record
        self._transport = transport
        self._stack = stack

    async def connect(self, first: bytes = b"") -> Connection:
        connection = await self._transport.connect_with(self.record.locators[0], first)
        self._stack.push_async_callback(anyio.aclose_forcefully, connection)
        return connection

    async def channel(self, *, anonymous: bool = False) -> tuple[Channel, Connection]:
        channel = await call(
            self.connect,
            self.record.locators[0],
            self._transport.properties,
            secret=None if anonymous else NodeSecret.from_bytes(os.urandom(64)),
            responder=self.record.public,
            entropy=os.urandom,
        )
        return channel, channel._connection


async def flood(home: Home, attack: Callable[[Flood], Awaitable[None]]) -> int:
    """Run an attack; tell how many bytes of memory it cost the node at most, which must still answer."""
    record = check_ticket(str(home.one("ticket")["ticket"])).directory
    before = resident(home)
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(TcpTransport("127.0.0.1", 0))
        await attack(Flood(record, transport, stack))
        status = await anyio.to_thread.run_sync(home.one, "status")
        assert status["state"] == "ready"
        return resident(home, "VmHWM") - before


def resident(home: Home, what: str = "VmRSS") -> int:
    assert home.process is not None
    lines = Path(f"/proc/{home.process.pid}/status").read_text().splitlines()
    (kilobytes,) = (int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))
    return kilobytes * 1024


@pytest.fixture
def hub(make_home: MakeHome) -> Home:
    home = make_home("hub")
    home.up("--directory")
    return home


async def send_until_stuck(connection: Connection, pieces: Callable[[], bytes], total: int) -> int:
    """Send until the node closes, or stops reading, or `total` bytes are through; tell how many were."""
    sent = 0
    try:
        while sent < total:
            piece = pieces()
            with anyio.fail_after(5):
                await connection.send(piece)
            sent += len(piece)
    except (TimeoutError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    return sent


async def test_noise_before_any_handshake(hub: Home) -> None:
    async def attack(attacker: Flood) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(100):
                connection = await attacker.connect()
                group.start_soon(send_until_stuck, connection, lambda: os.urandom(65_536), 4 * MIB)

    assert await flood(hub, attack) < ROOM


async def test_heartbeats_that_are_never_read(hub: Home) -> None:
    async def attack(attacker: Flood) -> None:
        channel, connection = await attacker.channel()

        def pings() -> bytes:
            pieces = []
            for _ in range(64):
                channel._machine._ping_due = True
                pieces.append(channel._machine.data_to_send(0))
            return b"".join(pieces)

        assert await send_until_stuck(connection, pings, 24 * MIB) >= 24 * MIB

    assert await flood(hub, attack) < ROOM


async def test_answers_that_are_never_read(hub: Home) -> None:
    """Many ask for the same 2 MiB many times over, anonymously, and take nothing of it."""
    chunks = [os.urandom(32_768) for _ in range(BATCH_CHUNKS)]

    async def attack(attacker: Flood) -> None:
        await store(attacker, chunks)
        body = b"".join(chunk_reference(chunk) for chunk in chunks)
        request = encode(Request(kind=FETCH, body=body))
        for _ in range(12):
            channel, connection = await attacker.channel(anonymous=True)
            machine = channel._machine
            for _ in range(32):
                number = machine.open()
                machine.send(number, request)
                machine.finish(number)
            while data := machine.data_to_send(0):
                await connection.send(data)
        await served(attacker, request)

    assert await flood(hub, attack) < ROOM


async def store(attacker: Flood, chunks: list[bytes]) -> None:
    channel, _ = await attacker.channel()
    async with anyio.create_task_group() as group:
        group.start_soon(channel.run)
        async with await channel.open() as exchange:
            await exchange.send(encode(Request(kind=STORE)))
            for chunk in chunks:
                await exchange.send(chunk)
            await exchange.finish()
            assert decode(Answer, await exchange.receive(), limit=MAX_PART_BYTES).code == ""
        group.cancel_scope.cancel()


async def served(attacker: Flood, request: bytes) -> None:
    """An honest caller gets all that it asks for meanwhile."""
    channel, _ = await attacker.channel(anonymous=True)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(channel.run)
            async with await channel.open() as exchange:
                await exchange.send(request)
                await exchange.finish()
                await exchange.receive()
                got = [part async for part in parts_of(exchange.receive)]
            group.cancel_scope.cancel()
    assert [len(part) for part in got] == [32_768] * BATCH_CHUNKS


async def parts_of(receive: Callable[[], Awaitable[bytes]]) -> AsyncGenerator[bytes, None]:
    while True:
        try:
            yield await receive()
        except anyio.EndOfStream:
            return


async def test_transfers_that_are_never_finished(hub: Home) -> None:
    """Many begin to store as much as one request may bring, and leave out the end."""
    chunks = [os.urandom(32_768) for _ in range(BATCH_CHUNKS)]

    async def attack(attacker: Flood) -> None:
        given_up = anyio.Semaphore(0)
        async with anyio.create_task_group() as group:
            for _ in range(6):
                channel, _ = await attacker.channel()
                group.start_soon(channel.run)
                for _ in range(30):
                    group.start_soon(leave_unfinished, await channel.open(), chunks, given_up)
            with anyio.fail_after(PATIENCE):
                for _ in range(6 * 30 - MAX_STORES):
                    await given_up.acquire()
                await store(attacker, chunks)
            group.cancel_scope.cancel()

    assert await flood(hub, attack) < 2 * ROOM


async def leave_unfinished(exchange: Exchange, chunks: list[bytes], given_up: anyio.Semaphore) -> None:
    await exchange.send(encode(Request(kind=STORE)))
    for chunk in chunks[1:]:
        await exchange.send(chunk)
    assert decode(Answer, await exchange.receive(), limit=MAX_PART_BYTES).code == "refused"
    given_up.release()
