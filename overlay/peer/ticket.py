"""Tickets: one token that lets another node join. Pure.

A ticket is a list of locator records: the node that gave it out, and the directory that it uses when it is
not a directory itself. It holds no secret, and records verify themselves, so it may travel in the open; it
shows its reader how those nodes are reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

import msgspec

from overlay.errors import MalformedError, VerificationError
from overlay.locators import DIRECTORY_ROLE, MAX_RECORD_BYTES, LocatorRecord
from overlay.wire.codec import Message, decode, encode
from overlay.wire.tokens import format_token, parse_token

TICKET_PREFIX = "ovt1"
MAX_RECORDS = 4
MAX_TICKET_BYTES = MAX_RECORDS * MAX_RECORD_BYTES + 64


class _TicketBody(Message, frozen=True):
    records: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=MAX_RECORD_BYTES)], ...],
        msgspec.Meta(min_length=1, max_length=MAX_RECORDS),
    ]


@dataclass(frozen=True)
class Ticket:
    """The records that a ticket brings, the giver's first."""

    records: tuple[LocatorRecord, ...]

    def __str__(self) -> str:
        """The token."""
        body = _TicketBody(records=tuple(record.encoded for record in self.records))
        return format_token(TICKET_PREFIX, encode(body))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a token. Expired records are let through: their locators may still work.

        Raises:
            MalformedError: not a ticket, damaged, or cut.
            VerificationError: a record in it is forged.
        """
        payload = parse_token(TICKET_PREFIX, text, limit=MAX_TICKET_BYTES)
        body = decode(_TicketBody, payload, limit=MAX_TICKET_BYTES)
        return cls(tuple(LocatorRecord.from_store(record) for record in body.records))

    @property
    def directory(self) -> LocatorRecord:
        """The record of the directory that this ticket leads to.

        Raises:
            MalformedError: it leads to none.
        """
        for record in self.records:
            if DIRECTORY_ROLE in record.roles:
                return record
        raise MalformedError("this ticket leads to no directory: ask for one from a node that has joined one")


def check_ticket(text: str) -> Ticket:
    """Read a ticket and make sure that one can join with it.

    Raises:
        MalformedError: not a ticket, or one that leads to no directory.
        VerificationError: a record in it is forged.
    """
    ticket = Ticket.parse(text)
    if not ticket.directory.locators:
        raise VerificationError("the directory in this ticket has no address of a kind known here")
    return ticket
