"""Real nodes in processes of their own, over TCP on loopback, used through the command as people do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from overlay.control.home import Home
from overlay_cli.spool import scratch_folder

if TYPE_CHECKING:
    from tests.cli.conftest import Command, CommandAt

WAIT = "20"
"""Seconds for a node to become ready over TCP; it takes less than one."""


@contextmanager
def up(overlay: Command, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A node that is ready."""
    with overlay.running("--json", "up", "--transport", "tcp", *words) as process:
        done = overlay("status", "--wait", WAIT)
        assert done.code == 0, done.err
        yield process


def made(command_at: CommandAt, path: Path, name: str) -> Command:
    overlay = command_at(path)
    assert overlay("init", "--name", name).code == 0
    return overlay


@pytest.fixture(scope="module")
def nodes(command_at: CommandAt) -> Iterator[tuple[Command, Command]]:
    """Ann, who is a directory, and Bob, who has joined."""
    with TemporaryDirectory() as folder:
        ann = made(command_at, Path(folder) / "ann", "Ann")
        bob = made(command_at, Path(folder) / "bob", "Bob")
        with up(ann, "--directory"), up(bob, "--join", ann("ticket").out.strip()):
            yield ann, bob


def follow_until(overlay: Command, session: str, text: str) -> list[dict[str, Any]]:
    """Read a session until a text comes."""
    entries: list[dict[str, Any]] = []
    with overlay.running("--json", "chat", "read", session, "--follow") as process:
        assert process.stdout is not None
        for line in process.stdout:
            entries.append(json.loads(line))
            if entries[-1]["text"] == text:
                break
    return entries


def session_of_both(ann: Command, bob: Command, title: str) -> str:
    created = ann("--json", "chat", "create", title).lines[0]
    assert bob("chat", "join", created["invite"]).code == 0
    return str(created["session"])


def test_the_keys_of_the_contract(nodes: tuple[Command, Command], tmp_path: Path) -> None:
    ann, bob = nodes
    created = ann("--json", "chat", "create", "Keys")
    assert created.err == ""
    session, invite = created.lines[0]["session"], created.lines[0]["invite"]
    assert ann("--json", "chat", "invite", session).lines[0].keys() == {"session", "invite"}
    joined = bob("--json", "chat", "join", invite, "--as", "Robert").lines[0]
    assert (joined["session"], joined["title"], joined["name"]) == (session, "Keys", "Robert")
    assert ann("--json", "chat", "send", "Keys", "hello").lines[0].keys() == {"session", "message"}
    entries = follow_until(bob, session, "hello")
    assert entries[-1].keys() == {"id", "at", "from", "participant", "kind", "text", "size"}
    assert (entries[-1]["from"], entries[-1]["kind"]) == ("Ann", "text")
    assert {each["name"] for each in ann("--json", "chat", "people", session).lines} == {"Ann", "Robert"}
    source = tmp_path / "notes.bin"
    source.write_bytes(os.urandom(300_000))
    posted = ann("--json", "chat", "post", session, str(source)).lines[0]
    assert (posted["name"], posted["size"]) == ("notes.bin", 300_000)
    follow_until(bob, session, "notes.bin")
    got = bob("--json", "chat", "get", session, posted["file"][:8], "-o", str(tmp_path / "copy"))
    assert got.lines == [{"path": str(tmp_path / "copy"), "size": 300_000}]
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert bob("--json", "chat", "files", session).lines[0]["file"] == posted["file"]


def test_status_ticket_peers(nodes: tuple[Command, Command]) -> None:
    ann, bob = nodes
    status = bob("--json", "status").lines[0]
    assert status.keys() == {"state", "detail", "node", "locators", "transports", "peers", "sessions"}
    assert (status["state"], status["node"]) == ("ready", bob("id").out.strip())
    assert status["transports"] == [
        {"name": "tcp", "state": "ready", "detail": "", "progress": 100, "facts": {}}
    ]
    assert ann("--json", "ticket").lines[0].keys() == {"ticket"}
    assert bob("--json", "peers").lines[0]["node"] == ann("id").out.strip()
    doctor = bob("--json", "doctor")
    assert {each["check"] for each in doctor.lines} >= {
        "python",
        "clock",
        "home",
        "config",
        "node",
        "tcp",
        "directory",
    }


def test_messages_go_both_ways_and_read_the_same(nodes: tuple[Command, Command]) -> None:
    ann, bob = nodes
    session = session_of_both(ann, bob, "Both ways")
    ann("chat", "send", session, "one")
    follow_until(bob, session, "one")
    bob("chat", "send", session, "two")
    follow_until(ann, session, "two")
    assert ann("--json", "chat", "read", session).out == bob("--json", "chat", "read", session).out
    assert [each["text"] for each in ann("--json", "chat", "read", session, "--last", "2").lines] == [
        "one",
        "two",
    ]


def test_files_are_not_overwritten(nodes: tuple[Command, Command], tmp_path: Path) -> None:
    ann, bob = nodes
    session = session_of_both(ann, bob, "Files")
    source = tmp_path / "-evil name.txt"
    source.write_text("content")
    ann("chat", "post", session, str(source))
    follow_until(bob, session, "-evil name.txt")
    folder = tmp_path / "folder"
    folder.mkdir()
    got = bob("--json", "chat", "get", session, "-o", str(folder), "--", "-evil name.txt")
    assert got.lines == [{"path": str(folder / "_evil name.txt"), "size": 7}]
    again = bob("--json", "chat", "get", session, "-o", str(folder), "--", "-evil name.txt")
    assert (again.code, again.error["code"]) == (6, "refused")
    assert bob("chat", "get", session, "-o", str(source), "--", "-evil name.txt").code == 6
    assert bob("chat", "get", session, "-o", "/nonexistent/folder/x", "--", "-evil name.txt").code == 7
    assert source.read_text() == "content"
    assert [each.name for each in folder.iterdir()] == ["_evil name.txt"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["chat", "join", "ovi1damaged"], 2),
        (["chat", "join", "nonsense"], 2),
        (["chat", "create", "\x1b[2J"], 2),
        (["chat", "create", ""], 2),
        (["chat", "create", "x" * 5000], 2),
        (["chat", "create", "t", "--as", "\u202eeve"], 2),
        (["chat", "read", "no such session"], 7),
        (["chat", "send", "a" * 56, "x"], 2),
        (["chat", "get", "no such session", "x"], 7),
    ],
)
def test_what_is_refused(nodes: tuple[Command, Command], words: list[str], code: int) -> None:
    done = nodes[0]("--json", *words)
    assert (done.code, done.out) == (code, "")
    assert done.error["message"]


def test_joining_twice_and_an_ambiguous_title(nodes: tuple[Command, Command]) -> None:
    ann, _ = nodes
    first = ann("--json", "chat", "create", "Same").lines[0]
    second = ann("--json", "chat", "create", "Same").lines[0]
    assert ann("chat", "join", first["invite"]).code == 6
    ambiguous = ann("--json", "chat", "send", "Same", "x")
    assert ambiguous.code == 6
    assert first["session"][:12] in ambiguous.error["message"]
    assert second["session"][:12] in ambiguous.error["message"]
    assert ann("chat", "send", second["session"][:10], "x").code == 0


def test_leaving_deletes_the_session_here(nodes: tuple[Command, Command]) -> None:
    ann, bob = nodes
    session = session_of_both(ann, bob, "Leaving")
    assert bob("--json", "chat", "leave", session).lines == [{"session": session}]
    assert bob("chat", "read", session).code == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_node_cleanly(overlay: Command, home: Home, number: signal.Signals) -> None:
    with up(overlay) as process:
        process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == 0, err
    states = [json.loads(line) for line in out.splitlines()]
    assert [each["state"] for each in states][-2:] == ["ready", "stopping"]
    assert all(each.keys() == {"state", "detail", "node", "locators"} for each in states)
    assert b"Traceback" not in err
    assert not home.control_socket.exists()
    assert not home.locked


def test_a_second_node_and_down(overlay: Command, home: Home) -> None:
    with up(overlay) as process:
        second = overlay("--json", "up", "--transport", "tcp")
        assert (second.code, second.error["code"]) == (6, "refused")
        down = overlay("--json", "down")
        assert (down.code, down.lines) == (0, [{"state": "stopped"}])
        assert not home.locked
        assert process.wait() == 0
    assert overlay("status").code == 3


def test_a_killed_node_leaves_nothing_in_the_way(overlay: Command, home: Home) -> None:
    with up(overlay) as process:
        session = overlay("--json", "chat", "create", "Kept").lines[0]["session"]
        process.kill()
        process.wait()
    assert home.control_socket.exists()
    assert overlay("status").code == 3
    with up(overlay):
        assert overlay("--json", "chat", "list").lines[0]["session"] == session


def test_a_node_that_starts_removes_what_killed_commands_left(overlay: Command, home: Home) -> None:
    (home.path / "stdin-left").write_bytes(b"left")
    (home.path / "stdout-left").mkdir()
    (home.path / "stdout-left" / "content").write_bytes(b"left")
    with scratch_folder(home.path) as used, up(overlay):
        assert [*home.path.glob("std*")] == [used]


def test_joining_and_being_a_directory_are_remembered(command_at: CommandAt, short_folder: Path) -> None:
    ann = made(command_at, short_folder / "ann", "Ann")
    bob = made(command_at, short_folder / "bob", "Bob")
    with up(ann, "--directory") as process:
        ticket = ann("ticket").out.strip()
        listen = ann("--json", "status").lines[0]["locators"][0].split("/")
        assert ann("up", "--join", ticket).code == 6  # it runs already
        with up(bob, "--join", ticket):
            assert bob("down").code == 0
        process.terminate()
        process.wait()
    with up(ann, "--listen", f"127.0.0.1:{listen[-1]}"), up(bob):
        assert "directory" in bob("--json", "peers").lines[0]["roles"]


def test_a_directory_does_not_join_itself(overlay: Command, home: Home) -> None:
    with up(overlay, "--directory"):
        ticket = overlay("ticket").out.strip()
        overlay("down")
    done = overlay("--json", "up", "--transport", "tcp", "--join", ticket)
    assert (done.code, done.error["code"]) == (2, "malformed")
    assert home.exists


def test_an_address_that_is_taken(nodes: tuple[Command, Command], overlay: Command, home: Home) -> None:
    port = nodes[0]("--json", "status").lines[0]["locators"][0].rpartition("/")[2]
    done = overlay("--json", "up", "--transport", "tcp", "--listen", f"127.0.0.1:{port}")
    assert (done.code, json.loads(done.err.splitlines()[-1])["error"]["code"]) == (4, "unavailable")
    assert not home.locked


def test_loose_permissions_are_closed(overlay: Command, home: Home) -> None:
    (home.path / "identity").chmod(0o644)
    with up(overlay) as process:
        assert (home.path / "identity").stat().st_mode & 0o777 == 0o600
        process.terminate()
        _, err = process.communicate()
    assert b"others could read" in err


def test_a_home_with_a_long_path(command_at: CommandAt, tmp_path: Path) -> None:
    overlay = made(command_at, tmp_path / ("long" * 40), "Ann")
    with up(overlay):
        assert overlay("ticket").code == 0
        assert overlay("down").code == 0
