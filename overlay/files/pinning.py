"""Pinning a file, or a folder with all its files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from overlay.errors import OverlayError
from overlay.files.actions import Snapshot
from overlay.files.gathering import Report, gather
from overlay.files.keeper import CircuitKeeper, open_keeper
from overlay.files.links import FileLink
from overlay.files.manifest import ManifestReader, check_manifest_bytes
from overlay.files.pins import Pin, Pins, PinSink
from overlay.files.shares import Progress
from overlay.files.sink import ManifestSink
from overlay.identity import NodeIdentifier
from overlay.peer.node import Node
from overlay.units.capability import ReadCapability


async def pin_link(
    node: Node,
    pins: Pins,
    link: FileLink,
    providers: Sequence[NodeIdentifier],
    progress: Progress | None = None,
) -> Pin:
    """Bring all that a link names into this node's own storage, and keep it; see `Pins.add`.

    Args:
        node: asks others, without showing itself; what it has itself is taken from there.
        pins: keeps it.
        link: of a file or a folder.
        providers: nodes that may have it, the best first.
        progress: told after each step, while it is known how much there is.

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
            return await sink.finish(await _Folder(node, sink, providers, progress).bring())
        await gather(node, sink, providers, _report(sink, progress))
        return await sink.finish()


class _Folder:
    """A folder that is being pinned; `sink` takes its manifest."""

    def __init__(
        self,
        node: Node,
        sink: PinSink,
        providers: Sequence[NodeIdentifier],
        progress: Progress | None,
    ) -> None:
        self._node = node
        self._sink = sink
        self._providers = providers
        self._progress = progress

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
        await gather(self._node, ManifestSink(self._sink), self._providers, circuits=circuits)
        await self._sink.flush()
        # The whole manifest is read before any file is fetched: it may be ill-formed at its end.
        total = sum([size async for _, size in self._parts()])
        done = 0
        async for capability, size in self._parts():
            async with self._sink.part(capability, size) as sink:
                report = _report(sink, self._progress, done, total)
                await gather(self._node, sink, self._providers, report, circuits=circuits)
                await sink.flush()
            done += size
        return total

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


def _report(sink: PinSink, progress: Progress | None, done: int = 0, total: int | None = None) -> Report:
    def report(_snapshot: Snapshot | None) -> None:
        whole = sink.tree.size if total is None else total
        if progress is not None and whole is not None:
            progress(done + sink.tree.present, whole)

    return report
