"""A node whose disk is full: it says so, lives on, loses nothing it acknowledged, and recovers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from overlay.testing.programs import Home, MakeHome, read_until

pytestmark = pytest.mark.timeout(180)

FULL = "the disk"
LONG = "x" * 30_000


def run(*command: str) -> bool:
    program = shutil.which(command[0])
    return program is not None and subprocess.run([program, *command[1:]], check=False).returncode == 0


class Disk:
    """A real file system of 4 MiB, mounted where a home will be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        with self._ballast.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass

    def free(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(make_home: MakeHome) -> Iterator[tuple[Home, Disk]]:
    """Alice's home, on a small disk of its own."""
    alice = make_home("alice")
    kept = alice.path.with_name("kept")
    alice.path.rename(kept)
    alice.path.mkdir(0o700)
    if os.geteuid() != 0 or not run(
        "mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(alice.path)
    ):
        pytest.skip("only root may mount a small file system")
    try:
        shutil.copytree(kept, alice.path, dirs_exist_ok=True)
        yield alice, Disk(alice.path)
    finally:
        if alice.process is not None:
            alice.end(signal.SIGKILL)
        assert run("umount", str(alice.path))


def test_a_full_disk_loses_nothing_and_ends_nothing(
    disk: tuple[Home, Disk], make_home: MakeHome, tmp_path: Path
) -> None:
    alice, small = disk
    alice.up("--directory")
    bob = make_home("bob")
    bob.up("--join", str(alice.one("ticket")["ticket"]))
    made = alice.one("chat", "create", "Garden")
    session = str(made["session"])
    bob.one("chat", "join", made["invite"])
    alice.one("chat", "send", session, "while there is room")
    source = tmp_path / "plan.bin"
    source.write_bytes(os.urandom(200_000))
    kept = str(bob.one("chat", "post", session, str(source))["file"])

    small.fill()
    sent = ["while there is room"]
    while True:  # the log beside the database may have some room left
        done = alice.finish("--json", "chat", "send", session, LONG)
        if done.returncode != 0:
            break
        sent.append(LONG)
    assert (done.returncode, done.stdout) == (1, "")
    assert FULL in done.stderr
    assert FULL in alice.error("chat", "send", session, LONG, code=1)
    assert FULL in alice.error("chat", "create", LONG[:150], code=1)
    assert alice.one("status")["state"] == "ready"
    assert alice.texts(session) == sent
    bob.one("chat", "send", session, LONG + "from bob")
    bob.error("chat", "post", session, str(source), code=5)  # nobody has room for it

    alice.end(signal.SIGKILL)
    small.free()
    alice.up()
    alice.one("chat", "send", session, "there is room again")
    bob.one("chat", "send", session, "so I go on")
    read_until(alice, session, "so I go on")
    read_until(bob, session, "there is room again")
    texts = alice.texts(session)
    assert texts == bob.texts(session)
    # A message that was refused may be there: its last bytes were on the disk before something else failed.
    assert texts.count(LONG) >= sent.count(LONG)
    others = [LONG + "from bob", "there is room again", "so I go on"]
    assert sorted({*texts} - {LONG}) == sorted({*sent, *others} - {LONG})
    bob.one("chat", "get", session, kept, "-o", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_a_node_recovers_without_being_started_again(disk: tuple[Home, Disk]) -> None:
    alice, small = disk
    alice.up()
    session = str(alice.one("chat", "create", "Garden")["session"])
    small.fill()
    while alice.finish("chat", "send", session, LONG).returncode == 0:
        pass
    said = alice.texts(session)
    small.free()
    alice.one("chat", "send", session, "there is room again")
    assert alice.texts(session) == [*said, "there is room again"]
    assert alice.end(signal.SIGTERM) == 0


def test_a_file_that_does_not_fit_is_told_and_can_be_had_elsewhere(
    disk: tuple[Home, Disk], make_home: MakeHome, tmp_path: Path
) -> None:
    alice, small = disk
    bob = make_home("bob")
    bob.up("--directory")
    alice.up("--join", str(bob.one("ticket")["ticket"]))
    session = str(alice.one("chat", "create", "Garden")["session"])
    source = tmp_path / "plan.bin"
    source.write_bytes(os.urandom(5 << 20))
    alice.one("chat", "post", session, str(source))
    inbox = small.path / "inbox"
    inbox.mkdir()
    sentence = alice.error("chat", "get", session, "plan.bin", "-o", str(inbox), code=1)
    assert "the disk has no room for" in sentence
    assert list(inbox.iterdir()) == []
    alice.one("chat", "get", session, "plan.bin", "-o", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_starting_on_a_full_disk_works_or_says_why(disk: tuple[Home, Disk]) -> None:
    alice, small = disk
    alice.up()
    session = str(alice.one("chat", "create", "Garden")["session"])
    alice.end()
    small.fill()
    alice.start()
    assert alice.process is not None
    while (code := alice.process.poll()) is None and alice.log().count("ready: ready") < 2:
        pass
    if code is None:
        alice.end()
    else:
        alice.process = None
        assert code == 1
        assert FULL in alice.log().splitlines()[-1]
    assert "Traceback" not in alice.log()
    assert "this is a bug" not in alice.log()
    small.free()
    alice.up()
    assert [line["session"] for line in alice.run("chat", "list")] == [session]
