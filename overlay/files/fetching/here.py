"""What this node has itself: it is used for a fetch only where that needs nobody else.

Whoever asks others for all but what it has shows by that what it has, and whoever knows which node has that
knows who asks. So a content is taken from here whole or not at all, and so is a folder. It is looked through
to its end first, without anything being kept.

Only what this node offers or keeps for itself counts. What it keeps for others is theirs to choose: they
could give each node another chunk, or a whole content, and see who does not ask for it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from overlay.errors import MalformedError
from overlay.files.fetching.sink import TreeSink
from overlay.files.manifest.codec import Entry, ManifestReader
from overlay.peer.chunks import Lookup
from overlay.peer.node import Node
from overlay.units.capability import ReadCapability
from overlay.units.decode import Decoder

LOCAL_CHUNKS = 64
"""Chunks looked for on this node at once: 2 MiB."""

_WINDOW_LEAVES = 64
"""Leaves held while a content is looked through: as many as are looked for at once."""


async def is_here(node: Node, capability: ReadCapability, size: int | None) -> bool:
    """Tell whether this node has all of a content, also that nothing in it has changed.

    What it has of an ill-formed content does not count: others say by themselves that it is none.

    Raises:
        StorageError: the database does not work.
    """
    try:
        async with aclosing(_content(node, capability, size)) as pieces:
            async for _ in pieces:
                pass
    except (_NotHereError, MalformedError):
        return False
    return True


async def is_folder_here(
    node: Node,
    capability: ReadCapability,
    size: int | None,
    *,
    room: int,
    is_wanted: Callable[[Entry], bool] | None = None,
) -> bool:
    """Tell whether this node has all that is wanted of a folder, and its manifest.

    Args:
        node: which.
        capability: reads the manifest.
        size: bytes of the manifest, if they are known.
        room: bytes for which there is room where it is wanted. A folder of more is not looked through: its
            files may be of any length, and made of a few chunks that are here.
        is_wanted: says which entries; None for all.

    Raises:
        StorageError: the database does not work.
    """
    reader = ManifestReader()
    total = 0
    try:
        async with aclosing(_content(node, capability, size)) as pieces:
            async for piece in pieces:
                for entry in reader.feed(piece):
                    if entry.capability is None or (is_wanted is not None and not is_wanted(entry)):
                        continue
                    total += entry.size
                    if total > room or not await is_here(node, entry.capability, entry.size):
                        return False
            reader.finish()
    except (_NotHereError, MalformedError):
        return False
    return True


async def take_from_here(node: Node, sink: TreeSink, report: Callable[[None], None] | None = None) -> None:
    """Bring what a sink lacks from what this node has; see `is_here`, which has to be asked first.

    Where something has changed since, it ends there: others are asked for the rest.

    Args:
        node: which.
        sink: what is brought; not finished here.
        report: told None after each step.

    Raises:
        OverlayError: any of the sink.
        StorageError: the database does not work.
    """
    while wanted := sink.tree.wanted(LOCAL_CHUNKS):
        found = await _find(node.chunks.sources, wanted)
        for reference, chunk in found.items():
            sink.take(reference, chunk)
        await sink.flush()
        if report is not None:
            report(None)
        if len(found) < len(wanted):
            return


class _NotHereError(Exception):
    """A chunk is not here."""


async def _content(node: Node, capability: ReadCapability, size: int | None) -> AsyncGenerator[bytes, None]:
    """Give a content in order, as long as its chunks are here.

    Raises:
        _NotHereError: one is not; or the size is not known and more comes than this node would keep: of a
            tree that repeats its chunks all may be here since it was given up as a pin, and it never ends.
        MalformedError: it is ill-formed.
        StorageError: the database does not work.
    """
    decoder = Decoder(capability, size=size, window=_WINDOW_LEAVES)
    given = 0
    while not decoder.finished:
        wanted = decoder.wanted(LOCAL_CHUNKS)
        found = await _find(node.chunks.sources, wanted)
        if len(found) < len(wanted) or (size is None and await _is_endless(node, given)):
            raise _NotHereError
        for reference, chunk in found.items():
            decoder.receive(reference, chunk)
        piece = decoder.read()
        given += len(piece)
        yield piece


async def _is_endless(node: Node, given: int) -> bool:
    """Whether a content is longer than all that a node keeps: what is pinned stays where the quota falls."""
    return given > node.storage.quota and given > (await node.storage.usage(own=True)).bytes


async def _find(sources: Sequence[Lookup], references: Sequence[bytes]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for source in sources:
        missing = [reference for reference in references if reference not in found]
        if missing:
            chunks = zip(missing, await source.get(missing), strict=True)
            found |= {reference: chunk for reference, chunk in chunks if chunk is not None}
    return found
