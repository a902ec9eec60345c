"""What comes on stdin, as a file: whole, private, bounded, and gone afterwards."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from overlay.errors import MalformedError, StorageError
from overlay_cli import spool
from overlay_cli.spool import spooled_stdin


def give(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_all_of_it_is_there_and_then_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int) -> None:
    monkeypatch.setattr(spool, "MAX_STDIN_BYTES", 3_000_000)
    give(monkeypatch, b"x" * size)
    with spooled_stdin(tmp_path) as path:
        assert path.read_bytes() == b"x" * size
        assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == []


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(spool, "MAX_STDIN_BYTES", 3_000_000)
    give(monkeypatch, bytes(3_000_001))
    with pytest.raises(MalformedError, match="write it to a file"), spooled_stdin(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_stdin_may_be_closed_and_the_folder_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    give(monkeypatch, b"")
    with pytest.raises(StorageError, match="cannot be kept"), spooled_stdin(tmp_path / "none"):
        pass
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(MalformedError, match="stdin is closed"), spooled_stdin(tmp_path):
        pass


def test_only_what_nobody_uses_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "stdin-left").write_bytes(b"left")
    give(monkeypatch, b"one")
    with spooled_stdin(tmp_path) as one:
        assert list(tmp_path.iterdir()) == [one]
        give(monkeypatch, b"other")
        with spooled_stdin(tmp_path) as other:
            assert (one.read_bytes(), other.read_bytes()) == (b"one", b"other")
        assert list(tmp_path.iterdir()) == [one]
