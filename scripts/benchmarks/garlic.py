"""I2P: channel and chat beside a raw SAM stream, how soon a node is ready, and how it comes back.

The network is a private one with its clock at the true pace: whatever i2pd takes, it takes here too. Tunnels
have one hop, so that less of what is measured is the cost of eight routers on one machine.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from time import perf_counter

import anyio
import anyio.to_thread

from overlay.connection import Connection, Listener, Transport
from overlay.errors import OverlayError
from overlay.testing.i2p import PrivateI2pNetwork
from overlay.transports.i2p import protocol
from overlay.transports.i2p.sam import open_sam
from overlay.transports.i2p.settings import AttachedRouter, I2pTimeouts, TunnelOptions
from scripts.benchmarks.chat import added_latency
from scripts.benchmarks.children import I2P, build_transport
from scripts.benchmarks.command import ready_seconds
from scripts.benchmarks.figures import Figure, spread
from scripts.benchmarks.streams import MEBIBYTE, compare, serving

BYTES = 4 * MEBIBYTE
ROUNDS = 31
"""Each stream goes through tunnels that chance chose, some three times as fast as others: hence many."""
READY_ROUNDS = 3
BEST_RECOVERY = 21.04
"""Seconds from the death of a destination's router, which is started again at once, until a fresh session
reaches the destination: 21.0 for its own session, 0.04 for the dial. Measured with bare SAM commands."""
PAUSE_SECONDS = 0.5
"""Between two dials of who waits for a node to come back."""
SILENCE_SECONDS = 2.0
"""After which a connection that brings nothing is closed."""
WHERE: dict[str, float | str] = {"hops": 1.0}


def measure() -> list[Figure]:
    """Start the network and measure all."""
    return anyio.run(_measure)


async def _measure() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="ov-bench-") as name:
        async with PrivateI2pNetwork(hasten=False) as network:
            return [
                *await _streams(network, Path(name)),
                await _ready(network),
                await _recovery(network, Path(name)),
            ]


async def _streams(network: PrivateI2pNetwork, folder: Path) -> list[Figure]:
    here, there = (I2P + address for address in network.sam_addresses[:2])
    async with build_transport(here, folder) as transport:
        async with serving(there, folder / "bulk") as server:
            ratio = await compare(transport, server, BYTES, ROUNDS)
        added = await added_latency(transport, there, folder)
    what = "channel throughput over I2P, against a raw SAM stream"
    channel = Figure("channel-i2p", what, ratio.value, "x", 0.85, "more", ratio.detail | WHERE)
    what = "latency of a chat message that I2P does not account for"
    chat = Figure("chat-i2p", what, float(added["added ms"]), "ms", 5, "less", added | WHERE)
    return [channel, chat]


async def _ready(network: PrivateI2pNetwork) -> Figure:
    """Compare `overlay up` until `status --wait` returns with a bare session of the same options."""
    address = network.sam_addresses[2]
    raw, ours = [], []
    for _ in range(READY_ROUNDS):
        raw.append(await _raw_session(address))
        words = ("--transport", "i2p", "--sam", address)
        ours.append(await anyio.to_thread.run_sync(ready_seconds, *words))
    detail = spread("s", ours) | spread("raw session s", raw)
    value = float(detail["s"]) / float(detail["raw session s"])
    what = "from `overlay up` until `status --wait` returns, over a bare SESSION CREATE"
    return Figure("ready-i2p", what, value, "x", 1.2, "less", detail)


async def _raw_session(address: str) -> float:
    timeouts = I2pTimeouts()
    began = perf_counter()
    socket = await open_sam(AttachedRouter(address).address, timeouts)
    try:
        command = protocol.session_create(
            os.urandom(8).hex(),
            "STREAM",
            "TRANSIENT",
            ("SIGNATURE_TYPE=7", *TunnelOptions().options()),
        )
        reply = await socket.request(command, timeouts.create)
        if reply.result != "OK":
            raise protocol.failure(reply)
    finally:
        await socket.aclose()
    return perf_counter() - began


async def _recovery(network: PrivateI2pNetwork, folder: Path) -> Figure:
    """Kill a node's router, start it again, and have somebody who knew the node dial until it answers."""
    here, there = (I2P + address for address in network.sam_addresses[:2])
    async with (
        build_transport(there, folder / "killed") as receiver,
        await receiver.listen() as listener,
        build_transport(here, folder / "caller") as caller,
        anyio.create_task_group() as group,
    ):
        group.start_soon(_echo, listener)
        await _reach(caller, listener)
        began = perf_counter()
        await network.kill_router(1)
        await network.start_router(1)
        await _reach(caller, listener)
        value = perf_counter() - began
        group.cancel_scope.cancel()
    what = "from the death of a node's router, started again at once, until who knew the node reaches it"
    return Figure("back-i2p", what, value, "s", 1.2 * BEST_RECOVERY, "less")


async def _reach(transport: Transport, listener: Listener) -> None:
    """Dial again and again, as a node does, until an answer comes."""
    while True:
        try:
            async with await transport.connect(listener.locators[0]) as connection:
                with anyio.move_on_after(SILENCE_SECONDS):
                    await connection.send(b"?")
                    await connection.receive(1)
                    return
        except (OverlayError, anyio.EndOfStream, anyio.BrokenResourceError):
            await anyio.sleep(PAUSE_SECONDS)


async def _echo(listener: Listener) -> None:
    async def answer(connection: Connection) -> None:
        try:
            async with connection:
                await connection.send(await connection.receive(1))
                await connection.receive(1)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return

    async with anyio.create_task_group() as group:
        while True:
            group.start_soon(answer, await listener.accept())
