"""A participant that keeps none of the rules, against real nodes and the real command on a real terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from overlay.chat import events
from overlay.chat.events import CAPABILITY_BYTES, Content, Created, Event, File, Text
from overlay.chat.invite import Invite
from overlay.chat.service import Chat
from overlay.chat.session import Session
from overlay.chat.store import CHAT_SCHEMA
from overlay.connection import ConnectionLayer
from overlay.database import Database
from overlay.errors import OverlayError, RefusedError
from overlay.identity import NodeIdentifier, NodeSecret, SigningSecret
from overlay.peer.node import NODE_SCHEMAS, Node, NodeOptions
from overlay.peer.ticket import check_ticket
from overlay.testing.programs import COMMAND, Home, MakeHome
from overlay.transports.tcp.transport import TcpTransport
from overlay.units.capability import ReadCapability
from overlay.units.locators import SEALED_PLACE_BYTES

pytestmark = pytest.mark.timeout(180)

EVIL = "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b5m\x00\r\u202egpj"
"""What would set a terminal's title, clear it, colour it, and turn its text around."""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """One real clock: the other side is a process of its own."""
    return "asyncio", {}


class Mallory:
    """A participant that says whatever a test wants: it has switched its own checks off."""

    def __init__(self, node: Node, chat: Chat, session: Session, victim: NodeIdentifier) -> None:
        self.node = node
        self._chat = chat
        self._session = session
        self._victim = victim

    async def say(self, content: Content) -> None:
        """Sign something and bring it to the victim; raises what the victim answers."""
        history = (await self._session._ready()).history
        clock, parents = history.next_parents(self._session.author)
        event = Event.sign(
            self._session._author,
            session=self._session.public,
            clock=clock,
            parents=parents,
            at=time.time(),
            content=content,
        )
        people = (await self._session.people()).values()
        (victim,) = (each for each in people if each.node == self._victim)
        await self._chat._sync.push(self._session, victim.locator, [event.encoded])
        await self._session._keep(history.add(event))  # only what the victim has taken


@asynccontextmanager
async def mallory(ticket: str, invite: str, patch: pytest.MonkeyPatch) -> AsyncIterator[Mallory]:
    async with (
        await Database.open(None, [*NODE_SCHEMAS, CHAT_SCHEMA]) as database,
        anyio.create_task_group() as group,
    ):
        directory = check_ticket(ticket).directory
        node = Node(
            secret=NodeSecret.from_bytes(os.urandom(64)),
            layer=ConnectionLayer([TcpTransport("127.0.0.1", 0)], anonymous=False),
            database=database,
            clock=time.time,
            entropy=os.urandom,
            options=NodeOptions(join=directory),
        )
        chat = Chat(node, database)
        await group.start(node.run)
        await group.start(chat.run)
        await chat.join(invite, "Mallory")
        (session,) = chat._sessions.values()
        patch.setattr(events, "_check_content", lambda _content: None)
        yield Mallory(node, chat, session, directory.identifier)
        group.cancel_scope.cancel()


@pytest.fixture
def victim(make_home: MakeHome) -> Home:
    """Also the directory, and everything that it logs is kept."""
    home = make_home("victim")
    home.start("--directory")
    home.one("status", "--wait", "60")
    return home


async def on_terminal(home: Home, *words: str) -> str:
    """What the real command writes to a real terminal, with what it says of failures."""
    return await anyio.to_thread.run_sync(_on_terminal, home, words)


def _on_terminal(home: Home, words: Sequence[str]) -> str:
    ours, theirs = pty.openpty()
    command = [*COMMAND, "--home", str(home.path), *words]
    environment = os.environ | {"TERM": "xterm", "NO_COLOR": "1"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        written = b""
        try:
            while data := os.read(ours, 65_536):
                written += data
        except OSError:  # how Linux tells that nobody holds the other end any more
            process.wait()
        os.close(ours)
    return written.decode()


def is_harmless(shown: str) -> bool:
    return all(character.isprintable() or character in "\r\n" for character in shown)


async def in_thread(work: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - as json
    return await anyio.to_thread.run_sync(work, *arguments)


def file(
    name: str, *, holders: Sequence[NodeIdentifier], capability: bytes = bytes(CAPABILITY_BYTES)
) -> File:
    return File(name=name, size=5, capability=capability, holders=tuple(holder.value for holder in holders))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


NAMES = [
    "../../evil",
    "/etc/cron.d/evil",
    "..",
    ".",
    "",
    "a\\..\\evil",
    "evil\0.txt",
    "evil\n.txt",
    f"a{EVIL}",
    "\u202egnp.exe",
    "x" * 256,
]


async def test_names_titles_and_texts_that_break_the_rules_are_refused(
    victim: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await in_thread(victim.one, "chat", "create", "Garden")
    ticket = (await in_thread(victim.one, "ticket"))["ticket"]
    async with mallory(ticket, made["invite"], monkeypatch) as hostile:
        bad: list[Content] = [
            *(file(name, holders=[hostile.node.identifier]) for name in NAMES),
            Text(text=""),
            Text(text="x" * 32_769),
        ]
        for content in bad:
            with pytest.raises(RefusedError):
                await hostile.say(content)
        await hostile.say(Text(text="and now a good one"))
        assert await in_thread(victim.run, "chat", "files", made["session"]) == []
        assert await in_thread(victim.texts, made["session"]) == ["and now a good one"]
    assert is_harmless(victim.log())


async def test_nothing_that_a_participant_says_reaches_the_terminal_raw(
    victim: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await in_thread(victim.one, "chat", "create", "Garden")
    ticket = (await in_thread(victim.one, "ticket"))["ticket"]
    session = made["session"]
    async with mallory(ticket, made["invite"], monkeypatch) as hostile:
        await hostile.say(Text(text=f"look: {EVIL}\nand a line that says nothing"))
        await hostile.say(file("\u200bplan\u200b$(reboot).txt", holders=[hostile.node.identifier]))
        for words in (["read", session], ["files", session], ["people", session], ["list"]):
            shown = await on_terminal(victim, "chat", *words)
            assert is_harmless(shown), (words, shown)
            assert shown
        assert "look: " in await on_terminal(victim, "chat", "read", session)
        assert "\\x1b]0;owned\\x07" in await on_terminal(victim, "chat", "read", session)
        assert is_harmless(await on_terminal(victim, "chat", "get", session, "plan.txt"))
        assert is_harmless(await on_terminal(victim, "peers"))
        listed = await in_thread(victim.run, "chat", "read", session)
        assert any(line["text"].startswith(f"look: {EVIL}") for line in listed)
    assert is_harmless(victim.log())


async def test_an_invite_with_an_evil_title_is_refused(victim: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_check_content", lambda _content: None)
    key = SigningSecret.generate(os.urandom)
    created = Event.sign(
        key, session=key.public, clock=1, parents=[], at=time.time(), content=Created(title=f"Garden{EVIL}")
    )
    node = NodeSecret.from_bytes(os.urandom(64)).identifier
    invite = str(Invite(created, bytes(32), node, bytes(SEALED_PLACE_BYTES)))
    shown = await on_terminal(victim, "chat", "join", invite)
    assert "title" in shown
    assert is_harmless(shown)
    await in_thread(lambda: victim.error("chat", "join", invite, code=2))


async def test_a_file_under_a_dangerous_name_is_fetched_safely_or_not_at_all(
    victim: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = await in_thread(victim.one, "chat", "create", "Garden")
    ticket = (await in_thread(victim.one, "ticket"))["ticket"]
    session = made["session"]
    source = tmp_path / "source.bin"
    source.write_bytes(b"rm -rf")
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    async with mallory(ticket, made["invite"], monkeypatch) as hostile:
        posted = await hostile._chat.post(session, source)
        (_, honest) = (await hostile._chat._posted(hostile._session))[0]
        assert posted.size == 6

        async def fetched(name: str, code: int) -> list[str]:
            await hostile.say(File(name=name, size=6, capability=honest.capability, holders=honest.holders))
            found = await in_thread(victim.run, "chat", "files", session)
            words = ["chat", "get", session, found[-1]["file"], "-o", str(inbox)]
            done = await in_thread(lambda: victim.finish(*words, code=code))
            assert is_harmless(done.stderr + done.stdout)
            return names_in(inbox)

        for device in ("CON", "nul.txt", "Aux.tar.gz", "COM1", "lpt9 .txt"):
            assert await fetched(device, 2) == []
        assert await fetched("-rf", 0) == ["_rf"]
        assert await fetched(".bashrc", 0) == ["_bashrc", "_rf"]
        assert await fetched("~root", 0) == ["_bashrc", "_rf", "_root"]
        assert await fetched("_rf", 6) == ["_bashrc", "_rf", "_root"]
    assert names_in(tmp_path) == ["inbox", "source.bin"]


async def test_a_file_whose_chunks_nobody_has_or_that_is_no_file_says_so(
    victim: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = await in_thread(victim.one, "chat", "create", "Garden")
    ticket = (await in_thread(victim.one, "ticket"))["ticket"]
    session = made["session"]
    async with mallory(ticket, made["invite"], monkeypatch) as hostile:
        capability = ReadCapability.from_bytes(bytes.fromhex("0a00") + os.urandom(64)).to_bytes()
        await hostile.say(file("lost.bin", holders=[hostile.node.identifier], capability=capability))
        await hostile.say(file("none.bin", holders=[hostile.node.identifier], capability=b"\xff" * 66))

        def get(name: str, code: int) -> str:
            return victim.error("chat", "get", session, name, "-o", str(tmp_path / "copy"), code=code)

        assert "nobody has" in await in_thread(get, "lost.bin", 7)
        assert "not the content" in await in_thread(get, "none.bin", 8)
    assert names_in(tmp_path) == []
    with pytest.raises(OverlayError):  # the capability that is none does not even parse
        ReadCapability.from_bytes(b"\xff" * 66)
