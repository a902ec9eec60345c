"""Pinning a file, or a folder with all its files."""

from __future__ import annotations

from collections.abc import AsyncIterator

from overlay.errors import OverlayError
from overlay.files.engine.actions import Snapshot
from overlay.files.engine.providers import Candidates
from overlay.files.fetching.gathering import Report, gather, gather_from_others
from overlay.files.fetching.here import is_folder_here, take_from_here
from overlay.files.fetching.keeper import CircuitKeeper, open_keeper
from overlay.files.fetching.pace import Pace
from overlay.files.fetching.sink import ManifestSink, TreeSink
from overlay.files.links import FileLink
from overlay.files.manifest.codec import ManifestReader, check_manifest_bytes
from overlay.files.pinning.pins import Pin, Pins, PinSink
from overlay.files.running import Step
from overlay.peer.node import Node
from overlay.units.capability import ReadCapability


async def pin_link(
    node: Node,
    pins: Pins,
    link: FileLink,
    candidates: Candidates,
    *,
    step: Step,
    pace: Pace | None = None,
) -> Pin:
    """Bring all that a link names into this node's own storage, and keep it; see `Pins.add`.

    Args:
        node: asks others, without showing itself, unless it has all of it; see `overlay.files.fetching.here`.
        pins: keeps it.
        link: of a file or a folder.
        candidates: nodes that may have it.
        step: told after each step.
        pace: how fast it may be.

    Returns:
        the pin; all of it is on the disk.

    Raises:
        MalformedError: what the link leads to is no content, or no folder; nothing of it is kept.
        RefusedError: it is being pinned or unpinned already.
        OverlayError: see `gather` and `Pins.add`. Failed or cancelled, what came is kept and the next attempt
            goes on.
    """
    if link.kind == "folder":
        check_manifest_bytes(link.size or 0)
    async with pins.add(link) as sink:
        if link.kind == "folder":
            return await sink.finish(await _Folder(node, sink, candidates, step, pace).bring())
        await gather(node, sink, candidates, _report(sink, step), pace)
        return await sink.finish()


class _Folder:
    """A folder that is being pinned; `sink` takes its manifest."""

    def __init__(
        self,
        node: Node,
        sink: PinSink,
        candidates: Candidates,
        step: Step,
        pace: Pace | None,
    ) -> None:
        self._node = node
        self._sink = sink
        self._candidates = candidates
        self._step = step
        self._pace = pace
        self._is_here: bool | None = None  # not known before the first of its contents lacks anything

    async def bring(self) -> int:
        """Bring the manifest, then file after file; gives the bytes of all files.

        Raises:
            OverlayError: see `pin_link`.
        """
        failure: OverlayError | None = None
        total = 0
        async with open_keeper(self._node) as circuits:
            try:
                total = await self._bring_all(circuits)
            except OverlayError as error:  # as itself, not as one of a group
                failure = error
        if failure is not None:
            raise failure
        return total

    async def _bring_all(self, circuits: CircuitKeeper) -> int:
        await self._gather(ManifestSink(self._sink), lambda snapshot: self._step(snapshot, 0, None), circuits)
        # The whole manifest is read before any file is fetched: it may be ill-formed at its end.
        total = sum([size async for _, size in self._parts()])
        await self._sink.check_room(total)
        done = 0
        async for capability, size in self._parts():
            async with self._sink.part(capability, size) as sink:
                await self._gather(sink, _report(sink, self._step, done, total), circuits)
            done += size
        return total

    async def _gather(self, sink: TreeSink, report: Report, circuits: CircuitKeeper) -> None:
        report(None)
        if not sink.tree.finished and await self._has_all():
            await take_from_here(self._node, sink, report)
        await gather_from_others(self._node, sink, self._candidates, report, self._pace, circuits=circuits)

    async def _has_all(self) -> bool:
        if self._is_here is None:
            tree = self._sink.tree
            storage = self._node.storage
            room = max(storage.quota, (await storage.usage(own=True)).bytes)
            self._is_here = await is_folder_here(self._node, tree.capability, tree.size, room=room)
        return self._is_here

    async def _parts(self) -> AsyncIterator[tuple[ReadCapability, int]]:
        """Read the manifest; gives what reads each file, and its size.

        Raises:
            MalformedError: it is not as it must be.
            StorageError: the disk fails.
        """
        reader = ManifestReader()
        async for piece in self._sink.content():
            for entry in reader.feed(piece):
                if entry.capability is not None:
                    yield entry.capability, entry.size
        reader.finish()


def _report(sink: PinSink, step: Step, done: int = 0, total: int | None = None) -> Report:
    def report(snapshot: Snapshot | None) -> None:
        step(snapshot, done + sink.tree.present, sink.tree.size if total is None else total)

    return report
