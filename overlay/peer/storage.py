"""The building block *storage manager*: keeps units, as chunks, for the node itself and for others.

A chunk is a piece of ERIS-encoded content: 1,024 or 32,768 bytes that show neither what they hold nor how
long it is, named by their BLAKE2b-256 hash. Chunks kept for others expire; the node's own do not. Both count
against one quota, in which the node's own come first and others get what they leave. The two are kept apart
even where they are equal, so that nobody can find out, by asking for a chunk, what this node reads itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

import apsw

from overlay.database import Database, Schema
from overlay.database.room import has_room
from overlay.errors import MalformedError, RefusedError, StorageError
from overlay.units.eris import chunk_reference, valid_chunk_size

MAX_BATCH_CHUNKS = 256
"""Chunks of one `put` or `get`: 8 MiB of memory at most, and a transaction of a fraction of a second."""

DEFAULT_QUOTA = 1 << 30
"""Bytes of all chunks: 1 GiB, little on today's disks and much for a chat."""

DEFAULT_RETENTION = 30 * 24 * 3600.0
"""Seconds that a chunk is kept for others after it was last put: long enough for a holiday."""

MAX_QUOTA = 1 << 40
"""Bytes of the largest quota, 1 TiB: more was meant for something else, and one file holds all chunks."""

MIB = 1 << 20

_NO_ROOM = "this node has no room for more chunks: try another, or try again later"

_PURGE_CHUNKS = 1024
"""Chunks deleted in one transaction: 32 MiB at most, since SQLite overwrites what it deletes."""

# No more of the chunks that expire first than it takes: each goes while those before it are not enough.
_EVICT = """
    DELETE FROM chunks WHERE rowid IN (
        SELECT number FROM (
            SELECT number, sum(size) OVER (ORDER BY expires, number) - size AS earlier FROM (
                SELECT rowid AS number, size, expires FROM chunks WHERE expires IS NOT NULL
                ORDER BY expires, rowid LIMIT ?
            )
        ) WHERE earlier < ?
    )
"""

STORAGE_SCHEMA = Schema(
    "storage",
    (
        # The totals are kept by triggers, because counting a gigabyte of chunks at every put takes too long.
        """
        CREATE TABLE chunks (
            reference BLOB NOT NULL,
            own INTEGER NOT NULL CHECK (own IN (0, 1)),
            size INTEGER NOT NULL,
            expires REAL,
            content BLOB NOT NULL,
            PRIMARY KEY (reference, own)
        ) STRICT;
        CREATE INDEX chunks_by_expiry ON chunks (expires) WHERE expires IS NOT NULL;
        CREATE TABLE chunk_totals (
            own INTEGER PRIMARY KEY,
            bytes INTEGER NOT NULL,
            chunks INTEGER NOT NULL
        ) STRICT;
        INSERT INTO chunk_totals VALUES (0, 0, 0), (1, 0, 0);
        CREATE TRIGGER chunk_added AFTER INSERT ON chunks BEGIN
            UPDATE chunk_totals SET bytes = bytes + new.size, chunks = chunks + 1 WHERE own = new.own;
        END;
        CREATE TRIGGER chunk_removed AFTER DELETE ON chunks BEGIN
            UPDATE chunk_totals SET bytes = bytes - old.size, chunks = chunks - 1 WHERE own = old.own;
        END;
        """,
    ),
)


@dataclass(frozen=True, slots=True)
class Usage:
    """What is kept: `bytes` of content in that many `chunks`."""

    bytes: int
    chunks: int


class StorageManager:
    """Keeps chunks. What it has acknowledged survives SIGKILL and power loss.

    Args:
        database: opened with `STORAGE_SCHEMA`.
        quota: bytes of chunks that it keeps; 0 keeps none.
        retention: seconds that it keeps a chunk for others after the last `put` of it.

    Attributes:
        quota: as given; `resize` changes it. Where a run has a lower one than the last, what is there stays.
    """

    def __init__(
        self, database: Database, *, quota: int = DEFAULT_QUOTA, retention: float = DEFAULT_RETENTION
    ) -> None:
        self.quota = quota
        self._database = database
        self._retention = retention

    async def put(self, chunks: Sequence[bytes], *, now: float, own: bool = False) -> list[bytes]:
        """Keep chunks, all of them or none; they are on the disk when this returns.

        A chunk that is there already is written anew, which mends it, and its time begins again.

        Args:
            chunks: at most `MAX_BATCH_CHUNKS`.
            now: seconds since 1970.
            own: keep them for this node itself, until `discard`. What others have does not stand in their
                way: it goes as it expires, and nothing new of others is taken until then.

        Returns:
            their references, in the same order.

        Raises:
            MalformedError: too many, or one that does not have the size of a chunk.
            RefusedError: chunks of others would exceed the quota, or there is no room for them on the disk.
            StorageError: the disk has no room or does not work, or the node's own would exceed the quota.
            After cancellation all of them are kept, or none.
        """
        _check_batch(chunks)
        if not all(valid_chunk_size(len(chunk)) for chunk in chunks):
            raise MalformedError("a chunk has 1024 or 32768 bytes")
        if own:
            return await self._database.write(partial(self._put_own, chunks=chunks))
        return await self._database.write(partial(self._put_for_others, chunks=chunks, now=now))

    async def get(self, references: Sequence[bytes], *, own: bool = False) -> list[bytes | None]:
        """Fetch chunks, each verified: one that was damaged on the disk is deleted and counts as missing.

        Args:
            references: at most `MAX_BATCH_CHUNKS`.
            own: also look among this node's own chunks; never for somebody else.

        Returns:
            for each reference its chunk, or `None`.

        Raises:
            MalformedError: too many references.
            StorageError: the database is damaged, or the disk does not work.
        """
        _check_batch(references)
        found, damaged = await self._database.read(partial(_find, references=references, own=own), bulk=True)
        if damaged:
            await self._database.write(partial(_delete_damaged, references=damaged))
        return found

    async def has(self, references: Sequence[bytes]) -> list[bool]:
        """Tell of each reference whether its chunk is kept for others, without reading it.

        Raises:
            MalformedError: too many references.
            StorageError: see `get`.
        """
        _check_batch(references)
        return await self._database.read(partial(_has, references=references, own=False))

    async def owned(self, references: Sequence[bytes]) -> list[bool]:
        """Tell of each reference whether its chunk is kept for this node itself, without reading it.

        Raises:
            MalformedError: too many references.
            StorageError: see `get`.
        """
        _check_batch(references)
        return await self._database.read(partial(_has, references=references, own=True))

    async def discard(self, references: Sequence[bytes]) -> None:
        """Give up chunks that this node kept for itself; what it keeps for others stays.

        Raises:
            MalformedError: too many references.
            StorageError: the disk does not work.
        """
        _check_batch(references)
        await self._database.write(partial(_discard, references=references))

    async def usage(self, *, own: bool = False) -> Usage:
        """Tell how much is kept for others, or for this node itself.

        Raises:
            StorageError: the database is damaged, or the disk does not work.
        """
        return await self._database.read(partial(_usage, own=own))

    async def resize(self, quota: int) -> int:
        """Change the quota, and give up what is kept for others beyond it: what expires first goes first.

        What is this node's own stays, also where that alone is more; nothing is taken in then. The file keeps
        its size; the room in it is used again.

        Args:
            quota: bytes, 0 to `MAX_QUOTA`.

        Returns:
            bytes that were given up.

        Raises:
            MalformedError: no quota can be that; the old one holds on.
            StorageError: the disk does not work; the new quota holds, and a part may have been given up.
            After cancellation the new quota holds, and a part may have been given up.
        """
        if not 0 <= quota <= MAX_QUOTA:
            raise MalformedError(f"a limit of the disk is 0 to {MAX_QUOTA} bytes, not {quota}")
        self.quota = quota
        evicted = 0
        while some := await self._database.write(self._evict):
            evicted += some
        return evicted

    async def purge(self, now: float) -> int:
        """Delete what has expired. The file keeps its size; the room in it is used again.

        Args:
            now: seconds since 1970.

        Returns:
            how many chunks were deleted.

        Raises:
            StorageError: the disk does not work; a part may have been deleted.
            After cancellation a part may have been deleted.
        """
        deleted = 0
        while True:
            last = await self._database.write(partial(_delete_expired, now=now))
            deleted += last
            if last < _PURGE_CHUNKS:
                return deleted

    def _evict(self, connection: apsw.Connection) -> int:
        """Delete some of what others have beyond the quota; gives its bytes, 0 when there is no more."""
        allowed = max(0, self.quota - _usage(connection, own=True).bytes)
        before = _usage(connection, own=False).bytes
        connection.execute(_EVICT, (_PURGE_CHUNKS, before - allowed))
        return before - _usage(connection, own=False).bytes

    def _put_own(self, connection: apsw.Connection, chunks: Sequence[bytes]) -> list[bytes]:
        if not has_room(connection, sum(map(len, chunks))):
            raise StorageError(
                "the disk of this node has no room for more, beside what always stays free: make room on it"
            )
        before = _usage(connection, own=True).bytes
        references = _insert(connection, chunks, own=True, expires=None)
        if _usage(connection, own=True).bytes > max(before, self.quota):
            raise StorageError(
                f"the quota of this node, {self.quota / MIB:.0f} MiB, is used up: unpin something, or allow "
                "more with 'overlay file limit --disk' or storage.quota_mib in config.toml"
            )
        return references

    def _put_for_others(
        self, connection: apsw.Connection, chunks: Sequence[bytes], now: float
    ) -> list[bytes]:
        if not has_room(connection, sum(map(len, chunks))):
            raise RefusedError(_NO_ROOM)
        before = _usage(connection, own=False).bytes
        references = _insert(connection, chunks, own=False, expires=now + self._retention)
        # A node whose quota was lowered still renews what it has.
        allowed = max(before, self.quota - _usage(connection, own=True).bytes)
        if _usage(connection, own=False).bytes > allowed:
            _delete_expired(connection, now)
        if _usage(connection, own=False).bytes > allowed:
            raise RefusedError(_NO_ROOM)
        return references


def _check_batch(items: Sequence[bytes]) -> None:
    if len(items) > MAX_BATCH_CHUNKS:
        raise MalformedError(f"at most {MAX_BATCH_CHUNKS} chunks go into one request, not {len(items)}")


def _insert(
    connection: apsw.Connection, chunks: Sequence[bytes], *, own: bool, expires: float | None
) -> list[bytes]:
    references = [chunk_reference(chunk) for chunk in chunks]
    for reference, chunk in zip(references, chunks, strict=True):
        # Not an upsert: the triggers see every change as a deletion or an insertion.
        connection.execute("DELETE FROM chunks WHERE reference = ? AND own = ?", (reference, own))
        connection.execute(
            "INSERT INTO chunks (reference, own, size, expires, content) VALUES (?, ?, ?, ?, ?)",
            (reference, own, len(chunk), expires, chunk),
        )
    return references


def _find(
    connection: apsw.Connection, references: Sequence[bytes], *, own: bool
) -> tuple[list[bytes | None], list[bytes]]:
    """Look up chunks; the second list names those of which a damaged copy was seen."""
    found: list[bytes | None] = []
    damaged: list[bytes] = []
    for reference in references:
        rows = connection.execute(
            "SELECT content FROM chunks WHERE reference = ? AND own <= ?", (reference, own)
        ).fetchall()
        intact = [content for (content,) in rows if _is_intact(content, reference)]
        if len(intact) < len(rows):
            damaged.append(reference)
        found.append(intact[0] if intact else None)
    return found, damaged


def _is_intact(content: object, reference: bytes) -> TypeGuard[bytes]:
    return isinstance(content, bytes) and chunk_reference(content) == reference


def _delete_damaged(connection: apsw.Connection, references: Sequence[bytes]) -> None:
    for reference in references:
        rows = connection.execute(
            "SELECT rowid, content FROM chunks WHERE reference = ?", (reference,)
        ).fetchall()
        for rowid, content in rows:
            # Looked at again: it may have been mended since it was read.
            if not _is_intact(content, reference):
                connection.execute("DELETE FROM chunks WHERE rowid = ?", (rowid,))


def _has(connection: apsw.Connection, references: Sequence[bytes], *, own: bool) -> list[bool]:
    query = "SELECT EXISTS (SELECT 1 FROM chunks WHERE reference = ? AND own = ?)"
    return [bool(connection.execute(query, (reference, own)).get) for reference in references]


def _discard(connection: apsw.Connection, references: Sequence[bytes]) -> None:
    for reference in references:
        connection.execute("DELETE FROM chunks WHERE reference = ? AND own = 1", (reference,))


def _usage(connection: apsw.Connection, *, own: bool) -> Usage:
    row = connection.execute("SELECT bytes, chunks FROM chunk_totals WHERE own = ?", (own,)).get
    return Usage(*row)


def _delete_expired(connection: apsw.Connection, now: float) -> int:
    connection.execute(
        "DELETE FROM chunks WHERE rowid IN"
        " (SELECT rowid FROM chunks WHERE expires <= ? ORDER BY expires LIMIT ?)",
        (now, _PURGE_CHUNKS),
    )
    return connection.changes()
