"""The latency of a chat message: from `Chat.send` in one process until the reader in another has it.

Between the two lie signing, both databases, the channel and the transport. What the transport alone takes is
measured as half of a raw echo, and taken off.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

import anyio

from overlay.chat.service import Chat
from overlay.chat.store import CHAT_SCHEMA
from overlay.connection import ConnectionLayer, Transport
from overlay.database import Database
from overlay.identity import NodeSecret
from overlay.peer.node import NODE_SCHEMAS, Node, NodeOptions
from scripts.benchmarks.children import TCP, build_transport, child, print_line, read_line
from scripts.benchmarks.figures import Figure, spread
from scripts.benchmarks.streams import raw_round_trips, serving

MESSAGES = 100
MESSAGE_BYTES = 80


def measure_tcp() -> list[Figure]:
    """Measure over TCP on loopback."""

    async def run(folder: Path) -> dict[str, float | str]:
        async with build_transport(TCP, folder) as transport:
            return await added_latency(transport, TCP, folder)

    with tempfile.TemporaryDirectory() as folder:
        detail = anyio.run(run, Path(folder))
    what = "latency of a chat message that TCP does not account for"
    return [Figure("chat", what, float(detail["added ms"]), "ms", 2, "less", detail)]


async def added_latency(transport: Transport, network: str, folder: Path) -> dict[str, float | str]:
    """Measure messages and raw echoes over the same network; `added ms` is the difference of the medians."""
    async with serving(network, folder / "echo") as server:
        echoes = await raw_round_trips(transport, server, MESSAGES, MESSAGE_BYTES)
    messages = await _message_latencies(transport, network, folder)
    added = statistics.median(messages) - statistics.median(echoes) / 2
    return {"added ms": added} | spread("message ms", messages) | spread("raw echo ms", echoes)


async def _message_latencies(transport: Transport, network: str, folder: Path) -> list[float]:
    reader_folder = folder / "reader"
    async with (
        chatting(transport, folder / "writer.db") as chat,
        child("scripts.benchmarks.chat", network, reader_folder) as reader,
    ):
        session = (await chat.create("benchmark", "writer")).session
        await reader.tell(await chat.invite(session))
        await reader.answer()
        times = []
        for number in range(MESSAGES):
            text = f"{number:0{MESSAGE_BYTES}}"
            began = perf_counter()
            await chat.send(session, text)
            arrived = await reader.answer()
            times.append((arrived["at"] - began) * 1000)
    return times[MESSAGES // 10 :]  # the first ones find everything cold


@asynccontextmanager
async def chatting(transport: Transport, database_path: Path) -> AsyncIterator[Chat]:
    """Run a node with a chat over a started transport, for the length of a block."""
    async with (
        await Database.open(database_path, (*NODE_SCHEMAS, CHAT_SCHEMA)) as database,
        anyio.create_task_group() as tasks,
    ):
        node = Node(
            secret=NodeSecret.generate(os.urandom),
            layer=ConnectionLayer([transport], anonymous=transport.properties.hides_sender),
            database=database,
            clock=time.time,  # noqa: TID251 - here it is chosen
            entropy=os.urandom,
            options=NodeOptions(),
        )
        chat = Chat(node, database)
        await tasks.start(node.run)
        await tasks.start(chat.run)
        yield chat
        tasks.cancel_scope.cancel()


async def read(network: str, folder: str) -> None:
    """In the child: join with the invite that comes, then say of each message when it arrived.

    The time is that of `perf_counter`, which all processes of a machine share on Linux and macOS.
    """
    async with (
        build_transport(network, Path(folder)) as transport,
        chatting(transport, Path(folder) / "reader.db") as chat,
        anyio.create_task_group() as group,
    ):
        session = (await chat.join((await read_line()).strip(), "reader")).session
        group.start_soon(_tell_arrivals, chat, session)
        await read_line()
        group.cancel_scope.cancel()


async def _tell_arrivals(chat: Chat, session: str) -> None:
    print_line(ready=True)
    async for entry in chat.follow(session, 0):
        if entry.kind == "text":
            print_line(at=perf_counter())


if __name__ == "__main__":
    given_network, given_folder = sys.argv[1:]
    Path(given_folder).mkdir(exist_ok=True)
    anyio.run(read, given_network, given_folder)
