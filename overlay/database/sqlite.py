"""The edge to SQLite: how a connection is opened, how a transaction runs, and what its errors mean here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import apsw

from overlay.errors import ClosedError, StorageError

T = TypeVar("T")

BUSY_TIMEOUT_MS = 5_000
"""Milliseconds to wait for another process; only a backup or a curious person's shell has the file open."""

MAX_WAL_KEPT_BYTES = 16 * 2**20
"""Bytes that the write-ahead log shrinks to after a burst: four times what it usually reaches."""

_FILE_MODE = 0o600

_MEANINGS: dict[type[apsw.Error], str] = {
    apsw.FullError: "the disk is full: free some space and try again, what was stored before is kept",
    apsw.IOError: "the disk could not be read or written: check that it is neither full nor failing",
    apsw.CorruptError: "the database is damaged: restore it from a backup, or move it away to start afresh",
    apsw.NotADBError: "the file is not a database of this program: move it away, or name another home",
    apsw.CantOpenError: "the database cannot be opened: check that its folder exists and belongs to you",
    apsw.ReadOnlyError: "the database cannot be written: check that the file and its folder belong to you",
    apsw.PermissionsError: "the database may not be used: check that the file and its folder belong to you",
    apsw.BusyError: "another program is using the database: end it and try again",
    apsw.LockedError: "another program is using the database: end it and try again",
}


@contextmanager
def translated(path: Path | None) -> Iterator[None]:
    """Turn what SQLite reports of the world into this library's errors.

    Mistakes of the program itself (`apsw.SQLError`, `apsw.ConstraintError` ...) pass unchanged.

    Raises:
        StorageError: the disk, the file or another program is in the way.
        ClosedError: the database was closed.
    """
    try:
        yield
    except tuple(_MEANINGS) as error:
        where = "" if path is None else f" ({path})"
        raise StorageError(_MEANINGS[type(error)] + where) from error
    except apsw.ConnectionClosedError as error:
        raise ClosedError("the database is closed") from error


def open_file(path: Path) -> apsw.Connection:
    """Open the file, made beforehand by `create_private`, so that what is committed survives power loss."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "full")
    # On macOS only this makes the drive itself write; elsewhere it says nothing new.
    connection.pragma("fullfsync", True)
    connection.pragma("checkpoint_fullfsync", True)
    connection.pragma("journal_size_limit", MAX_WAL_KEPT_BYTES)
    connection.pragma("foreign_keys", True)
    return connection


def open_memory() -> apsw.Connection:
    """Open a database that lives as long as the connection."""
    connection = apsw.Connection(":memory:")
    connection.pragma("foreign_keys", True)
    return connection


def create_private(path: Path) -> None:
    """Make the file, or tighten one that exists, so that only its owner can read it, whatever the umask is.

    SQLite gives its two companion files (`-wal`, `-shm`) the mode of this one when it makes them.

    Raises:
        StorageError: the folder is missing, full, or belongs to somebody else.
    """
    try:
        # An existing file is never opened here: closing it would drop the locks that SQLite holds on it
        # in this process (POSIX locks go with the first descriptor that is closed).
        with suppress(FileExistsError):
            path.touch(_FILE_MODE, exist_ok=False)
        path.chmod(_FILE_MODE)
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).chmod(_FILE_MODE)
    except OSError as error:
        raise StorageError(f"the database {path} cannot be made: {error.strerror}") from error


def write_transaction(connection: apsw.Connection, work: Callable[[apsw.Connection], T]) -> T:
    """Run `work` in one transaction: committed when it returns, rolled back when it raises anything."""
    return _transaction(connection, "BEGIN IMMEDIATE", work)


def read_transaction(connection: apsw.Connection, work: Callable[[apsw.Connection], T]) -> T:
    """Run `work` on one unchanging state of the database; writing in it is an error."""
    connection.pragma("query_only", True)
    try:
        return _transaction(connection, "BEGIN", work)
    finally:
        connection.pragma("query_only", False)


def _transaction(connection: apsw.Connection, begin: str, work: Callable[[apsw.Connection], T]) -> T:
    connection.execute(begin)
    try:
        result = work(connection)
        connection.execute("COMMIT")
    finally:
        # SQLite has rolled back by itself after some errors, such as a full disk.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return result
