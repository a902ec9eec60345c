"""What participants' nodes say to each other: envelopes, and what is inside their boxes. Pure.

Source: docs/spec/chat.md, section "Exchange".
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from overlay.chat.events import MAX_EVENT_BYTES, Place
from overlay.chat.history import MAX_SUMMARY
from overlay.chat.keys import BOX_OVERHEAD, MAX_BOX_BYTES
from overlay.units.locators import SEALED_PLACE_BYTES
from overlay.wire.codec import Key32, Message, decode

EVENTS_KIND = "chat.events"
"""Pushed: events that the receiver lacks."""
SYNC_KIND = "chat.sync"
"""Pulled: a summary in, a page out."""

MAX_PLAIN_BYTES = MAX_BOX_BYTES - BOX_OVERHEAD
MAX_ENVELOPE_BYTES = MAX_BOX_BYTES + SEALED_PLACE_BYTES + 64
PAGE_BYTES = 48 * 1024
"""Bytes of events that a page or a push has at most; the longest event fits, a summary fits beside it."""
MAX_PAGE_EVENTS = 512

_Events = Annotated[
    tuple[Annotated[bytes, Meta(max_length=MAX_EVENT_BYTES)], ...], Meta(max_length=MAX_PAGE_EVENTS)
]
_Summary = Annotated[tuple[Key32, ...], Meta(max_length=MAX_SUMMARY)]


class Envelope(Message, frozen=True):
    """The outside of each message: the receiver's own sealed place, and a box for the session there."""

    place: Place
    box: Annotated[bytes, Meta(max_length=MAX_BOX_BYTES)]


class SyncRequest(Message, frozen=True):
    """Asks for what the sender lacks.

    Attributes:
        summary: the sender's `History.summary`.
        place: where the sender is reached about this session, sealed by its node.
        clock, id: the position of the last event of the last page; nothing for the first page.
    """

    summary: _Summary
    place: Place
    clock: Annotated[int, Meta(ge=0, le=2**53 - 1)] = 0
    id: Annotated[bytes, Meta(max_length=32)] = b""


class SyncPage(Message, frozen=True):
    """Answers a `SyncRequest`.

    Attributes:
        events: what the other lacks, in causal order.
        summary: the answering node's own, so that the other can push what is lacking here.
        more: another page follows behind the last of these events.
    """

    events: _Events
    summary: _Summary
    more: bool = False


class EventBatch(Message, frozen=True):
    """Events pushed to a participant.

    Attributes:
        events: in causal order.
        place: where the sender is reached about this session, so that it can be asked for what is missing.
    """

    events: _Events
    place: Place


def decode_envelope(data: bytes) -> Envelope:
    """Read an envelope.

    Raises:
        MalformedError: not one.
    """
    return decode(Envelope, data, limit=MAX_ENVELOPE_BYTES)
