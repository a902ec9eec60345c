"""Fetching a folder, or a part of it.

The manifest is fetched first, into a hidden file beside the folder, and read through completely before
anything is created. Then files come, several at once, each as a fetch of its own that goes on where an
earlier one ended: those of small chunks, then those of large ones, each kind in one transfer.

A file that is there with the size that the manifest says is compared first, see `overlay.files.standing`, and
counts as fetched only if its content is right. That too is done before anything is created.

The hidden file stays locked as long as the fetch goes on, so two of one folder to one place never meet. The
next fetch verifies it anew, by the capability.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
from anyio import to_thread

from overlay.errors import MalformedError, NotFoundError, OverlayError, RefusedError, UnreachableError
from overlay.files.actions import Snapshot
from overlay.files.bundle import Bundle
from overlay.files.gathering import Report, gather_from_others
from overlay.files.here import is_folder_here, take_from_here
from overlay.files.keeper import CircuitKeeper, open_keeper
from overlay.files.landing import Landing
from overlay.files.manifest import Entry, check_manifest_bytes
from overlay.files.missing import Meeting, Missing, try_alone
from overlay.files.order import Found, Order
from overlay.files.pace import Pace
from overlay.files.partial import Details
from overlay.files.providers import Candidates
from overlay.files.reading import Reading
from overlay.files.selection import select
from overlay.files.sink import ManifestSink, Sink
from overlay.files.standing import Standing
from overlay.files.target import Target, open_target
from overlay.files.walk import is_unfinished
from overlay.peer.node import Node
from overlay.units.capability import ReadCapability

MAX_OPEN_FILES = 32
"""Files fetched at once, of three descriptors each. Over Tor a small one takes two round trips, a second."""

MAX_OPEN_BYTES = 64 << 20
"""Bytes that the files fetched at once lack, from which no further one is begun: twice what all circuits have
under way. It bounds what the trees of many large files take in memory."""

_DONE, _STANDING, _LACKING = range(3)  # of an entry: nothing is to do, to be compared, to be fetched


class _Job(NamedTuple):
    """A file that is being compared or fetched.

    Attributes:
        number: among those that are wanted.
        entry: what it is.
        path: where it is, or will be.
        handle: descriptor of it, or of the folder that it will be in; closed in any case.
        bundle: has it brought.
    """

    number: int
    entry: Entry
    path: Path
    handle: int
    bundle: Bundle


Watch = Callable[["FolderFetch"], None]
"""Told how it stands."""


class FolderFetch:
    """Fetches one folder, once.

    Args:
        node: who asks.
        order: what is asked for.
        candidates: nodes that may have it.
        watch: told after each step.
        pace: how fast it may be.

    Attributes:
        found: what the manifest asks for; None until it was read.
        snapshot: how the transfer stands that goes on; None between two.
        missing: files that are not to be had.

    Raises:
        MalformedError: a pattern is not one.
    """

    def __init__(
        self,
        node: Node,
        order: Order,
        candidates: Candidates,
        watch: Watch | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.found: Found | None = None
        self.snapshot: Snapshot | None = None
        self.missing = Missing()
        self._node = node
        self._order = order
        self._candidates = candidates
        self._watch = watch
        self._pace = pace
        self._is_wanted = select(order.only) if order.only else None
        self._bundle: Bundle | None = None
        self._files = 0  # that are being fetched
        self._states = bytearray()  # of each entry that is wanted
        self._is_here = False  # whether this node has all that is wanted, and nobody else is asked

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
        later = self.found.standing.total() + self.found.lacking.total()
        return self.found.size - later - self.missing.bytes - (self._bundle.missing if self._bundle else 0)

    async def run(self) -> Found:
        """Fetch it; what an earlier attempt left is gone on with.

        Returns:
            what was asked for; all of it is there.

        Raises:
            RefusedError: a file is there already, something stands in the way, or the same is being fetched.
                What can be seen is told before anything is created.
            MalformedError: the manifest, or what it leads to, is not what it should be.
            NotFoundError: nothing in it is wanted, there is no such destination, or nobody has all of it.
                Files that can be had are there then.
            UnreachableError: nobody who may have the rest was reached; the same.
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
            open_target(
                order.path.with_name(f"{order.path.name}.manifest"),
                order.link.capability,
                size=order.link.size,
                nameless=True,
            ) as manifest,
        ):
            found = await self._read(manifest, landing, circuits)
            self._tell(None)
            await to_thread.run_sync(landing.check_room, found.lacking.total() - found.kept)
            await self._make_folders(manifest, landing)
            for block_size in sorted(found.lacking):
                self._bundle = Bundle(block_size, found.lacking.pop(block_size))
                await self._go_through(manifest, landing, self._bundle, circuits, _LACKING)
            if self.missing.files:
                raise self.missing.error(found.files)
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
        sink, link = ManifestSink(manifest), self._order.link
        self._is_here = await is_folder_here(self._node, link.capability, link.size, self._is_wanted)
        try:
            if self._is_here:
                await take_from_here(self._node, sink)
            await self._gather(sink, self._tell, circuits)
            found = self.found = await self._examine(manifest, landing)
            for block_size in sorted(found.standing):
                self._bundle = Bundle(block_size, found.standing.pop(block_size))
                await self._go_through(manifest, landing, self._bundle, circuits, _STANDING)
        except (MalformedError, NotFoundError, RefusedError) as error:
            if manifest.tree.finished or isinstance(error, MalformedError):
                await manifest.discard()
            raise
        return found

    async def _gather(self, sink: Sink, report: Report, circuits: CircuitKeeper) -> None:
        bell = sink.bell if isinstance(sink, Bundle) else None
        await gather_from_others(
            self._node, sink, self._candidates, report, self._pace, circuits=circuits, bell=bell
        )

    async def _bring(self, bundle: Bundle, circuits: CircuitKeeper) -> None:
        """Bring all files of a bundle that are to be had.

        Raises:
            NotFoundError: see `run`.
            UnreachableError: see `run`.
            OverlayError: any other that `run` raises.
        """
        await bundle.begun.wait()
        while not bundle.finished:
            meeting = Meeting(self._tell)
            try:
                await self._gather(bundle, meeting, circuits)
            except (NotFoundError, UnreachableError):
                if not meeting.met:
                    raise
                await try_alone(bundle, self.missing, partial(self._gather, circuits=circuits), self._tell)

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
        found, reading = Found(), Reading(manifest, self._is_wanted)
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
                self._states.append(_DONE)
                continue
            if state == "other":
                self._check_replaceable(landing.path.joinpath(*entry.path))
            found.files += 1
            found.size += entry.size
            if state == "there":
                found.standing[entry.capability.block_size] += entry.size
                self._states.append(_STANDING)
            else:
                found.lacking[entry.capability.block_size] += entry.size
                found.kept += min(entry.size, landing.kept(entry))
                self._states.append(_LACKING)

    def _check_replaceable(self, path: Path) -> None:
        if not self._order.overwrite:
            raise RefusedError(
                f"{path} exists already, and is another file: "
                "name another place, or replace what is there with --force"
            )

    async def _make_folders(self, manifest: Target, landing: Landing) -> None:
        """Make the folder, and those in which nothing is."""

        def make(entries: Sequence[Entry]) -> None:
            for entry in entries:
                if entry.capability is None:
                    landing.make(entry.path)

        reading = Reading(manifest, self._is_wanted)
        await to_thread.run_sync(landing.make, ())
        while (entries := await reading.next()) is not None:
            await to_thread.run_sync(make, entries)

    async def _go_through(
        self, manifest: Target, landing: Landing, bundle: Bundle, circuits: CircuitKeeper, state: int
    ) -> None:
        """Compare or fetch the files in this state whose chunks have the size of those of a bundle.

        Raises:
            OverlayError: see `run`.
        """
        failures: list[OverlayError] = []

        def begin(entry: Entry) -> int:
            return landing.open(entry) if state == _STANDING else landing.enter(entry.path[:-1])

        async with anyio.create_task_group() as tasks:

            async def attempt(work: Callable[[], Awaitable[None]]) -> None:
                try:
                    await work()
                except OverlayError as error:
                    failures.append(error)
                    tasks.cancel_scope.cancel()

            async def feed() -> None:
                work = self._compare_file if state == _STANDING else self._fetch_file
                reading, count = Reading(manifest, self._is_wanted), 0
                while (entries := await reading.next()) is not None:
                    for number, entry in self._select(entries, count, state, bundle.block_size):
                        await self._wait_for_room(bundle)
                        handle = await to_thread.run_sync(begin, entry)
                        job = _Job(number, entry, landing.path.joinpath(*entry.path), handle, bundle)
                        bundle.announce(job.path, entry.size)
                        self._files += 1
                        tasks.start_soon(attempt, partial(work, job))
                    count += len(entries)
                bundle.end()

            tasks.start_soon(attempt, feed)
            await attempt(partial(self._bring, bundle, circuits))
        if failures:
            raise failures[0]

    def _select(
        self, entries: Sequence[Entry], count: int, state: int, block_size: int
    ) -> list[tuple[int, Entry]]:
        """Give the entries in a state, with their numbers among those that are wanted: `count` are before."""
        return [
            (number, entry)
            for number, entry in enumerate(entries, count)
            if self._states[number] == state and _capability(entry).block_size == block_size
        ]

    async def _wait_for_room(self, bundle: Bundle) -> None:
        while self._files and (self._files >= MAX_OPEN_FILES or bundle.begun_bytes >= MAX_OPEN_BYTES):
            await bundle.bell.next.wait()

    @contextmanager
    def _under_way(self, job: _Job) -> Iterator[None]:
        try:
            yield
        finally:
            os.close(job.handle)
            self._files -= 1
            job.bundle.bell.ring()

    async def _compare_file(self, job: _Job) -> None:
        """Compare a file that is there with what should be.

        Raises:
            RefusedError: it is another one, and may not be replaced.
            OverlayError: any other that `run` raises.
        """
        entry = job.entry
        with self._under_way(job):
            standing = Standing(job.path, job.handle, _capability(entry), entry.size)
            await standing.flush()
            if self._is_here:
                await take_from_here(self._node, standing)
            if not await job.bundle.bring(standing):
                self.missing.add(entry, entry.size)
            elif standing.differs:
                self._check_replaceable(job.path)
                if self.found is not None:
                    self.found.lacking[job.bundle.block_size] += entry.size
                self._states[job.number] = _LACKING

    async def _fetch_file(self, job: _Job) -> None:
        """Fetch one file.

        Raises:
            OverlayError: see `run`.
        """
        entry = job.entry
        with self._under_way(job):
            async with open_target(
                job.path,
                _capability(entry),
                size=entry.size,
                overwrite=self._order.overwrite,
                folder=job.handle,
            ) as target:
                if self._is_here:
                    await take_from_here(self._node, target)
                if await job.bundle.bring(target):
                    await target.finish(Details(entry.modified, entry.executable))
                else:
                    left = target.tree.missing
                    self.missing.add(entry, entry.size if left is None else left)


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
