"""What the tests of sharing have in common."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from overlay.database import Database
from overlay.files.sharing.shares import SHARES_SCHEMA, Shares
from overlay.units.capability import ReadCapability
from overlay.units.eris import LARGE_BLOCK, Decoder, encode_content

SECRET = bytes(range(32))


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with await Database.open(tmp_path / "overlay.db", [SHARES_SCHEMA]) as database:
        yield database


@pytest.fixture
def offers(database: Database) -> Shares:
    return open_shares(database)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of four leaves, the last one short."""
    return write(tmp_path / "file.bin", content(3 * LARGE_BLOCK + 100))


def open_shares(database: Database) -> Shares:
    return Shares(database, entropy=random.Random(1).randbytes, clock=lambda: 5.0)


def open_convergent(database: Database) -> Shares:
    """Shares of which equal files have equal chunks, as two versions of one file have."""
    return Shares(database, entropy=lambda _: SECRET, clock=lambda: 5.0)


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def read(path: Path) -> bytes:
    return path.read_bytes()


def moved(path: Path, name: str) -> Path:
    return path.rename(path.with_name(name))


def references(data: bytes, secret: bytes) -> list[bytes]:
    return [chunk.reference for chunk in encode_content(data, secret=secret)[0]]


async def fetched(offers: Shares, capability: ReadCapability) -> bytes:
    """Read a whole content out of what is offered."""
    decoder = Decoder(capability)
    found = []
    while not decoder.finished:
        wanted = decoder.wanted(64)
        for reference, chunk in zip(wanted, await offers.chunks.get(wanted), strict=True):
            assert chunk is not None
            decoder.receive(reference, chunk)
        found.append(decoder.read())
    return b"".join(found)


async def rows(database: Database) -> list[int]:
    """Count shares, leaves and chunks in the tables."""

    def count(connection: apsw.Connection) -> list[int]:
        tables = "shares", "share_leaves", "share_chunks"
        return [connection.execute(f"SELECT count(*) FROM {table}").get for table in tables]  # noqa: S608 - constants

    return await database.read(count)


# --- what becomes of a file


def same_size_and_time(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touched(path: Path) -> None:
    os.utime(path, ns=(0, 0))


def truncated(path: Path) -> None:
    os.truncate(path, LARGE_BLOCK)


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replaced_by_link(path: Path) -> None:
    copy = path.rename(path.with_name("elsewhere"))
    path.symlink_to(copy)


def replaced_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def vanished(path: Path) -> None:
    path.unlink()


def under_a_file(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()
    path.parent.write_bytes(b"")
