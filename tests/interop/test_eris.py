"""Content and links of another ERIS implementation, in real processes: each reads what the other wrote."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from overlay.files.links import FileLink
from overlay.files.service import FILES_SCHEMAS, Files
from overlay.peer.storage import MAX_BATCH_CHUNKS
from overlay.testing.nodes import World, introduce
from overlay.testing.programs import MakeHome
from overlay.testing.simulation import Latency
from overlay.units.eris import LARGE_BLOCK, NULL_SECRET, SMALL_BLOCK, choose_block_size, encode_content

PROGRAM = Path(__file__).with_name("foreign_eris.py")
SECRET = bytes(range(32))
SIZES = [0, 2, SMALL_BLOCK - 1, SMALL_BLOCK, 16_383, 16_384, 600 * SMALL_BLOCK, 520 * LARGE_BLOCK + 2]
ODD_SIZES = [1, SMALL_BLOCK + 1, LARGE_BLOCK + 1]
"""Its decoder (1.0.0) loses the last byte of these, also of what it wrote itself."""


def run(*words: str, given: bytes = b"") -> bytes:
    command = [sys.executable, str(PROGRAM), *words]
    return subprocess.run(command, input=given, capture_output=True, check=True).stdout


def encoded(content: bytes, folder: Path, *, secret: bytes = SECRET, block: int | None = None) -> str:
    """Have the other encode content into a folder; gives its URN."""
    folder.mkdir()
    size = block or choose_block_size(len(content))
    return run("encode", str(size), secret.hex(), str(folder), given=content).decode()


@pytest.mark.parametrize("size", SIZES + ODD_SIZES)
@pytest.mark.parametrize("secret", [SECRET, NULL_SECRET], ids=["secret", "null"])
def test_both_write_the_same(tmp_path: Path, size: int, secret: bytes) -> None:
    content = random.Random(size).randbytes(size)
    chunks, capability = encode_content(content, secret=secret)
    assert encoded(content, tmp_path / "theirs", secret=secret) == capability.urn
    written = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    assert written == {chunk.reference.hex(): chunk.data for chunk in chunks}


@pytest.mark.parametrize("size", SIZES)
def test_it_reads_what_is_written_here(tmp_path: Path, size: int) -> None:
    content = random.Random(size).randbytes(size)
    chunks, capability = encode_content(content, secret=SECRET)
    for chunk in chunks:
        (tmp_path / chunk.reference.hex()).write_bytes(chunk.data)
    assert run("decode", capability.urn, str(tmp_path)) == content


@pytest.mark.parametrize("block", [SMALL_BLOCK, LARGE_BLOCK])
@pytest.mark.parametrize("size", [0, 16_000, 3_000_017])
async def test_what_it_encoded_is_fetched_from_whoever_keeps_it(
    tmp_path: Path, size: int, block: int
) -> None:
    content = random.Random(size).randbytes(size)
    urn = encoded(content, tmp_path / "theirs", block=block)
    world = World(8, latency=Latency(0.001))
    async with (
        world.database(*FILES_SCHEMAS) as database,
        world.node("alice", database) as alice,
        world.database() as other,
        world.node("bob", other) as bob,
    ):
        files = Files(alice, database)
        await files.start()
        await introduce([alice, bob])
        chunks = [path.read_bytes() for path in (tmp_path / "theirs").iterdir()]
        for start in range(0, len(chunks), MAX_BATCH_CHUNKS):
            await bob.storage.put(chunks[start : start + MAX_BATCH_CHUNKS], now=bob.clock())
        await files.get(FileLink.parse(urn), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content


def test_its_link_fetches_what_is_shared_with_the_command_line(make_home: MakeHome, tmp_path: Path) -> None:
    ann, bob = make_home("ann"), make_home("bob")
    ann.up("--directory")
    bob.up("--join", ann.one("ticket")["ticket"])
    content = random.Random(1).randbytes(2_000_000)
    (tmp_path / "plan").write_bytes(content)
    urn = encoded(content, tmp_path / "theirs", secret=NULL_SECRET)
    link = ann.one("file", "share", str(tmp_path / "plan"), "--convergent")["link"]
    assert link.startswith(f"{urn}?")
    bob.one("file", "get", urn, "-o", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == content
