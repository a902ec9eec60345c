"""What this node keeps for good: every chunk of a content in its own storage, served to whoever asks.

A pin that was interrupted has all that came, and the next attempt goes on. Its chunks count against the
node's quota and come before what is kept for others, see `StorageManager`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import NamedTuple

import anyio

from overlay.database import Database
from overlay.errors import MalformedError, NotFoundError, RefusedError, StorageError
from overlay.files.links import FileLink, Kind
from overlay.files.pinning import index
from overlay.files.pinning.index import PINS_SCHEMA, NewPin, Pin
from overlay.peer.chunks import ChunkSource
from overlay.peer.storage import MAX_BATCH_CHUNKS, MIB, StorageManager
from overlay.units.capability import ReadCapability, tree_shape
from overlay.units.decode import Decoder
from overlay.units.tree import Place, TreeReader

__all__ = ["PINS_SCHEMA", "Pin", "PinSink", "Pins"]

PIECE_CHUNKS = 2
"""Chunks of content that are read at once, 64 KiB: some 500 entries of a manifest."""


class Pins(ChunkSource):
    """What this node keeps for good. A pin that was returned survives SIGKILL and power loss.

    It is a `ChunkSource`: given to `Chunks.sources`, other nodes are served from it.

    Args:
        database: opened with `PINS_SCHEMA`.
        storage: keeps the chunks, as this node's own.
        clock: seconds since 1970.
    """

    def __init__(self, database: Database, storage: StorageManager, clock: Callable[[], float]) -> None:
        self._database = database
        self._storage = storage
        self._clock = clock
        self._busy: set[tuple[ReadCapability, Kind]] = set()
        # A chunk that one pin gives up must not be taken for kept by another in between.
        self._turn = anyio.Lock()

    async def load(self) -> None:
        """Clear away what was being unpinned when the program ended; call it once.

        Raises:
            StorageError: the database does not work.
        """
        await self._sweep()

    @asynccontextmanager
    async def add(self, link: FileLink) -> AsyncIterator[PinSink]:
        """Pin what a link names, or go on with it: bring what the sink lacks in the block, then `finish` it.

        The sink is that of the content that the link's capability reads. Of a folder that is the manifest,
        and each of its files gets a sink of its own: see `PinSink.part`.

        Left without `finish`, also by an error or cancelled, all that came is kept for the next time; but
        what turns out to be ill-formed is given up, unless it was whole already.

        Raises:
            MalformedError: what was there is ill-formed content.
            RefusedError: it is being pinned, or unpinned, already.
            StorageError: it does not fit the quota, or the database does not work.
        """
        async with self._alone(link):
            if link.size is not None and await self.lookup(link) is None:
                await self._check_room(link.capability, link.size)
            new = NewPin(link.kind, link.capability, link.name, link.size, self._clock())
            pin = await self._database.write(partial(index.begin, new=new))
            kept = _Kept(pin.id, self._database, self._storage, self._turn)
            try:
                async with _open_sink(kept, link.capability, link.size) as sink:
                    yield sink
            except MalformedError:
                if not pin.whole:
                    await self._database.write(partial(index.discard, pin=pin.id))
                    await self._sweep()
                raise

    async def remove(self, link: FileLink) -> Pin:
        """Keep something no more; chunks that another pin needs stay.

        Raises:
            NotFoundError: it is not pinned.
            RefusedError: it is being pinned.
            StorageError: the disk does not work.
            After cancellation it is unpinned or not; what it occupies is given back by the next `load` or
            `remove`.
        """
        async with self._alone(link):
            pin = await self.lookup(link)
            if pin is None:
                raise NotFoundError("this node has not pinned that: 'overlay file list' shows what it has")
            await self._database.write(partial(index.discard, pin=pin.id))
        await self._sweep()
        return pin

    async def lookup(self, link: FileLink) -> Pin | None:
        """Tell what is pinned of what a link names.

        Raises:
            StorageError: the database does not work.
        """
        return await self._database.read(
            partial(index.of_capability, capability=link.capability, kind=link.kind)
        )

    async def list(self) -> Sequence[Pin]:
        """Tell what is pinned, oldest first.

        Raises:
            StorageError: the database does not work.
        """
        return await self._database.read(index.every)

    async def get(self, references: Sequence[bytes]) -> Sequence[bytes | None]:
        """Give chunks of what is pinned, each verified; of nothing else that this node keeps for itself.

        Args:
            references: at most `MAX_BATCH_CHUNKS`.

        Returns:
            for each reference its chunk, or `None`.

        Raises:
            MalformedError: too many references.
            StorageError: the database is damaged, or the disk does not work.
        """
        needed = await self._database.read(partial(index.needed, references=references), bulk=True)
        pinned = [reference for reference, is_needed in zip(references, needed, strict=True) if is_needed]
        chunks = iter(await self._storage.get(pinned, own=True))
        return [next(chunks) if is_needed else None for is_needed in needed]

    @asynccontextmanager
    async def _alone(self, link: FileLink) -> AsyncIterator[None]:
        if (link.capability, link.kind) in self._busy:
            raise RefusedError("this is being pinned or unpinned already: wait until that has ended")
        self._busy.add((link.capability, link.kind))
        try:
            yield
        finally:
            self._busy.remove((link.capability, link.kind))

    async def _check_room(self, capability: ReadCapability, size: int) -> None:
        """Refuse what cannot fit, before a gigabyte of it was fetched.

        Raises:
            StorageError: it does not fit.
        """
        needed = tree_shape(size, capability.block_size)[0] * capability.block_size
        left = self._storage.quota - (await self._storage.usage(own=True)).bytes
        if needed > left:
            raise StorageError(
                f"this takes {needed / MIB:.1f} MiB, and the quota of this node leaves "
                f"{max(0, left) / MIB:.1f} MiB: "
                "unpin something, or allow more with 'overlay file limit --disk' or storage.quota_mib in "
                "config.toml"
            )

    async def _sweep(self) -> None:
        while True:
            async with self._turn:
                dead = await self._database.read(partial(index.chunks_of_discarded, limit=MAX_BATCH_CHUNKS))
                if not dead:
                    break
                needed = await self._database.read(partial(index.needed, references=dead))
                unused = [
                    reference for reference, is_needed in zip(dead, needed, strict=True) if not is_needed
                ]
                await self._storage.discard(unused)
                await self._database.write(partial(index.forget, references=dead))
        await self._database.write(index.forget_discarded)


class _Kept(NamedTuple):
    """Where the chunks of a pin are kept."""

    pin: int
    database: Database
    storage: StorageManager
    turn: anyio.Lock


class PinSink:
    """A content while it is pinned; `Pins.add` makes it.

    Attributes:
        tree: which chunks are wanted, and how much is there. Chunks are handed to the sink, not to it.
    """

    def __init__(self, kept: _Kept, capability: ReadCapability, size: int | None) -> None:
        self.tree = TreeReader(capability, size=size, resume=True)
        self._capability = capability
        self._kept = kept
        self._chunks: dict[bytes, bytes] = {}
        self._failure: StorageError | None = None

    def take(self, reference: bytes, data: bytes) -> int:
        """Verify a chunk and keep it in memory until the next `flush`; see `Sink.take`."""
        is_needed = bool(self.tree.places(reference))
        pieces = self.tree.receive(reference, data)
        if is_needed:
            self._chunks[reference] = data
        return sum(len(piece.content) for piece in pieces)

    async def flush(self) -> None:
        """Store what was taken, and look for what is stored of what the tree has opened; see `Sink.flush`."""
        while await self._flush_some():
            pass

    async def check_room(self, size: int) -> None:
        """Refuse content that repeats itself beyond all that this node could keep: it would never end.

        Raises:
            StorageError: it does; or the database does not work.
        """
        quota = self._kept.storage.quota
        # A pin that is whole stays one where the quota was lowered.
        if size > quota and size > (await self._kept.storage.usage(own=True)).bytes:
            raise StorageError(
                f"this takes {size / MIB:.1f} MiB and more: the quota of this node, "
                f"{quota / MIB:.0f} MiB, is used up: allow more with 'overlay file limit --disk', or give up "
                "what came of it with 'overlay file unpin'"
            )

    def part(self, capability: ReadCapability, size: int) -> AbstractAsyncContextManager[PinSink]:
        """Open a sink for another content of the same pin: a file of a folder. It is flushed, not finished.

        Raises:
            MalformedError: content of `size` bytes never has this capability.
            StorageError: the database does not work.
        """
        return _open_sink(self._kept, capability, size)

    async def content(self) -> AsyncIterator[bytes]:
        """Give the content, piece by piece, after all of it is here.

        Raises:
            StorageError: it was damaged on the disk, or the disk does not work.
        """
        decoder = Decoder(self._capability, size=self.tree.size)
        while not decoder.finished:
            wanted = decoder.wanted(PIECE_CHUNKS)
            for reference, chunk in zip(wanted, await self._kept.storage.get(wanted, own=True), strict=True):
                if chunk is None:
                    raise StorageError("what was pinned is damaged on the disk: pin it again")
                decoder.receive(reference, chunk)
            yield decoder.read()

    async def finish(self, total: int | None = None) -> Pin:
        """Note that all of the pin is here.

        Args:
            total: bytes of all files, if it is a folder.

        Raises:
            ValueError: something is missing.
            StorageError: the disk or the quota is full, or the disk fails.
        """
        await self.flush()
        size = self.tree.size
        if not self.tree.finished or size is None:
            raise ValueError("a pin can be finished when nothing of it is missing")
        return await self._kept.database.write(
            partial(index.finish, pin=self._kept.pin, size=size, total=size if total is None else total)
        )

    async def leave(self) -> None:
        """Store what was taken and not flushed, where that is possible: the last that `Pins.add` does."""
        with suppress(StorageError):  # nobody needs to know: it is missing next time, and fetched then
            if self._failure is None:
                await self._write()

    async def _flush_some(self) -> bool:
        async with self._kept.turn:
            if self._failure is not None:  # chunks that could not be stored are lost
                raise StorageError(str(self._failure)) from self._failure
            # The tree has let go of these chunks, and they must not get lost when one task of several ends.
            with anyio.CancelScope(shield=True):
                try:
                    await self._write()
                    await self.check_room(self.tree.present)
                    places = self.tree.planned(MAX_BATCH_CHUNKS)
                    if places:
                        await self._examine(places)
                except StorageError as error:
                    self._failure = error
                    raise
        return bool(places)

    async def _write(self) -> None:
        chunks, self._chunks = list(self._chunks.items()), {}
        for start in range(0, len(chunks), MAX_BATCH_CHUNKS):
            some = dict(chunks[start : start + MAX_BATCH_CHUNKS])
            # The time does not matter: what is this node's own does not expire.
            await self._kept.storage.put(list(some.values()), now=0.0, own=True)
            await self._kept.database.write(
                partial(index.note_brought, pin=self._kept.pin, references=list(some))
            )

    async def _examine(self, places: Sequence[Place]) -> None:
        """Look for what is stored for this pin already.

        What is there for another pin is asked for again: whoever knows who has pinned that would recognise,
        by what is not asked for, who pins this.
        """
        await self._kept.database.write(
            partial(index.note, pin=self._kept.pin, references={place.reference for place in places})
        )
        references = [place.reference for place in places]
        brought = await self._kept.database.read(
            partial(index.brought, pin=self._kept.pin, references=references)
        )
        there = await self._kept.storage.owned(references)
        owned = [is_brought and is_there for is_brought, is_there in zip(brought, there, strict=True)]
        # Nodes have to be opened, and the end tells how long the content is, whatever it is said to be.
        read = [
            place.reference
            for place, is_owned in zip(places, owned, strict=True)
            if is_owned and (place.level or place.last)
        ]
        chunks = await self._kept.storage.get(read, own=True)
        for place, is_owned in zip(places, owned, strict=True):
            self.tree.settle(place, held=is_owned and not (place.level or place.last))
        for reference, chunk in zip(read, chunks, strict=True):
            if chunk is not None:
                self.tree.receive(reference, chunk)


@asynccontextmanager
async def _open_sink(kept: _Kept, capability: ReadCapability, size: int | None) -> AsyncIterator[PinSink]:
    """Open a sink, and keep what came also where the block fails or is cancelled."""
    sink = PinSink(kept, capability, size)
    try:
        await sink.flush()
        yield sink
    finally:
        with anyio.CancelScope(shield=True):
            await sink.leave()
