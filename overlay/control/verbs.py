"""What a running node does for programs: the verbs of docs/spec/control.md, bound to node and chat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

from msgspec import Meta

from overlay.chat.service import DEFAULT_LAST
from overlay.chat.texts import MAX_TITLE_BYTES
from overlay.chat.views import Entry, Person, PostedFile, SessionInfo
from overlay.control.choose import Choice, choose
from overlay.control.file_verbs import bind_files, check_destination, telling
from overlay.control.protocol import JSON
from overlay.control.runtime import Runtime
from overlay.control.server import AbsolutePath, Answers, Arguments, Handler, Handlers, NoArguments
from overlay.errors import MalformedError
from overlay.peer.node import PeerStatus
from overlay.peer.ticket import TICKET_PREFIX

MAX_WAIT_SECONDS = 86_400.0
DEFAULT_NAME = "anonymous"
"""How a participant is called whose user gave no name anywhere; names need not be unique."""

Choosing = Annotated[str, Meta(min_length=1, max_length=4 * MAX_TITLE_BYTES)]
"""A session or file as a person names it; `overlay.control.choose` reads it."""
CheckedByChat: TypeAlias = str
"""No bound of its own: a line of the control protocol bounds it, and the chat refuses it in better words."""


class StatusArguments(Arguments, frozen=True):
    """`wait`: seconds to wait at most until the node is ready."""

    wait: Annotated[float, Meta(ge=0, le=MAX_WAIT_SECONDS)] = 0.0


class CreateArguments(Arguments, frozen=True):
    """`name`: how the user is called in the session; empty takes the home's."""

    title: CheckedByChat
    name: CheckedByChat = ""


class JoinArguments(Arguments, frozen=True):
    """`invite`: the token; `name` as in `CreateArguments`."""

    invite: CheckedByChat
    name: CheckedByChat = ""


class SessionArguments(Arguments, frozen=True):
    """A verb about one session."""

    session: Choosing


class SendArguments(SessionArguments, frozen=True):
    """`text`: the message."""

    text: CheckedByChat


class ReadArguments(SessionArguments, frozen=True):
    """`last`: only so many, the newest; `follow`: go on with what comes, without end."""

    last: Annotated[int, Meta(ge=0, le=2**31 - 1)] = DEFAULT_LAST
    follow: bool = False


class PostArguments(SessionArguments, frozen=True):
    """`path`: the file to post."""

    path: AbsolutePath


class GetArguments(SessionArguments, frozen=True):
    """`file`: which; `path`: a new file, or a folder that gets it under its own name, made safe.

    A path that ends in `/` must be a folder.
    """

    file: Choosing
    path: AbsolutePath


def bind(runtime: Runtime) -> Handlers:
    """Give the handlers of all verbs for one run of a node."""
    node, chat = NodeVerbs(runtime), ChatVerbs(runtime)
    return {
        "status": Handler(StatusArguments, node.status),
        "ticket": Handler(NoArguments, node.ticket),
        "peers": Handler(NoArguments, node.peers),
        "id": Handler(NoArguments, node.identifier),
        "down": Handler(NoArguments, node.down),
        "chat.create": Handler(CreateArguments, chat.create),
        "chat.list": Handler(NoArguments, chat.list),
        "chat.invite": Handler(SessionArguments, chat.invite),
        "chat.join": Handler(JoinArguments, chat.join),
        "chat.people": Handler(SessionArguments, chat.people),
        "chat.leave": Handler(SessionArguments, chat.leave),
        "chat.send": Handler(SendArguments, chat.send),
        "chat.read": Handler(ReadArguments, chat.read),
        "chat.post": Handler(PostArguments, chat.post),
        "chat.files": Handler(SessionArguments, chat.files),
        "chat.get": Handler(GetArguments, chat.get),
        **bind_files(runtime),
    }


class NodeVerbs:
    """The verbs about the node itself."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def status(self, args: StatusArguments, _answers: Answers) -> JSON:
        """How the node stands, at once or when it is ready."""
        if args.wait:
            await self._runtime.wait_ready(args.wait)
        status = self._runtime.status
        known, connected, sessions = await self._counts()
        return {
            "state": status.state,
            "detail": status.detail,
            "node": str(self._runtime.identifier),
            "locators": [str(locator) for locator in status.locators],
            "transports": [
                {
                    "name": each.name,
                    "state": each.status.state,
                    "detail": each.status.detail,
                    "progress": each.status.progress,
                    "facts": dict(each.facts),
                }
                for each in self._runtime.transports
            ],
            "peers": {"known": known, "connected": connected},
            "sessions": sessions,
        }

    async def _counts(self) -> tuple[int, int, int]:
        services = self._runtime.found
        if services is None:
            return 0, 0, 0
        peers = services.node.peers()
        return len(peers), sum(peer.connected for peer in peers), len(await services.chat.sessions())

    async def ticket(self, _args: NoArguments, _answers: Answers) -> JSON:
        """A token that lets another node join through this one."""
        return {"ticket": str(self._runtime.services.node.ticket())}

    async def peers(self, _args: NoArguments, answers: Answers) -> JSON:
        """The nodes that are known, one an item."""
        for peer in self._runtime.services.node.peers():
            await answers.item(_peer(peer))
        return None

    async def identifier(self, _args: NoArguments, _answers: Answers) -> JSON:
        """The node's identifier."""
        return {"node": str(self._runtime.identifier)}

    async def down(self, _args: NoArguments, _answers: Answers) -> JSON:
        """Tell the node to end; it closes the connection when it has."""
        self._runtime.stop()
        return {"state": "stopping"}


class ChatVerbs:
    """The verbs of the chat."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def create(self, args: CreateArguments, _answers: Answers) -> JSON:
        """Create a session, and give its invite with it."""
        chat = self._runtime.services.chat
        info = await chat.create(args.title, self._name(args.name))
        return {**_session(info), "invite": await chat.invite(info.session)}

    async def list(self, _args: NoArguments, answers: Answers) -> JSON:
        """The sessions, one an item."""
        for info in await self._runtime.services.chat.sessions():
            await answers.item(_session(info))
        return None

    async def invite(self, args: SessionArguments, _answers: Answers) -> JSON:
        """A token that lets somebody join."""
        session = await self._session(args.session)
        return {"session": session, "invite": await self._runtime.services.chat.invite(session)}

    async def join(self, args: JoinArguments, _answers: Answers) -> JSON:
        """Join a session; other errors as of `Chat.join`.

        Raises:
            MalformedError: the token is no invite.
        """
        if args.invite.lstrip().lower().startswith(TICKET_PREFIX):
            raise MalformedError("this is a ticket: use it with 'overlay up --join'")
        return _session(await self._runtime.services.chat.join(args.invite, self._name(args.name)))

    async def people(self, args: SessionArguments, answers: Answers) -> JSON:
        """Who takes part, one an item."""
        for person in await self._runtime.services.chat.people(await self._session(args.session)):
            await answers.item(_person(person))
        return None

    async def leave(self, args: SessionArguments, _answers: Answers) -> JSON:
        """Leave a session."""
        session = await self._session(args.session)
        await self._runtime.services.chat.leave(session)
        return {"session": session}

    async def send(self, args: SendArguments, _answers: Answers) -> JSON:
        """Send a message; it is kept and on its way when this is answered."""
        session = await self._session(args.session)
        return {"session": session, "message": await self._runtime.services.chat.send(session, args.text)}

    async def read(self, args: ReadArguments, answers: Answers) -> JSON:
        """Messages, one an item."""
        session = await self._session(args.session)
        chat = self._runtime.services.chat
        if args.follow:
            async for entry in chat.follow(session, args.last):
                await answers.item(_entry(entry))
        else:
            for entry in await chat.read(session, args.last):
                await answers.item(_entry(entry))
        return None

    async def post(self, args: PostArguments, answers: Answers) -> JSON:
        """Post a file."""
        session = await self._session(args.session)
        posted = await self._runtime.services.chat.post(session, Path(args.path), answers.progress)
        return _file(posted)

    async def files(self, args: SessionArguments, answers: Answers) -> JSON:
        """The posted files, one an item."""
        for posted in await self._runtime.services.chat.files(await self._session(args.session)):
            await answers.item(_file(posted))
        return None

    async def get(self, args: GetArguments, answers: Answers) -> JSON:
        """Fetch a posted file; nothing that exists is overwritten.

        Raises:
            NotFoundError: no such file was posted, or it is to be put into a folder that is not there.
            OverlayError: any other of fetching.
        """
        chat = self._runtime.services.chat
        await check_destination(args.path)
        session = await self._session(args.session)
        posted = await chat.files(session)
        file = choose("file", "event", args.file, [Choice(each.file, each.name) for each in posted])
        with self._runtime.services.files.running.watching(telling(answers)) as watch:
            path, size = await chat.get(session, file, Path(args.path), watch)
        return {"path": str(path), "size": size}

    async def _session(self, text: str) -> str:
        known = await self._runtime.services.chat.sessions()
        return choose("session", "unit", text, [Choice(each.session, each.title) for each in known])

    def _name(self, given: str) -> str:
        return given or self._runtime.name or DEFAULT_NAME


def _peer(peer: PeerStatus) -> JSON:
    return {
        "node": str(peer.identifier),
        "locators": [str(locator) for locator in peer.locators],
        "roles": [*sorted(peer.roles)],
        "connected": peer.connected,
        "score": round(peer.score, 3),
        "via": None if peer.via is None else str(peer.via),
        "over": peer.over or None,
    }


def _session(info: SessionInfo) -> dict[str, JSON]:
    return {
        "session": info.session,
        "title": info.title,
        "name": info.name,
        "people": info.people,
        "messages": info.messages,
    }


def _person(person: Person) -> JSON:
    return {
        "participant": person.participant,
        "name": person.name,
        "node": person.node,
        "joined": person.joined,
        "left": person.left,
        "connected": person.connected,
        "me": person.me,
    }


def _entry(entry: Entry) -> JSON:
    return {
        "id": entry.id,
        "at": entry.at,
        "from": entry.sender,
        "participant": entry.participant,
        "kind": entry.kind,
        "text": entry.text,
        "size": entry.size,
    }


def _file(posted: PostedFile) -> JSON:
    return {
        "file": posted.file,
        "name": posted.name,
        "size": posted.size,
        "at": posted.at,
        "from": posted.sender,
    }
