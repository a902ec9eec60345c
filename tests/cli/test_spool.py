"""What comes on stdin, as a file: whole, private, bounded, and gone afterwards."""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path

import pytest

from overlay.errors import MalformedError, StorageError
from overlay_cli import spool
from overlay_cli.spool import binary_stdout, remove_left, scratch_folder, spooled_stdin, write_all


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


def leave(folder: Path) -> None:
    """Make what commands leave that are killed, and what nobody else calls so."""
    (folder / "stdin-left").write_bytes(b"left")
    (folder / "stdout-left").mkdir()
    (folder / "stdout-left" / "content").write_bytes(b"left")


def test_whoever_comes_next_removes_both_kinds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    give(monkeypatch, b"one")
    leave(tmp_path)
    with spooled_stdin(tmp_path) as file:
        assert list(tmp_path.iterdir()) == [file]
        leave(tmp_path)
        with scratch_folder(tmp_path) as folder:
            assert {*tmp_path.iterdir()} == {file, folder}
            leave(tmp_path)
            (folder / "content").write_bytes(b"needed")
            remove_left(tmp_path)
            assert {*tmp_path.iterdir()} == {file, folder}
            assert (file.read_bytes(), (folder / "content").read_bytes()) == (b"one", b"needed")


def test_what_is_something_else_or_cannot_be_removed_stays(tmp_path: Path) -> None:
    (tmp_path / "stdin-folder").mkdir()
    (tmp_path / "stdout-file").touch()
    (tmp_path / "stdin-link").symlink_to(tmp_path / "stdout-file")
    before = {*tmp_path.iterdir()}
    remove_left(tmp_path)
    assert {*tmp_path.iterdir()} == before
    remove_left(tmp_path / "none")


def test_a_folder_is_there_for_a_while_and_private(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "content").write_bytes(b"much")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="cannot be kept"), scratch_folder(tmp_path / "none"):
        pass


def test_only_folders_that_nobody_uses_are_removed(tmp_path: Path) -> None:
    (tmp_path / "stdout-left").mkdir()
    (tmp_path / "stdout-left" / "content").write_bytes(b"left")
    with scratch_folder(tmp_path) as one:
        assert list(tmp_path.iterdir()) == [one]
        with scratch_folder(tmp_path) as other:
            assert {*tmp_path.iterdir()} == {one, other}
        assert list(tmp_path.iterdir()) == [one]


def test_stdout_may_be_closed_or_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(MalformedError, match="stdout is closed"), binary_stdout():
        pass
    leader, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stdout, os.fdopen(leader, "rb"):
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(MalformedError, match="stdout is a terminal"), binary_stdout():
            pass


def test_a_pipe_that_does_not_wait_gets_everything() -> None:
    data, got = os.urandom(1 << 20), bytearray()
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    with io.FileIO(source) as reader:

        def read() -> None:
            while piece := reader.read(4096):
                got.extend(piece)

        thread = threading.Thread(target=read)
        thread.start()
        with io.FileIO(sink, "wb") as file:
            write_all(file, data)
        thread.join()
    assert bytes(got) == data
