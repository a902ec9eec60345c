"""A shared file on the disk."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.files.sharing import shared_file
from overlay.files.sharing.shared_file import FileEncoding, locate
from overlay.units.capability import apply_cipher
from overlay.units.eris import Encoder, encode_leaf
from tests.files.sharing.conftest import SECRET, content, write


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
