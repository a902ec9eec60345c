from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.chat.events import Created, Event, Left
from overlay.chat.invite import MAX_INVITE_BYTES, PREFIX, Invite
from overlay.chat.texts import MAX_TITLE_BYTES
from overlay.errors import MalformedError, VerificationError
from overlay.identity import NodeIdentifier, SigningSecret
from overlay.locators import MAX_RECORD_BYTES
from overlay.wire.tokens import format_token

SESSION = SigningSecret(b"s" * 32)
CREATED = Event.sign(
    SESSION, session=SESSION.public, clock=1, parents=[], at=5, content=Created(title="Tea ☕")
)
INVITE = Invite(CREATED, b"k" * 32, NodeIdentifier(b"n" * 32), bytes(92), b"record" * 40)


def test_an_invite_survives_being_pasted() -> None:
    text = str(INVITE)
    assert text.startswith(PREFIX)
    assert Invite.parse(f"  {text[:40]}\n{text[40:]}\n") == INVITE
    assert INVITE.title == "Tea ☕"


def test_an_invite_does_not_show_its_secret() -> None:
    assert "kkkk" not in repr(INVITE)


def test_the_longest_invite_fits() -> None:
    content = Created(title="é" * (MAX_TITLE_BYTES // 2))
    created = Event.sign(SESSION, session=SESSION.public, clock=1, parents=[], at=2**53 - 1, content=content)
    longest = Invite(created, b"k" * 32, INVITE.node, INVITE.place, bytes(MAX_RECORD_BYTES))
    assert Invite.parse(str(longest)) == longest


@given(st.data())
def test_a_mistyped_or_cut_invite_is_malformed(data: st.DataObject) -> None:
    text = str(INVITE)
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567").filter(lambda x: x != text[at]))
    for damaged in (text[:at] + letter + text[at + 1 :], text[:at]):
        with pytest.raises(MalformedError):
            Invite.parse(damaged)


def test_an_invite_whose_beginning_nobody_signed_is_not_verified() -> None:
    forged = dataclasses.replace(CREATED, encoded=CREATED.encoded.replace(b"Tea", b"Sea"))
    with pytest.raises(VerificationError):
        Invite.parse(str(dataclasses.replace(INVITE, created=forged)))


def test_an_invite_begins_with_a_creation() -> None:
    left = Event.sign(SESSION, session=SESSION.public, clock=2, parents=[CREATED.id], at=5, content=Left())
    with pytest.raises(MalformedError, match="creation"):
        Invite.parse(str(dataclasses.replace(INVITE, created=left)))


@given(st.binary(max_size=300))
def test_any_payload_is_malformed_or_not_verified(payload: bytes) -> None:
    with pytest.raises((MalformedError, VerificationError)):
        Invite.parse(format_token(PREFIX, payload))


@given(st.text())
def test_any_text_is_malformed(text: str) -> None:
    with pytest.raises(MalformedError):
        Invite.parse(text)


def test_an_endless_invite_is_refused() -> None:
    with pytest.raises(MalformedError, match="long"):
        Invite.parse(PREFIX + "a" * (4 * MAX_INVITE_BYTES))
