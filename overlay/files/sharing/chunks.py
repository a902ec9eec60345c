"""Chunks of what is shared, made anew for whoever asks for them.

A leaf is read from its file and encrypted on the way out. It is compared with its reference each time, so a
file that changed is answered as gone and never served wrong. What is found out about a file is noted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from anyio import CapacityLimiter, to_thread

from overlay.database import Database
from overlay.errors import MalformedError
from overlay.files.sharing import index as share_index
from overlay.files.sharing import places as share_places
from overlay.files.sharing.records import Place, Problem, Share
from overlay.files.sharing.shared_file import LeafReader, examine
from overlay.peer.chunks import ChunkSource

MAX_BATCH_CHUNKS = 256
"""References of one `get`: 8 MiB of memory at most."""

MAX_READERS = 4
"""Threads that read shared files for others: one disk that hangs holds up no more than these."""

Chunks = list[bytes | None]
"""For each reference its chunk, or None."""

Places = Mapping[bytes, Sequence[Place]]
"""For each reference where its leaf is made from."""


class SharedChunks(ChunkSource):
    """Given to `Chunks.sources`, other nodes are served from it.

    Args:
        database: opened with `SHARES_SCHEMA`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._readers = CapacityLimiter(MAX_READERS)

    async def get(self, references: Sequence[bytes]) -> Chunks:
        """Make chunks of what is offered; each fits its reference.

        Args:
            references: at most `MAX_BATCH_CHUNKS`.

        Returns:
            for each reference its chunk, or `None`: it belongs to no share, or the file is not any more what
            it was, which `Shares.list` tells from then on.

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
        places = await self._database.read(partial(share_places.places, references=references), bulk=True)
        return _Lookup(self, places)

    async def make(self, references: Sequence[bytes], places: Places) -> Chunks:
        """Make chunks, see `get`, of which it is known where the leaves are made from.

        Raises:
            StorageError: the database is damaged, or the disk does not work.
        """
        leaves = [reference for reference in references if places.get(reference)]
        others = [reference for reference in references if not places.get(reference)]
        made: dict[bytes, bytes | None] = {}
        if others:
            made |= await self._database.read(partial(share_places.nodes, references=others), bulk=True)
        if leaves:
            chunks, verdicts = await to_thread.run_sync(_read_leaves, leaves, places, limiter=self._readers)
            made |= chunks
            await self._note(verdicts, [place for reference in leaves for place in places[reference]])
        return [made[reference] for reference in references]

    async def unfold(self, root: bytes, number: int) -> bytes | None:
        """Give a chunk of a tree that is offered by its number, see `overlay.peer.chunks.Unfold`.

        Raises:
            StorageError: the database is damaged, or the disk does not work.
        """
        return await self._database.read(partial(share_places.unfold, root=root, number=number), bulk=True)

    async def examine(self, files: Sequence[Share]) -> None:
        """Look whether files are as they were when they were shared, and note it.

        Only how they look is compared. A content that was found changed stays so until it is added again.

        Raises:
            StorageError: the database does not work.
        """
        verdicts = await to_thread.run_sync(_examine_all, files, limiter=self._readers)
        await self._note(verdicts, files)

    async def _note(self, verdicts: Mapping[int, Problem | None], known: Sequence[Place | Share]) -> None:
        """Write down what is news; most often nothing is."""
        stored = {each.share if isinstance(each, Place) else each.id: each.problem for each in known}
        news = [
            (share, verdict)
            for share, verdict in verdicts.items()
            if verdict != stored[share] and not (verdict is None and stored[share] == "changed")
        ]
        if news:
            await self._database.write(partial(share_index.mark, problems=news))


class _Lookup:
    """Where the leaves of one request are made from. What is no leaf is looked for when it is wanted."""

    def __init__(self, chunks: SharedChunks, places: Places) -> None:
        self._chunks = chunks
        self._places = places

    async def get(self, references: Sequence[bytes]) -> Chunks:
        return await self._chunks.make(references, self._places)


def _read_leaves(
    references: Sequence[bytes], places: Places
) -> tuple[dict[bytes, bytes | None], dict[int, Problem | None]]:
    with LeafReader() as reader:
        chunks = {reference: reader.read(reference, places[reference]) for reference in references}
    return chunks, reader.verdicts


def _examine_all(files: Sequence[Share]) -> dict[int, Problem | None]:
    return {file.id: examine(file.path, file.stamp) for file in files}
