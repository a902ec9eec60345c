"""Files between real `overlay` processes, typed as a user types them, with both ends killed in between."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from overlay.testing.programs import COMMAND, PATIENCE, Home, MakeHome

SIZE = 48 * 1024 * 1024 + 17
KILLS = 3


@pytest.fixture
def pair(make_home: MakeHome) -> tuple[Home, Home]:
    ann, bob = make_home("ann"), make_home("bob")
    ann.up("--directory")
    bob.up("--join", ann.one("ticket")["ticket"])
    return ann, bob


def content(path: Path, size: int) -> bytes:
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    return data


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def begun(home: Home, link: str, path: Path) -> subprocess.Popen[str]:
    """Begin to fetch, and wait until some of it is there."""
    command = [*COMMAND, "--home", str(home.path), "--json", "file", "get", link, "-o", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        running = home.run("file", "status")
        if running and running[0]["present"]:
            break
    return process


def test_a_file_is_offered_fetched_listed_and_removed(pair: tuple[Home, Home], tmp_path: Path) -> None:
    ann, bob = pair
    data = content(tmp_path / "plan.bin", 3_000_000)
    shared = ann.one("file", "share", str(tmp_path / "plan.bin"))
    assert shared["link"].startswith("urn:eris:")
    assert shared["size"] == len(data)
    folder = tmp_path / "in"
    folder.mkdir()
    got = bob.one("file", "get", "-", "-o", str(folder), stdin=shared["link"] + "\n")
    assert got == {"path": str(folder / "plan.bin"), "size": len(data)}
    assert (folder / "plan.bin").read_bytes() == data
    assert "exists" in bob.error("file", "get", shared["link"], "-o", str(folder), code=6)
    bob.one("file", "get", shared["link"], "-o", str(folder), "--force")

    (offer,) = ann.run("file", "list")
    assert (offer["name"], offer["problem"]) == ("plan.bin", None)
    assert bob.run("file", "list") == []
    plain = shared["link"].partition("?")[0]
    bob.one("file", "get", plain, "-o", str(tmp_path / "by-urn"))  # from the nodes that it knows
    assert (tmp_path / "by-urn").read_bytes() == data

    assert ann.one("file", "remove", shared["link"]) == {
        "name": "plan.bin",
        "paths": [str(tmp_path / "plan.bin")],
        "within": [],
    }
    assert ann.run("file", "list") == []
    assert "nobody has" in bob.error("file", "get", shared["link"], "-o", str(tmp_path / "late"), code=7)
    assert not (tmp_path / "late").exists()


def test_what_cannot_be_offered_or_fetched_is_one_sentence(pair: tuple[Home, Home], tmp_path: Path) -> None:
    ann, bob = pair
    assert "does not exist" in ann.error("file", "share", str(tmp_path / "nothing"), code=7)
    assert "urn:eris:" in bob.error("file", "get", "ovi1nonsense", code=2)
    content(tmp_path / "small", 10)
    link = ann.one("file", "share", str(tmp_path / "small"))["link"]
    assert "damaged" in bob.error("file", "get", link[:-2], code=2)
    assert "no folder" in bob.error("file", "get", link, "-o", str(tmp_path / "none" / "x"), code=7)


def test_both_ends_killed_again_and_again(pair: tuple[Home, Home], tmp_path: Path) -> None:
    ann, bob = pair
    data = content(tmp_path / "big", SIZE)
    link = ann.one("file", "share", str(tmp_path / "big"))["link"]
    for kill in range(KILLS):
        fetching = begun(bob, link, tmp_path / "copy")
        for home in (ann, bob) if kill % 2 else (bob, ann):
            assert home.end(signal.SIGKILL) == -signal.SIGKILL
        fetching.communicate(timeout=60)
        ann.up()
        bob.up()
    bob.one("file", "get", link, "-o", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == data
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".copy")] == []


@pytest.mark.parametrize("directory", ["meeting", "ann"])
def test_a_provider_that_comes_back_at_another_address_is_fetched_from(
    make_home: MakeHome, tmp_path: Path, directory: str
) -> None:
    meeting, ann, bob = (make_home(name) for name in ("meeting", "ann", "bob"))
    if directory == "ann":
        before = ann.up("--directory")["locators"]
        bob.up("--join", ann.one("ticket")["ticket"])
    else:
        meeting.up("--directory")
        ticket = meeting.one("ticket")["ticket"]
        before = ann.up("--join", ticket)["locators"]
        bob.up("--join", ticket)
    data = content(tmp_path / "big", SIZE)
    link = ann.one("file", "share", str(tmp_path / "big"))["link"]
    bob.one("file", "limit", "--down", "1M")  # so that there is something left when she is back
    fetching = begun(bob, link, tmp_path / "copy")
    assert ann.end(signal.SIGKILL) == -signal.SIGKILL
    (there,) = bob.run("file", "status")
    assert 0 < there["present"] < SIZE // 2
    after = ann.up("--listen", f"127.0.0.1:{free_port()}")["locators"]
    assert not set(after) & set(before)
    bob.one("file", "limit", "--down", "none")
    fetching.communicate(timeout=PATIENCE)
    assert fetching.returncode == 0  # the same command: nobody gave it anew
    assert (tmp_path / "copy").read_bytes() == data


def test_ctrl_c_keeps_what_came_and_says_how_to_go_on(pair: tuple[Home, Home], tmp_path: Path) -> None:
    ann, bob = pair
    data = content(tmp_path / "big", 3 * SIZE)  # some seconds, of which the first is enough
    link = ann.one("file", "share", str(tmp_path / "big"))["link"]
    fetching = begun(bob, link, tmp_path / "copy")
    fetching.send_signal(signal.SIGINT)
    said = fetching.communicate(timeout=60)[1]
    assert fetching.returncode == 130
    assert "goes on from there" in said
    assert next(tmp_path.glob(".copy.*.part")).stat().st_blocks > 0
    bob.one("file", "get", link, "-o", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == data
