"""Unit locators: which node holds a unit, and a place inside that node that only the node can read.

The holder seals the place before it tells anybody. A locator then shows neither what it leads to nor where
that lies, two locators of one place cannot be linked, and nobody can make one up: a place that does not open
was not sealed here. Described in docs/spec/units.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Self

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from overlay.errors import MalformedError, VerificationError
from overlay.identity import Entropy, NodeIdentifier
from overlay.wire.codec import Key32, Message, decode, encode

MAX_PLACE_BYTES = 63
"""The longest place: room for a kind, a 32-byte identifier or key, and a number."""
SEALED_PLACE_BYTES = 92
"""Every sealed place: nonce 12, padded place 64, tag 16."""
SEAL_KEY_BYTES = 32
MAX_UNIT_LOCATOR_BYTES = 192
"""A unit locator takes 140 bytes; the rest is for fields that a newer version adds."""

_NONCE_BYTES = 12
_CONTEXT = b"overlay/unit-place"
_PADDING = b"\x80"


@dataclass(frozen=True, slots=True)
class PlaceSeal:
    """Seals and opens the places inside one node.

    Attributes:
        key: 32 secret bytes of the node, used for nothing else. Nonces are random: after 2^32 seals take
            another key (NIST SP 800-38D, section 8.3, draws the line there for nonces of this length).
    """

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse any other length of key.

        Raises:
            MalformedError: not 32 bytes.
        """
        if len(self.key) != SEAL_KEY_BYTES:
            raise MalformedError(f"the key of a place seal has {SEAL_KEY_BYTES} bytes, not {len(self.key)}")

    def seal(self, place: bytes, entropy: Entropy) -> bytes:
        """Seal a place; each call gives other bytes, all of one length.

        Raises:
            MalformedError: the place is longer than `MAX_PLACE_BYTES`.
        """
        if len(place) > MAX_PLACE_BYTES:
            raise MalformedError(f"a place of {len(place)} bytes is longer than {MAX_PLACE_BYTES}")
        nonce = entropy(_NONCE_BYTES)
        padded = (place + _PADDING).ljust(MAX_PLACE_BYTES + 1, b"\0")
        return nonce + ChaCha20Poly1305(self.key).encrypt(nonce, padded, _CONTEXT)

    def open(self, sealed: bytes) -> bytes:
        """Read a place that was sealed with the same key.

        Raises:
            VerificationError: it was not, or it has been changed.
        """
        nonce, box = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        if len(sealed) != SEALED_PLACE_BYTES:
            raise VerificationError(f"a sealed place has {SEALED_PLACE_BYTES} bytes, not {len(sealed)}")
        try:
            padded = ChaCha20Poly1305(self.key).decrypt(nonce, box, _CONTEXT)
        except InvalidTag as error:
            raise VerificationError("this place was not sealed by this node") from error
        return padded.rstrip(b"\0").removesuffix(_PADDING)


class _WireLocator(Message, frozen=True):
    node: Key32
    place: Annotated[bytes, msgspec.Meta(min_length=SEALED_PLACE_BYTES, max_length=SEALED_PLACE_BYTES)]


@dataclass(frozen=True, slots=True)
class UnitLocator:
    """Where a unit is.

    Attributes:
        node: the node that holds the unit.
        place: where in the node, sealed by it; `SEALED_PLACE_BYTES` long.
    """

    node: NodeIdentifier
    place: bytes

    def __post_init__(self) -> None:
        """Refuse a place that cannot be a sealed one.

        Raises:
            MalformedError: not `SEALED_PLACE_BYTES` long.
        """
        if len(self.place) != SEALED_PLACE_BYTES:
            raise MalformedError(f"a sealed place has {SEALED_PLACE_BYTES} bytes, not {len(self.place)}")

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the binary form.

        Raises:
            MalformedError: not a unit locator.
        """
        wire = decode(_WireLocator, data, limit=MAX_UNIT_LOCATOR_BYTES)
        return cls(NodeIdentifier(wire.node), wire.place)

    def to_bytes(self) -> bytes:
        """The binary form: MessagePack, fields `node` and `place`."""
        return encode(_WireLocator(node=self.node.value, place=self.place))
