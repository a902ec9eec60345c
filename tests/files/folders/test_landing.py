"""Where the files of a folder land: what stands in the way is named, with what to do about it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlay.errors import NotFoundError, OverlayError, RefusedError, StorageError
from overlay.files.folders.landing import Landing
from overlay.files.manifest.codec import Entry
from overlay.units.capability import ReadCapability

CAPABILITY = ReadCapability(1024, 0, bytes(32), bytes(32))
ELSEWHERE = "remove it, or name another place"
AGAIN = "mend that and give the same command again, or name another place"


def file(*path: str) -> Entry:
    return Entry(path, CAPABILITY, 7)


def folder(*path: str) -> Entry:
    return Entry(path)


def fails(kind: type[OverlayError], sentence: str) -> pytest.RaisesExc[OverlayError]:
    return pytest.raises(kind, match=f"^{re.escape(sentence)}$")


@pytest.fixture
def landing(tmp_path: Path) -> Iterator[Landing]:
    landing = Landing(tmp_path / "to" / "garden")
    landing.make(())
    yield landing
    landing.close()


def test_a_destination_that_was_made_and_stayed_empty_is_removed(tmp_path: Path) -> None:
    Landing(tmp_path / "to" / "garden").close()
    assert not (tmp_path / "to").exists()
    (tmp_path / "to").mkdir()
    Landing(tmp_path / "to" / "garden").close()  # it was there before
    used = Landing(tmp_path / "new" / "garden")
    used.make(())
    used.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "to"]


def test_one_that_was_made_and_cannot_be_opened_is_removed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_options: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(StorageError, match="Too many open files"):
            Landing(tmp_path / "to" / "garden")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("kind", ["file", "dangling", "circle"])
def test_what_is_no_folder_is_no_destination(tmp_path: Path, kind: str) -> None:
    to = tmp_path / "to"
    if kind == "file":
        to.touch()
    else:
        to.symlink_to(to if kind == "circle" else tmp_path / "nowhere")
    with fails(RefusedError, f"{to} is something else where a folder should be: name another place"):
        Landing(to / "garden")
    assert not (tmp_path / "nowhere").exists()


def test_nor_is_anything_in_it(tmp_path: Path) -> None:
    (tmp_path / "to").touch()
    with fails(
        RefusedError, f"{tmp_path / 'to'} is something else where a folder should be: name another place"
    ):
        Landing(tmp_path / "to" / "new" / "garden")


def test_only_the_last_folder_of_a_destination_is_made(tmp_path: Path) -> None:
    sentence = f"there is no folder {tmp_path / 'to'}: make it, or name another place"
    with fails(NotFoundError, sentence):
        Landing(tmp_path / "to" / "new" / "garden")
    (tmp_path / "to").symlink_to(tmp_path)  # of the user, who may
    landing = Landing(tmp_path / "to" / "new" / "garden")
    assert (tmp_path / "new").is_dir()
    landing.close()


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("name", ["look", "kept", "open", "enter"])
def test_what_stands_on_the_way_is_named(landing: Landing, name: str, *, link: bool) -> None:
    way = landing.path / "beds"
    if link:
        way.symlink_to(landing.path)
    else:
        way.touch()
    does: dict[str, Callable[[], object]] = {
        "look": lambda: landing.look(file("beds", "north", "rose")),
        "kept": lambda: landing.kept(file("beds", "north", "rose")),
        "open": lambda: landing.open(file("beds", "north", "rose")),
        "enter": lambda: landing.enter(("beds", "north")),
    }
    with fails(RefusedError, f"{way} is no folder but a file or a symbolic link: {ELSEWHERE}"):
        does[name]()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to(path.parent / "x")])
def test_what_has_the_name_of_a_file_is_named(landing: Landing, make: Callable[[Path], None]) -> None:
    make(landing.path / "rose")
    with fails(RefusedError, f"{landing.path / 'rose'} is there and is no file: {ELSEWHERE}"):
        landing.look(file("rose"))


def test_what_has_the_name_of_an_empty_folder_is_named(landing: Landing) -> None:
    (landing.path / "pond").touch()
    sentence = f"{landing.path / 'pond'} is no folder but a file or a symbolic link: {ELSEWHERE}"
    with fails(RefusedError, sentence):
        landing.look(folder("pond"))
    with fails(RefusedError, sentence):
        landing.make(("pond",))


def test_a_file_that_goes_while_it_is_looked_at(landing: Landing) -> None:
    rose = landing.path / "rose"
    rose.write_bytes(bytes(7))
    assert landing.look(file("rose")) == "there"
    rose.unlink()
    with fails(NotFoundError, f"{rose} has just been removed: give the same command again"):
        landing.open(file("rose"))
    rose.symlink_to(landing.path / "tulip")
    with fails(RefusedError, f"{rose} is there and is no file: {ELSEWHERE}"):
        landing.open(file("rose"))


def test_a_disk_that_fails_is_told_with_what_could_not_be_done(
    landing: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(Landing, "_walk", fail)
    rose = landing.path / "rose"
    for does, trouble in (
        (lambda: landing.look(file("rose")), "looked at"),
        (lambda: landing.kept(file("rose")), "looked at"),
        (lambda: landing.open(file("rose")), "read"),
        (lambda: landing.make(("rose",)), "written"),
    ):
        with fails(StorageError, f"{rose} cannot be {trouble}, input/output error: {AGAIN}"):
            does()
