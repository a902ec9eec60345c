"""The tables of shares: what is offered. Used by `shares`, `writer` and `chunks` only.

A share has one row of its own, one for each leaf (its reference, number and key, some 80 bytes) and one for
each node of its tree (the encrypted chunk itself, 1/512 of the content). A row of `shares` says whether
the others count: while it is `adding` nothing is served from them, and from `removed` on they wait to be
deleted, in transactions so short that no other user of the database notices.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import apsw

from overlay.database import Schema
from overlay.errors import NotFoundError, RefusedError
from overlay.files.sharing.records import Leaf, NewShare, Problem, Share, Stamp
from overlay.units.eris import NULL_SECRET, Chunk, ReadCapability

SWEEP_CHUNKS = 256
"""Node chunks deleted in one transaction: 8 MiB."""
SWEEP_LEAVES = 65_536
"""Leaves looked at in one transaction that deletes: some hundredths of a second."""

SHARES_SCHEMA = Schema(
    "shares",
    (
        """
        CREATE TABLE shares (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            parent INTEGER,
            state TEXT NOT NULL DEFAULT 'adding' CHECK (state IN ('adding', 'offered', 'removed')),
            kind TEXT NOT NULL CHECK (kind IN ('file', 'folder')),
            name TEXT NOT NULL,
            path BLOB NOT NULL,
            size INTEGER NOT NULL,
            modified INTEGER NOT NULL,
            touched INTEGER NOT NULL,
            secret BLOB NOT NULL,
            capability BLOB,
            problem TEXT CHECK (problem IN ('gone', 'changed')),
            added REAL NOT NULL
        ) STRICT;
        CREATE INDEX shares_by_path ON shares (path);
        CREATE INDEX shares_by_parent ON shares (parent);
        CREATE INDEX shares_by_capability ON shares (capability);
        CREATE TABLE share_leaves (
            reference BLOB NOT NULL,
            share INTEGER NOT NULL,
            number INTEGER NOT NULL,
            PRIMARY KEY (reference, share)
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE share_chunks (
            reference BLOB NOT NULL,
            share INTEGER NOT NULL,
            content BLOB NOT NULL
        ) STRICT;
        CREATE UNIQUE INDEX share_chunks_by_reference ON share_chunks (reference, share);
        CREATE INDEX share_chunks_by_share ON share_chunks (share);
        """,
        # A file that did not change is a part of each folder that was shared with it, and encoded once.
        """
        CREATE TABLE share_parts (
            parent INTEGER NOT NULL,
            part INTEGER NOT NULL,
            PRIMARY KEY (parent, part)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX share_parts_by_part ON share_parts (part);
        INSERT INTO share_parts (parent, part) SELECT parent, id FROM shares WHERE parent IS NOT NULL;
        """,
        # Hashing a leaf for its key was a seventh of what serving it takes. Older shares go on without.
        """
        ALTER TABLE share_leaves ADD COLUMN key BLOB;
        """,
    ),
)


_COLUMNS = """
    id, parent, kind, name, path, size, modified, touched, secret, capability, added,
    coalesce(problem, (
        SELECT min(each.problem) FROM share_parts JOIN shares AS each ON each.id = part
        WHERE share_parts.parent = shares.id AND each.state = 'offered'
    )) AS problem
"""


def begin(connection: apsw.Connection, new: NewShare) -> int:
    """Make the row of a share that nobody sees before `finish`; gives its id."""
    connection.execute(
        "INSERT INTO shares (parent, kind, name, path, size, modified, touched, secret, added)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (new.parent, new.kind, new.name, os.fsencode(new.path), *new.stamp, new.secret, new.added),
    )
    share = connection.last_insert_rowid()
    if new.parent is not None:
        connection.execute("INSERT INTO share_parts (parent, part) VALUES (?, ?)", (new.parent, share))
    return share


def take_over(connection: apsw.Connection, parent: int, parts: Iterable[int]) -> None:
    """Make files that are parts of other folders, and were looked at, parts of one more.

    Raises:
        RefusedError: one of them is offered no more.
    """
    for part in parts:
        if not _select(connection, "id = ?", (part,)):
            raise RefusedError(
                "files of this folder were removed from what is offered meanwhile: share it again"
            )
        connection.execute("INSERT OR IGNORE INTO share_parts (parent, part) VALUES (?, ?)", (parent, part))
        connection.execute("UPDATE shares SET problem = NULL WHERE id = ? AND problem IS NOT NULL", (part,))


def extend(connection: apsw.Connection, share: int, leaves: Iterable[Leaf], nodes: Sequence[Chunk]) -> None:
    """Note chunks of a share; of equal leaves one is enough."""
    # Sorted, because neighbours in the table share a page: a third of the time and of what is written.
    connection.executemany(
        "INSERT OR IGNORE INTO share_leaves (reference, share, number, key) VALUES (?, ?, ?, ?)",
        ((leaf.reference, share, leaf.number, leaf.key) for leaf in sorted(leaves)),
    )
    connection.executemany(
        "INSERT OR IGNORE INTO share_chunks (reference, share, content) VALUES (?, ?, ?)",
        ((node.reference, share, node.data) for node in nodes),
    )


def finish(connection: apsw.Connection, share: int, capability: ReadCapability) -> Share:
    """Offer a share; it takes the place of an earlier one of the same path with the same content.

    Another earlier one, of a file that looked otherwise, is known to have changed now.
    """
    connection.execute(
        "UPDATE shares SET state = 'offered', capability = ?, size = size +"
        " (SELECT coalesce(sum(each.size), 0) FROM share_parts JOIN shares AS each ON each.id = part"
        " WHERE share_parts.parent = shares.id AND each.state = 'offered') WHERE id = ?",
        (capability.to_bytes(), share),
    )
    new = get(connection, share)
    for old in _select(connection, "path = ? AND parent IS ?", (os.fsencode(new.path), new.parent)):
        if old.id < share and old.capability == new.capability:
            discard(connection, old.id)
        elif old.id < share and old.kind == "file" and not old.stamp.looks_like(new.stamp):
            mark(connection, [(old.id, "changed")])
    return new


def discard(connection: apsw.Connection, share: int) -> None:
    """Let a share count no more, nor parts that no other has; `sweep` deletes what they occupy."""
    connection.execute("UPDATE shares SET state = 'removed' WHERE id = ?", (share,))
    connection.execute(
        "UPDATE shares SET state = 'removed' WHERE id IN (SELECT part FROM share_parts WHERE parent = ?)"
        " AND NOT EXISTS (SELECT 1 FROM share_parts JOIN shares AS other ON other.id = share_parts.parent"
        " WHERE part = shares.id AND other.state != 'removed')",
        (share,),
    )


def remove(
    connection: apsw.Connection, capability: ReadCapability
) -> tuple[tuple[Share, ...], tuple[Share, ...]]:
    """Discard all shares that a capability reads and that are no part of a folder.

    Returns:
        them, and folders that have it as a part.

    Raises:
        NotFoundError: nothing is offered under it.
        RefusedError: only folders have it, as a part.
    """
    found = _select(connection, "capability = ? AND parent IS NULL", (capability.to_bytes(),))
    for share in found:
        discard(connection, share.id)
    folders = _select(
        connection,
        "id IN (SELECT share_parts.parent FROM share_parts JOIN shares AS each ON each.id = part"
        " WHERE each.capability = ? AND each.state = 'offered')",
        (capability.to_bytes(),),
    )
    if not found and folders:
        raise RefusedError(f"this is a part of the shared folder {folders[0].path}: remove that")
    if not found:
        raise NotFoundError("this node does not offer that: 'overlay file list' shows what it does")
    return found, folders


def discard_unfinished(connection: apsw.Connection) -> None:
    """Discard what was being added when the program ended."""
    for share in _ids(connection, "SELECT id FROM shares WHERE state = 'adding'"):
        discard(connection, share)


def renew(connection: apsw.Connection, share: int, name: str) -> Share:
    """Note that a share was offered once more, and so looked at."""
    connection.execute("UPDATE shares SET name = ?, problem = NULL WHERE id = ?", (name, share))
    return get(connection, share)


def mark(connection: apsw.Connection, problems: Iterable[tuple[int, Problem | None]]) -> None:
    """Note what was found out about shares."""
    connection.executemany(
        "UPDATE shares SET problem = ? WHERE id = ?", ((problem, share) for share, problem in problems)
    )


def get(connection: apsw.Connection, share: int) -> Share:
    """Look up a share that is offered.

    Raises:
        NotFoundError: there is none of this id.
    """
    found = _select(connection, "id = ?", (share,))
    if not found:
        raise NotFoundError(f"nothing is shared under the number {share}")
    return found[0]


def of_parent(connection: apsw.Connection, parent: int | None) -> tuple[Share, ...]:
    """List the parts of a folder, or what is no part of anything, oldest first."""
    if parent is None:
        return _select(connection, "parent IS NULL", ())
    return _select(connection, "id IN (SELECT part FROM share_parts WHERE parent = ?)", (parent,))


def of_path(connection: apsw.Connection, path: Path, parent: int | None, *, convergent: bool) -> Share | None:
    """Look up the newest share of a path among those under the secret that everybody knows, or the others."""
    where = "path = ? AND parent IS ? AND (secret = ?) = ?"
    found = _select(connection, where, (os.fsencode(path), parent, NULL_SECRET, convergent))
    return found[-1] if found else None


def part_of_path(connection: apsw.Connection, path: Path, secret: bytes) -> Share | None:
    """Look up the newest part of any folder that is made from a file with a secret."""
    where = "path = ? AND parent IS NOT NULL AND secret = ?"
    found = _select(connection, where, (os.fsencode(path), secret))
    return found[-1] if found else None


def sweep(connection: apsw.Connection, dead: Sequence[int], after: bytes) -> bytes | None:
    """Delete a part of what discarded shares occupy.

    Args:
        connection: in a write transaction.
        dead: ids of the shares, as `discarded` gives them.
        after: where the last call ended; empty for the first.

    Returns:
        what to give as `after` to the next call, or None when all is deleted.
    """
    ids = json.dumps(dead)
    connection.execute(
        "DELETE FROM share_chunks WHERE rowid IN (SELECT rowid FROM share_chunks"
        " WHERE share IN (SELECT value FROM json_each(?)) LIMIT ?)",
        (ids, SWEEP_CHUNKS),
    )
    more_chunks = connection.changes() == SWEEP_CHUNKS
    last: bytes | None = connection.execute(
        "SELECT reference FROM share_leaves WHERE reference > ? ORDER BY reference LIMIT 1 OFFSET ?",
        (after, SWEEP_LEAVES - 1),
    ).get
    connection.execute(
        "DELETE FROM share_leaves WHERE reference > ? AND (reference <= ? OR ? IS NULL)"
        " AND share IN (SELECT value FROM json_each(?))",
        (after, last, last, ids),
    )
    if last is not None or more_chunks:
        # Longer than every reference and above it: nothing is left but node chunks.
        return last or b"\xff" * 33
    connection.execute(
        "DELETE FROM share_parts WHERE parent IN (SELECT value FROM json_each(?1))"
        " OR part IN (SELECT value FROM json_each(?1))",
        (ids,),
    )
    connection.execute("DELETE FROM shares WHERE id IN (SELECT value FROM json_each(?))", (ids,))
    return None


def discarded(connection: apsw.Connection) -> list[int]:
    """Name the shares that were discarded and not yet swept away."""
    return _ids(connection, "SELECT id FROM shares WHERE state = 'removed'")


def _ids(connection: apsw.Connection, query: str) -> list[int]:
    rows = connection.execute(query).fetchall()
    return [share for (share,) in rows if isinstance(share, int)]


def _select(
    connection: apsw.Connection, where: str, bindings: tuple[apsw.SQLiteValue, ...]
) -> tuple[Share, ...]:
    query = f"SELECT {_COLUMNS} FROM shares WHERE state = 'offered' AND {where} ORDER BY id"  # noqa: S608 - words of this module
    return tuple(
        Share(
            id=share,
            parent=parent,
            kind=kind,
            name=name,
            path=Path(os.fsdecode(path)),
            stamp=Stamp(*stamp),
            secret=secret,
            capability=ReadCapability.from_bytes(capability),
            problem=problem,
            added=added,
        )
        for share, parent, kind, name, path, *stamp, secret, capability, added, problem in connection.execute(
            query, bindings
        )
    )
