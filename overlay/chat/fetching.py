"""Fetching a posted file: each chunk verified, from whoever has it; the file appears when it is whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import anyio
from anyio import AsyncFile

from overlay.chat.events import File
from overlay.chat.posting import Progress
from overlay.errors import (
    MalformedError,
    NotFoundError,
    OverlayError,
    RefusedError,
    StorageError,
    TransportUnavailableError,
    UnreachableError,
    VerificationError,
)
from overlay.identity import NodeIdentifier
from overlay.peer.node import Node
from overlay.units.capability import ReadCapability
from overlay.units.decode import Decoder
from overlay.wire.filenames import safe_basename

REQUESTS = 2
"""Requests for chunks at once, each to another holder where there are two."""
REQUEST_CHUNKS = 32
"""Chunks of a request, 1 MiB of large ones: all requests together stay well within the decoder's window."""


_NO_CONTENT = "what was posted is not the content that it says it is: ask whoever posted it to do so again"


async def fetch_file(
    node: Node, content: File, destination: Path, progress: Progress | None = None
) -> tuple[Path, int]:
    """Fetch a file and write it.

    The content is gathered in a hidden file beside the target, which takes the target's name when it is
    whole and on disk; failed or cancelled, nothing is left.

    Args:
        node: asks the holders, without showing itself; chunks that it keeps itself are taken from there.
        content: the file, as its event has it.
        destination: a folder, where the file gets its own name made safe, or the path to write.
        progress: told after each batch.

    Returns:
        where the file is, and its size.

    Raises:
        MalformedError: its name cannot be used: give a path.
        VerificationError: what was posted is not the content that its event describes.
        RefusedError: the target exists already.
        NotFoundError: the folder does not exist, or nobody has all of the file any more.
        UnreachableError: a holder that may have the rest was not reached.
        TransportUnavailableError: nor could it be, because this node's transport does not work.
        StorageError: the disk is full or cannot be written.
    """
    target = await _target(content, destination)
    partial = target.with_name(f".{node.entropy(8).hex()}.part")
    decoder = _decoder(content)
    try:
        await _write(node, content, decoder, partial, progress)
        await anyio.to_thread.run_sync(partial.replace, target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.Path(partial).unlink(missing_ok=True)
    return target, decoder.position


def _decoder(content: File) -> Decoder:
    try:
        return Decoder(ReadCapability.from_bytes(content.capability), size=content.size)
    except MalformedError as error:
        raise VerificationError(_NO_CONTENT) from error


async def _target(content: File, destination: Path) -> Path:
    is_folder = await anyio.Path(destination).is_dir()
    target = destination / safe_basename(content.name) if is_folder else destination
    if not await anyio.Path(target.parent).is_dir():
        raise NotFoundError(f"there is no folder {target.parent}")
    if await anyio.Path(target).exists():
        raise RefusedError(f"{target} exists already: name another path to write to")
    return target


async def _write(
    node: Node, content: File, decoder: Decoder, partial: Path, progress: Progress | None
) -> None:
    source = _Source(node, [NodeIdentifier(holder) for holder in content.holders])
    async with await anyio.open_file(partial, "xb") as file:
        transfer = _Transfer(decoder, source, file, content.size, progress)
        await transfer.run()
        await _sync_to_disk(file)


async def _sync_to_disk(file: AsyncFile[bytes]) -> None:
    await file.flush()
    await anyio.to_thread.run_sync(os.fsync, file.wrapped.fileno())


class _Transfer:
    """Several requests at once: one travels while another is answered. Content is written in order."""

    def __init__(
        self, decoder: Decoder, source: _Source, file: AsyncFile[bytes], size: int, progress: Progress | None
    ) -> None:
        self._decoder = decoder
        self._source = source
        self._file = file
        self._size = size
        self._progress = progress
        self._asked: set[bytes] = set()
        self._arrived = anyio.Event()
        self._writing = anyio.Lock()
        self._failure: OverlayError | OSError | None = None

    async def run(self) -> None:
        """Read to the end; raises what made the first request fail."""
        async with anyio.create_task_group() as group:
            for number in range(REQUESTS):
                group.start_soon(self._work, number, group.cancel_scope)
        if self._failure is not None:
            raise self._failure

    async def _work(self, number: int, scope: anyio.CancelScope) -> None:
        try:
            while not self._decoder.finished:
                wanted = self._decoder.wanted(REQUEST_CHUNKS, self._asked)
                if wanted:
                    await self._fetch(wanted, number)
                else:
                    await self._arrived.wait()
        except (OverlayError, OSError) as error:
            self._failure = self._failure or error
            scope.cancel()

    async def _fetch(self, wanted: Sequence[bytes], number: int) -> None:
        self._asked.update(wanted)
        chunks = await self._source.fetch(wanted, prefer=number)
        try:
            for reference, chunk in chunks.items():
                self._decoder.receive(reference, chunk)
        except MalformedError as error:  # the right chunks of a wrong tree: the one who posted it is to blame
            raise VerificationError(_NO_CONTENT) from error
        self._asked.difference_update(wanted)
        async with self._writing:  # taken before reading, so that what is read first is written first
            await self._file.write(self._decoder.read())
            if self._progress is not None:
                self._progress(self._decoder.position, self._size)
        self._arrived.set()
        self._arrived = anyio.Event()


class _Source:
    """Where chunks come from: this node's own store, then the holders, those that served best first."""

    def __init__(self, node: Node, holders: Sequence[NodeIdentifier]) -> None:
        self._node = node
        self._holders = list(node.reputation.rank(holders, node.clock()))
        self._unreached = False
        self._unavailable: TransportUnavailableError | None = None

    async def fetch(self, references: Sequence[bytes], *, prefer: int) -> dict[bytes, bytes]:
        """Get all of these chunks, asking holder number `prefer` first.

        Raises:
            NotFoundError: every holder was asked, and some chunk nobody has.
            UnreachableError: a holder that was not reached may have it.
            TransportUnavailableError: likewise, and what does not work is on this side.
        """
        found: dict[bytes, bytes] = {}
        kept = await self._node.storage.get(references)
        found |= {name: chunk for name, chunk in zip(references, kept, strict=True) if chunk is not None}
        first = prefer % max(1, len(self._holders))
        for holder in self._holders[first:] + self._holders[:first]:
            missing = [reference for reference in references if reference not in found]
            if not missing:
                break
            found |= await self._ask(holder, missing)
        if len(found) < len(references):
            if self._unavailable is not None:
                raise self._unavailable
            if self._unreached:
                raise UnreachableError("a node that keeps this file is not reached: try again later")
            raise NotFoundError("nobody has all of this file any more: ask its sender to post it again")
        return found

    async def _ask(self, holder: NodeIdentifier, missing: Sequence[bytes]) -> dict[bytes, bytes]:
        try:
            return await self._node.chunks.fetch(holder, missing)
        except OverlayError as error:  # the next holder has the same chunks; this one is not asked again
            if holder in self._holders:
                self._holders.remove(holder)
            self._unreached = self._unreached or isinstance(error, UnreachableError)
            if isinstance(error, TransportUnavailableError):
                self._unavailable = error
            self._node.check_online()  # others would fail as slowly where the trouble is here
            return {}
