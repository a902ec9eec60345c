"""Announcements: the signed word of a living unit's key on which node holds the unit. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Self

import msgspec

from overlay.errors import MalformedError, VerificationError
from overlay.identity import SigningSecret, verify_signature
from overlay.locators import MAX_CLOCK_SKEW, MAX_RECORD_LIFETIME
from overlay.units.identifiers import UnitIdentifier
from overlay.units.locators import UnitLocator
from overlay.wire.codec import Count, Key32, Message, Signature64, Timestamp, decode, encode

MAX_ANNOUNCEMENT_BYTES = 1_024
ANNOUNCEMENT_LIFETIME = 24 * 3600
"""Seconds that an announcement holds; whoever holds the unit renews it at half of that."""

_CONTEXT = "unit-announcement"


class _Body(Message, frozen=True):
    key: Key32
    number: Count
    issued: Timestamp
    expires: Timestamp
    locator: Annotated[bytes, msgspec.Meta(max_length=512)]


class _Signed(Message, frozen=True):
    body: Annotated[bytes, msgspec.Meta(max_length=MAX_ANNOUNCEMENT_BYTES)]
    signature: Signature64


@dataclass(frozen=True)
class Announcement:
    """Where a living unit is. Only `sign` and `verify` make one.

    Attributes:
        key: the unit's public key, 32 bytes; its identifier follows from it.
        number: grows with each announcement of a unit; the highest counts.
        issued, expires: seconds since 1970.
        locator: the node that holds the unit, and the sealed place.
        encoded: the signed bytes, to be passed on as they are.
    """

    key: bytes
    number: int
    issued: int
    expires: int
    locator: UnitLocator
    encoded: bytes

    @cached_property
    def unit(self) -> UnitIdentifier:
        """The unit that is announced."""
        return UnitIdentifier.of_key(self.key)

    @classmethod
    def sign(cls, secret: SigningSecret, locator: UnitLocator, *, now: float) -> Self:
        """Announce the unit whose key is `secret`."""
        body = encode(
            _Body(
                key=secret.public,
                number=int(now * 1000),
                issued=int(now),
                expires=int(now) + ANNOUNCEMENT_LIFETIME,
                locator=locator.to_bytes(),
            )
        )
        return cls._read(body, encode(_Signed(body=body, signature=secret.sign(_CONTEXT, body))))

    @classmethod
    def verify(cls, data: bytes, *, now: float) -> Self:
        """Read an announcement that came from anywhere.

        Raises:
            MalformedError: not an announcement, or out of bounds.
            VerificationError: the signature does not fit, it has expired, or its times make no sense.
        """
        signed = decode(_Signed, data, limit=MAX_ANNOUNCEMENT_BYTES)
        announcement = cls._read(signed.body, bytes(data))
        verify_signature(announcement.key, _CONTEXT, signed.body, signed.signature)
        if not announcement.issued <= announcement.expires <= announcement.issued + MAX_RECORD_LIFETIME:
            raise VerificationError("an announcement is valid for longer than announcements may be")
        if announcement.issued > now + MAX_CLOCK_SKEW or announcement.expires <= now:
            raise VerificationError("an announcement has expired, or comes from the future")
        return announcement

    @classmethod
    def _read(cls, data: bytes, encoded: bytes) -> Self:
        body = decode(_Body, data, limit=MAX_ANNOUNCEMENT_BYTES)
        if len(encoded) > MAX_ANNOUNCEMENT_BYTES:
            raise MalformedError("an announcement is too long")
        return cls(
            key=body.key,
            number=body.number,
            issued=body.issued,
            expires=body.expires,
            locator=UnitLocator.from_bytes(body.locator),
            encoded=encoded,
        )
