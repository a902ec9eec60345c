"""SIGKILL at any moment of storing and receiving: what was acknowledged is there, nothing half-written is."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import apsw
import pytest

from overlay.testing.programs import COMMAND, PATIENCE, Home, MakeHome, read_until
from overlay.units.eris import chunk_reference

pytestmark = pytest.mark.timeout(180)

MIB = 1 << 20


def begin(home: Home, *words: str) -> subprocess.Popen[str]:
    """Start a command, without waiting for it."""
    return subprocess.Popen(
        [*COMMAND, "--home", str(home.path), "--json", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_when(home: Home, command: subprocess.Popen[str], reached: Callable[[], bool]) -> bool:
    """Kill a node as soon as something has come about, or the command is over; tell which it was."""
    while not (hit := reached()) and command.poll() is None:
        pass  # without any sleep, so that kills fall everywhere
    home.end(signal.SIGKILL)
    return hit


def outcome(command: subprocess.Popen[str]) -> tuple[int, dict[str, object]]:
    out, err = command.communicate(timeout=PATIENCE)
    assert "Traceback" not in err, err
    return command.returncode, json.loads(out) if command.returncode == 0 else json.loads(err)["error"]


def written(home: Home) -> int:
    """Bytes of the home's database and of the log beside it."""
    files = (home.path / "node.db", home.path / "node.db-wal")
    return sum(path.stat().st_size for path in files if path.exists())


def held(folder: Path) -> int:
    """Bytes on the disk of the files in a folder, which come and go."""
    sizes = 0
    for path in list(folder.iterdir()):
        with suppress(FileNotFoundError):
            sizes += path.stat().st_blocks * 512
    return sizes


def check_database(home: Home) -> int:
    """Check the database of a node that does not run; tell how many chunks it keeps."""
    connection = apsw.Connection(str(home.path / "node.db"))
    assert connection.pragma("integrity_check") == "ok"
    chunks = connection.execute("SELECT reference, content FROM chunks").fetchall()
    assert all(
        isinstance(content, bytes) and chunk_reference(content) == reference for reference, content in chunks
    )
    (kept,) = connection.execute("SELECT chunks FROM chunk_totals WHERE own = 0").fetchall()
    connection.close()
    assert kept == (len(chunks),)
    return len(chunks)


@pytest.fixture
def alice(make_home: MakeHome) -> Home:
    """Alice is the directory too, so that Bob is the only one who can keep something for her."""
    home = make_home("alice")
    home.up("--directory")
    return home


@pytest.fixture
def bob(make_home: MakeHome, alice: Home) -> Home:
    home = make_home("bob")
    home.up("--join", str(alice.one("ticket")["ticket"]))
    return home


@pytest.fixture
def session(alice: Home, bob: Home) -> str:
    made = alice.one("chat", "create", "Garden")
    bob.one("chat", "join", made["invite"])
    return str(made["session"])


def test_a_holder_killed_while_it_stores_keeps_what_it_acknowledged(
    alice: Home, bob: Home, session: str, tmp_path: Path
) -> None:
    chance = random.Random(7)
    source = tmp_path / "first.bin"
    acknowledged: dict[str, bytes] = {}
    hits = 0
    for number in range(4):
        source = source.rename(tmp_path / f"{number}.bin") if source.exists() else tmp_path / "0.bin"
        source.write_bytes(chance.randbytes(6 * MIB))
        goal = written(bob) + chance.randrange(6 * MIB)
        post = begin(alice, "chat", "post", session, str(source))
        hits += kill_when(bob, post, lambda goal=goal: written(bob) >= goal)  # type: ignore[misc]
        code, answer = outcome(post)
        assert code in {0, 5}, answer
        check_database(bob)
        if code == 0:
            acknowledged[str(answer["file"])] = source.read_bytes()
        else:
            assert "keeps this file" in str(answer["message"])
        bob.up()
    assert hits >= 1

    posted = alice.one("chat", "post", session, str(source))
    bob.end(signal.SIGKILL)
    acknowledged[str(posted["file"])] = source.read_bytes()
    assert "not reached" in alice.error("chat", "get", session, str(posted["file"]), code=5)
    bob.up()
    for file, content in acknowledged.items():
        alice.one("chat", "get", session, file, "-o", str(tmp_path / file))
        assert (tmp_path / file).read_bytes() == content
    assert {line["file"] for line in alice.run("chat", "files", session)} == acknowledged.keys()


def test_a_holder_that_lost_everything_is_said_to_have(
    alice: Home, bob: Home, session: str, tmp_path: Path
) -> None:
    source = tmp_path / "plan.bin"
    source.write_bytes(os.urandom(MIB))
    alice.one("chat", "post", session, str(source))
    bob.end(signal.SIGKILL)
    assert check_database(bob) > 32
    connection = apsw.Connection(str(bob.path / "node.db"))
    connection.execute("DELETE FROM chunks WHERE rowid = (SELECT max(rowid) FROM chunks)")
    connection.close()
    bob.up()
    assert "nobody has all" in alice.error(
        "chat", "get", session, "plan.bin", "-o", str(tmp_path / "x"), code=7
    )
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".x.")] == ["plan.bin"]


def test_a_fetcher_killed_leaves_no_half_file_under_the_name(
    alice: Home, session: str, tmp_path: Path
) -> None:
    source = tmp_path / "plan.bin"
    source.write_bytes(os.urandom(12 * MIB))
    alice.one("chat", "post", session, str(source))
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    chance = random.Random(3)
    hits = 0
    for _ in range(3):
        goal = held(inbox) + chance.randrange(1, 4 * MIB)

        def half(goal: int = goal) -> bool:
            return held(inbox) >= goal

        get = begin(alice, "chat", "get", session, "plan.bin", "-o", str(inbox))
        hits += kill_when(alice, get, half)
        code, answer = outcome(get)
        assert code in {0, 5}, answer
        whole = inbox / "plan.bin"
        if whole.exists():  # killed after its last moment
            assert whole.read_bytes() == source.read_bytes()
            whole.unlink()
        alice.up()
    assert hits >= 1
    alice.one("chat", "get", session, "plan.bin", "-o", str(inbox))
    assert [path.name for path in inbox.iterdir()] == ["plan.bin"]
    assert (inbox / "plan.bin").read_bytes() == source.read_bytes()


def test_a_fetch_whose_command_was_killed_is_gone_on_with(alice: Home, session: str, tmp_path: Path) -> None:
    source = tmp_path / "plan.bin"
    source.write_bytes(os.urandom(24 * MIB))
    alice.one("chat", "post", session, str(source))
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    get = begin(alice, "chat", "get", session, "plan.bin", "-o", str(inbox))
    while not any(inbox.iterdir()):
        assert get.poll() is None
    get.kill()
    get.communicate()
    whole = inbox / "plan.bin"
    while not whole.exists():
        # The node notices, and ends what it did for that command; or it was through already.
        again = alice.finish("chat", "get", session, "plan.bin", "-o", str(inbox))
        assert again.returncode == 0 or "already" in again.stderr
    assert [path.name for path in inbox.iterdir()] == ["plan.bin"]
    assert whole.read_bytes() == source.read_bytes()


def test_a_poster_killed_has_posted_all_or_nothing(
    alice: Home, bob: Home, session: str, tmp_path: Path
) -> None:
    source = tmp_path / "plan.bin"
    source.write_bytes(os.urandom(12 * MIB))
    goal = written(bob) + 3 * MIB
    post = begin(alice, "chat", "post", session, str(source))
    hit = kill_when(alice, post, lambda: written(bob) >= goal)
    code, _ = outcome(post)
    assert hit
    assert code != 0
    alice.up()
    files = [str(line["file"]) for line in alice.run("chat", "files", session)]
    assert len(files) <= 1
    files.append(str(alice.one("chat", "post", session, str(source))["file"]))
    for file in files:
        alice.one("chat", "get", session, file, "-o", str(tmp_path / file))
        assert (tmp_path / file).read_bytes() == source.read_bytes()


def test_a_sender_killed_while_it_sends_has_every_acknowledged_message_once(
    alice: Home, bob: Home, session: str
) -> None:
    chance = random.Random(11)
    acknowledged: list[str] = []
    for number in range(6):
        before = written(alice)
        goal = before + chance.randrange(20_000)
        text = f"message {number}"
        send = begin(alice, "chat", "send", session, text)
        kill_when(alice, send, lambda goal=goal: written(alice) >= goal)  # type: ignore[misc]
        code, _ = outcome(send)
        if code == 0:
            acknowledged.append(text)
        check_database(alice)
        alice.up()
    texts = alice.texts(session)
    assert len(texts) == len(set(texts))
    assert [text for text in texts if text in acknowledged] == acknowledged
    alice.one("chat", "send", session, "the last")
    read_until(bob, session, "the last")
    assert bob.texts(session) == alice.texts(session)


def test_a_receiver_killed_while_messages_come_in_gets_them_all(alice: Home, bob: Home, session: str) -> None:
    chance = random.Random(13)
    texts = [f"message {number} " + "x" * chance.randrange(30_000) for number in range(30)]

    def send_all() -> None:
        for text in texts:
            alice.one("chat", "send", session, "-", stdin=text)

    kills = 0
    with ThreadPoolExecutor(1) as threads:
        sending = threads.submit(send_all)
        while not sending.done():
            goal = written(bob) + chance.randrange(60_000)
            while written(bob) < goal and not sending.done():
                pass
            bob.end(signal.SIGKILL)
            kills += 1
            check_database(bob)
            bob.up()
        sending.result()
    assert kills >= 2
    alice.one("chat", "send", session, "the last")
    read_until(bob, session, "the last")
    everything = ["--last", "100"]
    shown = [line["text"] for line in bob.run("chat", "read", session, *everything) if line["kind"] == "text"]
    assert shown == [*texts, "the last"]
