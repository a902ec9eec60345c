"""What a running node does with files for programs: the verbs `file.*` of docs/spec/control.md."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Annotated, TypeAlias

from msgspec import UNSET, Meta, UnsetType

from overlay.control.protocol import JSON
from overlay.control.runtime import Runtime
from overlay.control.server import AbsolutePath, Answers, Arguments, Handler, Handlers, NoArguments
from overlay.errors import MalformedError, NotFoundError
from overlay.files.disk.paths import is_folder
from overlay.files.engine.actions import Snapshot
from overlay.files.folders.order import Order
from overlay.files.links import FileLink
from overlay.files.manifest.paths import MAX_PATH_BYTES
from overlay.files.pinning.pins import Pin
from overlay.files.running import Running, Watch
from overlay.files.service import Files
from overlay.files.sharing.records import Share
from overlay.peer.bucket import MAX_RATE, MIN_RATE
from overlay.peer.storage import MAX_QUOTA

Rate: TypeAlias = Annotated[int, Meta(ge=MIN_RATE, le=MAX_RATE)]


MAX_PATTERNS = 256
"""Patterns of one fetch; people give a few, and each is tried on a million files."""

Patterns: TypeAlias = Annotated[
    tuple[Annotated[str, Meta(max_length=MAX_PATH_BYTES)], ...], Meta(max_length=MAX_PATTERNS)
]


class ShareArguments(Arguments, frozen=True):
    """`path`: the file or folder to offer; `name`: what it is called, if not as that.

    `convergent`: whether the same file gives everybody the same capability.
    """

    path: AbsolutePath
    name: str = ""
    convergent: bool = False


class PutArguments(Arguments, frozen=True):
    """`path`: the file to store; `name`: what it is called, if not as the file; empty for nothing.

    `convergent`: see `ShareArguments`; `spooled`: whether the file is there for this alone.
    """

    path: AbsolutePath
    name: str | None = None
    convergent: bool = False
    spooled: bool = False


class LinkArguments(Arguments, frozen=True):
    """`link`: which file."""

    link: str


class FetchArguments(LinkArguments, frozen=True):
    """`path`: where to write it, or a folder, which one that ends in `/` must be.

    `overwrite`: whether a file that is there may be replaced.

    `rate`: bytes a second at most; `only`: patterns of what is wanted of a folder, none for all.
    """

    path: AbsolutePath
    overwrite: bool = False
    rate: Rate | None = None
    only: Patterns = ()


class ReadArguments(LinkArguments, frozen=True):
    """`folder`: has room for what comes too early; `rate`: bytes a second at most."""

    folder: AbsolutePath
    rate: Rate | None = None


class LimitArguments(Arguments, frozen=True):
    """`up`, `down`: bytes a second at most, None for no limit; `path`: only the fetch to it, only `down`.

    `disk`: bytes of chunks that are stored at most.
    """

    up: Rate | UnsetType | None = UNSET
    down: Rate | UnsetType | None = UNSET
    disk: Annotated[int, Meta(ge=0, le=MAX_QUOTA)] | UnsetType = UNSET
    path: AbsolutePath | None = None


def bind_files(runtime: Runtime) -> Handlers:
    """Give the handlers of the verbs for one run of a node."""
    verbs = FileVerbs(runtime)
    return {
        "file.share": Handler(ShareArguments, verbs.share),
        "file.put": Handler(PutArguments, verbs.put),
        "file.get": Handler(FetchArguments, verbs.get),
        "file.read": Handler(ReadArguments, verbs.read),
        "file.list": Handler(NoArguments, verbs.list),
        "file.remove": Handler(LinkArguments, verbs.remove),
        "file.pin": Handler(LinkArguments, verbs.pin),
        "file.unpin": Handler(LinkArguments, verbs.unpin),
        "file.status": Handler(NoArguments, verbs.status),
        "file.limit": Handler(LimitArguments, verbs.limit),
    }


class FileVerbs:
    """The verbs of the files."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def share(self, args: ShareArguments, answers: Answers) -> JSON:
        """Offer a file or a folder from where it lies."""
        files, path, told = self._runtime.services.files, Path(args.path), answers.progress
        if await is_folder(path):
            link, folder = await files.share_folder(path, args.name, told, convergent=args.convergent)
            return {
                "link": link.urn,
                "name": link.name,
                "size": folder.share.size,
                "files": folder.files,
                "skipped": folder.skipped,
            }
        link = await files.share(path, args.name, told, convergent=args.convergent)
        return {"link": link.urn, "name": link.name, "size": link.size}

    async def put(self, args: PutArguments, answers: Answers) -> JSON:
        """Store a file at other nodes."""
        files, told, path = self._runtime.services.files, answers.progress, Path(args.path)
        link = await files.put(path, args.name, told, convergent=args.convergent, spooled=args.spooled)
        return {"link": link.urn, "name": link.name, "size": link.size, "holders": len(link.providers)}

    async def pin(self, args: LinkArguments, answers: Answers) -> JSON:
        """Keep a file or folder in this node's own storage."""
        pin, link = await self._runtime.services.files.pin(FileLink.parse(args.link), telling(answers))
        return {"link": link.urn, "name": pin.name, "size": pin.total}

    async def unpin(self, args: LinkArguments, _answers: Answers) -> JSON:
        """Keep something no more."""
        pin = await self._runtime.services.files.unpin(FileLink.parse(args.link))
        return {"name": pin.name, "size": pin.total}

    async def get(self, args: FetchArguments, answers: Answers) -> JSON:
        """Fetch a file, or a folder.

        Raises:
            MalformedError: not a link, or patterns for a file.
            NotFoundError: a file is to be put into a folder that is not there.
            OverlayError: any other of fetching.
        """
        files, link, progress = self._runtime.services.files, FileLink.parse(args.link), telling(answers)
        if link.kind == "folder":
            order = Order(link, Path(args.path), args.only, overwrite=args.overwrite)
            fetch = await files.get_folder(order, progress, rate=args.rate)
            return {"path": str(order.path), "size": fetch.size, "files": fetch.files}
        if args.only:
            raise MalformedError("this link is one of a file: only of a folder a part can be fetched")
        await check_destination(args.path)
        path, size = await files.get(
            link, Path(args.path), progress, overwrite=args.overwrite, rate=args.rate
        )
        return {"path": str(path), "size": size}

    async def read(self, args: ReadArguments, answers: Answers) -> JSON:
        """Fetch a file and hand it on, piece by piece, one an item."""

        async def take(piece: bytes) -> None:
            await answers.item({"content": b64encode(piece).decode("ascii")})

        files, folder = self._runtime.services.files, Path(args.folder)
        await files.read(FileLink.parse(args.link), folder, take, telling(answers), rate=args.rate)
        return None

    async def list(self, _args: NoArguments, answers: Answers) -> JSON:
        """What is offered, then what is pinned, one an item."""
        for share, link in await self._runtime.services.files.offered():
            await answers.item(_offer(share, link))
        for pin, link in await self._runtime.services.files.pinned():
            await answers.item(_pinned(pin, link))
        return None

    async def remove(self, args: LinkArguments, _answers: Answers) -> JSON:
        """Offer something no more."""
        removed, folders = await self._runtime.services.files.remove(FileLink.parse(args.link))
        return {
            "name": removed[-1].name,
            "paths": [str(share.path) for share in removed],
            "within": [str(share.path) for share in folders],
        }

    async def status(self, _args: NoArguments, answers: Answers) -> JSON:
        """The fetches that go on, then the puts, one an item."""
        files = self._runtime.services.files
        for running in (*files.running, *files.puts):
            await answers.item(_running(running))
        return None

    async def limit(self, args: LimitArguments, _answers: Answers) -> JSON:
        """Change the limits of the node, or of one fetch, and tell those of the node.

        Raises:
            MalformedError: a fetch is to have a limit that only a node has, or none is given.
            NotFoundError: nothing is being fetched to the path.
            StorageError: the disk does not work.
        """
        node, files = self._runtime.services.node, self._runtime.services.files
        if args.path is not None:
            if args.up is not UNSET or args.disk is not UNSET or args.down is UNSET:
                raise MalformedError(
                    "with a path give --down, the limit of the fetch to it, and nothing else: "
                    "--up and --disk are limits of the whole node"
                )
            _limit_fetch(files, Path(args.path), args.down)
            return {"path": args.path, "down": args.down}
        chunks, storage = node.chunks, node.storage
        if args.up is not UNSET:
            chunks.up.change(args.up)
        if args.down is not UNSET:
            chunks.down.change(args.down)
        evicted = 0 if args.disk is UNSET else await storage.resize(args.disk)
        return {
            "up": chunks.up.rate,
            "down": chunks.down.rate,
            "disk": storage.quota,
            "pinned": (await storage.usage(own=True)).bytes,
            "others": (await storage.usage()).bytes,
            "evicted": evicted,
        }


def _limit_fetch(files: Files, path: Path, rate: int | None) -> None:
    if path in {put.path for put in files.puts} - {fetch.path for fetch in files.running}:
        raise NotFoundError(f"{path} is being put, not fetched: --up without a path limits what is stored")
    files.running.limit(path, rate)


async def check_destination(path: str) -> None:
    """Look for the folder that a path means which ends in a slash: no file is ever called so.

    Raises:
        NotFoundError: there is none.
    """
    if path.endswith("/") and not await is_folder(Path(path)):
        raise NotFoundError(f"there is no folder {Path(path)}: make it, or name a file without / at its end")


def telling(answers: Answers) -> Watch:
    """Make what tells a program how a fetch stands that it has asked for."""

    def watch(running: Running) -> None:
        answers.progress(running.present, running.size or 0, _figures(running))

    return watch


def _offer(share: Share, link: FileLink) -> JSON:
    return {
        "name": share.name,
        "size": share.size,
        "path": str(share.path),
        "link": link.urn,
        "added": int(share.added),
        "problem": share.problem,
        "pinned": False,
        "convergent": share.convergent,
    }


def _pinned(pin: Pin, link: FileLink) -> JSON:
    return {
        "name": pin.name,
        "size": pin.total,
        "path": None,
        "link": link.urn,
        "added": int(pin.added),
        "problem": None if pin.whole else "incomplete",
        "pinned": True,
        "convergent": None,
    }


def _running(running: Running) -> JSON:
    return {
        "task": running.task,
        "name": running.name,
        "path": None if running.path is None else str(running.path),
        "size": running.size,
        "present": running.present,
        **_figures(running),
        "limit": running.limit.rate,
    }


def _figures(running: Running) -> dict[str, JSON]:
    snapshot = running.snapshot if running.look is None else running.look()
    return {
        "rate": 0 if snapshot is None else round(snapshot.rate),
        "left": None if snapshot is None or snapshot.seconds_left is None else round(snapshot.seconds_left),
        "circuits": 0 if snapshot is None else snapshot.circuits,
        "providers": 0 if snapshot is None else snapshot.providers,
        "chunks": 0 if snapshot is None else snapshot.outstanding,
        "liars": [str(node) for node in running.liars],
        "stage": "storing" if running.task == "put" else _stage(snapshot),
    }


def _stage(snapshot: Snapshot | None) -> str:
    if snapshot is None:
        return "looking"
    return "fetching" if snapshot.circuits else "connecting"
