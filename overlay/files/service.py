"""The application *files*: offer a file from where it lies, and fetch one that somebody offers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio

from overlay.database import Database
from overlay.errors import MalformedError, NotFoundError, RefusedError, VerificationError
from overlay.files.disk.paths import check_free, is_folder
from overlay.files.disk.target import Target, open_target
from overlay.files.engine.providers import Candidates
from overlay.files.fetching.gathering import Report, gather
from overlay.files.fetching.in_order import Take, read_in_order
from overlay.files.fetching.pace import Pace
from overlay.files.folders.fetch import FolderFetch
from overlay.files.folders.order import Order
from overlay.files.links import MAX_PROVIDERS, FileLink
from overlay.files.pinning.pin import pin_link
from overlay.files.pinning.pins import PINS_SCHEMA, Pin, Pins
from overlay.files.running import Fetches, Running, Shown, Watch, reporting
from overlay.files.sharing.folder_shares import SharedFolder, manifest_bytes, share_folder
from overlay.files.sharing.records import Share
from overlay.files.sharing.shares import SHARES_SCHEMA, Progress, Shares
from overlay.files.storing import noting, store_file
from overlay.locators import MAX_CLOCK_SKEW, LocatorRecord
from overlay.peer.limits import Limiter
from overlay.peer.node import Node
from overlay.wire.filenames import safe_basename

FILES_SCHEMAS = (SHARES_SCHEMA, PINS_SCHEMA)
"""What the database is opened with, beside the schemas of the node."""

MAX_ASKED = 32
"""Nodes that may have a file and are asked for it: those that its link names, then others that are known."""


class Files:
    """Offers and fetches files on one node.

    Args:
        node: whose peers are asked, and who are served.
        database: opened with `FILES_SCHEMAS`.

    Attributes:
        running: fetches that go on, in the order of their beginning.
        puts: puts that go on, likewise.
    """

    def __init__(self, node: Node, database: Database) -> None:
        self.running = Fetches()
        self.puts = Shown()
        self._node = node
        self._shares = Shares(database, entropy=node.entropy, clock=node.clock)
        self._pins = Pins(database, node.storage, node.clock)

    async def start(self) -> None:
        """Begin to serve what is offered; call it once.

        Raises:
            StorageError: the database does not work.
        """
        await self._shares.load()
        await self._pins.load()
        self._node.chunks.sources += [self._shares.chunks, self._pins]
        self._node.chunks.unfolding.append(self._shares.chunks.unfold)

    async def share(
        self, path: Path, name: str = "", progress: Progress | None = None, *, convergent: bool = False
    ) -> FileLink:
        """Offer a file. It is read once, nothing is copied, and it must stay where it is.

        Args:
            path: a regular file.
            name: what it is called, if not as the file.
            progress: told after each step.
            convergent: whether the same file gives everybody the same capability; see `Shares.add`.

        Returns:
            a link with which this node's offer is found.

        Raises:
            NotFoundError: there is no such file.
            RefusedError: it is a folder or no file at all, cannot be read, or changed meanwhile. For folders
                there is `share_folder`.
            MalformedError: its name cannot be told to others.
            StorageError: the disk is full or does not work.
            After failure or cancellation nothing more is offered than before.
        """
        share = await self._shares.add(path, progress, name=name or None, convergent=convergent)
        return await self._link(share)

    async def share_folder(
        self, path: Path, name: str = "", progress: Progress | None = None, *, convergent: bool = False
    ) -> tuple[FileLink, SharedFolder]:
        """Offer a folder with all that is in it; see `overlay.files.sharing.folder_shares.share_folder`.

        Returns:
            a link with which this node's offer is found, and what is offered.

        Raises:
            OverlayError: any of that function.
        """
        shared = await share_folder(self._shares, path, name, progress, convergent=convergent)
        return await self._link(shared.share), shared

    async def offered(self) -> Sequence[tuple[Share, FileLink]]:
        """Tell what is offered, oldest first, each with its link, after a look whether it is as it was.

        Raises:
            StorageError: the database does not work.
        """
        found: list[tuple[Share, FileLink]] = []
        for each in await self._shares.list():
            with suppress(NotFoundError):  # it was removed meanwhile
                share = await self._shares.check(each.id)
                found.append((share, await self._link(share)))
        return found

    async def remove(self, link: FileLink) -> tuple[Sequence[Share], Sequence[Share]]:
        """Offer something no more; see `Shares.remove`.

        Raises:
            OverlayError: any of that method.
        """
        return await self._shares.remove(link.capability)

    async def put(
        self,
        path: Path,
        name: str | None = None,
        progress: Progress | None = None,
        *,
        convergent: bool = False,
        spooled: bool = False,
    ) -> FileLink:
        """Store a file at other nodes, so that it can be fetched when this one has left.

        Args:
            path: a regular file.
            name: what it is called, if not as the file; empty for nothing.
            progress: told at the beginning and after each step.
            convergent: whether the same file gives everybody the same capability; see `Shares.add`.
            spooled: whether it is there for this alone: then its path says nothing to anybody.

        Returns:
            a link that names the nodes that keep it.

        Raises:
            MalformedError: its name cannot be told to others.
            OverlayError: see `store_file`.
        """
        called = path.name if name is None else name
        safe = safe_basename(called) if called else ""
        running = Running("put", safe, None if spooled else path, None)
        with self.puts.showing(running):
            note = noting(running, progress, anyio.current_time)
            stored = await store_file(self._node, path, note, most=MAX_PROVIDERS, convergent=convergent)
        records = [self._node.locators.known(holder) for holder in stored.holders]
        return FileLink(
            stored.capability,
            providers=tuple(record.encoded for record in records if record is not None),
            name=safe,
            size=stored.size,
        )

    async def pin(self, link: FileLink, progress: Watch | None = None) -> tuple[Pin, FileLink]:
        """Keep a file, or a folder, in this node's own storage, and serve it from there.

        Args:
            link: which.
            progress: told after each step.

        Returns:
            the pin, and a link that names this node.

        Raises:
            OverlayError: see `pin_link`. Failed or cancelled, what came is kept and the next attempt goes on.
        """
        running = Running("pin", link.name, None, link.size if link.kind == "file" else None)
        with self._fetching(running, link):
            candidates, step = self._candidates(link), reporting(running, progress)
            pin = await pin_link(
                self._node, self._pins, link, candidates, step=step, pace=self._pace(running)
            )
        return pin, self._link_of_pin(pin)

    async def unpin(self, link: FileLink) -> Pin:
        """Keep something no more.

        Raises:
            NotFoundError: it is not pinned.
            RefusedError: it is being pinned.
            StorageError: the disk does not work.
        """
        return await self._pins.remove(link)

    async def pinned(self) -> Sequence[tuple[Pin, FileLink]]:
        """Tell what is pinned, oldest first, each with its link.

        Raises:
            StorageError: the database does not work.
        """
        return [(pin, self._link_of_pin(pin)) for pin in await self._pins.list()]

    async def get(
        self,
        link: FileLink,
        destination: Path,
        progress: Watch | None = None,
        *,
        overwrite: bool = False,
        rate: int | None = None,
    ) -> tuple[Path, int]:
        """Fetch a file; what an earlier attempt left is gone on with.

        Args:
            link: which.
            destination: a folder, where it gets the link's name, or the path to write.
            progress: told after each step.
            overwrite: whether a file that is there may be replaced, when this one is whole.
            rate: bytes of chunks a second that may come at most; `limit` changes it meanwhile.

        Returns:
            where it is, and its size.

        Raises:
            MalformedError: the link has no name and a folder was given, what it leads to is no content, or
                the rate can be no limit.
            RefusedError: the target exists, is being fetched already, or the link is one of a folder. For
                folders there is `get_folder`.
            NotFoundError: there is no such folder, or nobody has all of the file any more.
            UnreachableError: nobody who may have the rest was reached.
            TransportUnavailableError: nobody could be, because none of this node's transports works.
            VerificationError: those who answered sent something else.
            StorageError: the disk is full or fails.
            Failed or cancelled, what came is kept and the next attempt goes on. Of what is no content nothing
            is kept, unless an earlier attempt had left some.
        """
        if link.kind == "folder":
            raise RefusedError("this link is one of a folder, not of a file")
        path = await _target_path(link, destination)
        if not overwrite:
            await check_free(path, link.capability)
        running = Running("get", link.name, path, link.size, limit=Limiter(rate))
        async with open_target(path, link.capability, size=link.size, overwrite=overwrite) as target:
            with self._fetching(running, link):
                report, pace = _report(running, target, progress), self._pace(running)
                candidates = self._candidates(link)
                try:
                    await gather(self._node, target, candidates, report, pace)
                except (MalformedError, NotFoundError, VerificationError) as error:
                    # The same command may never go on.
                    raise type(error)(f"{error}{target.remains}") from error
            await target.finish()
        return path, target.tree.present

    async def read(
        self,
        link: FileLink,
        folder: Path,
        take: Take,
        progress: Watch | None = None,
        *,
        rate: int | None = None,
    ) -> int:
        """Fetch a file and hand on what is in it, from its beginning to its end; none is made.

        Args:
            link: which.
            folder: where there is room for what comes too early; nothing is left in it.
            take: given each piece, after it was verified.
            progress: see `get`.
            rate: see `get`.

        Returns:
            its size.

        Raises:
            RefusedError: the link is one of a folder.
            NotFoundError: there is no such folder, or nobody has all of the file any more.
            OverlayError: any other that `get` raises.
            Failed or cancelled, a part was handed on.
        """
        if link.kind == "folder":
            raise RefusedError(
                "this link is one of a folder, not of a file: name a place to put it into with -o"
            )
        running = Running("read", link.name, None, link.size, limit=Limiter(rate))
        async with open_target(folder / "content", link.capability, size=link.size, nameless=True) as target:
            with self._fetching(running, link):
                report, pace = _report(running, target, progress), self._pace(running)
                await read_in_order(
                    self._node, target, self._candidates(link), take, report=report, pace=pace
                )
        return target.tree.present

    async def get_folder(
        self, order: Order, progress: Watch | None = None, *, rate: int | None = None
    ) -> FolderFetch:
        """Fetch a folder, or a part of it; what an earlier attempt left is gone on with.

        Args:
            order: what, and where to.
            progress: told after each step.
            rate: see `get`.

        Returns:
            how it stands at the end.

        Raises:
            OverlayError: any of `FolderFetch` and its `run`.
            RefusedError: the link is one of a file.
        """
        if order.link.kind != "folder":
            raise RefusedError("this link is one of a file, of which there are no parts")
        running = Running("get", order.link.name, order.path, None, limit=Limiter(rate))
        step = reporting(running, progress)
        with self._fetching(running, order.link):
            candidates = self._candidates(order.link)
            fetch = FolderFetch(
                self._node,
                order,
                candidates,
                lambda it: step(it.snapshot, it.present, it.size),
                self._pace(running),
            )
            await fetch.run()
        return fetch

    def _pace(self, running: Running) -> Pace:
        return Pace(running.limit, self._node.chunks.down, self.running)

    def _candidates(self, link: FileLink) -> Candidates:
        """Those that the link names; and others that are known, since what is stored may be anywhere.

        They come in any order. The one in which this node prefers them would show who it is to nodes that
        were good or bad to it under its name, and are now asked anonymously, one before the other. This node
        is among them, and asked as any other would ask it, anonymously and over the network: from what is
        asked elsewhere nobody can tell then what it stores for others.
        """
        found = dict.fromkeys(record.identifier for record in _records(link))
        known = [record.identifier for record in self._node.locators.reachable()]
        trusted = self._node.reputation.rank(known, self._node.clock())
        own = [self._node.identifier] if trusted else []
        others = [each for each in own + trusted if each not in found]
        others.sort(key=lambda _: self._node.entropy(8))
        return Candidates(list(found), others[: MAX_ASKED - len(found)])

    @contextmanager
    def _fetching(self, running: Running, link: FileLink) -> Iterator[None]:
        """Show a fetch, and let it dial where its link says that those are whom it names.

        What has expired is still the best that is known: addresses last.
        """
        now = self._node.clock()
        records = [record for record in _records(link) if record.issued <= now + MAX_CLOCK_SKEW]
        with self.running.showing(running), self._node.locators.lend(records):
            yield

    def _link_of_pin(self, pin: Pin) -> FileLink:
        return FileLink(
            pin.capability,
            providers=(self._node.locators.own.encoded,),
            name=pin.name,
            size=pin.size,
            kind=pin.kind,
        )

    async def _link(self, share: Share) -> FileLink:
        is_file = share.kind == "file"
        return FileLink(
            share.capability,
            providers=(self._node.locators.own.encoded,),
            name=safe_basename(share.name),
            size=share.size if is_file else await manifest_bytes(self._shares.chunks, share.capability),
            kind=share.kind,
        )


def _records(link: FileLink) -> list[LocatorRecord]:
    """Those of a link that verify, expired or not."""
    records: list[LocatorRecord] = []
    for encoded in link.providers:
        with suppress(MalformedError, VerificationError):
            records.append(LocatorRecord.from_store(encoded))
    return records


def _report(running: Running, target: Target, watch: Watch | None) -> Report:
    step = reporting(running, watch)
    return lambda snapshot: step(snapshot, target.tree.present, target.tree.size)


async def _target_path(link: FileLink, destination: Path) -> Path:
    if not await is_folder(destination):
        return destination
    if not link.name:
        raise MalformedError(
            "this link does not say what the file is called: give a path to write to with -o"
        )
    return destination / link.name
