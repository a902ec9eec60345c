"""Adding to what is offered: a file is encoded once, and of what comes out little is written down.

That is the reference of each leaf and the nodes of the tree; the leaves themselves are dropped. Nobody sees
half a share: what fails, or is cancelled, is abandoned.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread

from overlay.database import Database
from overlay.errors import StorageError
from overlay.files.sharing import index
from overlay.files.sharing.records import NewShare, Share, Stamp
from overlay.files.sharing.shared_file import FileEncoding, locate
from overlay.identity import Entropy
from overlay.units.eris import NULL_SECRET, SECRET_BYTES, encode_content

BATCH_LEAVES = 16_384
"""Leaves noted in one transaction, 512 MiB of content. They are scattered over the whole table, so with a
quarter as many about three times as much is written; with many more, others wait for the database."""

BATCH_PARTS = 1024
"""Unchanged files of a folder noted in one transaction: one each takes as long as reading small files."""

_MANIFEST_CHUNKS = 64
"""Chunks of a manifest noted in one transaction: 2 MiB."""

Progress = Callable[[int, int], None]
"""Told how many bytes of how many are done."""


class ShareWriter:
    """Writes shares; see `Shares` for its arguments and what is promised of each."""

    def __init__(self, database: Database, entropy: Entropy, clock: Callable[[], float]) -> None:
        self._database = database
        self._entropy = entropy
        self._clock = clock
        self._adding: dict[tuple[Path, int | None], anyio.Event] = {}

    async def add(
        self,
        path: Path,
        progress: Progress | None,
        *,
        name: str = "",
        parent: int | None = None,
        secret: bytes | None = None,
    ) -> Share:
        """Add a file, or find it as it was added before.

        Args:
            path: of the file, through any links.
            progress: told after each step.
            name: what it is called; a part of a folder has none.
            parent: the folder that it is a part of.
            secret: the convergence secret, if not that of an earlier share of the path or a random one.

        Raises:
            NotFoundError, RefusedError, StorageError: see `Shares.add`.
        """
        target, stamp = await to_thread.run_sync(locate, path)
        async with self._turn(target, parent):
            before = await self._before(target, parent, convergent=secret == NULL_SECRET)
            if before and _is_same(before, stamp):
                return await self._database.write(partial(index.renew, share=before.id, name=name))
            new = NewShare(
                parent=parent,
                kind="file",
                name=name,
                path=target,
                stamp=stamp,
                secret=secret or self._secret(before),
                added=self._clock(),
            )
            encoding = FileEncoding(target, stamp, new.secret)
            async with self._begun(new) as share:
                return await self._encode(share, encoding, stamp.size, progress)

    @asynccontextmanager
    async def folder(self, path: Path, name: str, *, convergent: bool) -> AsyncIterator[FolderShare]:
        """Add a folder; see `Shares.folder`.

        Raises:
            StorageError: the disk is full or does not work.
        """
        before = await self._before(path, None, convergent=convergent)
        new = NewShare(
            parent=None,
            kind="folder",
            name=name,
            path=path,
            stamp=Stamp(0, 0, 0),
            secret=NULL_SECRET if convergent else self._secret(before),
            added=self._clock(),
        )
        async with self._begun(new) as share:
            folder = FolderShare(self, share, new.secret)
            yield folder
            if not folder.finished:
                await self._abandon(share)

    async def unchanged_part(self, path: Path, secret: bytes) -> Share | None:
        """Look for a part of any folder with this secret that is made from a file as it looks now.

        Raises:
            NotFoundError, RefusedError: see `locate`.
            StorageError: the database does not work.
        """
        target, stamp = await to_thread.run_sync(locate, path)
        found = await self._database.read(partial(index.part_of_path, path=target, secret=secret))
        return found if found and _is_same(found, stamp) else None

    async def take_over(self, parent: int, parts: Sequence[int]) -> None:
        """Make parts of other folders parts of one more.

        Raises:
            RefusedError: one of them was removed meanwhile.
            StorageError: the disk is full or does not work.
        """
        if parts:
            await self._database.write(partial(index.take_over, parent=parent, parts=parts))

    async def finish_folder(self, share: int, manifest: bytes, secret: bytes) -> Share:
        """Offer a folder whose parts are all there.

        Raises:
            StorageError: the disk is full or does not work.
        """
        chunks, capability = await to_thread.run_sync(partial(encode_content, manifest, secret=secret))
        for start in range(0, len(chunks), _MANIFEST_CHUNKS):
            some = chunks[start : start + _MANIFEST_CHUNKS]
            await self._database.write(partial(index.extend, share=share, leaves=(), nodes=some))
        return await self._database.write(partial(index.finish, share=share, capability=capability))

    async def sweep(self) -> None:
        """Give back what discarded shares occupy.

        Raises:
            StorageError: the disk does not work.
        """
        dead = await self._database.read(index.discarded)
        after: bytes | None = b"" if dead else None
        while after is not None:
            after = await self._database.write(partial(index.sweep, dead=dead, after=after))

    async def _before(self, path: Path, parent: int | None, *, convergent: bool) -> Share | None:
        find = partial(index.of_path, path=path, parent=parent, convergent=convergent)
        return await self._database.read(find)

    def _secret(self, before: Share | None) -> bytes:
        return before.secret if before else self._entropy(SECRET_BYTES)

    async def _encode(
        self, share: int, encoding: FileEncoding, size: int, progress: Progress | None
    ) -> Share:
        while not encoding.read:
            await to_thread.run_sync(encoding.step)
            if len(encoding.leaves) >= BATCH_LEAVES:
                await self._extend(share, encoding)
            if progress is not None:
                progress(encoding.position, size)
        capability = await to_thread.run_sync(encoding.finish)
        await self._extend(share, encoding)
        return await self._database.write(partial(index.finish, share=share, capability=capability))

    async def _extend(self, share: int, encoding: FileEncoding) -> None:
        leaves, nodes = encoding.take()
        await self._database.write(partial(index.extend, share=share, leaves=leaves, nodes=nodes))

    @asynccontextmanager
    async def _turn(self, path: Path, parent: int | None) -> AsyncIterator[None]:
        """Let one add of a path happen at a time: the second finds what the first has made."""
        key = path, parent
        while key in self._adding:
            await self._adding[key].wait()
        self._adding[key] = anyio.Event()
        try:
            yield
        finally:
            self._adding.pop(key).set()

    @asynccontextmanager
    async def _begun(self, new: NewShare) -> AsyncIterator[int]:
        """Begin a share, and abandon it if the block fails or is cancelled."""
        share = await self._database.write(partial(index.begin, new=new))
        try:
            yield share
        except BaseException:  # cancelled too: nobody is to see half a share
            await self._abandon(share)
            raise

    async def _abandon(self, share: int) -> None:
        # On a disk that takes nothing any more it stays unfinished, which nobody sees, until the next `load`.
        with anyio.CancelScope(shield=True), suppress(StorageError):
            await self._database.write(partial(index.discard, share=share))


class FolderShare:
    """A folder that is being shared; see `Shares.folder`.

    Attributes:
        finished: whether it is offered.
    """

    def __init__(self, writer: ShareWriter, share: int, secret: bytes) -> None:
        self.finished = False
        self._writer = writer
        self._id = share
        self._secret = secret
        self._unchanged: list[int] = []

    async def add(self, path: Path, progress: Progress | None = None) -> Share:
        """Offer a file as a part of the folder; its name is the manifest's matter.

        A file that is a part of an earlier share of the folder, and looks as it did then, is not read.

        Raises:
            NotFoundError, RefusedError, StorageError: see `Shares.add`.
            After failure or cancellation the part is not there; others can still be added.
        """
        known = await self._writer.unchanged_part(path, self._secret)
        if known is None:
            return await self._writer.add(path, progress, parent=self._id, secret=self._secret)
        self._unchanged.append(known.id)
        if len(self._unchanged) >= BATCH_PARTS:
            await self._take_over()
        return known

    async def finish(self, manifest: bytes) -> Share:
        """Offer the folder, with all parts that were added.

        Args:
            manifest: the content of the folder's capability.

        Raises:
            RefusedError: a part of an earlier share was removed meanwhile.
            StorageError: the disk is full or does not work.
        """
        await self._take_over()
        share = await self._writer.finish_folder(self._id, manifest, self._secret)
        self.finished = True
        return share

    async def _take_over(self) -> None:
        parts, self._unchanged = self._unchanged, []
        await self._writer.take_over(self._id, parts)


def _is_same(share: Share, stamp: Stamp) -> bool:
    return share.stamp == stamp and share.problem != "changed"
