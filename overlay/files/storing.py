"""Storing a file in the network: encoded as a stream, its chunks kept by other nodes, never by this one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import anyio

from overlay.errors import (
    NotFoundError,
    OverlayError,
    RefusedError,
    TransportUnavailableError,
    UnreachableError,
)
from overlay.files.engine.actions import Snapshot
from overlay.files.engine.steps import Steps
from overlay.files.running import Running
from overlay.files.sharing.shares import Progress
from overlay.identity import NodeIdentifier
from overlay.peer.chunks import BATCH_CHUNKS
from overlay.peer.node import Node
from overlay.units.capability import NULL_SECRET, SECRET_BYTES, Chunk, ReadCapability, choose_block_size
from overlay.units.encode import Encoder

COPIES = 2
"""Nodes that each chunk is stored at, where there are as many."""

PIECE_BYTES = 1 << 20
"""Bytes read and encoded at once: some milliseconds of the event loop's time."""


class Stored(NamedTuple):
    """A content that others keep.

    Attributes:
        capability: reads it.
        size: its bytes.
        holders: nodes that keep its chunks, one of them at least; after a failure not each has every chunk.
    """

    capability: ReadCapability
    size: int
    holders: tuple[NodeIdentifier, ...]


class _Holders:
    """The nodes that take a file's chunks; one that fails is replaced from then on."""

    def __init__(self, node: Node, most: int) -> None:
        self._node = node
        self._most = most
        self._current: list[NodeIdentifier] = []
        self._asked: set[NodeIdentifier] = {node.identifier}
        self._failures: list[OverlayError] = []
        self.used: list[NodeIdentifier] = []

    async def store(self, chunks: Sequence[bytes]) -> None:
        """Store a batch with every holder.

        Raises:
            TransportUnavailableError: this node is on no network, or not on that of any who could take it.
            UnreachableError: not one node took it.
        """
        done: list[NodeIdentifier] = []
        self._fill(COPIES - len(self._current))
        while trying := [holder for holder in self._current if holder not in done]:
            async with anyio.create_task_group() as group:
                for holder in trying:
                    group.start_soon(self._store_at, holder, chunks, done)
            self._current = [holder for holder in self._current if holder in done]
            if not done:  # others would fail as slowly where the trouble is here
                self._node.check_online()
            self._fill(COPIES - len(self._current))
        if not done:
            raise self._why()
        self.used += [holder for holder in self._current if holder not in self.used]

    def _why(self) -> OverlayError:
        if self._failures and all(isinstance(each, TransportUnavailableError) for each in self._failures):
            return self._failures[0]
        if self._failures and all(isinstance(each, RefusedError) for each in self._failures):
            return UnreachableError(
                "every node that was asked refused to keep this, most likely for want of room: "
                "try again when others are online"
            )
        return UnreachableError("no other node keeps this file: try again when more nodes are online")

    def _fill(self, count: int) -> None:
        room = self._most - len({*self.used, *self._current})
        chosen = self._node.choose(max(0, min(count, room)), without=self._asked)
        self._asked.update(chosen)
        self._current += chosen

    async def _store_at(
        self, holder: NodeIdentifier, chunks: Sequence[bytes], done: list[NodeIdentifier]
    ) -> None:
        try:
            await self._node.chunks.store(holder, chunks)
        except OverlayError as error:  # another takes its place; its reputation is the peer layer's matter
            self._failures.append(error)
            return
        done.append(holder)


def noting(running: Running, watch: Progress | None, clock: Callable[[], float]) -> Progress:
    """Make what notes each step of a put, the first of which begins now, and tells `watch` of it."""
    steps = Steps(clock())

    def look() -> Snapshot:
        rate = steps.rate(clock())
        left = (running.size - running.present) / rate if running.size is not None and rate else None
        return Snapshot(running.present, rate, left, circuits=0, providers=0, outstanding=0)

    def step(done: int, size: int) -> None:
        if done:  # what comes before the first step is no step
            steps.add(done - running.present, clock())
        running.present, running.size = done, size
        if watch is not None:
            watch(done, size)

    running.look = look
    return step


async def store_file(
    node: Node, path: Path, progress: Progress | None = None, *, most: int, convergent: bool = False
) -> Stored:
    """Store a file's chunks at other nodes, encoded with a secret of its own, or the one everybody knows.

    Args:
        node: whose peers keep the chunks, never itself.
        path: a regular file.
        progress: told at the beginning and after each batch.
        most: holders that can be told of; where one fails, another takes its place up to this number.
        convergent: whether that secret is the one everybody knows; see `Shares.add`.

    Returns:
        what is needed to fetch it; every chunk is on the holders' disks.

    Raises:
        NotFoundError: there is no such file.
        RefusedError: it is not a regular file, cannot be read, or changed while it was read.
        TransportUnavailableError: this node is on no network at the moment; nobody was asked.
        UnreachableError: no other node takes its chunks, for example because all quotas are used up.
        Failed or cancelled, some chunks may be stored that nobody can read; they expire.
    """
    node.check_online()
    try:
        size = await _size_of(path)
        holders = _Holders(node, most)
        secret = NULL_SECRET if convergent else node.entropy(SECRET_BYTES)
        encoder = Encoder(choose_block_size(size), secret)
        async with await anyio.open_file(path, "rb") as file:
            await _encode(file, size, encoder, holders, progress)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}") from error
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {error.strerror}") from error
    chunks, capability = encoder.finish()
    await _store_all(holders, chunks)
    return Stored(capability, size, tuple(holders.used))


async def _encode(
    file: anyio.AsyncFile[bytes], size: int, encoder: Encoder, holders: _Holders, progress: Progress | None
) -> None:
    done = 0
    if progress is not None:
        progress(0, size)
    while done <= size and (piece := await file.read(PIECE_BYTES)):
        await _store_all(holders, encoder.feed(piece))
        done += len(piece)
        if progress is not None:
            progress(min(done, size), size)
    if done != size:  # a log that is written to all the time would never end
        raise RefusedError("the file changed while it was read: try again, or with a copy of it")


async def _size_of(path: Path) -> int:
    if not await anyio.Path(path).is_file():
        if await anyio.Path(path).exists():
            raise RefusedError(f"{path} is not a regular file")
        raise NotFoundError(f"there is no file {path}")
    found: os.stat_result = await anyio.Path(path).stat()
    return found.st_size


async def _store_all(holders: _Holders, chunks: Sequence[Chunk]) -> None:
    for start in range(0, len(chunks), BATCH_CHUNKS):
        await holders.store([chunk.data for chunk in chunks[start : start + BATCH_CHUNKS]])
