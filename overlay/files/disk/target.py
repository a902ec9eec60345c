"""A file that is being fetched: verified pieces are written where they belong, and nothing is fetched twice.

Content is gathered in a hidden file beside the target, which becomes the target when it is whole:

    NAME                  the target; appears at once, finished and on disk
    .NAME.5f3a90c1.part   the content that is there, at its place, with holes for what is not
    .NAME.5f3a90c1.nodes  nodes of its tree, each at the place of its number: see `TreeReader.number`

No list says what is there: whatever a crash, a full disk or another program made of these files, a leaf is
encrypted again with its key and must have its reference, and a node must have its hash. That costs about as
much as receiving the leaf did. The number in the names belongs to the capability, so that another content
never begins with this one's remains.

The tree's state lives on the event loop, files are touched in worker threads, by one of them at a time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import anyio
from anyio import to_thread

from overlay.errors import MalformedError, StorageError
from overlay.files.disk.partial import Details, PartialFiles, open_partial
from overlay.units.capability import ReadCapability
from overlay.units.tree import Piece, Place, TreeReader

EXAMINED_AT_ONCE = 512
"""Places looked for on disk between two chances to write or to be cancelled: 16 MiB, some 30 ms."""

_T = TypeVar("_T")


class Target:
    """A file while it is fetched; `open_target` makes it.

    Chunks are taken as they come and written by whoever flushes next, so that a few tasks share what a step
    of a thread costs.

    Attributes:
        path: where the file will be.
        tree: which chunks are wanted, and how much is there. Chunks are handed to the target, not to it.
    """

    def __init__(self, path: Path, tree: TreeReader, files: PartialFiles) -> None:
        self.path = path
        self.tree = tree
        self._files = files
        self._is_sized = tree.size is not None
        self._pieces: list[Piece] = []
        self._nodes: list[tuple[int, bytes]] = []
        self._turn = anyio.Lock()
        self._failure = ""
        self._is_ill_formed = False
        self._is_new = files.empty

    @property
    def remains(self) -> str:
        """What to say of what is kept when the fetch ends now, to follow an error; empty if nothing is."""
        is_kept = self.tree.present and not self._is_useless
        return f"; what came is kept{self._files.hint}" if is_kept else ""

    @property
    def _is_useless(self) -> bool:
        return self._is_ill_formed and self._is_new

    def take(self, reference: bytes, data: bytes) -> int:
        """Verify a chunk and keep it in memory until the next `flush`: call that after every few.

        Returns:
            bytes of content that it brought: 0 for a node, or when it is not needed.

        Raises:
            VerificationError: see `TreeReader.receive`; nothing of the chunk was kept.
            MalformedError: see there. In the end nothing is kept of a fetch that began with nothing: no chunk
                would make it this content. What an earlier fetch left stays: it may have been told better.
        """
        nodes = [self.tree.number(place) for place in self.tree.places(reference) if place.level]
        try:
            pieces = self.tree.receive(reference, data)
        except MalformedError:
            self._is_ill_formed = True
            raise
        self._nodes += [(number, data) for number in nodes]
        self._pieces += pieces
        return sum(len(piece.content) for piece in pieces)

    async def flush(self) -> None:
        """Write what was taken, and look on disk for what the tree has opened.

        Several tasks may do so at once. Cancelled, it has written some of what was taken, and the next call
        writes the rest.

        Raises:
            StorageError: the disk is full or fails; this target is of no more use, what is on disk is kept.
            MalformedError: ill-formed content was on disk.
        """
        while await self._flush_some():
            pass

    async def read(self, offset: int, length: int) -> bytes:
        """Read content that was taken and flushed, without finishing it.

        Raises:
            StorageError: the disk fails.
        """
        return await self._run(lambda: self._files.read(offset, length))

    async def finish(self, details: Details | None = None) -> None:
        """Give the file its name, after all of it is on disk; then nothing else is left of the fetch.

        Cancelled, it is finished or was not begun: then it can be opened again and needs no chunk.

        Args:
            details: what the file has as soon as it has its name, if not what every new file has.

        Raises:
            ValueError: something is missing.
            RefusedError: the target exists, and may not be overwritten; what was fetched is kept.
            StorageError: the disk is full or fails; what was fetched is kept.
        """
        await self.flush()
        size = self.tree.size
        if not self.tree.finished or size is None:
            raise ValueError("a file can be finished when nothing of it is missing")
        await self._run(lambda: self._files.settle(size, details))
        await self._run(self._files.publish)

    async def discard(self) -> None:
        """Remove what was fetched.

        Raises:
            StorageError: that cannot be done.
        """
        async with self._turn:
            await self._run(self._files.remove)

    async def leave(self) -> None:
        """Write what was taken and not flushed, where that is possible: the last that `open_target` does.

        Of ill-formed content everything is removed instead, unless some was there before.
        """
        with suppress(StorageError):  # nobody needs to know: it is missing next time, and fetched then
            if self._is_useless:
                await self.discard()
            elif not self._failure:
                await self._write()

    async def _flush_some(self) -> bool:
        async with self._turn:
            if self._failure:  # pieces that could not be written are lost
                raise StorageError(self._failure)
            # The tree has given these pieces out, and they must not get lost when one task of several ends.
            with anyio.CancelScope(shield=True):
                await self._write()
                places = self.tree.planned(EXAMINED_AT_ONCE)
                if places:
                    await self._examine(places)
        return bool(places)

    async def _write(self) -> None:
        pieces, nodes = self._pieces, self._nodes
        self._pieces, self._nodes = [], []
        if pieces or nodes:
            await self._run(lambda: self._put(pieces, nodes, self.tree.present))

    def _put(self, pieces: Sequence[Piece], nodes: Sequence[tuple[int, bytes]], present: int) -> None:
        if not self._is_sized:  # a few chunks that repeat each other can be content without end
            self._files.check_room(present)
        self._files.write(pieces, nodes)

    async def _examine(self, places: Sequence[Place]) -> None:
        numbered = [(place, self.tree.number(place)) for place in places]
        size, block = self.tree.size, self.tree.block_size
        for place, held, chunk in await self._run(lambda: self._files.find(numbered, block, size)):
            self.tree.settle(place, held=held)
            if chunk:
                self.take(place.reference, chunk)

    async def _run(self, work: Callable[[], _T]) -> _T:
        try:
            return await to_thread.run_sync(work)
        except StorageError as error:
            self._failure = str(error)
            raise
        except FileNotFoundError as error:
            self._failure = (
                f"{self.path} cannot be written: what was fetched of it, or its folder, was removed meanwhile"
            )
            raise StorageError(self._failure) from error
        except OSError as error:
            self._failure = (
                f"{self.path} cannot be written, {error.strerror}: what was fetched is "
                f"kept{self._files.hint}, and the same command goes on from there"
            )
            raise StorageError(self._failure) from error


@asynccontextmanager
async def open_target(
    path: Path,
    capability: ReadCapability,
    *,
    size: int | None = None,
    overwrite: bool = False,
    folder: int | None = None,
    nameless: bool = False,
) -> AsyncGenerator[Target, None]:
    """Begin to fetch a file, or go on with it: what an earlier run left is verified first.

    That takes a second for 0.3 GB. Left without `Target.finish`, also by an error or cancelled, everything is
    kept for the next time, unless it began with nothing and turned out to be ill-formed.

    Args:
        path: where the file will be, in a folder that exists.
        capability: what it is.
        size: bytes that it is said to have; content of any other length is refused.
        overwrite: whether the target may exist; it is replaced when the new file is finished.
        folder: descriptor of the folder that the file is in, where names on the way to it cannot be trusted:
            `path` is only shown then.
        nameless: whether it is never finished, only read: then anything may have its name.

    Raises:
        RefusedError: the target exists, or is a folder, a link or no file at all; or it is being fetched by
            another.
        NotFoundError: there is no such folder.
        StorageError: the folder cannot be written, or the disk has no room for `size` bytes.
        MalformedError: content of `size` bytes never has this capability; or what is there is ill-formed.
    """
    files = await to_thread.run_sync(open_partial, path, capability, overwrite, folder, nameless)
    try:
        if size is not None:
            await to_thread.run_sync(files.check_room, size)
        tree = TreeReader(capability, size=size, resume=not files.empty)
        target = Target(path, tree, files)
        try:
            await target.flush()
            yield target
        finally:
            with anyio.CancelScope(shield=True):
                await target.leave()
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(files.close)
