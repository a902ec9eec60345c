"""What this node offers without a copy of it: shared files are read, and encrypted on the way out.

A file is encoded once, when it is shared, and what comes out is dropped but for references and the nodes of
the tree. Whoever asks for a leaf gets it made anew from the file. It is compared with its reference each
time, so a file that changed is answered as gone and never served wrong.

A folder is shared in parts: each file by itself, and a manifest, which is no file and is kept as chunks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from overlay.database import Database
from overlay.errors import MalformedError, StorageError
from overlay.files import share_index as index
from overlay.files.share_index import SHARES_SCHEMA
from overlay.files.share_records import NewShare, Place, Problem, Share, Stamp
from overlay.files.shared_file import FileEncoding, LeafReader, examine, locate
from overlay.files.walk import refuse_home
from overlay.identity import Entropy
from overlay.peer.chunks import ChunkSource
from overlay.units.eris import SECRET_BYTES, ReadCapability, encode_content
from overlay.wire.filenames import safe_basename

__all__ = [
    "BATCH_LEAVES",
    "MAX_BATCH_CHUNKS",
    "SHARES_SCHEMA",
    "FolderShare",
    "Problem",
    "Progress",
    "Share",
    "Shares",
    "Stamp",
]

MAX_BATCH_CHUNKS = 256
"""References of one `get`: 8 MiB of memory at most."""

BATCH_LEAVES = 16_384
"""Leaves noted in one transaction, 512 MiB of content. They are scattered over the whole table, so with a
quarter as many about three times as much is written; with many more, others wait for the database."""

BATCH_PARTS = 1024
"""Unchanged files of a folder noted in one transaction: one each takes as long as reading small files."""

MAX_READERS = 4
"""Threads that read shared files for others: one disk that hangs holds up no more than these."""

_MANIFEST_CHUNKS = 64
"""Chunks of a manifest noted in one transaction: 2 MiB."""

Progress = Callable[[int, int], None]
"""Told how many bytes of how many are done."""

Chunks = list[bytes | None]
"""For each reference its chunk, or None."""

Places = Mapping[bytes, Sequence[Place]]
"""For each reference where its leaf is made from."""


class Shares(ChunkSource):
    """What this node offers. A share that was returned survives SIGKILL and power loss.

    It is a `ChunkSource`: given to `Chunks.sources`, other nodes are served from it.

    Args:
        database: opened with `SHARES_SCHEMA`.
        entropy: random bytes.
        clock: seconds since 1970.
    """

    def __init__(self, database: Database, *, entropy: Entropy, clock: Callable[[], float]) -> None:
        self._database = database
        self._entropy = entropy
        self._clock = clock
        self._adding: dict[tuple[Path, int | None], anyio.Event] = {}
        self._readers = anyio.CapacityLimiter(MAX_READERS)

    async def load(self) -> None:
        """Clear away what was being added or removed when the program ended; call it once, before `add`.

        Raises:
            StorageError: the database does not work.
            After cancellation the rest is cleared away by the next `load`, `add` or `remove`.
        """
        await self._database.write(index.discard_unfinished)
        await self._sweep()

    async def add(
        self,
        path: Path,
        progress: Progress | None = None,
        *,
        name: str | None = None,
        secret: bytes | None = None,
    ) -> Share:
        """Offer a file. It is read once, and must stay where it is.

        A path that is shared already gives the same share while its file is unchanged. A file that changed
        gets a share of its own, with the secret of the earlier one: what is equal in both is fetched once.

        Args:
            path: a regular file, or a link to one.
            progress: told after each step.
            name: what it is called, if not as the file.
            secret: the convergence secret, 32 bytes, if not a random one.

        Returns:
            the share, which is on the disk.

        Raises:
            NotFoundError: there is no such file.
            RefusedError: it is not a regular file, cannot be read, changed while it was read, or lies in the
                home of a node.
            MalformedError: its name cannot be told to others, or the secret has not 32 bytes.
            StorageError: the disk is full or does not work.
            After failure or cancellation nothing more is offered than before.
        """
        called = path.name if name is None else name
        safe_basename(called)
        await anyio.to_thread.run_sync(refuse_home, path)
        await self._sweep()
        return await self._add(path, progress, parent=None, name=called, secret=secret)

    @asynccontextmanager
    async def folder(
        self, path: Path, *, name: str | None = None, secret: bytes | None = None
    ) -> AsyncIterator[FolderShare]:
        """Offer a folder: add its parts in the block, then `finish` with the manifest.

        Left without `finish`, by failure or cancellation, nothing of it is offered. A folder that comes out
        just as an earlier share of the same path takes its place.

        Args:
            path: the folder; it is not looked at.
            name: what it is called, if not as the folder.
            secret: the convergence secret of all its parts, if not that of the earlier share of the path or
                a random one.

        Raises:
            MalformedError: its name cannot be told to others.
            StorageError: the disk is full or does not work.
        """
        called = path.name if name is None else name
        safe_basename(called)
        await self._sweep()
        before = await self._database.read(partial(index.of_path, path=path, parent=None))
        new = NewShare(
            parent=None,
            kind="folder",
            name=called,
            path=path,
            stamp=Stamp(0, 0, 0),
            secret=self._secret(secret, before),
            added=self._clock(),
        )
        async with self._begun(new) as share:
            folder = FolderShare(self, share, new.secret)
            yield folder
            if folder.share is None:
                await self._abandon(share)

    async def get(self, references: Sequence[bytes]) -> Chunks:
        """Make chunks of what is offered; each fits its reference.

        Args:
            references: at most `MAX_BATCH_CHUNKS`.

        Returns:
            for each reference its chunk, or `None`: it belongs to no share, or the file is not any more what
            it was, which `list` tells from then on.

        Raises:
            MalformedError: too many references.
            StorageError: the database is damaged, or the disk does not work.
        """
        return await (await self.look_up(references)).get(references)

    async def look_up(self, references: Sequence[bytes]) -> _Lookup:
        """Find out for a request which files its leaves are made from; its other chunks are left for later.

        Args:
            references: at most `MAX_BATCH_CHUNKS`.

        Raises:
            MalformedError: too many references.
            StorageError: the database is damaged, or the disk does not work.
        """
        if len(references) > MAX_BATCH_CHUNKS:
            raise MalformedError(
                f"at most {MAX_BATCH_CHUNKS} chunks go into one request, not {len(references)}"
            )
        places = await self._database.read(partial(index.places, references=references), bulk=True)
        return _Lookup(self, places)

    async def _make(self, references: Sequence[bytes], places: Places) -> Chunks:
        leaves = [reference for reference in references if places.get(reference)]
        others = [reference for reference in references if not places.get(reference)]
        made: dict[bytes, bytes | None] = {}
        if others:
            made |= await self._database.read(partial(index.nodes, references=others), bulk=True)
        if leaves:
            chunks, verdicts = await anyio.to_thread.run_sync(
                _read_leaves, leaves, places, limiter=self._readers
            )
            made |= chunks
            await self._note(verdicts, [place for reference in leaves for place in places[reference]])
        return [made[reference] for reference in references]

    async def unfold(self, root: bytes, number: int) -> bytes | None:
        """Give a chunk of a tree that is offered by its number, see `overlay.peer.chunks.Unfold`.

        Raises:
            StorageError: the database is damaged, or the disk does not work.
        """
        return await self._database.read(partial(index.unfold, root=root, number=number), bulk=True)

    async def check(self, share: int) -> Share:
        """Look whether a file, or each file of a folder, is as it was when it was shared, and note it.

        Only how it looks is compared. A content that was found changed stays so until it is added again.

        Raises:
            NotFoundError: nothing is shared under this number.
            StorageError: the database does not work.
        """
        found = await self._database.read(partial(index.get, share=share))
        files = [found] if found.kind == "file" else await self.parts(share)
        verdicts = await anyio.to_thread.run_sync(_examine_all, files, limiter=self._readers)
        await self._note(verdicts, files)
        return await self._database.read(partial(index.get, share=share))

    async def parts(self, share: int) -> Sequence[Share]:
        """Tell the files of a folder, those first that were encoded first.

        Raises:
            StorageError: the database does not work.
        """
        return await self._database.read(partial(index.of_parent, parent=share))

    async def lookup(self, capability: ReadCapability) -> Share | None:
        """Tell what is offered under a capability: a file, a folder, or a part of one.

        Raises:
            StorageError: the database does not work.
        """
        return await self._database.read(partial(index.of_capability, capability=capability))

    async def remove(self, share: int) -> None:
        """Offer something no more; its files are not touched.

        Raises:
            NotFoundError: nothing is shared under this number.
            RefusedError: it is a part of a folder.
            StorageError: the disk does not work.
            After cancellation it is removed or not; what it occupies is given back by the next `load`, `add`
            or `remove`.
        """
        await self._database.write(partial(index.remove, share=share))
        await self._sweep()

    async def list(self) -> Sequence[Share]:
        """Tell what is offered, oldest first: files and folders, not the parts of folders.

        Raises:
            StorageError: the database does not work.
        """
        return await self._database.read(partial(index.of_parent, parent=None))

    async def _add(
        self, path: Path, progress: Progress | None, *, parent: int | None, name: str, secret: bytes | None
    ) -> Share:
        target, stamp = await anyio.to_thread.run_sync(locate, path)
        async with self._turn(target, parent):
            before = await self._database.read(partial(index.of_path, path=target, parent=parent))
            if before and _is_same(before, stamp, secret):
                return await self._database.write(partial(index.renew, share=before.id, name=name))
            new = NewShare(
                parent=parent,
                kind="file",
                name=name,
                path=target,
                stamp=stamp,
                secret=self._secret(secret, before),
                added=self._clock(),
            )
            encoding = FileEncoding(target, stamp, new.secret)
            async with self._begun(new) as share:
                return await self._encode(share, encoding, stamp.size, progress)

    async def _unchanged_part(self, path: Path, secret: bytes) -> Share | None:
        target, stamp = await anyio.to_thread.run_sync(locate, path)
        found = await self._database.read(partial(index.part_of_path, path=target, secret=secret))
        return found if found and _is_same(found, stamp, secret) else None

    async def _take_over(self, parent: int, parts: Sequence[int]) -> None:
        if parts:
            await self._database.write(partial(index.take_over, parent=parent, parts=parts))

    def _secret(self, given: bytes | None, before: Share | None) -> bytes:
        if given is not None:
            return given
        return before.secret if before else self._entropy(SECRET_BYTES)

    async def _encode(
        self, share: int, encoding: FileEncoding, size: int, progress: Progress | None
    ) -> Share:
        while not encoding.read:
            await anyio.to_thread.run_sync(encoding.step)
            if len(encoding.leaves) >= BATCH_LEAVES:
                await self._extend(share, encoding)
            if progress is not None:
                progress(encoding.position, size)
        capability = await anyio.to_thread.run_sync(encoding.finish)
        await self._extend(share, encoding)
        return await self._database.write(partial(index.finish, share=share, capability=capability))

    async def _extend(self, share: int, encoding: FileEncoding) -> None:
        leaves, nodes = encoding.take()
        await self._database.write(partial(index.extend, share=share, leaves=leaves, nodes=nodes))

    async def _finish_folder(self, share: int, manifest: bytes, secret: bytes) -> Share:
        chunks, capability = await anyio.to_thread.run_sync(partial(encode_content, manifest, secret=secret))
        for start in range(0, len(chunks), _MANIFEST_CHUNKS):
            some = chunks[start : start + _MANIFEST_CHUNKS]
            await self._database.write(partial(index.extend, share=share, leaves=(), nodes=some))
        return await self._database.write(partial(index.finish, share=share, capability=capability))

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

    async def _note(self, verdicts: dict[int, Problem | None], known: Sequence[Place | Share]) -> None:
        """Write down what is news; most often nothing is."""
        stored = {each.share if isinstance(each, Place) else each.id: each.problem for each in known}
        news = [
            (share, verdict)
            for share, verdict in verdicts.items()
            if verdict != stored[share] and not (verdict is None and stored[share] == "changed")
        ]
        if news:
            await self._database.write(partial(index.mark, problems=news))

    async def _sweep(self) -> None:
        dead = await self._database.read(index.discarded)
        after: bytes | None = b"" if dead else None
        while after is not None:
            after = await self._database.write(partial(index.sweep, dead=dead, after=after))


class FolderShare:
    """A folder that is being shared; see `Shares.folder`.

    Attributes:
        id: number of the share.
        secret: the convergence secret of all its parts.
        share: the share, once it is finished.
    """

    def __init__(self, shares: Shares, share: int, secret: bytes) -> None:
        self._shares = shares
        self.id = share
        self.secret = secret
        self.share: Share | None = None
        self._unchanged: list[int] = []

    async def add(self, path: Path, progress: Progress | None = None) -> Share:
        """Offer a file as a part of the folder; its name is the manifest's matter.

        A file that is a part of an earlier share of the folder, and looks as it did then, is not read.

        Raises:
            NotFoundError, RefusedError, StorageError: see `Shares.add`.
            After failure or cancellation the part is not there; others can still be added.
        """
        known = await self._shares._unchanged_part(path, self.secret)  # noqa: SLF001 - one thing in two classes
        if known is not None:
            self._unchanged.append(known.id)
            if len(self._unchanged) >= BATCH_PARTS:
                await self._take_over()
            return known
        return await self._shares._add(path, progress, parent=self.id, name="", secret=self.secret)  # noqa: SLF001 - the same

    async def finish(self, manifest: bytes) -> Share:
        """Offer the folder, with all parts that were added.

        Args:
            manifest: the content of the folder's capability.

        Raises:
            RefusedError: a part of an earlier share was removed meanwhile.
            StorageError: the disk is full or does not work.
        """
        await self._take_over()
        self.share = await self._shares._finish_folder(self.id, manifest, self.secret)  # noqa: SLF001 - the same
        return self.share

    async def _take_over(self) -> None:
        parts, self._unchanged = self._unchanged, []
        await self._shares._take_over(self.id, parts)  # noqa: SLF001 - the same


def _is_same(share: Share, stamp: Stamp, secret: bytes | None) -> bool:
    return share.stamp == stamp and share.problem != "changed" and secret in (None, share.secret)


class _Lookup:
    """Where the leaves of one request are made from. What is no leaf is looked for when it is wanted."""

    def __init__(self, shares: Shares, places: Places) -> None:
        self._shares = shares
        self._places = places

    async def get(self, references: Sequence[bytes]) -> Chunks:
        return await self._shares._make(references, self._places)


def _read_leaves(
    references: Sequence[bytes], places: Places
) -> tuple[dict[bytes, bytes | None], dict[int, Problem | None]]:
    with LeafReader() as reader:
        chunks = {reference: reader.read(reference, places[reference]) for reference in references}
    return chunks, reader.verdicts


def _examine_all(files: Sequence[Share]) -> dict[int, Problem | None]:
    return {file.id: examine(file.path, file.stamp) for file in files}
