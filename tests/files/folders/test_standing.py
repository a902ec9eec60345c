from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay.errors import MalformedError, StorageError, VerificationError
from overlay.files.folders.standing import Standing
from overlay.units.capability import LARGE_BLOCK, SMALL_BLOCK
from overlay.units.eris import encode_content

SIZES = [0, 1, SMALL_BLOCK - 1, SMALL_BLOCK, 16_383, 16_384, LARGE_BLOCK - 1, LARGE_BLOCK, 3_000_000]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    handle = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield handle
    os.close(handle)


async def compare(handle: int, content: bytes) -> tuple[bool, int]:
    """Compare a file with what it should be; gives whether it differs, and how many chunks that took."""
    chunks, capability = encode_content(content, secret=bytes(32))
    data = {chunk.reference: chunk.data for chunk in chunks}
    standing = Standing(Path("file"), handle, capability, len(content))
    await standing.flush()
    taken = 0
    while not standing.tree.finished:
        for reference in standing.tree.wanted(3):
            assert standing.take(reference, data[reference]) == 0
            taken += 1
        await standing.flush()
    assert standing.tree.present == len(content)
    return standing.differs, taken


@pytest.mark.parametrize("size", SIZES)
async def test_equal_content_is_recognised_by_nodes_alone(file: int, size: int) -> None:
    content = os.urandom(size)
    os.pwrite(file, content, 0)
    has_one_chunk = size < SMALL_BLOCK or 16_384 <= size < LARGE_BLOCK
    assert await compare(file, content) == (False, 0 if has_one_chunk else 1)


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
async def test_one_byte_makes_another_file(file: int, size: int, where: float) -> None:
    content = bytearray(os.urandom(size))
    os.pwrite(file, content, 0)
    content[int((size - 1) * where)] ^= 1
    assert (await compare(file, bytes(content)))[0]


async def test_a_file_that_was_cut_meanwhile_is_another(file: int) -> None:
    content = os.urandom(100_000)
    os.pwrite(file, content[:50_000], 0)
    assert (await compare(file, content))[0]


async def test_what_is_wrong_is_told(file: int, tmp_path: Path) -> None:
    content = bytes(range(256)) * 200
    os.pwrite(file, content, 0)
    chunks, capability = encode_content(content, secret=bytes(32))
    with pytest.raises(MalformedError, match="does not fit"):
        Standing(tmp_path / "file", file, capability, 5)
    standing = Standing(tmp_path / "file", file, capability, len(content))
    await standing.flush()
    with pytest.raises(VerificationError):
        standing.take(capability.reference, bytes(LARGE_BLOCK))
    folder = os.open(tmp_path, os.O_RDONLY)
    standing = Standing(tmp_path, folder, capability, len(content))
    await standing.flush()
    standing.take(capability.reference, dict(chunks)[capability.reference])
    with pytest.raises(StorageError, match="cannot be read"):
        await standing.flush()
    os.close(folder)
