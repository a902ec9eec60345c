"""The chat: sessions, participants, messages and posted files, on the blocks of a node."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup, TaskStatus

from overlay.chat.events import Content, Created, Event, File, Joined, Left, Text
from overlay.chat.fetching import fetch_file
from overlay.chat.invite import Invite
from overlay.chat.joining import join_session
from overlay.chat.keys import SECRET_BYTES, SessionKeys
from overlay.chat.outbox import Outbox
from overlay.chat.posting import post_file
from overlay.chat.reconciler import Reconciler
from overlay.chat.session import Participant, Session
from overlay.chat.store import ChatStore, SessionRow
from overlay.chat.sync import Sync, session_place
from overlay.chat.texts import MAX_NAME_BYTES, check_line
from overlay.chat.views import (
    Entry,
    Person,
    PostedFile,
    SessionInfo,
    event_text,
    make_entry,
    make_file,
    participant_text,
    session_text,
)
from overlay.database import Database
from overlay.errors import MalformedError, NotFoundError, OverlayError, RefusedError
from overlay.files.running import Watch
from overlay.files.sharing.shares import Progress
from overlay.identity import NodeIdentifier, SigningSecret
from overlay.peer.node import Node
from overlay.units.identifiers import UnitIdentifier
from overlay.units.locators import UnitLocator

logger = logging.getLogger(__name__)

LEAVE_TIMEOUT = 15.0
"""Seconds that those who are online have to hear that somebody leaves; the others see it from them."""

DEFAULT_LAST = 50
"""Entries that are read where nobody says how many."""

_MIN_PREFIX = 4
"""Characters that the beginning of an identifier must have; two of a hundred share four of them by chance
in one case of two hundred, and then the error says so."""

T = TypeVar("T")


class Chat:
    """The chat of one node. Sessions and files are named by identifier, its beginning, or title and name.

    Args:
        node: carries everything; its clock and entropy are used.
        database: opened with `overlay.chat.store.CHAT_SCHEMA`.

    Every method that names a session raises `NotFoundError` if this node takes part in no such session, and
    `MalformedError` if several fit; every method that stores may raise `StorageError`, and then has done
    nothing.
    """

    def __init__(self, node: Node, database: Database) -> None:
        self._node = node
        self._store = ChatStore(database)
        self._sessions: dict[bytes, Session] = {}
        self._joining: set[bytes] = set()
        self._sync = Sync(node, find=self._find, behind=self._fall_behind, heard=self._hear)
        self._outbox = Outbox(self._sync.push, connected=node.channels.connected)
        self._reconciler = Reconciler(node, self._sync, self._sessions.values)
        self._group: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Deliver, answer and keep histories together until cancelled; `task_status` tells when it does.

        Raises:
            StorageError: the database does not work.
        """
        await self._load()
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                await group.start(self._outbox.run)
                await group.start(self._reconciler.run)
                for session in self._sessions.values():
                    self._announce(session)
                task_status.started()
                await anyio.sleep_forever()
        finally:
            self._group = None

    async def _load(self) -> None:
        for row in await self._store.sessions():
            session = Session(row, self._store)
            me = (await session.people()).get(session.author)
            if me is None or me.left:  # joining or leaving was cut short
                await session.close()
            else:
                self._sessions[session.public] = session

    # --- sessions

    async def create(self, title: str, name: str) -> SessionInfo:
        """Create a session, with a participant called `name` in it, and make it known.

        Raises:
            MalformedError: title or name is empty, too long, or not one line.
        """
        key = SigningSecret.generate(self._node.entropy)
        participant = SigningSecret.generate(self._node.entropy)
        row = SessionRow(key.public, self._node.entropy(SECRET_BYTES), participant.seed, key.seed)
        session = Session(row, self._store)
        now = self._node.clock()
        root = Event.sign(key, session=key.public, clock=1, parents=[], at=now, content=Created(title=title))
        joined = Event.sign(
            participant,
            session=key.public,
            clock=2,
            parents=[root.id],
            at=now,
            content=self._joined(session.keys, key.public, participant.public, name),
        )
        await self._store.create(row, [root, joined])
        self._sessions[session.public] = session
        self._announce(session)
        return await self._info(session)

    async def sessions(self) -> list[SessionInfo]:
        """All sessions of this node, by title."""
        found = [await self._info(session) for session in list(self._sessions.values())]
        return sorted(found, key=lambda info: (info.title, info.session))

    async def invite(self, session: str) -> str:
        """Make an invite: one token that lets whoever has it join."""
        found = await self._resolve(session)
        place = session_place(self._node, found.public).place
        record = self._node.record.encoded if self._node.record.locators else b""
        return str(Invite(await found.root(), found.row.secret, self._node.identifier, place, record))

    async def join(self, invite: str, name: str) -> SessionInfo:
        """Take part in a session: its history comes here, and everybody learns of the new participant.

        Failed or cancelled, nothing of it stays.

        Raises:
            MalformedError: not an invite, or not a name.
            VerificationError: the invite was forged.
            RefusedError: this node takes part already, or the invite's secret is wrong.
            TransportUnavailableError: no node that has the session was reached, and what does not work is on
                this side.
            UnreachableError: no node that has the session was reached.
        """
        check_line("name", name, limit=MAX_NAME_BYTES)  # before anybody is asked
        parsed = Invite.parse(invite)
        public = parsed.created.session
        if public in self._sessions or public in self._joining:
            raise RefusedError(f"this node takes part in '{parsed.title}' already")
        participant = SigningSecret.generate(self._node.entropy)
        row = SessionRow(public, parsed.secret, participant.seed)
        session = Session(row, self._store)
        joined = self._joined(session.keys, public, participant.public, name)
        self._joining.add(public)
        try:
            await join_session(
                self._node, self._store, self._sync, session=session, invite=parsed, joined=joined
            )
            self._sessions[public] = session
        finally:
            self._joining.discard(public)
        for other in await self._others(session):
            self._reconciler.start(session, other.locator)
        return await self._info(session)

    async def people(self, session: str) -> list[Person]:
        """All participants, those who left included, in the order of joining."""
        found = await self._resolve(session)
        return [self._person(found, each) for each in (await found.people()).values()]

    async def leave(self, session: str) -> None:
        """Leave: those who are online are told, then everything of the session is deleted here.

        Cancelled, it may be half done; the next start, or call, does the rest.
        """
        found = await self._resolve(session)
        others = await self._others(found)
        if not (await found.people())[found.author].left:
            with suppress(RefusedError):  # a session that is full hears of nothing any more, and is left too
                await self._say_goodbye(found, others)
        self._node.withdraw(UnitIdentifier.of_key(found.public))
        await found.close()
        del self._sessions[found.public]

    async def _say_goodbye(self, session: Session, others: Sequence[Participant]) -> None:
        event = await session.say(Left(), self._node.clock())
        with anyio.move_on_after(LEAVE_TIMEOUT):
            async with anyio.create_task_group() as group:
                for other in others:
                    group.start_soon(self._try_push, session, other.locator, event.encoded)

    # --- messages

    async def send(self, session: str, text: str) -> str:
        """Say something. When this returns it is on this node's disk, and on its way to the others.

        Returns:
            the message's identifier, 56 characters.

        Raises:
            MalformedError: empty, or longer than `MAX_TEXT_BYTES`.
            StorageError: the disk is full; others may have got it, and then it comes back from them.
        """
        event = await self._say(await self._resolve(session), Text(text=text))
        return event_text(event.id)

    async def read(self, session: str, last: int = DEFAULT_LAST) -> list[Entry]:
        """The last entries, in the order that is the same for all participants."""
        found = await self._resolve(session)
        events, _ = await self._store.last(found.public, last)
        return await self._entries(found, events)

    async def follow(self, session: str, last: int = DEFAULT_LAST) -> AsyncGenerator[Entry, None]:
        """The last entries in order, then every new one as it arrives; ends when the session is left.

        An entry that arrives late is given when it arrives, so behind some that `read` shows after it. Use
        it within `contextlib.aclosing`, as every asynchronous generator that may be left before its end.
        """
        found = await self._resolve(session)
        events, arrived = await self._store.last(found.public, last)
        with suppress(NotFoundError):  # left in between
            while not found.closed:
                for entry in await self._entries(found, events):
                    yield entry
                changed = found.changed
                arrivals = await self._store.arrived(found.public, arrived)
                events = [arrival.event for arrival in arrivals]
                if arrivals:
                    arrived = arrivals[-1].number
                else:
                    await changed.wait()

    # --- files

    async def post(self, session: str, path: Path, progress: Progress | None = None) -> PostedFile:
        """Post a file: store it encrypted at other nodes, then tell the participants.

        Raises:
            NotFoundError: there is no such file.
            RefusedError: it cannot be read.
            UnreachableError: no other node keeps it; nothing was posted.
        """
        found = await self._resolve(session)
        content = await post_file(self._node, path, progress)
        event = await self._say(found, content)
        return make_file(event, content, await self._names(found))

    async def files(self, session: str) -> list[PostedFile]:
        """The files of a session, in order."""
        found = await self._resolve(session)
        names = await self._names(found)
        return [make_file(event, content, names) for event, content in await self._posted(found)]

    async def get(
        self, session: str, file: str, destination: Path, progress: Watch | None = None
    ) -> tuple[Path, int]:
        """Fetch a file into a folder, or to a path; see `fetch_file`, also for what it raises.

        Args:
            session: the session.
            file: its identifier, the beginning of one, or its name: then the latest of that name.
            destination: an existing folder, or a path that does not exist.
            progress: told after each step.

        Returns:
            where it is now, and its size in bytes.
        """
        found = await self._resolve(session)
        posted = await self._posted(found)
        exact = [content for event, content in posted if event_text(event.id) == file]
        by_name = [content for _, content in posted if content.name == file][-1:]
        begun = [content for event, content in posted if _begins(event_text(event.id), file)]
        content = _only(exact or by_name or begun, f"no file '{file}' was posted in this session")
        return await fetch_file(self._node, content, destination, progress)

    # --- inside

    def _find(self, public: bytes) -> Session:
        session = self._sessions.get(public)
        if session is None:
            raise NotFoundError("this node takes part in no such session")
        return session

    async def _fall_behind(self, session: Session, other: UnitLocator) -> None:
        self._reconciler.start(session, other)

    async def _hear(self, session: Session, events: Sequence[Event], sender: NodeIdentifier) -> None:
        """Bring together participants who do not know of each other, because they joined at the same time.

        Whoever hears of a new participant meets it: each may have said something that the other was not
        told, because neither knew of the other then. Whoever hears it from the newcomer's own node also
        carries it to those whom the newcomer did not know.
        """
        if session.public not in self._sessions:  # this node is joining itself, and meets everybody then
            return
        people = await session.people()
        # Nothing but joining is carried on: who pretends to know nobody could have all send its texts to all.
        for event in (each for each in events if isinstance(each.content, Joined)):
            author = people.get(event.author)
            if author is None or author.node == self._node.identifier:
                continue
            self._reconciler.start(session, author.locator)
            if author.node == sender:
                strangers = await session.strangers(event)
                self._outbox.post(session, self._elsewhere(strangers), event.encoded)

    async def _resolve(self, text: str) -> Session:
        found = list(self._sessions.values())
        exact = [session for session in found if session_text(session.public) == text]
        titled = [session for session in found if await session.title() == text]
        begun = [session for session in found if _begins(session_text(session.public), text)]
        return _only(exact or titled or begun, f"this node takes part in no session '{text}'")

    def _joined(self, keys: SessionKeys, session: bytes, author: bytes, name: str) -> Joined:
        return Joined(
            name=name,
            proof=keys.prove(author),
            node=self._node.identifier.value,
            place=session_place(self._node, session).place,
            record=self._node.record.encoded if self._node.record.locators else b"",
        )

    async def _say(self, session: Session, content: Content) -> Event:
        def carry(event: Event, people: Sequence[Participant]) -> None:
            self._outbox.post(session, self._elsewhere(people), event.encoded)

        return await session.say(content, self._node.clock(), signed=carry)

    async def _try_push(self, session: Session, other: UnitLocator, encoded: bytes) -> None:
        with suppress(OverlayError):
            await self._sync.push(session, other, [encoded])

    def _announce(self, session: Session) -> None:
        if session.row.key is not None and self._group is not None:
            self._group.start_soon(self._try_announce, session, SigningSecret(session.row.key))

    async def _try_announce(self, session: Session, key: SigningSecret) -> None:
        try:
            await self._node.announce(key, session_place(self._node, session.public))
        except OverlayError as error:  # announced again with the next registration
            logger.debug("a session is not announced yet: %s", error.code)

    async def _others(self, session: Session) -> list[Participant]:
        return self._elsewhere((await session.people()).values())

    def _elsewhere(self, people: Iterable[Participant]) -> list[Participant]:
        me = self._node.identifier
        return [each for each in people if not each.left and each.node != me]

    async def _names(self, session: Session) -> dict[bytes, str]:
        return {author: each.name for author, each in (await session.people()).items()}

    async def _entries(self, session: Session, events: Sequence[Event]) -> list[Entry]:
        names = await self._names(session) if events else {}
        return [make_entry(event, names) for event in events]

    async def _posted(self, session: Session) -> list[tuple[Event, File]]:
        events = await self._store.files(session.public)
        return [(event, event.content) for event in events if isinstance(event.content, File)]

    async def _info(self, session: Session) -> SessionInfo:
        people = await session.people()
        return SessionInfo(
            session=session_text(session.public),
            title=await session.title(),
            name=people[session.author].name,
            people=sum(not each.left for each in people.values()),
            messages=await session.size(),
        )

    def _person(self, session: Session, each: Participant) -> Person:
        return Person(
            participant=participant_text(each.author),
            name=each.name,
            node=str(each.node),
            joined=each.joined,
            left=each.left,
            connected=self._node.channels.connected(each.node),
            me=each.author == session.author,
        )


def _begins(identifier: str, text: str) -> bool:
    return len(text) >= _MIN_PREFIX and identifier.startswith(text)


def _only(found: Sequence[T], missing: str) -> T:
    if not found:
        raise NotFoundError(missing)
    if len(found) > 1:
        raise MalformedError("several have that name or beginning: write the whole identifier")
    return found[0]
