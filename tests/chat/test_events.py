from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.chat.events import (
    MAX_EVENT_BYTES,
    MAX_PARENTS,
    Content,
    Created,
    Event,
    File,
    Joined,
    Left,
    Text,
    event_id,
)
from overlay.chat.texts import MAX_TEXT_BYTES
from overlay.errors import MalformedError, VerificationError
from overlay.identity import SigningSecret
from overlay.locators import MAX_RECORD_BYTES

SESSION = SigningSecret(b"s" * 32)
ALICE = SigningSecret(b"a" * 32)
PARENT = b"p" * 32
FILE = File(name="photo.jpg", size=12, capability=b"c" * 66, holders=(b"n" * 32,))
JOINED = Joined(name="Alice", proof=b"x" * 32, node=b"n" * 32, place=bytes(92), record=b"record")
CONTENTS: list[Content] = [JOINED, Left(), Text(text="hi\nthere"), FILE]


def sign(content: Content, **changes: object) -> Event:
    fields: dict[str, Any] = {"session": SESSION.public, "clock": 2, "parents": [PARENT], "at": 5.9}
    fields |= changes
    return Event.sign(ALICE, content=content, **fields)


def root(title: str = "Tea", secret: SigningSecret = SESSION) -> Event:
    return Event.sign(secret, session=SESSION.public, clock=1, parents=[], at=5, content=Created(title=title))


def forge(**changes: object) -> bytes:
    """A correctly signed event whose fields are whatever the author likes."""
    body: dict[str, Any] = {
        "session": SESSION.public,
        "author": ALICE.public,
        "clock": 2,
        "parents": [PARENT],
        "at": 5,
        "content": {"kind": "text", "text": "hi"},
    }
    data = msgspec.msgpack.encode(body | changes)
    return msgspec.msgpack.encode({"body": data, "signature": ALICE.sign("chat-event", data)})


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: type(content).__name__)
def test_events_survive_the_wire(content: Content) -> None:
    event = sign(content)
    assert Event.verify(event.encoded) == event == Event.restore(event.encoded)
    assert event.content == content
    assert (event.at, event.position, event.kind) == (5, (2, event.id), type(content).__name__.lower())


def test_the_first_event_is_signed_by_the_session() -> None:
    assert Event.verify(root().encoded).author == SESSION.public
    with pytest.raises(MalformedError, match="session's own key"):
        root(secret=ALICE)


@pytest.mark.parametrize("position", [10, -1])
def test_a_changed_event_is_noticed(position: int) -> None:
    data = bytearray(sign(Text(text="pay me 1 pound")).encoded)
    data[position] ^= 1
    with pytest.raises((VerificationError, MalformedError)):
        Event.verify(bytes(data))
    data = bytearray(sign(Text(text="pay me 1 pound")).encoded.replace(b"1 pound", b"9 pound"))
    with pytest.raises(VerificationError):
        Event.verify(bytes(data))


def test_nobody_can_make_a_second_event_of_one() -> None:
    event = sign(Left())
    outer = msgspec.msgpack.decode(event.encoded) | {"junk": b"x" * 100}
    again = Event.verify(msgspec.msgpack.encode(outer))
    assert again == event
    assert again.id == event_id(outer["body"])


def test_fields_of_a_newer_version_are_kept_with_the_bytes_that_were_signed() -> None:
    data = forge(mood="cheerful")
    assert b"cheerful" in Event.verify(data).encoded


@pytest.mark.parametrize(
    "changes",
    [
        {"content": {"kind": "dance"}},
        {"content": {"kind": "text"}},
        {"content": {"kind": "text", "text": "x" * (MAX_TEXT_BYTES + 1)}},
        {
            "content": {
                "kind": "joined",
                "name": "a\x1b[2J",
                "proof": b"x" * 32,
                "node": b"n" * 32,
                "place": bytes(92),
            }
        },
        {
            "content": {
                "kind": "file",
                "name": "../x",
                "size": 1,
                "capability": b"c" * 66,
                "holders": [PARENT],
            }
        },
        {"content": {"kind": "file", "name": "x", "size": -1, "capability": b"c" * 66, "holders": [PARENT]}},
        {"content": {"kind": "file", "name": "x", "size": 1, "capability": b"c" * 66, "holders": []}},
        {"content": {"kind": "created", "title": "another"}},
        {"parents": []},
        {"parents": [PARENT, PARENT]},
        {"parents": [PARENT, b"a" * 32]},
        {"parents": [bytes([n]) * 32 for n in range(MAX_PARENTS + 1)]},
        {"clock": 0},
        {"clock": 1},
        {"clock": 2**53},
        {"at": -1},
        {"session": b"short"},
    ],
    ids=str,
)
def test_events_out_of_bounds_are_refused_although_they_are_signed(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        Event.verify(forge(**changes))


def test_the_longest_events_fit() -> None:
    parents = [bytes([n]) * 32 for n in range(MAX_PARENTS)]
    longest = sign(Text(text="x" * MAX_TEXT_BYTES), parents=parents, clock=2**53 - 1)
    newcomer = sign(
        Joined(
            name="é" * 50, proof=b"x" * 32, node=b"n" * 32, place=bytes(92), record=bytes(MAX_RECORD_BYTES)
        )
    )
    assert max(len(event.encoded) for event in (longest, newcomer)) < MAX_EVENT_BYTES


@given(st.binary(max_size=400))
def test_any_bytes_are_malformed_or_not_verified(data: bytes) -> None:
    with pytest.raises((MalformedError, VerificationError)):
        Event.verify(data)


@given(
    st.dictionaries(
        st.sampled_from(["session", "author", "clock", "parents", "at", "content"]),
        st.recursive(
            st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=40) | st.text(max_size=40),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(st.sampled_from(["kind", "text", "title", "name", "size"]), inner)
            ),
            max_leaves=8,
        ),
    )
)
def test_any_signed_fields_are_an_event_or_refused(changes: dict[str, Any]) -> None:
    try:
        event = Event.verify(forge(**changes))
    except (MalformedError, VerificationError):
        return
    assert Event.verify(event.encoded) == event
