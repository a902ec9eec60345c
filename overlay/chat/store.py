"""Sessions and events in the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import apsw

from overlay.chat.events import Event
from overlay.chat.history import Position
from overlay.database import Database, Schema

CHAT_SCHEMA = Schema(
    "chat",
    (
        """
        CREATE TABLE chat_sessions (
            session BLOB PRIMARY KEY,
            secret BLOB NOT NULL,
            participant BLOB NOT NULL,
            key BLOB
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE chat_events (
            arrival INTEGER PRIMARY KEY AUTOINCREMENT,
            session BLOB NOT NULL REFERENCES chat_sessions ON DELETE CASCADE,
            clock INTEGER NOT NULL,
            id BLOB NOT NULL,
            kind TEXT NOT NULL,
            encoded BLOB NOT NULL,
            UNIQUE (session, clock, id)
        ) STRICT;
        """,
        "CREATE INDEX chat_events_by_arrival ON chat_events (session, arrival);",
    ),
)

_LOAD_ROWS = 500
"""Events read at once: between such pieces other readers, and the event loop, have their turn."""


@dataclass(frozen=True, slots=True)
class SessionRow:
    """What is kept of a session beside its events.

    Attributes:
        session: its public key.
        secret: its secret.
        participant: seed of this node's participant key.
        key: seed of the session's own key; only its creator has it.
    """

    session: bytes
    secret: bytes = field(repr=False)
    participant: bytes = field(repr=False)
    key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event and the number under which it came here; numbers grow, also across restarts."""

    number: int
    event: Event


class ChatStore:
    """The chat's tables, in a database opened with `CHAT_SCHEMA`. Every method may raise `StorageError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sessions(self) -> list[SessionRow]:
        """All sessions."""
        sql = "SELECT session, secret, participant, key FROM chat_sessions ORDER BY session"

        def read(connection: apsw.Connection) -> list[SessionRow]:
            return [SessionRow(*row) for row in connection.execute(sql)]

        return await self._database.read(read)

    async def create(self, row: SessionRow, events: Sequence[Event]) -> None:
        """Keep a session with its first events; all of it is durable when this returns."""

        def write(connection: apsw.Connection) -> None:
            connection.execute(
                "INSERT INTO chat_sessions (session, secret, participant, key) VALUES (?, ?, ?, ?)",
                (row.session, row.secret, row.participant, row.key),
            )
            _insert(connection, events)

        await self._database.write(write)

    async def remove(self, session: bytes) -> None:
        """Forget a session and all its events."""

        def write(connection: apsw.Connection) -> None:
            connection.execute("DELETE FROM chat_sessions WHERE session = ?", (session,))

        await self._database.write(write)

    async def append(self, events: Sequence[Event]) -> None:
        """Keep events; those that are kept already stay as they are. Durable when this returns."""
        await self._database.write(lambda connection: _insert(connection, events))

    async def last(self, session: bytes, count: int) -> tuple[list[Event], int]:
        """The last `count` events, in order, and the number of the newest arrival: what came till now."""
        sql = "SELECT encoded FROM chat_events WHERE session = ? ORDER BY clock DESC, id DESC LIMIT ?"

        def read(connection: apsw.Connection) -> tuple[list[bytes], int]:
            rows = connection.execute(sql, (session, count)).fetchall()
            newest = connection.execute(
                "SELECT coalesce(max(arrival), 0) FROM chat_events WHERE session = ?", (session,)
            )
            return [row[0] for row in reversed(rows)], int(newest.get)

        found, newest = await self._database.read(read)
        return [Event.restore(encoded) for encoded in found], newest

    async def arrived(self, session: bytes, after: int) -> list[Arrival]:
        """What came after arrival number `after`, in the order in which it came, some at once."""
        sql = """SELECT arrival, encoded FROM chat_events WHERE session = ? AND arrival > ?
            ORDER BY arrival LIMIT ?"""

        def read(connection: apsw.Connection) -> list[tuple[int, bytes]]:
            return [(row[0], row[1]) for row in connection.execute(sql, (session, after, _LOAD_ROWS))]

        return [Arrival(number, Event.restore(data)) for number, data in await self._database.read(read)]

    async def files(self, session: bytes) -> list[Event]:
        """The events that posted files, in order."""
        sql = """SELECT encoded FROM chat_events WHERE session = ? AND kind = 'file' ORDER BY clock, id"""
        return await self._events(sql, (session,))

    async def encoded(self, session: bytes, positions: Sequence[Position], limit: int) -> list[bytes]:
        """The encoded events at `positions`, the first of them that together have at most `limit` bytes."""
        sql = "SELECT encoded FROM chat_events WHERE session = ? AND clock = ? AND id = ?"

        def read(connection: apsw.Connection) -> list[bytes]:
            found: list[bytes] = []
            room = limit
            for position in positions:
                encoded: bytes = connection.execute(sql, (session, *position)).get
                room -= len(encoded)
                if room < 0:
                    break
                found.append(encoded)
            return found

        return await self._database.read(read)

    async def _events(self, sql: str, bindings: Sequence[bytes | int]) -> list[Event]:
        def read(connection: apsw.Connection) -> list[bytes]:
            return [row[0] for row in connection.execute(sql, bindings)]

        return [Event.restore(encoded) for encoded in await self._database.read(read)]


def _insert(connection: apsw.Connection, events: Sequence[Event]) -> None:
    connection.executemany(
        "INSERT OR IGNORE INTO chat_events (session, clock, id, kind, encoded) VALUES (?, ?, ?, ?, ?)",
        [(event.session, event.clock, event.id, event.kind, event.encoded) for event in events],
    )
