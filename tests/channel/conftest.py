"""Channels over pipes in memory: what the tests of making one and of using one have in common."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import anyio
import pytest
from anyio.abc import ByteStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from overlay.channel.driver import Channel
from overlay.channel.machine import DEFAULT_LIMITS, ChannelLimits
from overlay.channel.opening import call, respond
from overlay.connection import Connection, Properties, StreamConnection
from overlay.identity import NodePublic, NodeSecret
from overlay.locators import memory_locator

ALICE = NodeSecret.from_bytes(bytes(range(64)))
BOB = NodeSecret.from_bytes(bytes(range(64, 128)))

VIRTUAL = [pytest.param("trio", id="trio")]
virtual_time = pytest.mark.parametrize("anyio_backend", VIRTUAL, indirect=True)
"""Runs a test on trio only, where an hour takes no time."""


class Pipe(ByteStream):
    """One end of a pair of byte streams in memory, which can be made to stop at any time."""

    def __init__(self, out: MemoryObjectSendStream[bytes], into: MemoryObjectReceiveStream[bytes]) -> None:
        self.out = out
        self.into = into
        self.closed = False
        self.rest = b""
        self.alter: Callable[[bytes], bytes] = lambda data: data
        self.stalled = False
        self.operations = 0
        self.hang_at = -1

    async def _pass(self) -> None:
        self.operations += 1
        if self.stalled or self.operations - 1 == self.hang_at:
            await anyio.sleep_forever()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await self._pass()
        if not self.rest:
            self.rest = await self.into.receive()
        data, self.rest = self.rest[:max_bytes], self.rest[max_bytes:]
        return data

    async def send(self, item: bytes) -> None:
        await self._pass()
        await self.out.send(self.alter(item))

    async def send_eof(self) -> None:
        self.out.close()

    async def aclose(self) -> None:
        self.closed = True
        self.out.close()
        self.into.close()
        await anyio.lowlevel.checkpoint()


class Ends(NamedTuple):
    one: Pipe
    two: Pipe


def pipes(buffer: float = 4) -> Ends:
    there, here = (anyio.create_memory_object_stream[bytes](buffer) for _ in range(2))
    return Ends(Pipe(there[0], here[1]), Pipe(here[0], there[1]))


def connection(pipe: Pipe, *, number: int = 1, authenticates: bool = True) -> Connection:
    properties = Properties(
        hides_sender=False,
        hides_receiver=False,
        encrypts=False,
        authenticates_receiver=authenticates,
        reorders=False,
        pads=False,
        synchronous=True,
        half_closes=True,
        round_trip=0.0,
        dial_timeout=1.0,
    )
    return StreamConnection(pipe, locator=memory_locator(number), properties=properties)


async def call_over(
    connection: Connection,
    *,
    secret: NodeSecret | None = ALICE,
    responder: NodePublic = BOB.public,
    hello: bytes = b"",
    limits: ChannelLimits = DEFAULT_LIMITS,
) -> Channel:
    """Make a channel over a connection that is open already."""

    async def connect(first: bytes) -> Connection:
        await connection.send(first)
        return connection

    return await call(
        connect,
        connection.locator,
        connection.properties,
        secret=secret,
        responder=responder,
        hello=hello,
        entropy=os.urandom,
        limits=limits,
    )


async def shake(
    ends: Ends,
    *,
    secret: NodeSecret | None = ALICE,
    responder: NodePublic = BOB.public,
    limits: ChannelLimits = DEFAULT_LIMITS,
) -> tuple[Channel, Channel]:
    channels: dict[str, Channel] = {}

    async def answer() -> None:
        channels["two"] = await respond(
            connection(ends.two), secret=BOB, hello=b"bob", entropy=os.urandom, limits=limits
        )

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answer)
        channels["one"] = await call_over(
            connection(ends.one),
            secret=secret,
            responder=responder,
            hello=b"alice" if secret else b"",
            limits=limits,
        )
    return channels["one"], channels["two"]
