"""Fetching a folder, or a part of it.

The manifest is fetched first, into a hidden file beside the folder, and read through completely before
anything is created. Then files come, several at once, each as a fetch of its own that goes on where an
earlier one ended: those of small chunks, then those of large ones, each kind in one transfer.

A file that is there with the size and the time of the manifest counts as fetched: it gets its time before it
gets its name, so nothing else that a fetch leaves looks like that. Its content is not looked at again.

The hidden file stays locked as long as the fetch goes on, so two of one folder to one place never meet. The
next fetch verifies it anew, by the capability.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread

from overlay.errors import MalformedError, NotFoundError, OverlayError, RefusedError
from overlay.files.actions import Snapshot
from overlay.files.bundle import Bundle
from overlay.files.gathering import gather, take_local
from overlay.files.keeper import CircuitKeeper, open_keeper
from overlay.files.landing import Landing
from overlay.files.links import FileLink
from overlay.files.manifest import Entry, ManifestReader, check_manifest_bytes
from overlay.files.pace import Pace
from overlay.files.partial import Details
from overlay.files.selection import select
from overlay.files.sink import ManifestSink
from overlay.files.target import Target, open_target
from overlay.files.walk import is_unfinished
from overlay.identity import NodeIdentifier
from overlay.peer.node import Node
from overlay.units.capability import ReadCapability

MAX_OPEN_FILES = 32
"""Files fetched at once, of three descriptors each. Over Tor a small one takes two round trips, a second."""

MAX_OPEN_BYTES = 64 << 20
"""Bytes that the files fetched at once lack, from which no further one is begun: twice what all circuits have
under way. It bounds what the trees of many large files take in memory."""

PIECE_BYTES = 65_536
"""Bytes of a manifest that are read in one step of a thread: some 500 entries."""

DEFAULT_NAME = "folder"
"""What a folder is called whose link does not say it."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for.

    Attributes:
        link: of a folder.
        destination: the folder that it is put into; made if only the last of its names is missing.
        only: patterns of what is wanted of it; none for all.
        overwrite: whether files may be replaced that are there and do not look as they will.
    """

    link: FileLink
    destination: Path
    only: Sequence[str] = ()
    overwrite: bool = False

    @property
    def path(self) -> Path:
        """Where the folder will be."""
        return self.destination / (self.link.name or DEFAULT_NAME)


@dataclass(slots=True)
class Found:
    """What a manifest asks for, of what is wanted of it.

    Attributes:
        files: how many.
        size: their bytes.
        lacking: bytes of those that are not there, by the size of their chunks.
        folders: those in which nothing is.
    """

    files: int = 0
    size: int = 0
    lacking: Counter[int] = field(default_factory=Counter)
    folders: int = 0


Watch = Callable[["FolderFetch"], None]
"""Told how it stands."""


class FolderFetch:
    """Fetches one folder, once.

    Args:
        node: who asks.
        order: what is asked for.
        providers: nodes that may have it, the best first.
        watch: told after each step.
        pace: how fast it may be.

    Attributes:
        found: what the manifest asks for; None until it was read.
        snapshot: how the transfer stands that goes on; None between two.

    Raises:
        MalformedError: a pattern is not one.
    """

    def __init__(
        self,
        node: Node,
        order: Order,
        providers: Sequence[NodeIdentifier],
        watch: Watch | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.found: Found | None = None
        self.snapshot: Snapshot | None = None
        self._node = node
        self._order = order
        self._providers = providers
        self._watch = watch
        self._pace = pace
        self._is_wanted = select(order.only) if order.only else None
        self._bundle: Bundle | None = None
        self._files = 0  # that are being fetched
        self._is_here = False  # whether this node has some of the manifest, and so perhaps of the files

    @property
    def size(self) -> int | None:
        """Bytes of all files that are wanted; None until the manifest was read."""
        return None if self.found is None else self.found.size

    @property
    def files(self) -> int:
        """Files that are wanted; 0 until the manifest was read."""
        return 0 if self.found is None else self.found.files

    @property
    def present(self) -> int:
        """Bytes of them that are there."""
        if self.found is None:
            return 0
        later = self.found.lacking.total()
        return self.found.size - later - (self._bundle.missing if self._bundle else 0)

    async def run(self) -> Found:
        """Fetch it; what an earlier attempt left is gone on with.

        Returns:
            what was asked for; all of it is there.

        Raises:
            RefusedError: a file is there already, something stands in the way, or the same is being fetched.
                What can be seen is told before anything is created.
            MalformedError: the manifest, or what it leads to, is not what it should be.
            NotFoundError: nothing in it is wanted, there is no such destination, or nobody has all of it.
            UnreachableError: nobody who may have the rest was reached.
            VerificationError: those who answered sent something else.
            StorageError: the disk is full or fails.
            Failed or cancelled, files that are whole stay, what came of others is kept, and the next attempt
            goes on.
        """
        order = self._order
        check_manifest_bytes(order.link.size or 0)
        async with (
            open_keeper(self._node) as circuits,
            _landing(order) as landing,
            # It is never finished, so nothing of this name is touched.
            open_target(
                order.path.with_name(f"{order.path.name}.manifest"),
                order.link.capability,
                size=order.link.size,
                overwrite=True,
            ) as manifest,
        ):
            found = self.found = await self._read(manifest, landing, circuits)
            self._tell(None)
            await self._make_folders(manifest, landing)
            for block_size in sorted(found.lacking):
                self._bundle = Bundle(block_size, found.lacking.pop(block_size))
                await self._fetch_files(manifest, landing, self._bundle, circuits)
            await manifest.discard()
        return found

    async def _read(self, manifest: Target, landing: Landing, circuits: CircuitKeeper) -> Found:
        """Fetch the manifest, and look at all of it; what is of no more use is removed.

        Raises:
            MalformedError: see `run`.
            NotFoundError: see `run`.
            RefusedError: see `run`.
            OverlayError: any other that `run` raises.
        """
        sink, before = ManifestSink(manifest), manifest.tree.present
        try:
            await take_local(self._node, sink)
            self._is_here = manifest.tree.present > before
            await self._gather(sink, circuits)
            return await self._examine(manifest, landing)
        except (MalformedError, NotFoundError, RefusedError) as error:
            if manifest.tree.finished or isinstance(error, MalformedError):
                await manifest.discard()
            raise

    async def _gather(self, sink: Bundle | ManifestSink, circuits: CircuitKeeper) -> None:
        bell = sink.bell if isinstance(sink, Bundle) else None
        await gather(
            self._node, sink, self._providers, self._tell, pace=self._pace, circuits=circuits, bell=bell
        )

    def _tell(self, snapshot: Snapshot | None) -> None:
        self.snapshot = snapshot
        if self._watch is not None:
            self._watch(self)

    async def _examine(self, manifest: Target, landing: Landing) -> Found:
        """Read the whole manifest, and look at what is there.

        Raises:
            NotFoundError: nothing in it is wanted.
            MalformedError, RefusedError, StorageError: see `run`.
        """
        found, reading = Found(), _Reading(manifest, self._is_wanted)
        while (entries := await reading.next()) is not None:
            await to_thread.run_sync(partial(self._count, entries, landing, found))
        if self._is_wanted is not None and not found.files and not found.folders:
            raise NotFoundError("nothing in this folder is called like that: see the patterns after --only")
        return found

    def _count(self, entries: Sequence[Entry], landing: Landing, found: Found) -> None:
        for entry in entries:
            if any(map(is_unfinished, entry.path)):
                raise MalformedError("a file of this folder is called as files are that are not whole yet")
            state = landing.look(entry)
            if entry.capability is None:
                found.folders += 1
                continue
            if state == "other" and not self._order.overwrite:
                raise RefusedError(
                    f"{landing.path.joinpath(*entry.path)} exists already, and is another file: "
                    "name another place, or replace what is there with --force"
                )
            found.files += 1
            found.size += entry.size
            if state != "done":
                found.lacking[entry.capability.block_size] += entry.size

    async def _make_folders(self, manifest: Target, landing: Landing) -> None:
        """Make the folder, and those in which nothing is."""

        def make(entries: Sequence[Entry]) -> None:
            for entry in entries:
                if entry.capability is None:
                    landing.make(entry.path)

        reading = _Reading(manifest, self._is_wanted)
        await to_thread.run_sync(landing.make, ())
        while (entries := await reading.next()) is not None:
            await to_thread.run_sync(make, entries)

    async def _fetch_files(
        self, manifest: Target, landing: Landing, bundle: Bundle, circuits: CircuitKeeper
    ) -> None:
        """Fetch the files whose chunks have the size of those of a bundle.

        Raises:
            OverlayError: see `run`.
        """
        failures: list[OverlayError] = []

        def lacking(entries: Sequence[Entry]) -> list[Entry]:
            kind = [it for it in entries if it.capability and it.capability.block_size == bundle.block_size]
            return [entry for entry in kind if landing.look(entry) != "done"]

        async with anyio.create_task_group() as tasks:

            async def attempt(work: Callable[[], Awaitable[None]]) -> None:
                try:
                    await work()
                except OverlayError as error:
                    failures.append(error)
                    tasks.cancel_scope.cancel()

            async def feed() -> None:
                reading = _Reading(manifest, self._is_wanted)
                while (entries := await reading.next()) is not None:
                    for entry in await to_thread.run_sync(lacking, entries):
                        await self._wait_for_room(bundle)
                        folder = await to_thread.run_sync(landing.enter, entry.path[:-1])
                        path = landing.path.joinpath(*entry.path)
                        bundle.announce(path, entry.size)
                        self._files += 1
                        tasks.start_soon(attempt, partial(self._fetch_file, entry, path, folder, bundle))
                bundle.end()

            async def bring() -> None:
                await bundle.begun.wait()
                if not bundle.finished:
                    await self._gather(bundle, circuits)

            tasks.start_soon(attempt, feed)
            await attempt(bring)
        if failures:
            raise failures[0]

    async def _wait_for_room(self, bundle: Bundle) -> None:
        while self._files and (self._files >= MAX_OPEN_FILES or bundle.begun_bytes >= MAX_OPEN_BYTES):
            await bundle.bell.next.wait()

    async def _fetch_file(self, entry: Entry, path: Path, folder: int, bundle: Bundle) -> None:
        """Fetch one file.

        Args:
            entry: what it is.
            path: where it will be.
            folder: descriptor of the folder that it is in; closed in any case.
            bundle: has it brought.

        Raises:
            OverlayError: see `run`.
        """
        try:
            async with open_target(
                path,
                _capability(entry),
                size=entry.size,
                overwrite=self._order.overwrite,
                folder=folder,
            ) as target:
                if self._is_here:
                    await take_local(self._node, target)
                await bundle.bring(target)
                await target.finish(Details(entry.modified, entry.executable))
        finally:
            os.close(folder)
            self._files -= 1
            bundle.bell.ring()


class _Reading:
    """Goes through a manifest once, a few hundred entries at a time.

    Args:
        manifest: all of it was fetched.
        is_wanted: says which entries to give; None for all.
    """

    def __init__(self, manifest: Target, is_wanted: Callable[[Entry], bool] | None) -> None:
        self._manifest = manifest
        self._is_wanted = is_wanted
        self._reader = ManifestReader()
        self._offset = 0

    async def next(self) -> list[Entry] | None:
        """Give the next entries, perhaps none; None at the end.

        Raises:
            MalformedError: the manifest is not as it must be.
            StorageError: the disk fails.
        """
        left = self._manifest.tree.present - self._offset
        if not left:
            self._reader.finish()
            return None
        piece = await self._manifest.read(self._offset, min(PIECE_BYTES, left))
        self._offset += len(piece)
        return await to_thread.run_sync(self._parse, piece)

    def _parse(self, piece: bytes) -> list[Entry]:
        entries = self._reader.feed(piece)
        return entries if self._is_wanted is None else [entry for entry in entries if self._is_wanted(entry)]


@asynccontextmanager
async def _landing(order: Order) -> AsyncIterator[Landing]:
    landing = await to_thread.run_sync(Landing, order.path)
    try:
        yield landing
    finally:
        landing.close()


def _capability(entry: Entry) -> ReadCapability:
    """What reads a file.

    Raises:
        ValueError: it is a folder.
    """
    if entry.capability is None:
        raise ValueError("a folder has no capability")
    return entry.capability
