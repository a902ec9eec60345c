"""The invite: one token that lets whoever has it join a session. Pure.

Source: docs/spec/chat.md, section "Invite".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Self

from msgspec import Meta

from overlay.chat.events import Created, Event, Place
from overlay.errors import MalformedError
from overlay.identity import NodeIdentifier
from overlay.locators import MAX_RECORD_BYTES
from overlay.wire.codec import Key32, Message, decode, encode
from overlay.wire.tokens import format_token, parse_token

PREFIX = "ovi1"
MAX_CREATED_BYTES = 1024
"""A first event with the longest title has about 450 bytes."""
MAX_INVITE_BYTES = MAX_RECORD_BYTES + MAX_CREATED_BYTES + 256


class _InviteBody(Message, frozen=True):
    created: Annotated[bytes, Meta(max_length=MAX_CREATED_BYTES)]
    secret: Key32
    node: Key32
    place: Place
    record: Annotated[bytes, Meta(max_length=MAX_RECORD_BYTES)] = b""


@dataclass(frozen=True, slots=True)
class Invite:
    """All that it takes to join. Whoever has it may: it is passed on like a key.

    Attributes:
        created: the session's first event: its key and title, and the root of its history, which nobody
            who invites can exchange.
        secret: the session's secret.
        node: the node of whoever invites.
        place: where the session is in that node, sealed by it.
        record: that node's locator record, as a hint; not verified here, because it expires.
    """

    created: Event
    secret: bytes = field(repr=False)
    node: NodeIdentifier
    place: bytes
    record: bytes = b""

    @property
    def title(self) -> str:
        """The session's title."""
        content = self.created.content
        return content.title if isinstance(content, Created) else ""

    def __str__(self) -> str:
        """The token."""
        body = _InviteBody(
            created=self.created.encoded,
            secret=self.secret,
            node=self.node.value,
            place=self.place,
            record=self.record,
        )
        return format_token(PREFIX, encode(body))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a token that somebody typed or pasted.

        Raises:
            MalformedError: not an invite, damaged, cut or too long.
            VerificationError: the session's key did not sign the first event.
        """
        body = decode(_InviteBody, parse_token(PREFIX, text, limit=MAX_INVITE_BYTES), limit=MAX_INVITE_BYTES)
        created = Event.verify(body.created)
        if not isinstance(created.content, Created):
            raise MalformedError("this invite does not begin with the creation of a session")
        return cls(created, body.secret, NodeIdentifier(body.node), body.place, body.record)
