"""What a running node does with files for programs: the verbs `file.*` of docs/spec/control.md."""

from __future__ import annotations

from pathlib import Path

from overlay.control.protocol import JSON
from overlay.control.runtime import Runtime
from overlay.control.server import AbsolutePath, Answers, Arguments, Handler, Handlers, NoArguments
from overlay.files.links import FileLink
from overlay.files.service import Running
from overlay.files.share_records import Share


class ShareArguments(Arguments, frozen=True):
    """`path`: the file to offer; `name`: what it is called, if not as the file."""

    path: AbsolutePath
    name: str = ""


class LinkArguments(Arguments, frozen=True):
    """`link`: which file."""

    link: str


class FetchArguments(LinkArguments, frozen=True):
    """`path`: where to write it, or a folder; `overwrite`: whether a file that is there may be replaced."""

    path: AbsolutePath
    overwrite: bool = False


def bind_files(runtime: Runtime) -> Handlers:
    """Give the handlers of the verbs for one run of a node."""
    verbs = FileVerbs(runtime)
    return {
        "file.share": Handler(ShareArguments, verbs.share),
        "file.get": Handler(FetchArguments, verbs.get),
        "file.list": Handler(NoArguments, verbs.list),
        "file.remove": Handler(LinkArguments, verbs.remove),
        "file.status": Handler(NoArguments, verbs.status),
    }


class FileVerbs:
    """The verbs of the files."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def share(self, args: ShareArguments, answers: Answers) -> JSON:
        """Offer a file from where it lies."""
        files = self._runtime.services.files
        link = await files.share(Path(args.path), args.name, answers.progress)
        return {"link": link.urn, "name": link.name, "size": link.size}

    async def get(self, args: FetchArguments, answers: Answers) -> JSON:
        """Fetch a file."""
        files = self._runtime.services.files
        path, size = await files.get(
            FileLink.parse(args.link), Path(args.path), answers.progress, overwrite=args.overwrite
        )
        return {"path": str(path), "size": size}

    async def list(self, _args: NoArguments, answers: Answers) -> JSON:
        """What is offered, one an item."""
        for share, link in await self._runtime.services.files.offered():
            await answers.item(_offer(share, link))
        return None

    async def remove(self, args: LinkArguments, _answers: Answers) -> JSON:
        """Offer something no more."""
        share = await self._runtime.services.files.remove(FileLink.parse(args.link))
        return {"name": share.name, "path": str(share.path)}

    async def status(self, _args: NoArguments, answers: Answers) -> JSON:
        """The fetches that go on, one an item."""
        for running in self._runtime.services.files.running:
            await answers.item(_running(running))
        return None


def _offer(share: Share, link: FileLink) -> JSON:
    return {
        "name": share.name,
        "size": share.size,
        "path": str(share.path),
        "link": link.urn,
        "added": int(share.added),
        "problem": share.problem,
    }


def _running(running: Running) -> JSON:
    snapshot = running.snapshot
    return {
        "path": str(running.path),
        "size": running.size,
        "present": running.present,
        "rate": 0 if snapshot is None else round(snapshot.rate),
        "left": None if snapshot is None or snapshot.seconds_left is None else round(snapshot.seconds_left),
        "circuits": 0 if snapshot is None else snapshot.circuits,
        "providers": 0 if snapshot is None else snapshot.providers,
    }
