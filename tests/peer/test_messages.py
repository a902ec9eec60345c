"""Requests, answers, tickets and announcements: bounds, errors, and what foreign bytes can do."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import (
    MalformedError,
    NotFoundError,
    OverlayError,
    RefusedError,
    UnreachableError,
    VerificationError,
)
from overlay.identity import NodeSecret, SigningSecret
from overlay.locators import DIRECTORY_ROLE, LocatorRecord, memory_locator
from overlay.peer.announcement import ANNOUNCEMENT_LIFETIME, Announcement
from overlay.peer.messages import MAX_BODY_BYTES, MAX_ERROR_CHARACTERS, MAX_PART_BYTES, Answer, Request
from overlay.peer.ticket import Ticket, check_ticket
from overlay.units.identifiers import UnitIdentifier
from overlay.units.locators import SEALED_PLACE_BYTES, UnitLocator
from overlay.wire.codec import decode, encode

NOW = 1_800_000_000.0
ENTROPY = random.Random(1).randbytes
ALICE = NodeSecret.generate(ENTROPY)
BOB = NodeSecret.generate(ENTROPY)
SESSION = SigningSecret.generate(ENTROPY)


def record(secret: NodeSecret, *roles: str) -> LocatorRecord:
    return LocatorRecord.sign(secret, [memory_locator(1)], number=1, now=NOW, roles=roles)


def announcement() -> Announcement:
    return Announcement.sign(SESSION, UnitLocator(ALICE.identifier, bytes(SEALED_PLACE_BYTES)), now=NOW)


def test_the_largest_request_and_answer_fit_one_message() -> None:
    request = Request(kind="k" * 64, body=bytes(MAX_BODY_BYTES), correlation=bytes(16))
    assert len(encode(request)) <= MAX_PART_BYTES
    answer = Answer(code="c" * 32, text="\U0001f600" * MAX_ERROR_CHARACTERS, body=b"")
    assert len(encode(answer)) <= MAX_PART_BYTES
    assert decode(Request, encode(request), limit=MAX_PART_BYTES) == request


@pytest.mark.parametrize(
    "bad", [Request(kind=""), Request(kind="k" * 65), Request(kind="k", correlation=bytes(15))]
)
def test_requests_out_of_bounds_are_refused(bad: Request) -> None:
    with pytest.raises(MalformedError):
        decode(Request, encode(bad), limit=MAX_PART_BYTES)


@pytest.mark.parametrize(
    ("told", "raised"),
    [
        (NotFoundError("x"), NotFoundError),
        (UnreachableError("x"), UnreachableError),
        (MalformedError("x"), RefusedError),
        (VerificationError("x"), RefusedError),
    ],
)
def test_errors_travel_as_what_they_mean_to_the_caller(
    told: OverlayError, raised: type[OverlayError]
) -> None:
    with pytest.raises(raised, match="x"):
        decode(Answer, encode(Answer.of_error(told)), limit=MAX_PART_BYTES).result()


def test_a_long_error_sentence_is_cut() -> None:
    assert len(Answer.of_error(RefusedError("x" * 10_000)).text) == MAX_ERROR_CHARACTERS


@given(st.binary(max_size=200))
def test_foreign_bytes_are_an_answer_or_malformed(data: bytes) -> None:
    for kind in (Request, Answer):
        with suppress(MalformedError):
            decode(kind, data, limit=MAX_PART_BYTES)


def test_a_ticket_leads_to_the_directory_in_it() -> None:
    ticket = Ticket((record(ALICE), record(BOB, DIRECTORY_ROLE)))
    read = check_ticket(f"  {str(ticket)[:50]}\n{str(ticket)[50:]} ")
    assert read == ticket
    assert read.directory.identifier == BOB.identifier


def test_a_ticket_without_a_directory_is_refused() -> None:
    with pytest.raises(MalformedError, match="no directory"):
        check_ticket(str(Ticket((record(ALICE),))))


def test_a_directory_without_an_address_is_refused() -> None:
    empty = LocatorRecord.sign(BOB, [], number=1, now=NOW, roles=[DIRECTORY_ROLE])
    with pytest.raises(VerificationError):
        check_ticket(str(Ticket((empty,))))


@given(st.integers(0, 400), st.sampled_from("abcdefghijklmnop234567 1!\u202e"))
def test_a_damaged_ticket_is_malformed(position: int, character: str) -> None:
    text = str(Ticket((record(BOB, DIRECTORY_ROLE),)))
    damaged = text[:position] + character + text[position + 1 :]
    if "".join(damaged.split()).lower() == text:
        return
    with pytest.raises(MalformedError):
        Ticket.parse(damaged)


@given(st.integers(0, 500))
def test_a_cut_ticket_is_malformed(length: int) -> None:
    text = str(Ticket((record(BOB, DIRECTORY_ROLE),)))
    if length < len(text):
        with pytest.raises(MalformedError):
            Ticket.parse(text[:length])


def test_an_announcement_is_read_back() -> None:
    made = announcement()
    read = Announcement.verify(made.encoded, now=NOW)
    assert read == made
    assert read.unit == UnitIdentifier.of_key(SESSION.public)


@pytest.mark.parametrize("now", [NOW + ANNOUNCEMENT_LIFETIME, NOW - 3 * 3600])
def test_an_expired_or_future_announcement_is_refused(now: float) -> None:
    with pytest.raises(VerificationError):
        Announcement.verify(announcement().encoded, now=now)


@given(st.data())
def test_a_changed_announcement_is_refused(data: st.DataObject) -> None:
    encoded = bytearray(announcement().encoded)
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    # A change outside the signed body, in the spelling of the envelope, may go through; nothing else may.
    with suppress(MalformedError, VerificationError):
        read = Announcement.verify(bytes(encoded), now=NOW)
        assert (read.key, read.number, read.locator) == (
            SESSION.public,
            int(NOW * 1000),
            announcement().locator,
        )
