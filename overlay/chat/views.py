"""What the chat shows of itself to whoever uses it: plain values, text forms of identifiers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from overlay.chat.events import Created, Event, File, Joined, Left, Text
from overlay.identity import format_identifier
from overlay.units.identifiers import UnitIdentifier


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session that this node takes part in.

    Attributes:
        session: its identifier, 56 characters.
        title: what its creator called it.
        name: what this node's participant is called in it.
        people: participants who have not left, this one included.
        messages: events of all kinds so far.
    """

    session: str
    title: str
    name: str
    people: int
    messages: int


@dataclass(frozen=True, slots=True)
class Person:
    """A participant.

    Attributes:
        participant: its identifier, 56 characters; two people may have the same name, never this.
        name: what it calls itself.
        node: identifier of the node through which it is reached.
        joined: when it joined, by its own clock, seconds since 1970.
        left: it has left the session.
        connected: a channel to its node is open now.
        me: it is this node's own.
    """

    participant: str
    name: str
    node: str
    joined: int
    left: bool
    connected: bool
    me: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One event, as people read it. Names and texts are as they came: whoever prints them makes them safe.

    Attributes:
        id: its identifier, 56 characters.
        at: when, by its author's clock, seconds since 1970.
        sender: the author's name.
        participant: the author's identifier; the session's own for `created`.
        kind: `created`, `joined`, `left`, `text` or `file`.
        text: the title, the name, nothing, the message, or the file's name.
        size: bytes of a file, otherwise 0.
    """

    id: str
    at: int
    sender: str
    participant: str
    kind: str
    text: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class PostedFile:
    """A file of a session.

    Attributes:
        file: its identifier, 56 characters: that of the event that posted it.
        name: what the poster called it; not safe to use as it is.
        size: bytes of content.
        at: when, by the poster's clock, seconds since 1970.
        sender: the poster's name.
    """

    file: str
    name: str
    size: int
    at: int
    sender: str


def session_text(session: bytes) -> str:
    """The text form of a session's identifier, from its public key."""
    return str(UnitIdentifier.of_key(session))


def event_text(event_id: bytes) -> str:
    """The text form of an event's identifier."""
    return format_identifier("event", event_id)


def participant_text(author: bytes) -> str:
    """The text form of a participant's identifier."""
    return format_identifier("participant", author)


def make_entry(event: Event, names: Mapping[bytes, str]) -> Entry:
    """Show an event; `names` tells what authors are called."""
    text, size = _text_of(event)
    return Entry(
        id=event_text(event.id),
        at=event.at,
        sender=names.get(event.author, ""),
        participant=participant_text(event.author),
        kind=event.kind,
        text=text,
        size=size,
    )


def make_file(event: Event, content: File, names: Mapping[bytes, str]) -> PostedFile:
    """Show a posted file."""
    sender = names.get(event.author, "")
    return PostedFile(event_text(event.id), content.name, content.size, event.at, sender)


def _text_of(event: Event) -> tuple[str, int]:
    match event.content:
        case Created(title=title):
            return title, 0
        case Joined(name=name):
            return name, 0
        case Left():
            return "", 0
        case Text(text=text):
            return text, 0
        case File(name=name, size=size):
            return name, size
