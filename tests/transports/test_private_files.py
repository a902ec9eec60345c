from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from overlay.transports.private_files import write_private

if TYPE_CHECKING:
    from pathlib import Path


def test_only_this_user_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "key"
    write_private(path, b"secret")
    assert path.read_bytes() == b"secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_what_was_there_is_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"old and longer")
    path.chmod(0o644)
    (tmp_path / "key.new").write_bytes(b"left by a process that was killed")
    write_private(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "file" / "key", b"secret")
