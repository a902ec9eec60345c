"""Three real `overlay` processes behind real onion services: chat, file, and what happens when tor dies."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from overlay.testing.programs import Home, MakeHome, read_until
from overlay.testing.tor import PrivateTorNetwork

ProcessesOf = Callable[[Path], list[int]]


@pytest.fixture
def make_tor_home(make_home: MakeHome, tor_network: PrivateTorNetwork) -> Callable[[str], Home]:
    options = ("--transport", "tor", "--torrc", str(tor_network.client_torrc))
    return lambda name: make_home(name, up_options=options)


def test_the_whole_story(
    make_tor_home: Callable[[str], Home], processes_of: ProcessesOf, tmp_path: Path
) -> None:
    directory, alice, bob = map(make_tor_home, ("directory", "alice", "bob"))
    directory.up("--directory")
    ticket = directory.one("ticket")["ticket"]
    alice.start("--join", ticket)
    bob.up("--join", ticket)
    address = alice.one("status", "--wait", "100")["locators"]
    assert address[0].startswith("/onion3/")

    made = alice.one("chat", "create", "Garden")
    session = made["session"]
    bob.one("chat", "join", made["invite"])
    alice.one("chat", "send", session, "hello bob")
    read_until(bob, session, "hello bob")
    bob.one("chat", "send", session, "hello alice")
    read_until(alice, session, "hello alice")

    content = os.urandom(2_000_003)
    (tmp_path / "plan").write_bytes(content)
    alice.one("chat", "post", session, str(tmp_path / "plan"))
    read_until(bob, session, "plan", kind="file")
    bob.one("chat", "get", session, "plan", "-o", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == content

    _kill_tor_and_wait_for_another(alice, processes_of)
    assert alice.one("status", "--wait", "100")["locators"] == address
    bob.one("chat", "send", session, "are you back?")
    read_until(alice, session, "are you back?")

    assert alice.end() == 0
    assert processes_of(alice.path) == []
    alice.up()
    assert alice.one("status")["locators"] == address
    assert alice.texts(session) == ["hello bob", "hello alice", "are you back?"]


def _kill_tor_and_wait_for_another(home: Home, processes_of: ProcessesOf) -> None:
    """The node says that its tor is gone, and that it has another one."""
    (killed,) = processes_of(home.path)
    os.kill(killed, signal.SIGKILL)
    while processes_of(home.path) in ([], [killed]):
        transport = home.one("status")["transports"][0]
        assert transport["name"] == "tor", json.dumps(transport)
    assert "start" in home.log()
