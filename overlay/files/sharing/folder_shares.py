"""Sharing a folder from where it lies: file by file, with a manifest, under one convergence secret.

It is walked three times: to check its names and count its bytes, to read it, and to see that it is still what
it was.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio import to_thread

from overlay.errors import RefusedError
from overlay.files.manifest.codec import Entry, write_manifest
from overlay.files.sharing.records import Share
from overlay.files.sharing.shares import Shares
from overlay.files.sharing.walk import Item, Survey, Walk, refuse_home, survey
from overlay.files.sharing.writer import FolderShare, Progress
from overlay.peer.chunks import Lookup
from overlay.units.capability import PAIR_BYTES, ReadCapability, apply_cipher
from overlay.units.decode import read_pairs, unpad


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """A folder that is offered now.

    Attributes:
        share: what is offered.
        files: in it.
        skipped: symbolic links, and what is neither file nor folder: they are not offered.
    """

    share: Share
    files: int
    skipped: int


async def share_folder(
    shares: Shares,
    path: Path,
    name: str = "",
    progress: Progress | None = None,
    *,
    convergent: bool = False,
) -> SharedFolder:
    """Offer a folder. All of it is read once, nothing is copied, and it must stay as it is.

    Args:
        shares: where it is offered.
        path: the folder, or a link to one.
        name: what it is called, if not as the folder.
        progress: told after each step.
        convergent: see `Shares.add`.

    Raises:
        NotFoundError: there is no such folder.
        RefusedError: something in it cannot be read, or changed meanwhile; or it contains the home of a node,
            or is in one.
        MalformedError: a name in it, or its own, cannot be told to others.
        StorageError: the disk is full or does not work.
        After failure or cancellation nothing more is offered than before.
    """
    root = Path(await anyio.Path(path).resolve())
    await to_thread.run_sync(refuse_home, root)
    async with shares.folder(root, name=name or path.name, convergent=convergent) as folder:
        before = await to_thread.run_sync(survey, root)
        manifest = await _add_all(folder, root, before, progress)
        if await to_thread.run_sync(survey, root) != before:
            raise RefusedError(_changed(root))
        share = await folder.finish(manifest)
    return SharedFolder(share, before.files, before.skipped)


async def manifest_bytes(source: Lookup, capability: ReadCapability) -> int | None:
    """Tell how long the manifest of a shared folder is, from its last leaf and those above it.

    Args:
        source: has its chunks.
        capability: reads it.

    Returns:
        bytes; None if it is not there any more.

    Raises:
        StorageError: the database does not work.
    """
    number, reference, key = 0, capability.reference, capability.key
    for level in range(capability.level, -1, -1):
        (chunk,) = await source.get([reference])
        if chunk is None:
            return None
        plain = apply_cipher(key, level, chunk)
        if level:
            pairs = read_pairs(plain)
            reference, key = pairs[0]  # the last child comes first
            number = number * (capability.block_size // PAIR_BYTES) + len(pairs) - 1
    return number * capability.block_size + len(unpad(plain))


async def _add_all(folder: FolderShare, root: Path, known: Survey, progress: Progress | None) -> bytes:
    """Add every file; gives the manifest."""
    entries: deque[Entry | None] = deque()
    pieces = write_manifest(iter(entries.popleft, None))
    manifest = bytearray(next(pieces))
    walk, done = Walk(root), 0
    while items := await to_thread.run_sync(walk.batch):
        for item in items:
            entries.append(await _add(folder, root, item, _shifted(progress, done, known.size)))
            manifest += next(pieces)
            done += item.size
            if progress is not None:
                progress(done, max(done, known.size))
    entries.append(None)
    return bytes(manifest + next(pieces))


async def _add(folder: FolderShare, root: Path, item: Item, progress: Progress | None) -> Entry:
    """Add what was met on the walk.

    Raises:
        RefusedError: it is not any more what was met.
        OverlayError: any that `FolderShare.add` raises.
    """
    if not item.is_file:
        return Entry(item.path)
    path = root.joinpath(*item.path)
    share = await folder.add(path, progress)
    if share.path != path or (share.stamp.size, share.stamp.modified) != (item.size, item.modified):
        raise RefusedError(_changed(path))
    return Entry(item.path, share.capability, item.size, max(0, item.modified // 10**9), item.executable)


def _changed(path: Path) -> str:
    return f"{path} changed while it was read: share it when nothing writes to it"


def _shifted(progress: Progress | None, done: int, total: int) -> Progress | None:
    if progress is None:
        return None
    return lambda more, _: progress(done + more, max(done + more, total))
