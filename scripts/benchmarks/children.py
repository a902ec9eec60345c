"""The other process of a benchmark: the same code elsewhere, spoken to in lines of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from overlay.connection import Transport
from overlay.transports.i2p.settings import AttachedRouter, I2pTimeouts, TunnelOptions
from overlay.transports.i2p.transport import I2pTransport
from overlay.transports.tcp import TcpTransport
from overlay.transports.tor.settings import AttachedTor, LaunchedTor
from overlay.transports.tor.transport import TorTransport

MAX_LINE_BYTES = 65_536
PATIENCE = 120.0
"""Seconds that a child may take for one line; a first publication of an onion service takes some."""

TCP = "tcp"
I2P = "i2p:"
"""Before the SAM address of a router."""
TOR = "tor:"
"""Before the path of a tor's control socket."""


def build_transport(network: str, folder: Path) -> Transport:
    """Make a transport.

    Args:
        network: `tcp`, `i2p:` and a SAM address, `tor:` and the control socket of a tor that runs, or the
            path of a private Tor network's client.torrc, for a tor of its own.
        folder: a folder of its own for what the transport keeps.
    """
    if network == TCP:
        return TcpTransport()
    if network.startswith(I2P):
        router = AttachedRouter(network.removeprefix(I2P))
        return I2pTransport(
            router,
            key_path=folder / "destination.key",
            tunnels=TunnelOptions(length=1),
            timeouts=I2pTimeouts(round_trip=0.1),  # the routers are all on this machine
        )
    tor: AttachedTor | LaunchedTor
    if network.startswith(TOR):
        tor = AttachedTor(network.removeprefix(TOR))
    else:
        tor = LaunchedTor(folder / "data", extra_torrc=Path(network))
    return TorTransport(tor, key_path=folder / "onion.key")


class Child:
    """A running child."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None  # noqa: S101 - both are asked for
        assert process.stdout is not None  # noqa: S101
        self._input = process.stdin
        self._lines = BufferedByteReceiveStream(process.stdout)

    async def tell(self, line: str) -> None:
        """Give the child a line."""
        await self._input.send(line.encode() + b"\n")

    async def answer(self) -> dict[str, Any]:
        """Wait for a line of the child.

        Raises:
            TimeoutError: none came.
            anyio.IncompleteRead: the child has ended; its error is on standard error.
        """
        with anyio.fail_after(PATIENCE):
            line = await self._lines.receive_until(b"\n", MAX_LINE_BYTES)
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def child(module: str, network: str, folder: Path) -> AsyncIterator[Child]:
    """Run `module` in a process of its own for the length of a block; it ends when its input does."""
    words = [sys.executable, "-m", module, network, str(folder)]
    async with await anyio.open_process(words, stderr=None) as process:
        try:
            yield Child(process)
            assert process.stdin is not None  # noqa: S101 - asked for by default
            await process.stdin.aclose()
            await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()


async def read_line() -> str:
    """In a child: wait for a line of the parent; empty when there will be none."""
    return await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


def print_line(**answer: object) -> None:
    """In a child: answer with a line."""
    print(json.dumps(answer), flush=True)
