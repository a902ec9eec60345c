"""`overlay file get -o -` between real processes: the content, in order, and nothing left of it."""

from __future__ import annotations

import random
import signal
import subprocess
from pathlib import Path

import pytest

from overlay.testing.programs import COMMAND, Home, MakeHome

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def pair(make_home: MakeHome) -> tuple[Home, Home]:
    ann, bob = make_home("ann"), make_home("bob")
    ann.up("--directory")
    bob.up("--join", str(ann.one("ticket")["ticket"]))
    return ann, bob


def reading(home: Home, link: str, *words: str) -> subprocess.Popen[bytes]:
    command = [*COMMAND, "--home", str(home.path), "file", "get", link, "-o", "-", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def scratch(home: Home) -> list[Path]:
    return [*home.path.glob("stdout-*")]


def test_a_file_goes_to_stdout_and_leaves_nothing(pair: tuple[Home, Home], tmp_path: Path) -> None:
    ann, bob = pair
    data = random.Random(1).randbytes(20_000_000)
    (tmp_path / "plan").write_bytes(data)
    link = str(ann.one("file", "share", str(tmp_path / "plan"))["link"])
    for home in (bob, ann):
        with reading(home, link) as process:
            out, err = process.communicate()
        assert (process.returncode, err, out == data) == (0, b"", True)
        assert scratch(home) == []
    (tmp_path / "folder").mkdir()
    folder = str(ann.one("file", "share", str(tmp_path / "folder"))["link"])
    assert "one of a folder, not of a file" in bob.finish("file", "get", folder, "-o", "-", code=6).stderr


def test_who_stops_reading_ends_it_and_so_does_ctrl_c(pair: tuple[Home, Home], tmp_path: Path) -> None:
    ann, bob = pair
    (tmp_path / "plan").write_bytes(random.Random(1).randbytes(20_000_000))
    link = str(ann.one("file", "share", str(tmp_path / "plan"))["link"])
    for how, code in (("interrupted", 130), ("unread", 141)):
        with reading(bob, link, "--rate", "2000000") as process:
            assert process.stdout is not None
            assert process.stdout.read(1000)
            assert len(scratch(bob)) == 1
            if how == "interrupted":
                process.send_signal(signal.SIGINT)
            else:
                process.stdout.close()
            assert process.wait() == code
        assert scratch(bob) == []
    while bob.run("file", "status"):  # the node lets go a moment later
        pass
