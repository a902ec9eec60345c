"""Unit identifiers: 32 bytes that name a resource of an application, whoever holds it.

An immutable unit is named by the hash of its content, a living one by a hash of its public key, so that in
both cases whoever is handed a unit can tell whether it is the one that was asked for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self

from overlay.errors import MalformedError
from overlay.identity import IDENTIFIER_BYTES, format_identifier, parse_identifier

UNIT_KEY_BYTES = 32
"""An Ed25519 public key."""


@dataclass(frozen=True, slots=True, order=True)
class UnitIdentifier:
    """32 bytes that name a unit.

    Attributes:
        value: of an immutable unit the reference of its chunk, or of the root of its tree; of a living one
            see `of_key`.
    """

    value: bytes

    def __post_init__(self) -> None:
        """Refuse any other length.

        Raises:
            MalformedError: not 32 bytes.
        """
        if len(self.value) != IDENTIFIER_BYTES:
            raise MalformedError(f"a unit identifier has {IDENTIFIER_BYTES} bytes, not {len(self.value)}")

    @classmethod
    def of_key(cls, public: bytes) -> Self:
        """The identifier of a living unit: BLAKE2b-256, personalised, of its Ed25519 public key.

        Raises:
            MalformedError: not 32 bytes.
        """
        if len(public) != UNIT_KEY_BYTES:
            raise MalformedError(f"a unit's public key has {UNIT_KEY_BYTES} bytes, not {len(public)}")
        return cls(hashlib.blake2b(public, digest_size=IDENTIFIER_BYTES, person=b"overlay/unit").digest())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the 56-character text form.

        Raises:
            MalformedError: not a unit identifier, or mistyped.
        """
        return cls(parse_identifier("unit", text))

    def __str__(self) -> str:
        """56 base32 characters: the identifier and a checksum."""
        return format_identifier("unit", self.value)
