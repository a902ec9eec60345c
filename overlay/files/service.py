"""The application *files*: offer a file from where it lies, and fetch one that somebody offers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from overlay.database import Database
from overlay.errors import MalformedError, NotFoundError, RefusedError, VerificationError
from overlay.files.actions import Snapshot
from overlay.files.fetch import fetch
from overlay.files.links import FileLink
from overlay.files.share_records import Share
from overlay.files.shares import Progress, Shares
from overlay.files.target import Target, open_target
from overlay.identity import NodeIdentifier
from overlay.locators import LocatorRecord
from overlay.peer.node import Node
from overlay.wire.filenames import safe_basename

MAX_ASKED = 32
"""Nodes that may have a file and are asked for it: those that its link names, then others that are known."""

LOCAL_CHUNKS = 64
"""Chunks looked for on this node at once: 2 MiB."""


@dataclass(slots=True)
class Running:
    """A fetch that goes on.

    Attributes:
        path: where the file will be.
        size: its bytes; None while that is not known.
        present: bytes that are there already.
        snapshot: how the transfer stands; None before it has begun.
    """

    path: Path
    size: int | None
    present: int = 0
    snapshot: Snapshot | None = None


class Files:
    """Offers and fetches files on one node.

    Args:
        node: whose peers are asked, and who are served.
        database: opened with `SHARES_SCHEMA`.

    Attributes:
        running: fetches that go on, in the order of their beginning.
    """

    def __init__(self, node: Node, database: Database) -> None:
        self.running: list[Running] = []
        self._node = node
        self._shares = Shares(database, entropy=node.entropy, clock=node.clock)

    async def start(self) -> None:
        """Begin to serve what is offered; call it once.

        Raises:
            StorageError: the database does not work.
        """
        await self._shares.load()
        self._node.chunks.sources.append(self._shares)

    async def share(self, path: Path, name: str = "", progress: Progress | None = None) -> FileLink:
        """Offer a file. It is read once, nothing is copied, and it must stay where it is.

        Args:
            path: a regular file.
            name: what it is called, if not as the file.
            progress: told after each step.

        Returns:
            a link with which this node's offer is found.

        Raises:
            NotFoundError: there is no such file.
            RefusedError: it is a folder or no file at all, cannot be read, or changed meanwhile.
            MalformedError: its name cannot be told to others.
            StorageError: the disk is full or does not work.
            After failure or cancellation nothing more is offered than before.
        """
        if await anyio.Path(path).is_dir():
            raise RefusedError(f"{path} is a folder: pack it into one file first")
        return self._link(await self._shares.add(path, progress, name=name or None))

    async def offered(self) -> Sequence[tuple[Share, FileLink]]:
        """Tell what is offered, oldest first, each with its link.

        Raises:
            StorageError: the database does not work.
        """
        return [(share, self._link(share)) for share in await self._shares.list()]

    async def remove(self, link: FileLink) -> Share:
        """Offer something no more; the file is not touched.

        Raises:
            NotFoundError: this node does not offer it.
            StorageError: the database does not work.
        """
        share = await self._shares.lookup(link.capability)
        if share is None:
            raise NotFoundError("this node does not offer that: 'overlay file list' shows what it does")
        await self._shares.remove(share.id)
        return share

    async def get(
        self, link: FileLink, destination: Path, progress: Progress | None = None, *, overwrite: bool = False
    ) -> tuple[Path, int]:
        """Fetch a file; what an earlier attempt left is gone on with.

        Args:
            link: which.
            destination: a folder, where it gets the link's name, or the path to write.
            progress: told after each step; only while the size is known.
            overwrite: whether a file that is there may be replaced, when this one is whole.

        Returns:
            where it is, and its size.

        Raises:
            MalformedError: the link has no name and a folder was given, or what it leads to is no content.
            RefusedError: the target exists, is being fetched already, or the link is one of a folder.
            NotFoundError: there is no such folder, or nobody has all of the file any more.
            UnreachableError: nobody who may have the rest was reached.
            VerificationError: those who answered sent something else.
            StorageError: the disk is full or fails.
            Failed or cancelled, what came is kept and the next attempt goes on.
        """
        if link.kind == "folder":
            raise RefusedError("this link is one of a folder, which this version cannot fetch")
        path = await _target_path(link, destination)
        async with open_target(path, link.capability, size=link.size, overwrite=overwrite) as target:
            with self._run(path, target, link.size) as running:

                def report(snapshot: Snapshot | None) -> None:
                    running.snapshot, running.size = snapshot, target.tree.size
                    running.present = target.tree.present
                    if progress is not None and running.size is not None:
                        progress(running.present, running.size)

                await self._take_local(target)
                report(None)
                if not target.tree.finished:
                    await fetch(self._node, target, await self._providers(link), report)
            await target.finish()
        return path, target.tree.present

    @contextmanager
    def _run(self, path: Path, target: Target, size: int | None) -> Iterator[Running]:
        running = Running(path, size, target.tree.present)
        self.running.append(running)
        try:
            yield running
        finally:
            self.running.remove(running)

    async def _take_local(self, target: Target) -> None:
        """Take what this node offers or stores itself."""
        lacking: set[bytes] = set()
        while wanted := target.tree.wanted(LOCAL_CHUNKS, lacking):
            lacking.update(wanted)
            async for reference, chunk in self._local(wanted):
                target.take(reference, chunk)
                lacking.discard(reference)
            await target.flush()

    async def _local(self, wanted: Sequence[bytes]) -> AsyncIterator[tuple[bytes, bytes]]:
        for source in (self._node.storage, self._shares):
            for reference, chunk in zip(wanted, await source.get(wanted), strict=True):
                if chunk is not None:
                    yield reference, chunk

    async def _providers(self, link: FileLink) -> list[NodeIdentifier]:
        """Those that the link names, and others that are known: what is stored may be anywhere."""
        named = [await self._learn(encoded) for encoded in link.providers]
        known = [record.identifier for record in self._node.locators.reachable()]
        ranked = self._node.reputation.rank(known, self._node.clock())
        found = dict.fromkeys([each for each in named if each is not None])
        found |= dict.fromkeys(ranked)
        found.pop(self._node.identifier, None)
        return list(found)[:MAX_ASKED]

    async def _learn(self, encoded: bytes) -> NodeIdentifier | None:
        """Learn a provider's record. One that has expired is still the best that is known: addresses last."""
        try:
            record = LocatorRecord.from_store(encoded)
        except (MalformedError, VerificationError):
            return None
        if record.issued <= self._node.clock():
            await self._node.locators.keep(record)
        return record.identifier

    def _link(self, share: Share) -> FileLink:
        return FileLink(
            share.capability,
            providers=(self._node.locators.own.encoded,),
            name=safe_basename(share.name),
            size=share.size,
            kind="file",
        )


async def _target_path(link: FileLink, destination: Path) -> Path:
    if not await anyio.Path(destination).is_dir():
        return destination
    if not link.name:
        raise MalformedError(
            "this link does not say what the file is called: give a path to write to with -o"
        )
    return destination / link.name
