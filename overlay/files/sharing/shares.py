"""What this node offers without a copy of it: files stay where they lie, and are read when somebody asks.

A folder is shared in parts: each file by itself, and a manifest, which is no file and is kept as chunks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from anyio import to_thread

from overlay.database import Database
from overlay.files.sharing import index
from overlay.files.sharing.chunks import SharedChunks
from overlay.files.sharing.index import SHARES_SCHEMA
from overlay.files.sharing.records import Share
from overlay.files.sharing.walk import refuse_home
from overlay.files.sharing.writer import FolderShare, Progress, ShareWriter
from overlay.identity import Entropy
from overlay.units.capability import NULL_SECRET, ReadCapability
from overlay.wire.filenames import safe_basename

__all__ = ["SHARES_SCHEMA", "FolderShare", "Progress", "Shares"]


class Shares:
    """What this node offers. A share that was returned survives SIGKILL and power loss.

    Args:
        database: opened with `SHARES_SCHEMA`.
        entropy: random bytes.
        clock: seconds since 1970.

    Attributes:
        chunks: serve it.
    """

    def __init__(self, database: Database, *, entropy: Entropy, clock: Callable[[], float]) -> None:
        self.chunks = SharedChunks(database)
        self._database = database
        self._writer = ShareWriter(database, entropy, clock)

    async def load(self) -> None:
        """Clear away what was being added or removed when the program ended; call it once, before `add`.

        Raises:
            StorageError: the database does not work.
            After cancellation the rest is cleared away by the next `load`, `add` or `remove`.
        """
        await self._database.write(index.discard_unfinished)
        await self._writer.sweep()

    async def add(
        self,
        path: Path,
        progress: Progress | None = None,
        *,
        name: str | None = None,
        convergent: bool = False,
    ) -> Share:
        """Offer a file. It is read once, and must stay where it is.

        A path that is shared already gives the same share while its file is unchanged. A file that changed
        gets a share of its own, with the secret of the earlier one: what is equal in both is fetched once.
        The secret of any other file is random, so that equal files of two nodes have nothing in common.

        Args:
            path: a regular file, or a link to one.
            progress: told after each step.
            name: what it is called, if not as the file.
            convergent: whether its secret is the one that everybody knows, so that whoever encodes the same
                file gets the same capability, and can find out whether this node offers it.

        Returns:
            the share, which is on the disk.

        Raises:
            NotFoundError: there is no such file.
            RefusedError: it is not a regular file, cannot be read, changed while it was read, or lies in the
                home of a node.
            MalformedError: its name cannot be told to others.
            StorageError: the disk is full or does not work.
            After failure or cancellation nothing more is offered than before.
        """
        called = path.name if name is None else name
        safe_basename(called)
        await to_thread.run_sync(refuse_home, path)
        await self._writer.sweep()
        secret = NULL_SECRET if convergent else None
        return await self._writer.add(path, progress, name=called, secret=secret)

    @asynccontextmanager
    async def folder(
        self, path: Path, *, name: str | None = None, convergent: bool = False
    ) -> AsyncIterator[FolderShare]:
        """Offer a folder: add its parts in the block, then `finish` with the manifest.

        Left without `finish`, by failure or cancellation, nothing of it is offered. A folder that comes out
        just as an earlier share of the same path takes its place. All its parts have one convergence secret:
        that of the earlier share of the path, or a random one.

        Args:
            path: the folder; it is not looked at.
            name: what it is called, if not as the folder.
            convergent: whether that secret is the one that everybody knows; see `add`.

        Raises:
            MalformedError: its name cannot be told to others.
            StorageError: the disk is full or does not work.
        """
        called = path.name if name is None else name
        safe_basename(called)
        await self._writer.sweep()
        async with self._writer.folder(path, called, convergent=convergent) as folder:
            yield folder

    async def check(self, share: int) -> Share:
        """Look whether a file, or each file of a folder, is as it was when it was shared, and note it.

        Only how it looks is compared. A content that was found changed stays so until it is added again.

        Raises:
            NotFoundError: nothing is shared under this number.
            StorageError: the database does not work.
        """
        found = await self._database.read(partial(index.get, share=share))
        await self.chunks.examine([found] if found.kind == "file" else await self.parts(share))
        return await self._database.read(partial(index.get, share=share))

    async def parts(self, share: int) -> Sequence[Share]:
        """Tell the files of a folder, those first that were encoded first.

        Raises:
            StorageError: the database does not work.
        """
        return await self._database.read(partial(index.of_parent, parent=share))

    async def remove(self, capability: ReadCapability) -> tuple[Sequence[Share], Sequence[Share]]:
        """Offer nothing by itself any more that a capability reads; the files are not touched.

        Files with the same content have the same capability if they are convergent.

        Returns:
            what is offered no more, and folders that still have it as a part, both oldest first.

        Raises:
            NotFoundError: nothing is offered under it.
            RefusedError: only folders have it, as a part.
            StorageError: the disk does not work.
            After cancellation it is removed or not; what it occupies is given back by the next `load`, `add`
            or `remove`.
        """
        found = await self._database.write(partial(index.remove, capability=capability))
        await self._writer.sweep()
        return found

    async def list(self) -> Sequence[Share]:
        """Tell what is offered, oldest first: files and folders, not the parts of folders.

        Raises:
            StorageError: the database does not work.
        """
        return await self._database.read(partial(index.of_parent, parent=None))
