"""Tickets that were made, not damaged: too long, too full, forged."""

from __future__ import annotations

import pytest

from overlay.errors import MalformedError, VerificationError
from overlay.locators import MAX_RECORD_BYTES, LocatorRecord, NodeLocator
from overlay.peer.ticket import (
    MAX_RECORDS,
    MAX_TICKET_BYTES,
    TICKET_PREFIX,
    Ticket,
    _TicketBody,
    check_ticket,
)
from overlay.testing.nodes import EPOCH, World
from overlay.wire.codec import encode
from overlay.wire.tokens import format_token, parse_token


def record(name: str = "hub") -> LocatorRecord:
    locators = [NodeLocator.tcp("127.0.0.1", 9)]
    return LocatorRecord.sign(World().secret(name), locators, number=1, now=EPOCH, roles=["directory"])


def token(*records: bytes) -> str:
    """A ticket as nobody honest writes it, with a right checksum."""
    return format_token(TICKET_PREFIX, encode(_TicketBody(records=records)))


def test_the_token_that_is_built_here_is_a_ticket() -> None:
    assert check_ticket(token(record().encoded)).directory == record()
    assert token(record().encoded) == str(Ticket((record(),)))


def test_a_forged_record_is_not_verified() -> None:
    encoded = record().encoded
    with pytest.raises(VerificationError):
        check_ticket(token(encoded[:-1] + bytes([encoded[-1] ^ 1])))
    with pytest.raises(VerificationError):
        check_ticket(token(record("other").encoded, encoded[:-1] + bytes([encoded[-1] ^ 1])))


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record().encoded] * (MAX_RECORDS + 1),
        [bytes(MAX_RECORD_BYTES + 1)],
        [record().encoded[:-1]],
        [b""],
    ],
    ids=["none", "too many", "too long", "cut", "empty"],
)
def test_records_out_of_bounds_are_malformed(records: list[bytes]) -> None:
    with pytest.raises(MalformedError):
        check_ticket(token(*records))


def test_a_ticket_has_a_largest_size() -> None:
    with pytest.raises(MalformedError):
        check_ticket(format_token(TICKET_PREFIX, bytes(MAX_TICKET_BYTES + 1)))
    with pytest.raises(MalformedError):
        check_ticket(TICKET_PREFIX + "a" * 10_000_000)


def test_the_fullest_ticket_fits() -> None:
    full = [record(f"{number}") for number in range(MAX_RECORDS)]
    assert Ticket.parse(str(Ticket(tuple(full)))).records == tuple(full)
    payload = parse_token(TICKET_PREFIX, str(Ticket(tuple(full))), limit=MAX_TICKET_BYTES)
    assert MAX_RECORDS * MAX_RECORD_BYTES + len(payload) - sum(len(each.encoded) for each in full) <= (
        MAX_TICKET_BYTES
    )
