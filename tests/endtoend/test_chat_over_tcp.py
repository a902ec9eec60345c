"""The chat of separate processes over TCP: the five use cases, and what goes wrong in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from overlay.testing.programs import COMMAND, PATIENCE, Home, MakeHome, read_until

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def directory(make_home: MakeHome) -> Home:
    home = make_home("directory")
    home.up("--directory")
    return home


@pytest.fixture
def ticket(directory: Home) -> str:
    return str(directory.one("ticket")["ticket"])


@pytest.fixture
def alice(make_home: MakeHome, ticket: str) -> Home:
    home = make_home("alice")
    home.up("--join", ticket)
    return home


@pytest.fixture
def bob(make_home: MakeHome, ticket: str) -> Home:
    home = make_home("bob")
    home.up("--join", ticket)
    return home


def test_two_people_talk_and_share_a_file(directory: Home, alice: Home, bob: Home, tmp_path: Path) -> None:
    status = alice.one("status")
    assert status["state"] == "ready"
    assert status["locators"][0].startswith("/ip4/127.0.0.1/tcp/")
    assert {"state", "node", "locators", "transports"} <= status.keys()

    made = alice.one("chat", "create", "Garden")
    joined = bob.one("chat", "join", made["invite"])
    assert joined["session"] == made["session"]
    session = made["session"]

    alice.one("chat", "send", session, "hello bob")
    read_until(bob, session, "hello bob")
    bob.one("chat", "send", session, "-", stdin="hello alice\n")
    read_until(alice, session, "hello alice")
    assert alice.texts(session) == bob.texts(session) == ["hello bob", "hello alice"]

    content = os.urandom(3_000_017)
    source = tmp_path / "plan.bin"
    source.write_bytes(content)
    posted = alice.one("chat", "post", session, str(source))
    assert (posted["size"], posted["name"]) == (len(content), "plan.bin")
    read_until(bob, session, "plan.bin", kind="file")
    fetched = bob.one("chat", "get", session, "plan.bin", "-o", str(tmp_path / "copy.bin"))
    assert fetched == {"path": str(tmp_path / "copy.bin"), "size": len(content)} | fetched
    assert (tmp_path / "copy.bin").read_bytes() == content
    # Two others hold every chunk, so any one of them may go.
    directory.end(signal.SIGKILL)
    bob.one("chat", "get", session, "plan.bin", "-o", str(tmp_path / "again.bin"))
    assert (tmp_path / "again.bin").read_bytes() == content


def test_three_people_see_one_order_and_whoever_was_away_gets_what_it_missed(
    alice: Home, bob: Home, make_home: MakeHome, ticket: str
) -> None:
    carol = make_home("carol")
    carol.up("--join", ticket)
    made = alice.one("chat", "create", "Garden")
    session = made["session"]
    bob.one("chat", "join", made["invite"])
    carol.one("chat", "join", bob.one("chat", "invite", session)["invite"])
    for number in range(4):
        for home in (alice, bob, carol):
            home.one("chat", "send", session, f"{home.path.name} {number}")
    for home in (alice, bob, carol):
        for other in ("alice", "bob", "carol"):
            read_until(home, session, f"{other} 3")
    assert alice.texts(session) == bob.texts(session) == carol.texts(session)

    carol.end()
    alice.one("chat", "send", session, "while carol was away")
    read_until(bob, session, "while carol was away")
    alice.end()  # so carol can have it from bob only
    carol.up()
    read_until(carol, session, "while carol was away")
    assert carol.texts(session) == bob.texts(session)
    assert {person["name"] for person in carol.run("chat", "people", session)} == {"alice", "bob", "carol"}


def test_what_was_acknowledged_survives_sigkill(alice: Home, bob: Home) -> None:
    made = alice.one("chat", "create", "Garden")
    session = made["session"]
    bob.one("chat", "join", made["invite"])
    sent = []
    for number in range(5):
        text = f"message {number}"
        alice.one("chat", "send", session, text)
        alice.end(signal.SIGKILL)
        sent.append(text)
        alice.up()
        assert alice.texts(session) == sent
    read_until(bob, session, sent[-1])
    assert bob.texts(session) == sent


def test_the_directory_is_gone_and_those_who_know_each_other_go_on(
    directory: Home, alice: Home, bob: Home
) -> None:
    made = alice.one("chat", "create", "Garden")
    session = made["session"]
    bob.one("chat", "join", made["invite"])
    directory.end(signal.SIGKILL)
    alice.one("chat", "send", session, "the directory is gone")
    read_until(bob, session, "the directory is gone")
    bob.end()
    bob.start()
    assert "directory" in bob.error("status", "--wait", "2", code=5)
    read_until(bob, session, "the directory is gone")
    assert bob.one("status")["state"] in {"joining", "no-directory"}
    bob.one("chat", "send", session, "still here")
    read_until(alice, session, "still here")
    directory.up()
    assert bob.one("status", "--wait", "100")["state"] == "ready"


def test_leaving_is_told_and_the_session_is_gone_here(alice: Home, bob: Home) -> None:
    made = alice.one("chat", "create", "Garden")
    session = made["session"]
    bob.one("chat", "join", made["invite"])
    bob.run("chat", "leave", session)
    assert bob.run("chat", "list") == []
    assert "session" in bob.error("chat", "read", session, code=7)
    follow = subprocess.Popen(
        [*COMMAND, "--home", str(alice.path), "--json", "chat", "read", session, "--follow"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert follow.stdout is not None
    assert any(json.loads(line)["kind"] == "left" for line in follow.stdout)
    follow.send_signal(signal.SIGINT)
    follow.stdout.close()
    assert follow.wait(PATIENCE) in {0, 130}


def test_bad_words_get_one_sentence_and_the_right_code(alice: Home, make_home: MakeHome) -> None:
    alice.error("chat", "join", "ovi1nonsense", code=2)
    alice.error("chat", "read", "nosuchsession", code=7)
    made = alice.one("chat", "create", "Garden")
    alice.error("chat", "get", made["session"], "nofile", code=7)
    alice.error("chat", "post", made["session"], "/no/such/file", code=7)
    assert "already" in alice.error("up", "--transport", "tcp", code=6)
    alice.error("init", code=6)
    idle = make_home("idle")
    idle.error("status", code=3)
    idle.error("up", "--transport", "tcp", "--join", "ovt1cut", code=2)
    idle.run("up", "--transport", "tor", "--tor-control", "127.0.0.1:1", code=4)


def test_a_joiner_who_finds_nobody_is_told_so_and_keeps_nothing(alice: Home, bob: Home) -> None:
    made = alice.one("chat", "create", "Garden")
    alice.end()
    bob.error("chat", "join", made["invite"], code=5)
    assert bob.run("chat", "list") == []
    alice.up()
    bob.one("chat", "join", made["invite"])


def test_signals_end_a_node_cleanly(alice: Home) -> None:
    assert alice.end(signal.SIGTERM) == 0
    assert not (alice.path / "control.sock").exists()
    alice.up()
    assert alice.end(signal.SIGINT) in {0, 130}
    alice.up()
    alice.run("down")
    assert alice.process is not None
    assert alice.process.wait(PATIENCE) == 0
