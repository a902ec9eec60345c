"""Where fetched chunks go: into a file, or into this node's own storage."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from overlay.files.engine.schedule import Source
from overlay.files.manifest.codec import check_manifest_bytes
from overlay.units.tree import TreeReader


class ChunkTree(Source, Protocol):
    """Names the chunks that a sink lacks, all of one size: a `TreeReader`, or several of them."""

    @property
    def block_size(self) -> int:
        """Bytes of each chunk."""

    def unfolds(self, reference: bytes) -> bool:
        """Whether this is a root that is waited for, above further nodes: see `TreeReader.unfolds`."""


class Sink(Protocol):
    """Takes the chunks of a content, or of several, in any order."""

    @property
    def tree(self) -> ChunkTree:
        """Which chunks are wanted, and how much is there. Chunks are handed to the sink, not to it."""
        ...

    def take(self, reference: bytes, data: bytes) -> int:
        """Verify a chunk and keep it in memory until the next `flush`: call that after every few.

        Returns:
            bytes of content that it brought: 0 for a node, or when it is not needed.

        Raises:
            VerificationError, MalformedError: see `TreeReader.receive`; nothing of the chunk was kept.
        """
        ...

    async def flush(self) -> None:
        """Keep what was taken, and look for what is there of what the tree has opened.

        Several tasks may do so at once. Cancelled, it has kept some of what was taken, and the next call
        keeps the rest.

        Raises:
            StorageError: the disk or a quota is full, or the disk fails; this sink is of no more use.
            MalformedError: what was there is ill-formed content.
        """
        ...


class TreeSink(Sink, Protocol):
    """A sink of one content."""

    @property
    def tree(self) -> TreeReader:
        """See `Sink.tree`."""
        ...


class Part(TreeSink, Protocol):
    """A sink of one file of several that come in one transfer."""

    @property
    def path(self) -> Path:
        """Where the file is, or will be."""
        ...


class ManifestSink:
    """Takes a manifest, and no more than one can have: a tree that repeats a chunk is as long as it likes.

    Args:
        sink: where it goes.
    """

    def __init__(self, sink: TreeSink) -> None:
        self.tree = sink.tree
        self._sink = sink

    def take(self, reference: bytes, data: bytes) -> int:
        """See `Sink.take`.

        Raises:
            VerificationError: the chunk does not fit its reference.
            MalformedError: it is not of a manifest.
        """
        taken = self._sink.take(reference, data)
        check_manifest_bytes(self.tree.present)
        return taken

    async def flush(self) -> None:
        """See `Sink.flush`."""
        await self._sink.flush()
