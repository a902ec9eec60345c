"""The database on real files and threads: durable, private, exclusive, whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import apsw
import pytest
from trio.testing import MockClock

from overlay.database import Database, Schema
from overlay.errors import ClosedError, StorageError

NOTES = Schema("notes", ("CREATE TABLE notes (body ANY) STRICT",))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Real clocks: files are used from threads."""
    return request.param, {}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "overlay.db"


@pytest.fixture(params=["file", "memory"])
async def database(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[Database]:
    async with await Database.open(path if request.param == "file" else None, [NOTES]) as database:
        yield database


def add(body: apsw.SQLiteValue) -> Callable[[apsw.Connection], apsw.Cursor]:
    return lambda connection: connection.execute("INSERT INTO notes VALUES (?)", (body,))


def bodies(connection: apsw.Connection) -> list[apsw.SQLiteValue]:
    return [body for (body,) in connection.execute("SELECT body FROM notes ORDER BY rowid")]


async def test_what_was_written_is_read(database: Database) -> None:
    assert await database.write(lambda connection: connection.execute("SELECT 7").get) == 7
    await database.write(add("one"))
    await database.write(add(b"two"))
    assert await database.read(bodies) == ["one", b"two"]


async def test_a_write_that_raises_leaves_nothing(database: Database) -> None:
    def fail(connection: apsw.Connection) -> None:
        add("half")(connection)
        raise LookupError

    with pytest.raises(LookupError):
        await database.write(fail)
    assert await database.read(bodies) == []
    await database.write(add("whole"))
    assert await database.read(bodies) == ["whole"]


async def test_mistakes_in_sql_are_not_disguised(database: Database) -> None:
    with pytest.raises(apsw.SQLError):
        await database.write(lambda connection: connection.execute("NOT SQL").get)


async def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(StorageError):
        await database.read(add("sneaked"))
    await database.write(add("proper"))
    assert await database.read(bodies) == ["proper"]


async def test_foreign_keys_are_enforced(database: Database) -> None:
    def orphan(connection: apsw.Connection) -> None:
        connection.execute("CREATE TABLE a (x PRIMARY KEY); CREATE TABLE b (x REFERENCES a (x))")
        connection.execute("INSERT INTO b VALUES (1)")

    with pytest.raises(apsw.ConstraintError):
        await database.write(orphan)


async def test_concurrent_writes_do_not_lose_updates(database: Database) -> None:
    await database.write(add(0))

    def increment(connection: apsw.Connection) -> None:
        value = connection.execute("SELECT body FROM notes").get
        connection.execute("UPDATE notes SET body = ?", (value + 1,))

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(database.write, increment)
    assert await database.read(bodies) == [20]


async def test_closed_means_closed(database: Database) -> None:
    await database.aclose()
    for use in (database.read(bodies), database.write(add("late"))):
        with pytest.raises(ClosedError, match="the database is closed"):
            await use


async def test_a_closed_file_is_complete_in_itself(path: Path) -> None:
    async with await Database.open(path, [NOTES]) as database:
        await database.write(add("kept"))
    assert [entry.name for entry in path.parent.iterdir()] == ["overlay.db"]
    async with await Database.open(path, [NOTES]) as database:
        assert await database.read(bodies) == ["kept"]


async def test_a_read_goes_on_beside_a_write_and_sees_one_state(path: Path) -> None:
    inside, release = threading.Event(), threading.Event()

    def slow(connection: apsw.Connection) -> None:
        add("new")(connection)
        inside.set()
        assert release.wait(20)

    async with await Database.open(path, [NOTES]) as database:
        async with anyio.create_task_group() as group:
            group.start_soon(database.write, slow)
            await anyio.to_thread.run_sync(inside.wait)
            assert await database.read(bodies) == []
            release.set()
        assert await database.read(bodies) == ["new"]


async def test_a_read_does_not_wait_for_reads_in_bulk(path: Path) -> None:
    inside, release = threading.Event(), threading.Event()

    def slow(_: apsw.Connection) -> None:
        inside.set()
        assert release.wait(20)

    async with await Database.open(path, [NOTES]) as database:
        await database.write(add("kept"))
        async with anyio.create_task_group() as group:
            group.start_soon(partial(database.read, slow, bulk=True))
            group.start_soon(partial(database.read, slow, bulk=True))
            await anyio.to_thread.run_sync(inside.wait)
            assert await database.read(bodies) == ["kept"]
            release.set()
        assert await database.read(bodies, bulk=True) == ["kept"]


async def test_a_cancelled_write_that_began_is_finished(path: Path) -> None:
    scope = anyio.CancelScope()

    def cancelled_inside(connection: apsw.Connection) -> str:
        anyio.from_thread.run_sync(scope.cancel)
        add("whole")(connection)
        return "finished"

    async with await Database.open(path, [NOTES]) as database:
        outcome = ""
        with scope:
            outcome = await database.write(cancelled_inside)
            await anyio.sleep_forever()
        assert (outcome, scope.cancelled_caught) == ("finished", True)
        assert await database.read(bodies) == ["whole"]


async def test_a_cancelled_write_that_waited_did_nothing(path: Path) -> None:
    inside, release = threading.Event(), threading.Event()

    def slow(connection: apsw.Connection) -> None:
        inside.set()
        assert release.wait(20)
        add("first")(connection)

    async with await Database.open(path, [NOTES]) as database:
        async with anyio.create_task_group() as group:
            group.start_soon(database.write, slow)
            await anyio.to_thread.run_sync(inside.wait)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await database.write(add("second"))
            assert scope.cancelled_caught
            release.set()
        assert await database.read(bodies) == ["first"]


@pytest.fixture(params=[0o000, 0o077, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
async def test_files_are_for_their_owner_only(path: Path) -> None:
    async with await Database.open(path, [NOTES]) as database:
        await database.write(add("private"))
        modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}
    assert modes == dict.fromkeys(["overlay.db", "overlay.db-wal", "overlay.db-shm"], 0o600)


async def test_a_file_that_was_left_open_to_others_is_tightened(path: Path) -> None:
    wal = path.with_name("overlay.db-wal")
    for file in (path, wal):
        file.touch()
        file.chmod(0o644)
    async with await Database.open(path, [NOTES]):
        assert [stat.S_IMODE(file.stat().st_mode) for file in (path, wal)] == [0o600, 0o600]


async def test_commits_wait_for_the_disk(path: Path) -> None:
    async with await Database.open(path, [NOTES]) as database:
        settings = await database.write(
            lambda connection: [connection.pragma(name) for name in ("journal_mode", "synchronous")]
        )
    assert settings == ["wal", 2]


async def test_no_folder_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be made: No such file"):
        await Database.open(tmp_path / "missing" / "overlay.db", [])


async def test_a_file_of_something_else_is_refused_and_left_alone(path: Path) -> None:
    content = b"my diary, page one. " * 500
    await anyio.Path(path).write_bytes(content)
    with pytest.raises(StorageError, match="not a database of this program"):
        await Database.open(path, [NOTES])
    assert await anyio.Path(path).read_bytes() == content


async def test_a_newer_database_is_refused(path: Path) -> None:
    async with await Database.open(path, [Schema("notes", (*NOTES.steps, "CREATE TABLE more (x)"))]):
        pass
    with pytest.raises(StorageError, match="newer version"):
        await Database.open(path, [NOTES])


async def test_damage_is_said_so(path: Path) -> None:
    async with await Database.open(path, [NOTES]) as database:
        for _ in range(50):
            await database.write(add(b"x" * 4000))
    damaged = bytearray(await anyio.Path(path).read_bytes())
    damaged[5 * 4096 :] = b"\xff" * (len(damaged) - 5 * 4096)
    await anyio.Path(path).write_bytes(damaged)
    async with await Database.open(path, [NOTES]) as database:
        with pytest.raises(StorageError, match="damaged: restore it"):
            await database.read(bodies)


async def test_another_program_that_holds_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay.database.sqlite.BUSY_TIMEOUT_MS", 1)
    async with await Database.open(path, [NOTES]) as database:
        other = apsw.Connection(str(path))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="another program is using the database"):
            await database.write(add("blocked"))
        other.execute("INSERT INTO notes VALUES ('theirs')")
        other.execute("COMMIT")
        other.close()
        await database.write(add("ours"))
        assert await database.read(bodies) == ["theirs", "ours"]


@pytest.mark.parametrize(
    "anyio_backend", [("trio", {"clock": MockClock(autojump_threshold=0)})], ids=["virtual time"]
)
async def test_a_database_in_memory_takes_no_virtual_time() -> None:
    async with await Database.open(None, [NOTES]) as database:
        await database.write(add("start"))
        with anyio.fail_after(0.001):
            for number in range(100):
                await database.write(add(number))
                await database.read(bodies)
        before = anyio.current_time()
        await anyio.sleep(3600)
        assert anyio.current_time() - before == pytest.approx(3600)


async def test_a_database_in_memory_lets_cancellation_and_others_in() -> None:
    async with await Database.open(None, [NOTES]) as database:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await database.write(add("never"))
        assert scope.cancelled_caught
        assert await database.read(bodies) == []
