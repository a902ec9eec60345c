"""The events of a session: what its participants sign, and how it looks on the wire. Pure.

An event is an inner structure, signed as the bytes that its author encoded, and an outer one of those
bytes and the signature. Its identifier is the hash of the inner bytes alone, so that whoever passes an
event on cannot make a second one out of it. Events name their predecessors; `overlay.chat.history` puts
them together and judges what depends on them.

Source: docs/spec/chat.md, section "Events".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Self

from msgspec import Meta

from overlay.chat.texts import MAX_NAME_BYTES, MAX_TITLE_BYTES, check_file_name, check_line, check_text
from overlay.errors import MalformedError
from overlay.identity import SigningSecret, verify_signature
from overlay.locators import MAX_RECORD_BYTES
from overlay.units.locators import SEALED_PLACE_BYTES
from overlay.wire.codec import Count, Key32, Message, Signature64, Timestamp, decode, encode

MAX_PARENTS = 16
"""Heads beyond these are joined by later events; an honest session has few at any time."""
MAX_HOLDERS = 16
"""Two nodes hold a file's chunks; the others stand in for nodes that failed while it was posted."""
CAPABILITY_BYTES = 66
"""An ERIS 1.0.0 read capability (section 2.7)."""
MAX_EVENT_BYTES = 40_000
"""A text of 32 KiB, 16 parents and the fields around them."""

Place = Annotated[bytes, Meta(min_length=SEALED_PLACE_BYTES, max_length=SEALED_PLACE_BYTES)]
"""A place inside a node, sealed by it."""

_CONTEXT = "chat-event"


class Created(Message, frozen=True, tag_field="kind", tag="created"):
    """The first event, signed by the session's own key."""

    title: str


class Joined(Message, frozen=True, tag_field="kind", tag="joined"):
    """The author takes part from here on.

    Attributes:
        name: how the author wants to be called; nothing makes it unique.
        proof: shows that the author holds the session's secret (`SessionKeys.prove`).
        node: the identifier of the node through which the author is reached.
        place: where in that node, sealed by it.
        record: the node's locator record when the author joined; a hint that expires.
    """

    name: str
    proof: Key32
    node: Key32
    place: Place
    record: Annotated[bytes, Meta(max_length=MAX_RECORD_BYTES)] = b""


class Left(Message, frozen=True, tag_field="kind", tag="left"):
    """The author takes part no longer; nothing of it follows."""


class Text(Message, frozen=True, tag_field="kind", tag="text"):
    """A message."""

    text: str


class File(Message, frozen=True, tag_field="kind", tag="file"):
    """A posted file, stored as chunks at other nodes.

    Attributes:
        name: a name alone, never a path.
        size: bytes of content.
        capability: the ERIS read capability, binary; whoever has it can read the file.
        holders: identifiers of the nodes that acknowledged chunks.
    """

    name: str
    size: Count
    capability: Annotated[bytes, Meta(min_length=CAPABILITY_BYTES, max_length=CAPABILITY_BYTES)]
    holders: Annotated[tuple[Key32, ...], Meta(min_length=1, max_length=MAX_HOLDERS)]


Content = Created | Joined | Left | Text | File


class _Body(Message, frozen=True):
    session: Key32
    author: Key32
    clock: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    parents: Annotated[tuple[Key32, ...], Meta(max_length=MAX_PARENTS)]
    at: Timestamp
    content: Content


class _SignedEvent(Message, frozen=True):
    body: Annotated[bytes, Meta(max_length=MAX_EVENT_BYTES)]
    signature: Signature64


@dataclass(frozen=True, slots=True)
class Event:
    """One signed event. Only `sign`, `verify` and `restore` make one.

    Attributes:
        id: BLAKE2b-256 of the signed bytes.
        session: the session's public key.
        author: the public key of the participant that signed; the session's own for `Created`.
        clock: one more than the highest clock among the parents; 1 for the first event.
        parents: identifiers of the heads that the author knew, sorted.
        at: the author's wall time, seconds since 1970; shown to people, never relied on.
        content: what happened.
        encoded: signed bytes and signature, to be stored and passed on.
    """

    id: bytes
    session: bytes
    author: bytes
    clock: int
    parents: tuple[bytes, ...]
    at: int
    content: Content = field(repr=False)
    encoded: bytes = field(repr=False)

    @property
    def position(self) -> tuple[int, bytes]:
        """The event's place in the order that is the same at all participants."""
        return self.clock, self.id

    @property
    def kind(self) -> str:
        """`created`, `joined`, `left`, `text` or `file`."""
        return type(self.content).__name__.lower()

    @classmethod
    def sign(
        cls,
        secret: SigningSecret,
        *,
        session: bytes,
        clock: int,
        parents: Sequence[bytes],
        at: float,
        content: Content,
    ) -> Self:
        """Sign a new event.

        Raises:
            MalformedError: the content is out of its bounds.
        """
        body = encode(
            _Body(
                session=session,
                author=secret.public,
                clock=clock,
                parents=tuple(sorted(parents)),
                at=int(at),
                content=content,
            )
        )
        return cls._from_body(body, secret.sign(_CONTEXT, body))

    @classmethod
    def verify(cls, data: bytes) -> Self:
        """Read an event that came from anywhere; what depends on other events is left to the history.

        Raises:
            MalformedError: not an event, of an unknown kind, or out of bounds.
            VerificationError: the author's signature does not fit.
        """
        signed = decode(_SignedEvent, data, limit=MAX_EVENT_BYTES)
        event = cls._from_body(signed.body, signed.signature)
        verify_signature(event.author, _CONTEXT, signed.body, signed.signature)
        return event

    @classmethod
    def restore(cls, data: bytes) -> Self:
        """Read an event from this node's own database, where only verified ones are.

        Raises:
            MalformedError: not an event: the database is damaged.
        """
        signed = decode(_SignedEvent, data, limit=MAX_EVENT_BYTES)
        return cls._from_body(signed.body, signed.signature)

    @classmethod
    def _from_body(cls, body: bytes, signature: bytes) -> Self:
        fields = decode(_Body, body, limit=MAX_EVENT_BYTES)
        _check_parents(fields)
        _check_content(fields.content)
        return cls(
            id=event_id(body),
            session=fields.session,
            author=fields.author,
            clock=fields.clock,
            parents=fields.parents,
            at=fields.at,
            content=fields.content,
            # Written anew, so that nobody on the way can add to the outer structure.
            encoded=encode(_SignedEvent(body=body, signature=signature)),
        )


def event_id(body: bytes) -> bytes:
    """The identifier of the event whose signed bytes are `body`."""
    return hashlib.blake2b(body, digest_size=32, person=b"overlay/event").digest()


def _check_parents(body: _Body) -> None:
    if list(body.parents) != sorted(set(body.parents)):
        raise MalformedError("an event names each parent once, in ascending order")
    first = isinstance(body.content, Created)
    if first != (not body.parents) or first != (body.clock == 1):
        raise MalformedError("the first event of a session, and no other, has no parents and clock 1")
    if first and body.author != body.session:
        raise MalformedError("the first event of a session is signed by the session's own key")


def _check_content(content: Content) -> None:
    match content:
        case Created(title=title):
            check_line("title", title, limit=MAX_TITLE_BYTES)
        case Joined(name=name):
            check_line("name", name, limit=MAX_NAME_BYTES)
        case Text(text=text):
            check_text(text)
        case File(name=name):
            check_file_name(name)
        case Left():
            pass
