from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.chat.events import MAX_EVENT_BYTES
from overlay.chat.history import MAX_SUMMARY
from overlay.chat.keys import BOX_OVERHEAD, MAX_BOX_BYTES
from overlay.chat.messages import (
    MAX_ENVELOPE_BYTES,
    MAX_PAGE_EVENTS,
    MAX_PLAIN_BYTES,
    PAGE_BYTES,
    Envelope,
    EventBatch,
    SyncPage,
    SyncRequest,
    decode_envelope,
)
from overlay.errors import MalformedError
from overlay.peer.messages import MAX_BODY_BYTES
from overlay.units.locators import SEALED_PLACE_BYTES
from overlay.wire.codec import Message, decode, encode

IDENTIFIER = b"i" * 32
PLACE = bytes(SEALED_PLACE_BYTES)


def test_the_longest_messages_fit_one_request() -> None:
    summary = (IDENTIFIER,) * MAX_SUMMARY
    many = (bytes(PAGE_BYTES // MAX_PAGE_EVENTS),) * MAX_PAGE_EVENTS
    for events in ((bytes(MAX_EVENT_BYTES),), many):
        page = encode(SyncPage(events=events, summary=summary, more=True))
        assert len(page) <= MAX_PLAIN_BYTES == MAX_BOX_BYTES - BOX_OVERHEAD
    envelope = encode(Envelope(place=bytes(SEALED_PLACE_BYTES), box=bytes(MAX_BOX_BYTES)))
    assert len(envelope) <= MAX_ENVELOPE_BYTES <= MAX_BODY_BYTES
    assert decode_envelope(envelope).box == bytes(MAX_BOX_BYTES)


@pytest.mark.parametrize(
    "data",
    [
        encode({"summary": [IDENTIFIER] * (MAX_SUMMARY + 1), "place": PLACE}),
        encode({"summary": [b"short"], "place": PLACE}),
        encode({"summary": [IDENTIFIER], "place": PLACE, "clock": -1}),
        encode({}),
    ],
)
def test_requests_out_of_bounds_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(SyncRequest, data, limit=MAX_PLAIN_BYTES)


@pytest.mark.parametrize("kind", [Envelope, EventBatch, SyncRequest, SyncPage])
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(kind: type[Message], data: bytes) -> None:
    try:
        message = decode(kind, data, limit=MAX_PLAIN_BYTES)
    except MalformedError:
        return
    assert decode(kind, encode(message), limit=MAX_PLAIN_BYTES) == message
