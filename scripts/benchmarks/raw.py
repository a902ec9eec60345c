"""A raw stream that brings bytes from the serving process: what a transport gives at its best.

Whoever dials says in eight bytes how much it wants. Several streams at once have an isolation token each, so
that over Tor each has a circuit of its own; they bring what is wanted together, so that no slow one holds up
the others.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import anyio

from overlay.connection import Connection, Listener, Transport
from overlay.locators import NodeLocator, parse_locator
from scripts.benchmarks.children import build_transport, child, print_line, read_line
from scripts.benchmarks.streams import BLOCK

_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Download:
    """Seconds that raw streams took: `whole` from before the first dial, `flow` from the first byte."""

    whole: float
    flow: float


@asynccontextmanager
async def sending(network: str, folder: Path) -> AsyncIterator[NodeLocator]:
    """Run the process that sends, for the length of a block."""
    async with child("scripts.benchmarks.raw", network, folder) as process:
        yield parse_locator((await process.answer())["locator"])


async def download(
    transport: Transport,
    locator: NodeLocator,
    size: int,
    *,
    streams: int = 1,
    take: Callable[[bytes], object] = len,
) -> Download:
    """Have `size` bytes sent over so many streams together, and give each piece to `take`."""
    began, first, left = perf_counter(), 0.0, size

    async def receive(group: anyio.abc.TaskGroup) -> None:
        nonlocal first, left
        async with await transport.connect(locator, isolation=os.urandom(8)) as connection:
            await connection.send(size.to_bytes(_LENGTH_BYTES, "big"))
            while left > 0:
                piece = await connection.receive()
                first = first or perf_counter()
                left -= len(piece)
                take(piece)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for _ in range(streams):
            group.start_soon(receive, group)
    return Download(perf_counter() - began, perf_counter() - first)


async def send(network: str, folder: str) -> None:
    """Send to whoever asks until standard input ends; print where."""
    async with (
        build_transport(network, Path(folder)) as transport,
        await transport.listen() as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(_accept, listener)
        print_line(locator=str(listener.locators[0]))
        await read_line()
        group.cancel_scope.cancel()


async def _accept(listener: Listener) -> None:
    async with anyio.create_task_group() as group:
        while True:
            group.start_soon(_answer, await listener.accept())


async def _answer(connection: Connection) -> None:
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        async with connection:
            wanted = b""
            while len(wanted) < _LENGTH_BYTES:
                wanted += await connection.receive(_LENGTH_BYTES - len(wanted))
            for _ in range(int.from_bytes(wanted, "big") // len(BLOCK)):
                await connection.send(BLOCK)
            await connection.receive(1)


if __name__ == "__main__":
    given_network, given_folder = sys.argv[1:]
    Path(given_folder).mkdir(exist_ok=True)
    anyio.run(send, given_network, given_folder)
