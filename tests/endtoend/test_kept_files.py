"""`overlay file put` and `pin` between real processes: what is kept is there when the first node has left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from overlay.testing.programs import COMMAND, Home, MakeHome

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def three(make_home: MakeHome) -> tuple[Home, Home, Home]:
    """Ann is the directory; all know each other."""
    ann, bob, carol = make_home("ann"), make_home("bob"), make_home("carol")
    ann.up("--directory")
    ticket = str(ann.one("ticket")["ticket"])
    for home in (bob, carol):
        home.up("--join", ticket)
    return ann, bob, carol


def content(path: Path, size: int) -> bytes:
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    return data


def spools(home: Home) -> list[str]:
    return [path.name for path in home.path.iterdir() if path.name.startswith("stdin-")]


def test_what_was_put_is_there_when_its_owner_has_left(
    three: tuple[Home, Home, Home], tmp_path: Path
) -> None:
    ann, bob, carol = three
    data = content(tmp_path / "plan.bin", 3_000_000)
    put = carol.one("file", "put", str(tmp_path / "plan.bin"))
    assert put["link"].startswith("urn:eris:")
    assert (put["name"], put["size"], put["holders"]) == ("plan.bin", len(data), 2)
    assert carol.run("file", "list") == []  # it offers nothing itself
    noted = carol.one("file", "put", "-", "--name", "note.txt", stdin="from a pipe\n")
    unnamed = carol.one("file", "put", "-", stdin="")
    assert (noted["name"], unnamed["name"], unnamed["size"]) == ("note.txt", "", 0)
    assert spools(carol) == []
    carol.end()
    inbox = tmp_path / "in"
    inbox.mkdir()
    assert bob.one("file", "get", put["link"], "-o", str(inbox))["path"] == str(inbox / "plan.bin")
    assert (inbox / "plan.bin").read_bytes() == data
    ann.one("file", "get", noted["link"], "-o", str(inbox))
    assert (inbox / "note.txt").read_text() == "from a pipe\n"
    ann.one("file", "get", unnamed["link"], "-o", str(inbox / "empty"))
    assert (inbox / "empty").read_bytes() == b""


def test_what_cannot_be_put_is_one_sentence(three: tuple[Home, Home, Home], tmp_path: Path) -> None:
    ann, bob, carol = three
    assert "does not exist" in carol.error("file", "put", str(tmp_path / "nothing"), code=7)
    assert "pack it into a file" in carol.error("file", "put", str(tmp_path), code=6)
    assert "not a regular file" in carol.error("file", "put", "/dev/null", code=6)
    content(tmp_path / "plan", 10)
    ann.end(signal.SIGKILL)
    put = carol.finish("file", "put", str(tmp_path / "plan"), code=0)
    assert "only one node was reached that keeps it" in put.stderr
    bob.end(signal.SIGKILL)
    assert "no other node" in carol.error("file", "put", str(tmp_path / "plan"), code=5)
    carol.end()
    assert carol.finish("file", "put", "-", stdin="lost", code=3).stdout == ""


def test_a_spool_that_a_kill_left_goes_with_the_next(three: tuple[Home, Home, Home]) -> None:
    carol = three[2]
    command = [*COMMAND, "--home", str(carol.path), "file", "put", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as putting:
        assert putting.stdin is not None
        putting.stdin.write(bytes(1000))
        putting.stdin.flush()
        while not spools(carol):
            assert putting.poll() is None
        assert os.stat(carol.path / spools(carol)[0]).st_mode & 0o777 == 0o600  # noqa: PTH116 - of a test
        carol.one("file", "put", "-", stdin="meanwhile")
        assert len(spools(carol)) == 1  # it is in use
        putting.kill()
    assert len(spools(carol)) == 1
    carol.one("file", "put", "-", stdin="later")
    assert spools(carol) == []


def test_what_was_pinned_is_there_when_its_owner_has_left(
    three: tuple[Home, Home, Home], tmp_path: Path
) -> None:
    ann, bob, carol = three
    data = content(tmp_path / "plan.bin", 3_000_000)
    shared = carol.one("file", "share", str(tmp_path / "plan.bin"))["link"]
    pinned = bob.one("file", "pin", shared)
    assert (pinned["name"], pinned["size"]) == ("plan.bin", len(data))
    (item,) = bob.run("file", "list")
    assert (item["pinned"], item["path"], item["problem"]) == (True, None, None)
    assert (item["name"], item["size"], item["link"]) == ("plan.bin", len(data), pinned["link"])
    carol.end()
    bob.end(signal.SIGKILL)
    bob.up()
    ann.one("file", "get", item["link"], "-o", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == data
    assert bob.one("file", "unpin", "-", stdin=item["link"])["name"] == "plan.bin"
    assert bob.run("file", "list") == []
    assert "not pinned" in bob.error("file", "unpin", item["link"], code=7)


def test_a_folder_is_pinned_with_all_its_files(three: tuple[Home, Home, Home], tmp_path: Path) -> None:
    ann, bob, carol = three
    folder = tmp_path / "plans"
    (folder / "old").mkdir(parents=True)
    sizes = {"big": 2_000_000, "old/small": 100, "old/same": 100, "none": 0}
    for name, size in sizes.items():
        content(folder / name, size)
    shared = carol.one("file", "share", str(folder))["link"]
    pinned = bob.one("file", "pin", shared)
    assert (pinned["name"], pinned["size"]) == ("plans", sum(sizes.values()))
    carol.end()
    inbox = tmp_path / "in"
    inbox.mkdir()
    ann.one("file", "get", pinned["link"], "-o", str(inbox))
    for name in sizes:
        assert (inbox / "plans" / name).read_bytes() == (folder / name).read_bytes()
    bob.one("file", "unpin", pinned["link"])
    assert bob.run("file", "list") == []


def test_a_pin_that_does_not_fit_is_refused_and_a_killed_one_is_gone_on_with(
    three: tuple[Home, Home, Home], tmp_path: Path
) -> None:
    _, bob, carol = three
    content(tmp_path / "plan.bin", 24 << 20)
    link = carol.one("file", "share", str(tmp_path / "plan.bin"))["link"]
    bob.end()
    config = bob.path / "config.toml"
    config.write_text(config.read_text().replace("#quota_mib = 1024\n", "quota_mib = 8\n"))
    bob.up()
    assert "quota of this node leaves 8.0 MiB: unpin" in bob.error("file", "pin", link, code=1)
    plain = link.partition("?")[0]
    assert "quota of this node, 8 MiB, is used up" in bob.error("file", "pin", plain, code=1)
    (item,) = bob.run("file", "list")
    assert (item["problem"], item["size"]) == ("incomplete", None)  # of which nobody has said it
    bob.end(signal.SIGKILL)
    config.write_text(config.read_text().replace("quota_mib = 8\n", "quota_mib = 64\n"))
    bob.up()
    bob.one("file", "pin", link)
    (item,) = bob.run("file", "list")
    assert item["problem"] is None
