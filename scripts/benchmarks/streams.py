"""A channel beside the raw stream that carries it: bulk throughput, and the raw round trip of a few bytes.

Two processes: one serves over a transport and says where, the other dials it. A connection begins with one
byte that says what it is for. Raw and channel take turns, so that whatever else the machine does falls on
both.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import anyio

from overlay.channel.driver import Channel
from overlay.channel.machine import ChannelLimits
from overlay.channel.opening import call, respond
from overlay.channel.streams import Exchange
from overlay.connection import Connection, Listener, Transport
from overlay.errors import ClosedError
from overlay.identity import NodePublic, NodeSecret
from overlay.locators import NodeLocator, parse_locator
from scripts.benchmarks.children import TCP, build_transport, child, print_line, read_line
from scripts.benchmarks.figures import Figure, spread

MEBIBYTE = 1 << 20
BLOCK = os.urandom(65_536)
ISOLATION = b"benchmark"  # one token for all, so that raw and channel share the circuit

_SINK, _ECHO, _CHANNEL = b"s", b"e", b"c"
_TCP_BYTES = 1024 * MEBIBYTE
_TCP_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Server:
    """Where the serving process is, and who."""

    locator: NodeLocator
    public: NodePublic


def measure_tcp() -> list[Figure]:
    """Measure over TCP on loopback."""

    async def run(folder: Path) -> Ratio:
        async with serving(TCP, folder) as server, build_transport(TCP, folder) as transport:
            return await compare(transport, server, _TCP_BYTES, _TCP_ROUNDS)

    with tempfile.TemporaryDirectory() as folder:
        ratio = anyio.run(run, Path(folder))
    what = "channel throughput over TCP loopback, against a raw stream"
    return [Figure("channel", what, ratio.value, "x", 0.35, "more", ratio.detail)]


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of channel over raw, and the rates behind it."""

    value: float
    detail: dict[str, float | str]


async def compare(transport: Transport, server: Server, size: int, rounds: int) -> Ratio:
    """Send `size` bytes raw and through a channel, in turns."""
    raw, channel = [], []
    for _ in range(rounds):
        raw.append(size / MEBIBYTE / await _raw_seconds(transport, server, size))
        channel.append(size / MEBIBYTE / await _channel_seconds(transport, server, size))
    ratios = [ours / theirs for ours, theirs in zip(channel, raw, strict=True)]
    detail = spread("ratio", ratios) | spread("channel MiB/s", channel) | spread("raw MiB/s", raw)
    return Ratio(float(detail["ratio"]), detail)


async def raw_round_trips(transport: Transport, server: Server, count: int, size: int) -> list[float]:
    """The milliseconds that each of `count` messages of `size` bytes takes there and back, raw."""
    async with echoing(transport, server, size) as round_trip:
        return [await round_trip() for _ in range(count)]


@asynccontextmanager
async def echoing(
    transport: Transport, server: Server, size: int
) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """Give what sends `size` bytes there and back over one connection, and tells the milliseconds it took."""
    message = os.urandom(size)
    async with await transport.connect(server.locator, isolation=ISOLATION) as connection:
        await connection.send(_ECHO)

        async def round_trip() -> float:
            began = perf_counter()
            await connection.send(message)
            await _receive_exactly(connection, size)
            return (perf_counter() - began) * 1000

        yield round_trip


async def _raw_seconds(transport: Transport, server: Server, size: int) -> float:
    async with await transport.connect(server.locator, isolation=ISOLATION) as connection:
        await connection.send(_SINK + size.to_bytes(8, "big"))
        began = perf_counter()
        for _ in range(size // len(BLOCK)):
            await connection.send(BLOCK)
        await connection.receive(1)
        return perf_counter() - began


async def _channel_seconds(transport: Transport, server: Server, size: int) -> float:
    async def connect(first: bytes) -> Connection:
        return await transport.connect_with(server.locator, _CHANNEL + first, isolation=ISOLATION)

    secret = NodeSecret.generate(os.urandom)
    channel = await call(
        connect,
        server.locator,
        transport.properties,
        secret=secret,
        responder=server.public,
        hello=b"",
        entropy=os.urandom,
        limits=ChannelLimits(),
    )
    async with _running(channel), await channel.open(bulk=True) as exchange:
        began = perf_counter()
        for _ in range(size // len(BLOCK)):
            await exchange.send(BLOCK)
        await exchange.finish()
        await exchange.receive()
        return perf_counter() - began


@asynccontextmanager
async def _running(channel: Channel) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(channel.run)
        yield
        await channel.aclose()


@asynccontextmanager
async def serving(network: str, folder: Path) -> AsyncIterator[Server]:
    """Run the process that serves, for the length of a block."""
    async with child("scripts.benchmarks.streams", network, folder) as process:
        place = await process.answer()
        public = NodePublic.from_bytes(bytes.fromhex(place["public"]))
        yield Server(parse_locator(place["locator"]), public)


async def serve(network: str, folder: str) -> None:
    """Serve until standard input ends; print where and as whom."""
    secret = NodeSecret.generate(os.urandom)
    async with (
        build_transport(network, Path(folder)) as transport,
        await transport.listen() as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(_accept, listener, secret)
        print_line(locator=str(listener.locators[0]), public=secret.public.to_bytes().hex())
        await read_line()
        group.cancel_scope.cancel()


async def _accept(listener: Listener, secret: NodeSecret) -> None:
    async with anyio.create_task_group() as group:
        while True:
            group.start_soon(_serve_connection, await listener.accept(), secret)


async def _serve_connection(connection: Connection, secret: NodeSecret) -> None:
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError, ClosedError):
        async with connection:
            match await connection.receive(1):
                case b"s":
                    await _sink(connection)
                case b"e":
                    while True:
                        await connection.send(await connection.receive())
                case _:
                    await _serve_channel(connection, secret)


async def _sink(connection: Connection) -> None:
    left = int.from_bytes(await _receive_exactly(connection, 8), "big")
    while left > 0:
        left -= len(await connection.receive())
    await connection.send(b".")
    await connection.receive()


async def _serve_channel(connection: Connection, secret: NodeSecret) -> None:
    channel = await respond(connection, secret=secret, hello=b"", entropy=os.urandom, limits=ChannelLimits())
    async with anyio.create_task_group() as group:
        group.start_soon(channel.run)
        with suppress(ClosedError):
            while True:
                group.start_soon(_count, await channel.accept())


async def _count(exchange: Exchange) -> None:
    with suppress(ClosedError):
        async with exchange:
            with suppress(anyio.EndOfStream):
                while True:
                    await exchange.receive()
            await exchange.send(b".")
            await exchange.finish()


async def _receive_exactly(connection: Connection, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await connection.receive(size - len(data))
    return data


if __name__ == "__main__":
    given_network, given_folder = sys.argv[1:]
    anyio.run(serve, given_network, given_folder)
