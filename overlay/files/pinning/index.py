"""The tables of pins: what this node keeps for good, and which chunks that takes. Used by `pins` only.

The chunks themselves are the storage manager's own ones. Here is a row for each pin and one for each of its
chunks, written before the chunk is kept: so that no chunk is kept of which nobody knows, and a chunk of two
pins stays until neither needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import apsw

from overlay.database import Schema
from overlay.files.links import Kind
from overlay.units.capability import ReadCapability

PINS_SCHEMA = Schema(
    "pins",
    (
        """
        CREATE TABLE pins (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            state TEXT NOT NULL DEFAULT 'fetching' CHECK (state IN ('fetching', 'whole', 'removed')),
            kind TEXT NOT NULL CHECK (kind IN ('file', 'folder')),
            capability BLOB NOT NULL,
            name TEXT NOT NULL,
            size INTEGER,
            total INTEGER,
            added REAL NOT NULL
        ) STRICT;
        CREATE UNIQUE INDEX pins_by_capability ON pins (capability, kind) WHERE state != 'removed';
        CREATE TABLE pin_chunks (
            reference BLOB NOT NULL,
            pin INTEGER NOT NULL,
            PRIMARY KEY (reference, pin)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX pin_chunks_by_pin ON pin_chunks (pin);
        """,
        # Whether a chunk was brought for this pin; before, it was enough that it was here for another.
        """
        ALTER TABLE pin_chunks ADD COLUMN brought INTEGER NOT NULL DEFAULT 0;
        UPDATE pin_chunks SET brought = 1;
        """,
    ),
)

_OF_LIVING = "pin IN (SELECT id FROM pins WHERE state != 'removed')"


@dataclass(frozen=True, slots=True)
class Pin:
    """A file or folder that this node keeps for good.

    Attributes:
        id: its number; never given to another.
        kind: a file, or a folder, whose content is its manifest.
        capability: reads it.
        name: what it is called; empty if nobody said.
        size: bytes of what `capability` reads; None while they are not known.
        total: bytes of the file, or of all files of the folder; None while they are not known. Until it is
            whole, those of a file are what its link says.
        whole: whether all of it is here.
        added: seconds since 1970.
    """

    id: int
    kind: Kind
    capability: ReadCapability
    name: str = field(repr=False)
    size: int | None
    total: int | None
    whole: bool
    added: float


class NewPin(NamedTuple):
    """What is known of a pin before its content came."""

    kind: Kind
    capability: ReadCapability
    name: str
    size: int | None
    added: float


def begin(connection: apsw.Connection, new: NewPin) -> Pin:
    """Begin a pin, or go on with the one of this capability and kind."""
    capability = new.capability.to_bytes()
    connection.execute(
        "INSERT OR IGNORE INTO pins (kind, capability, name, size, total, added) VALUES (?, ?, ?, ?, ?, ?)",
        (new.kind, capability, new.name, new.size, new.size if new.kind == "file" else None, new.added),
    )
    return _select(connection, "capability = ? AND kind = ?", (capability, new.kind))[0]


def finish(connection: apsw.Connection, pin: int, size: int, total: int) -> Pin:
    """Note that all of a pin is here."""
    connection.execute(
        "UPDATE pins SET state = 'whole', size = ?, total = ? WHERE id = ?", (size, total, pin)
    )
    return _select(connection, "id = ?", (pin,))[0]


def of_capability(connection: apsw.Connection, capability: ReadCapability, kind: Kind) -> Pin | None:
    """Look up the pin of a capability."""
    found = _select(connection, "capability = ? AND kind = ?", (capability.to_bytes(), kind))
    return found[0] if found else None


def every(connection: apsw.Connection) -> tuple[Pin, ...]:
    """List all pins, oldest first."""
    return _select(connection, "TRUE", ())


def note(connection: apsw.Connection, pin: int, references: Iterable[bytes]) -> None:
    """Note chunks that a pin takes, before they are kept."""
    connection.executemany(
        "INSERT OR IGNORE INTO pin_chunks (reference, pin) VALUES (?, ?)",
        ((reference, pin) for reference in sorted(references)),
    )


def note_brought(connection: apsw.Connection, pin: int, references: Iterable[bytes]) -> None:
    """Note chunks that were brought for a pin, after they were kept."""
    connection.executemany(
        "UPDATE pin_chunks SET brought = 1 WHERE reference = ? AND pin = ?",
        ((reference, pin) for reference in sorted(references)),
    )


def brought(connection: apsw.Connection, pin: int, references: Sequence[bytes]) -> list[bool]:
    """Tell of each reference whether its chunk was brought for a pin; it may have been lost since."""
    query = "SELECT EXISTS (SELECT 1 FROM pin_chunks WHERE reference = ? AND pin = ? AND brought)"
    return [bool(connection.execute(query, (reference, pin)).get) for reference in references]


def needed(connection: apsw.Connection, references: Sequence[bytes]) -> list[bool]:
    """Tell of each reference whether some pin takes its chunk."""
    query = f"SELECT EXISTS (SELECT 1 FROM pin_chunks WHERE reference = ? AND {_OF_LIVING})"  # noqa: S608 - words of this module
    return [bool(connection.execute(query, (reference,)).get) for reference in references]


def discard(connection: apsw.Connection, pin: int) -> None:
    """Let a pin count no more; its rows go when its chunks have gone."""
    connection.execute("UPDATE pins SET state = 'removed' WHERE id = ?", (pin,))


def chunks_of_discarded(connection: apsw.Connection, limit: int) -> list[bytes]:
    """Name some chunks of pins that count no more."""
    rows = connection.execute(
        "SELECT DISTINCT reference FROM pin_chunks JOIN pins ON pin = id WHERE state = 'removed' LIMIT ?",
        (limit,),
    ).fetchall()
    return [reference for (reference,) in rows if isinstance(reference, bytes)]


def forget(connection: apsw.Connection, references: Iterable[bytes]) -> None:
    """Delete the rows of chunks of discarded pins, after the chunks have gone."""
    connection.executemany(
        f"DELETE FROM pin_chunks WHERE reference = ? AND NOT ({_OF_LIVING})",  # noqa: S608 - words of this module
        ((reference,) for reference in references),
    )


def forget_discarded(connection: apsw.Connection) -> None:
    """Delete discarded pins whose chunks have all gone."""
    connection.execute(
        "DELETE FROM pins WHERE state = 'removed' AND NOT EXISTS (SELECT 1 FROM pin_chunks WHERE pin = id)"
    )


def _select(
    connection: apsw.Connection, where: str, bindings: tuple[apsw.SQLiteValue, ...]
) -> tuple[Pin, ...]:
    query = (
        "SELECT id, kind, capability, name, size, total, state = 'whole', added FROM pins"  # noqa: S608 - words of this module
        f" WHERE state != 'removed' AND {where} ORDER BY id"
    )
    return tuple(
        Pin(pin, kind, ReadCapability.from_bytes(capability), name, size, total, bool(whole), added)
        for pin, kind, capability, name, size, total, whole, added in connection.execute(query, bindings)
    )
