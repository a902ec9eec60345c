"""What killing costs a transfer: both ends are killed again and again, and what comes is counted.

The node that fetches is a child with the engine and a transport that counts; the one that offers is the real
command. The count stands in a file that both processes map into memory, so that it outlives a SIGKILL.
"""

from __future__ import annotations

import filecmp
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import sleep

import anyio

from overlay.connection import Connection, Properties, StreamConnection
from overlay.files.engine.actions import Snapshot
from overlay.files.engine.circuits import BATCH_SECONDS, MAX_BATCH, MIN_BATCH
from overlay.locators import NodeLocator
from overlay.testing.programs import Home
from overlay.transports.tcp import TcpTransport
from overlay.units.capability import LARGE_BLOCK
from scripts.benchmarks.engine import fetch_link, fetching
from scripts.benchmarks.figures import Figure

OVERHEAD = 1.05
"""Bytes fetched over those of the file that are allowed beside a batch of each circuit for each kill."""
_POLL = 0.002
_FIELD = 8
_FIELDS = 3


class Tally:
    """Numbers in a file: bytes that came, and the most circuits and the highest rate that there were."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @property
    def received(self) -> int:
        """Bytes that came."""
        return self._get(0)

    @property
    def circuits(self) -> int:
        """The most circuits at once."""
        return self._get(1)

    @property
    def batch(self) -> int:
        """Bytes of a request, as the engine sizes it, at the highest rate of all circuits together."""
        each = self._get(2) / max(1, self.circuits)
        chunks = int(each * BATCH_SECONDS / LARGE_BLOCK)
        return LARGE_BLOCK * max(MIN_BATCH, min(MAX_BATCH, chunks))

    def count(self, received: int) -> None:
        """Note bytes."""
        self._set(0, self.received + received)

    def report(self, snapshot: Snapshot) -> None:
        """Note how a transfer stands."""
        self._set(1, max(self.circuits, snapshot.circuits))
        self._set(2, max(self._get(2), int(snapshot.rate)))

    def _get(self, place: int) -> int:
        return int.from_bytes(self._memory[place * _FIELD : (place + 1) * _FIELD], "big")

    def _set(self, place: int, value: int) -> None:
        self._memory[place * _FIELD : (place + 1) * _FIELD] = value.to_bytes(_FIELD, "big")


class _CountedConnection(StreamConnection):
    def __init__(
        self, stream: Connection, *, locator: NodeLocator, properties: Properties, tally: Tally
    ) -> None:
        super().__init__(stream, locator=locator, properties=properties)
        self._tally = tally

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await super().receive(max_bytes)
        self._tally.count(len(data))
        return data


class CountingTransport(TcpTransport):
    """TCP that counts what comes over the connections that it dials."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    async def connect(self, locator: NodeLocator, *, isolation: bytes = b"") -> Connection:
        """Dial.

        Raises:
            UnreachableError: nobody answered.
        """
        connection = await super().connect(locator, isolation=isolation)
        return _CountedConnection(
            connection, locator=connection.locator, properties=connection.properties, tally=self._tally
        )


def measure(size: int, kills: int) -> Figure:
    """Fetch a file over TCP while both ends are killed `kills` times, each time at a random place.

    Raises:
        subprocess.CalledProcessError: what fetches failed by itself.
        AssertionError: what it fetched is something else.
    """
    with tempfile.TemporaryDirectory(prefix="ov-bench-") as name:
        folder = Path(name)
        file, copy = folder / "file.bin", folder / "copy.bin"
        file.write_bytes(os.urandom(size))
        with _tally(folder / "tally") as tally, _offering(folder / "home") as provider:
            link = provider.one("file", "share", str(file))["link"]
            _fetch(provider, [link, str(copy), str(folder / "tally")], tally, size, kills)
            figure = _figure(size, kills, tally)
        if not filecmp.cmp(file, copy, shallow=False):
            raise AssertionError("what was fetched is something else")
    return figure


def _figure(size: int, kills: int, tally: Tally) -> Figure:
    received, circuits, batch = tally.received, tally.circuits, tally.batch
    goal = OVERHEAD + kills * circuits * batch / size
    what = f"bytes fetched over those of the file, both ends killed {kills} times"
    again = max(0, received - size)
    detail: dict[str, float | str] = {
        "bytes": size,
        "kills": kills,
        "circuits": circuits,
        "batch bytes": batch,
        "fetched again, and all overhead, for each kill": again / max(1, kills),
    }
    return Figure("files-resume", what, received / size, "x", goal, "less", detail)


def _fetch(provider: Home, words: list[str], tally: Tally, size: int, kills: int) -> None:
    """Fetch with interruptions.

    Raises:
        subprocess.CalledProcessError: what fetches failed by itself.
    """
    command = [sys.executable, "-m", "scripts.benchmarks.resume", *words]
    for mark in sorted(random.randrange(size) for _ in range(kills)):  # noqa: S311 - no secret
        before = tally.received
        child = subprocess.Popen(command)  # noqa: S603 - ourselves
        while child.poll() is None and tally.received <= max(before, mark):
            sleep(_POLL)
        if child.returncode is not None:
            raise subprocess.CalledProcessError(child.returncode, command)
        ends: list[Callable[[], object]] = [child.kill, partial(provider.end, signal.SIGKILL)]
        random.shuffle(ends)
        for end in ends:
            end()
        child.wait()
        provider.up("--directory")
    subprocess.run(command, check=True)  # noqa: S603 - as above


@contextmanager
def _offering(path: Path) -> Iterator[Home]:
    home = Home(path)
    home.run("init")
    home.up("--directory")
    try:
        yield home
    finally:
        if home.process is not None:
            home.end()


@contextmanager
def _tally(path: Path) -> Iterator[Tally]:
    if not path.exists():
        path.write_bytes(bytes(_FIELDS * _FIELD))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), _FIELDS * _FIELD) as memory:
        yield Tally(memory)


async def fetch(link: str, path: str, tally_path: str) -> None:
    """In the child: fetch, or go on with it, and count."""
    with _tally(Path(tally_path)) as tally:
        async with CountingTransport(tally) as transport, fetching(transport) as node:
            await fetch_link(node, link, Path(path), report=tally.report)


if __name__ == "__main__":
    given_link, given_path, given_tally = sys.argv[1:]
    anyio.run(fetch, given_link, given_path, given_tally)
