"""What a path that somebody typed leads to, and what a fetch that was killed left beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from overlay.errors import RefusedError
from overlay.files.disk.paths import check_free
from overlay.files.disk.target import open_target
from overlay.units.eris import NULL_SECRET, encode_content

CONTENT = b"red" * 1000
UNLINK = os.unlink


class KilledError(Exception):
    """The process ends here."""


async def test_the_hidden_name_that_a_killed_fetch_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks, capability = encode_content(CONTENT, secret=NULL_SECRET)
    path = tmp_path / "rose"
    async with open_target(path, capability) as target:
        while wanted := target.tree.wanted(64):
            for chunk in chunks:
                if chunk.reference in wanted:
                    target.take(chunk.reference, chunk.data)
            await target.flush()
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", dying)
            with pytest.raises(KilledError):
                await target.finish()
    assert len(names(tmp_path)) == 2  # the file, and its hidden name
    with pytest.raises(RefusedError, match=r"exists already.*--force"):
        await check_free(path, capability)
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["rose"]


async def test_what_another_fetch_left_stays(tmp_path: Path) -> None:
    path = tmp_path / "rose"
    path.write_bytes(b"mine")
    first, second = (encode_content(each, secret=NULL_SECRET) for each in (b"first", b"second"))
    async with open_target(path, first[1], overwrite=True) as target:
        for chunk in first[0]:
            target.take(chunk.reference, chunk.data)
    before = names(tmp_path)
    assert len(before) == 3
    for capability in (first[1], second[1]):
        with pytest.raises(RefusedError):
            await check_free(path, capability)
    assert names(tmp_path) == before


async def test_nothing_is_in_the_way(tmp_path: Path) -> None:
    capability = encode_content(CONTENT, secret=NULL_SECRET)[1]
    await check_free(tmp_path / "nothing", capability)
    (tmp_path / "folder").mkdir()
    await check_free(tmp_path / "folder", capability)


def dying(name: str, *, dir_fd: int) -> None:
    if name.endswith(".part"):
        raise KilledError
    UNLINK(name, dir_fd=dir_fd)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
