"""The home's database as the rest of the program sees it: `read` and `write`, each with a function.

Files are used from worker threads, because a commit waits for the disk; a database in memory is used in
the event loop itself, because under a virtual clock time would jump ahead whenever only a thread is busy.

Writes are not gathered into common commits: where it was measured, one commit for 8 to 32 chunks of 32 KiB
instead of one for each made storing 1.3 to 2 times faster, and who has many things to store gets the same
by passing them to one `write`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import apsw

from overlay.database.schema import Schema, migrate
from overlay.database.sqlite import (
    create_private,
    open_file,
    open_memory,
    read_transaction,
    translated,
    write_transaction,
)

T = TypeVar("T")


class _Lane:
    """A connection that one caller at a time uses, in the order of arrival."""

    def __init__(self, connection: apsw.Connection, *, threaded: bool) -> None:
        self._connection = connection
        self._threaded = threaded
        self._turn = anyio.CapacityLimiter(1)
        # The limiter alone is not enough: asyncio cancels its main task on SIGINT past every shield, which
        # gives the turn back while the thread is still at work.
        self._use = threading.Lock()

    async def run(self, work: Callable[[apsw.Connection], T]) -> T:
        if self._threaded:
            return await anyio.to_thread.run_sync(self._exclusively, work, limiter=self._turn)
        await anyio.lowlevel.checkpoint()
        return work(self._connection)

    def _exclusively(self, work: Callable[[apsw.Connection], T]) -> T:
        with self._use:
            return work(self._connection)


class Database:
    """An open database. Made by `open`; also an async context manager that closes it.

    Functions given to `read` and `write` are synchronous, may run in another thread, do nothing but use
    the connection and compute, and return plain values: a cursor that outlives its transaction is useless.
    """

    def __init__(self, path: Path | None, *, reader: _Lane, bulk: _Lane, writer: _Lane) -> None:
        self._path = path
        self._reader = reader
        self._bulk = bulk
        self._writer = writer

    @classmethod
    async def open(cls, path: Path | None, schemas: Sequence[Schema]) -> Self:
        """Open a database, or make it, and migrate it; a migration happens whole or not at all.

        Args:
            path: the file, which gets mode 0600, as do the `-wal` and `-shm` files beside it; its folder
                must exist. None: in memory, gone when it is closed, without threads.
            schemas: those of every component that will use the database.

        Returns:
            the database, which the caller closes.

        Raises:
            StorageError: it cannot be opened or made, is damaged or no database, or was written by a newer
                version of the program.
        """
        if path is None:
            memory = _Lane(open_memory(), threaded=False)
            await memory.run(partial(_migrate, schemas=schemas))
            return cls(None, reader=memory, bulk=memory, writer=memory)
        connections = await anyio.to_thread.run_sync(_open_three, path, schemas)
        reader, bulk, writer = (_Lane(each, threaded=True) for each in connections)
        return cls(path, reader=reader, bulk=bulk, writer=writer)

    async def read(self, fn: Callable[[apsw.Connection], T], *, bulk: bool = False) -> T:
        """Run `fn` on one unchanging state of the database, beside any write that is going on.

        Args:
            fn: queries; its attempt to write is an error.
            bulk: whether it is one of many, such as the chunks of a file for others: those wait for each
                other, and a message that is shown in between does not wait for them.

        Returns:
            what `fn` returned.

        Raises:
            StorageError: the database is damaged, or the disk does not work.
            ClosedError: the database is closed.
            Whatever `fn` raises.
        """
        with translated(self._path):
            lane = self._bulk if bulk else self._reader
            return await lane.run(partial(read_transaction, work=fn))

    async def write(self, fn: Callable[[apsw.Connection], T]) -> T:
        """Run `fn` in one transaction, after the writes that were asked for before it.

        When this returns, all that `fn` did survives SIGKILL and power loss; when it raises, nothing of it
        was done. Cancelled while it waits for its turn, nothing was done; cancelled later, it finishes all
        the same and returns, and the cancellation comes with the next wait. (Where asyncio itself cancels
        the task, as on SIGINT, the transaction is finished unattended, whole or not at all.)

        Args:
            fn: queries and changes.

        Returns:
            what `fn` returned.

        Raises:
            StorageError: the disk is full or does not work, the database is damaged, or another program
                holds it.
            ClosedError: the database is closed.
            Whatever `fn` raises.
        """
        with translated(self._path):
            return await self._writer.run(partial(write_transaction, work=fn))

    async def aclose(self) -> None:
        """Close, after the reads and writes that were asked for before; cancelled or not, it is closed then.

        Raises:
            StorageError: the disk did not work at the last moment; what was written before is kept.
        """
        with anyio.CancelScope(shield=True), translated(self._path):
            async with AsyncExitStack() as closing:
                for lane in (self._writer, self._bulk, self._reader):
                    closing.push_async_callback(lane.run, apsw.Connection.close)

    async def __aenter__(self) -> Self:
        """Use the database for the length of a block."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        await self.aclose()


def _migrate(connection: apsw.Connection, schemas: Sequence[Schema]) -> None:
    write_transaction(connection, partial(migrate, schemas=schemas))


def _open_three(path: Path, schemas: Sequence[Schema]) -> Sequence[apsw.Connection]:
    """Open two connections for reading and one for writing, so that reads never wait for a commit."""
    create_private(path)
    with translated(path), ExitStack() as closing:
        connections = []
        for _ in range(3):
            connections.append(open_file(path))
            closing.callback(connections[-1].close)
        _migrate(connections[-1], schemas)
        closing.pop_all()  # else, failed or interrupted, nobody knows of them
        return connections
