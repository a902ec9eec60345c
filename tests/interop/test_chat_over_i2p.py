"""Real `overlay` processes on I2P, and on I2P and Tor at once while one of the two networks ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from overlay.testing.i2p import PrivateI2pNetwork
from overlay.testing.programs import Home, MakeHome, read_until
from overlay.testing.tor import PrivateTorNetwork

MakeNumberedHome = Callable[[str, int], Home]


@pytest.fixture
def i2p_home(make_home: MakeHome, i2p_network: PrivateI2pNetwork) -> MakeNumberedHome:
    """Make a home whose node is on I2P alone, with a router of its own."""

    def make(name: str, router: int) -> Home:
        sam = i2p_network.sam_addresses[router]
        return make_home(name, up_options=("--transport", "i2p", "--sam", sam))

    return make


@pytest.fixture
def mortal_tor() -> Iterator[tuple[PrivateTorNetwork, ExitStack]]:
    """A Tor network of the test's own, which it may end."""
    with start_blocking_portal("asyncio") as portal, ExitStack() as stack:
        yield stack.enter_context(portal.wrap_async_context_manager(PrivateTorNetwork())), stack


def descendants(pid: int) -> list[str]:
    """The names of all processes that a process started, and that those started."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
        found.append(Path(f"/proc/{child}/comm").read_text(encoding="utf-8").strip())
        found += descendants(int(child))
    return found


def test_the_whole_story(i2p_home: MakeNumberedHome, tmp_path: Path) -> None:
    directory, alice, bob = (i2p_home(name, at) for at, name in enumerate(("directory", "alice", "bob")))
    directory.up("--directory")
    ticket = directory.one("ticket")["ticket"]
    alice.start("--join", ticket)
    bob.up("--join", ticket)
    address = alice.one("status", "--wait", "100")["locators"]
    assert address[0].startswith("/garlic32/")
    assert alice.process is not None
    assert descendants(alice.process.pid) == []  # no tor above all, and no router beside the one it was given

    made = alice.one("chat", "create", "Garden")
    session = made["session"]
    bob.one("chat", "join", made["invite"])
    alice.one("chat", "send", session, "hello bob")
    read_until(bob, session, "hello bob")
    content = os.urandom(300_003)
    (tmp_path / "plan").write_bytes(content)
    posted = alice.one("chat", "post", session, str(tmp_path / "plan"))["file"]
    alice.one("chat", "get", session, posted, "-o", str(tmp_path / "copy"))  # from those who keep it for her
    assert (tmp_path / "copy").read_bytes() == content
    (line,) = [peer for peer in alice.run("peers") if peer["connected"] and peer["via"] is not None][:1]
    assert line["over"] == "i2p"
    assert line["via"].startswith("/garlic32/")

    assert alice.end(signal.SIGKILL) == -signal.SIGKILL
    alice.up()
    assert alice.one("status")["locators"] == address
    bob.one("chat", "send", session, "are you back?")
    read_until(alice, session, "are you back?")
    assert alice.texts(session) == ["hello bob", "are you back?"]


def test_a_chat_goes_on_when_one_of_two_networks_ends(
    make_home: MakeHome, i2p_network: PrivateI2pNetwork, mortal_tor: tuple[PrivateTorNetwork, ExitStack]
) -> None:
    tor, end_of_tor = mortal_tor

    def make(name: str, router: int) -> Home:
        on_tor = ("--transport", "tor", "--torrc", str(tor.client_torrc))
        on_i2p = ("--transport", "i2p", "--sam", i2p_network.sam_addresses[router])
        return make_home(name, up_options=(*on_tor, *on_i2p))

    directory, alice, bob = (make(name, at) for at, name in enumerate(("directory", "alice", "bob")))
    directory.up("--directory")
    ticket = directory.one("ticket")["ticket"]
    alice.start("--join", ticket)
    bob.up("--join", ticket)
    assert {text.split("/")[1] for text in alice.one("status", "--wait", "100")["locators"]} == {
        "onion3",
        "garlic32",
    }
    made = alice.one("chat", "create", "Garden")
    session = made["session"]
    bob.one("chat", "join", made["invite"])
    alice.one("chat", "send", session, "over one of the two")
    read_until(bob, session, "over one of the two")

    end_of_tor.close()
    said = [f"over the other, {number}" for number in range(5)]
    for text in said:
        alice.one("chat", "send", session, text)
    read_until(bob, session, said[-1])
    bob.one("chat", "send", session, "and back")
    read_until(alice, session, "and back")
    assert {peer["over"] for peer in bob.run("peers") if peer["connected"]} == {"i2p"}
    for home in (alice, bob):
        assert home.texts(session) == ["over one of the two", *said, "and back"]
