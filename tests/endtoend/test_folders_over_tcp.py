"""Folders between real `overlay` processes, typed as a user types them, with both ends killed in between."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from overlay.testing.programs import COMMAND, Home, MakeHome

MANY = {f"many/{number % 7}/{number}": 2048 for number in range(500)}
LARGE = {f"large/{number}": 5 * 1024 * 1024 for number in range(3)}
KILLS = 3


@pytest.fixture
def pair(make_home: MakeHome) -> tuple[Home, Home]:
    ann, bob = make_home("ann"), make_home("bob")
    ann.up("--directory")
    bob.up("--join", ann.one("ticket")["ticket"])
    return ann, bob


def make(root: Path, files: Mapping[str, int]) -> Path:
    for name, size in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(name).randbytes(size))
    return root


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def begun(home: Home, link: str, path: Path) -> subprocess.Popen[str]:
    """Begin to fetch, and wait until some of it is there."""
    command = [*COMMAND, "--home", str(home.path), "--json", "file", "get", link, "-o", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    before = None
    while process.poll() is None:
        running = home.run("file", "status")
        present = running[0]["present"] if running and running[0]["size"] else None
        if before is not None and present is not None and present > before:
            break
        before = present if before is None else before
    return process


def test_a_folder_is_offered_fetched_listed_and_removed(pair: tuple[Home, Home], tmp_path: Path) -> None:
    ann, bob = pair
    root = make(tmp_path / "garden", {"a": 100, "b/c": 40_000, "b/d.txt": 0})
    (root / "nothing").mkdir()
    (root / "b" / "c").chmod(0o755)
    (root / "link").symlink_to("/etc/passwd")
    shared = ann.one("file", "share", str(root))
    assert (shared["name"], shared["size"], shared["files"], shared["skipped"]) == ("garden", 40_100, 3, 1)
    (offer,) = ann.run("file", "list")
    assert (offer["link"], offer["size"], offer["problem"]) == (shared["link"], 40_100, None)

    got = bob.one("--quiet", "file", "get", "-", "-o", str(tmp_path / "to"), stdin=shared["link"] + "\n")
    copy = tmp_path / "to" / "garden"
    assert got == {"path": str(copy), "size": 40_100, "files": 3}
    (root / "link").unlink()
    assert content(copy) == content(root)
    assert (copy / "nothing").is_dir()
    assert os.access(copy / "b" / "c", os.X_OK)
    assert (copy / "a").stat().st_mtime == int((root / "a").stat().st_mtime)
    assert bob.one("--quiet", "file", "get", shared["link"], "-o", str(tmp_path / "to")) == got

    (copy / "a").write_bytes(b"mine")
    error = bob.error("file", "get", shared["link"], "-o", str(tmp_path / "to"), code=6)
    assert "--force" in error
    assert (copy / "a").read_bytes() == b"mine"
    bob.run("file", "get", shared["link"], "-o", str(tmp_path / "to"), "--force")
    assert content(copy) == content(root)

    part = str(tmp_path / "part")
    assert bob.one("--quiet", "file", "get", shared["link"], "-o", part, "--only", "*.txt")["files"] == 1
    assert content(tmp_path / "part") == {"garden/b/d.txt": b""}
    assert "--only" in bob.error("file", "get", shared["link"], "-o", part, "--only", "none", code=7)
    assert "pattern" in bob.error("file", "get", shared["link"], "-o", part, "--only", "../x", code=2)

    assert ann.one("file", "remove", shared["link"])["name"] == "garden"
    assert "nobody has" in bob.error("file", "get", shared["link"], "-o", str(tmp_path / "late"), code=7)


def test_what_cannot_be_offered_is_one_sentence(pair: tuple[Home, Home], tmp_path: Path) -> None:
    ann, bob = pair
    root = make(tmp_path / "garden", {"a": 100, "b/c:\\d": 1})
    assert "c:" in ann.error("file", "share", str(root), code=2)
    assert ann.run("file", "list") == []
    link = ann.one("file", "share", str(root / "a"))["link"]
    assert "of a file" in bob.error("file", "get", link, "--only", "a", code=2)


def test_both_ends_killed_again_and_again(pair: tuple[Home, Home], tmp_path: Path) -> None:
    ann, bob = pair
    root = make(tmp_path / "garden", MANY | LARGE)
    link = ann.one("file", "share", str(root))["link"]
    copy = tmp_path / "to" / "garden"
    times: dict[Path, int] = {}
    for kill in range(KILLS):
        fetching = begun(bob, link, tmp_path / "to")
        for home in (ann, bob) if kill % 2 else (bob, ann):
            assert home.end(signal.SIGKILL) == -signal.SIGKILL
        fetching.communicate(timeout=60)
        whole = [path for path in copy.rglob("*") if path.is_file() and not path.name.startswith(".")]
        assert all(path.stat().st_ino == inode for path, inode in times.items())  # fetched once only
        times = {path: path.stat().st_ino for path in whole}
        ann.up()
        bob.up()
    bob.run("file", "get", link, "-o", str(tmp_path / "to"))
    assert times
    assert all(path.stat().st_ino == inode for path, inode in times.items())
    assert content(copy) == content(root)
    assert os.listdir(tmp_path / "to") == ["garden"]  # noqa: PTH208 - of a test
