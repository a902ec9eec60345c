"""A shared file on the disk."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.files import shared_file
from overlay.files.shared_file import FileEncoding, locate
from overlay.units.capability import apply_cipher
from overlay.units.eris import LARGE_BLOCK, Encoder, encode_leaf

SECRET = bytes(range(32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of four leaves, the last one short."""
    return write(tmp_path / "file.bin", content(3 * LARGE_BLOCK + 100))


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@given(st.integers(0, 300_000))
def test_leaves_are_told_from_nodes_in_trees_of_any_height(size: int) -> None:
    data = content(size)
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        path = write(Path(folder) / "file", data)
        patch.setattr(
            shared_file, "choose_block_size", lambda _: 1024
        )  # 16 children: high trees of few bytes
        patch.setattr(shared_file, "STEP_BYTES", 70_000)
        patch.setattr(shared_file, "_PIECE_BYTES", 9_999)
        encoding = FileEncoding(*locate(path), SECRET)
        while not encoding.read:
            encoding.step()
        capability = encoding.finish()
    encoder = Encoder(1024, SECRET)
    chunks = encoder.feed(data)
    last, expected = encoder.finish()
    assert capability == expected
    padded = (data + b"\x80").ljust((size // 1024 + 1) * 1024, b"\0")
    blocks = [padded[i : i + 1024] for i in range(0, len(padded), 1024)]
    leaves = [encode_leaf(block, 1024, SECRET) for block in blocks]
    assert [leaf[:2] for leaf in encoding.leaves] == [(each.reference, n) for n, each in enumerate(leaves)]
    known = {leaf.reference for leaf in leaves}
    assert [
        apply_cipher(leaf.key, 0, block) for leaf, block in zip(encoding.leaves, blocks, strict=True)
    ] == [leaf.data for leaf in leaves]
    assert encoding.nodes == [chunk for chunk in chunks + last if chunk.reference not in known]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(3):
        write(folder / f"{number}", content(50_000, number))
    return folder
