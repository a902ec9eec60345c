"""A full disk: one clear sentence, what was stored before intact, and everything works once there is room."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import apsw
import pytest

from overlay.database import Database, Schema
from overlay.errors import StorageError

NOTES = Schema("notes", ("CREATE TABLE notes (body BLOB) STRICT",))
FULL = "the disk is full|could not be read or written: check that it is neither full"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Real clocks: files are used from threads."""
    return request.param, {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB."""
    if os.geteuid() != 0 or not run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)):
        pytest.skip("only root may mount a small file system")
    yield tmp_path
    assert run("umount", str(tmp_path))


def run(*command: str) -> bool:
    program = shutil.which(command[0])
    return program is not None and subprocess.run([program, *command[1:]], check=False).returncode == 0


def add(connection: apsw.Connection) -> None:
    connection.execute("INSERT INTO notes VALUES (?)", (b"x" * 32_768,))


def count(connection: apsw.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM notes WHERE length(body) = 32768").get)


async def fill(database: Database) -> int:
    """Write until the disk is full; tell how many writes were acknowledged."""
    stored = 0

    async def write_all() -> None:
        nonlocal stored
        for _ in range(1000):
            await database.write(add)
            stored += 1

    with pytest.raises(StorageError, match=FULL):
        await write_all()
    return stored


@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "file"])
async def test_a_database_that_may_not_grow(tmp_path: Path, *, in_memory: bool) -> None:
    path = None if in_memory else tmp_path / "overlay.db"
    async with await Database.open(path, [NOTES]) as database:
        await database.write(lambda connection: connection.pragma("max_page_count", 100))
        stored = await fill(database)
        assert 0 < stored == await database.read(count)
        await database.write(lambda connection: connection.pragma("max_page_count", 200))
        await database.write(add)
        assert await database.read(count) == stored + 1


async def test_a_real_disk_that_is_full(small_disk: Path) -> None:
    path, ballast = small_disk / "overlay.db", small_disk / "ballast"
    await anyio.Path(ballast).write_bytes(bytes(2**20))
    async with await Database.open(path, [NOTES]) as database:
        stored = await fill(database)
        assert 0 < stored == await database.read(count)
        await anyio.Path(ballast).unlink()
        await database.write(add)
    async with await Database.open(path, [NOTES]) as database:
        assert await database.read(count) == stored + 1
        assert await database.read(lambda connection: connection.pragma("integrity_check")) == "ok"
