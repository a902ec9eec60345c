"""I2P destinations: their text, their hash, and the keys that they come from. Pure.

A destination is 256 bytes of encryption key, 128 of signing key and a certificate, whose two bytes of
length end at byte 387. Its address is the SHA-256 of those bytes. The private form is the destination
followed by its two private keys, and so begins with its public one.

Sources: https://geti2p.net/spec/common-structures (Destination, Certificate, PrivateKeyFile)
"""

from __future__ import annotations

import binascii
import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from i2plib.sam import i2p_b64decode, i2p_b64encode

from overlay.errors import MalformedError, VerificationError
from overlay.locators import NodeLocator

MAX_DESTINATION_BYTES = 1024
"""The longest that the specification knows (RSA-4096) has 775 bytes, one with an Ed25519 key 391."""

MAX_PRIVATE_BYTES = 2048
"""With the private keys: an Ed25519 one has 679 bytes; a longest destination would have about 1600."""

_KEYS_BYTES = 384  # before the certificate: its type, two bytes of length, and as many bytes
_HEAD_BYTES = _KEYS_BYTES + 3
_KEY_CERTIFICATE = 5
_ED25519 = 7
_MIN_PRIVATE_KEYS = 256 + 20  # the encryption key's room, and the shortest signing key, DSA
_SEED_BYTES = 32


def _public_size(data: bytes) -> int:
    return _HEAD_BYTES + int.from_bytes(data[_KEYS_BYTES + 1 : _HEAD_BYTES], "big")


def _decode(text: str, limit: int) -> bytes:
    """Decode I2P's base64, in which `-~` stand for `+/`.

    Raises:
        MalformedError: too long, or not such text in its only form.
    """
    if len(text) > (limit + 2) // 3 * 4:
        raise MalformedError(f"an I2P destination of {len(text)} letters is longer than any")
    try:
        data = i2p_b64decode(text)
    except (binascii.Error, ValueError) as error:  # the latter for letters outside ASCII
        raise MalformedError("this is no I2P destination: it is not base64 as I2P writes it") from error
    if i2p_b64encode(data) != text:
        raise MalformedError("this is no I2P destination: its base64 has no or another ending")
    return bytes(data)


@dataclass(frozen=True)
class Destination:
    """Where an I2P peer is reached, in full: what its address is the hash of.

    Attributes:
        data: the bytes, exactly.
    """

    data: bytes

    def __post_init__(self) -> None:
        """Refuse what cannot be one.

        Raises:
            MalformedError: cut, too long, or its certificate does not end where the bytes do.
        """
        size = len(self.data)
        if not _HEAD_BYTES <= size <= MAX_DESTINATION_BYTES or size != _public_size(self.data):
            raise MalformedError(f"this is no I2P destination: {size} bytes do not fit its certificate")

    @classmethod
    def from_base64(cls, text: str) -> Self:
        """Read the text that routers exchange with their clients.

        Raises:
            MalformedError: not a destination.
        """
        return cls(_decode(text, MAX_DESTINATION_BYTES))

    @cached_property
    def base64(self) -> str:
        """The text that routers exchange with their clients; 524 letters with an Ed25519 key."""
        return str(i2p_b64encode(self.data))

    @cached_property
    def locator(self) -> NodeLocator:
        """Its address, the hash."""
        return NodeLocator("garlic32", hashlib.sha256(self.data).digest())

    def __repr__(self) -> str:
        """The address; the full text would fill a screen."""
        return f"Destination({self.locator.host})"


@dataclass(frozen=True)
class PrivateDestination:
    """A destination with the private keys to it: whoever has these is reached under its address.

    Attributes:
        data: the bytes of the destination, of its encryption key and of its signing key.
    """

    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be one.

        Raises:
            MalformedError: too short or too long to hold a destination and its keys.
            VerificationError: the private signing key is not that of the destination.
        """
        keys = len(self.data) - _public_size(self.data) if len(self.data) >= _HEAD_BYTES else 0
        if len(self.data) > MAX_PRIVATE_BYTES or keys < _MIN_PRIVATE_KEYS:
            raise MalformedError(
                "this is no private I2P destination: its length does not fit its certificate"
            )
        if self._is_ed25519() and not self._keys_match():
            raise VerificationError("the private key of this I2P destination does not fit its public one")

    @classmethod
    def from_base64(cls, text: str) -> Self:
        """Read what a router answers to DEST GENERATE.

        Raises:
            MalformedError: not a private destination.
            VerificationError: its private key is not that of the destination.
        """
        return cls(_decode(text, MAX_PRIVATE_BYTES))

    @cached_property
    def public(self) -> Destination:
        """The part that is not secret."""
        return Destination(self.data[: _public_size(self.data)])

    @property
    def base64(self) -> str:
        """The secret text that a router takes in SESSION CREATE."""
        return str(i2p_b64encode(self.data))

    def _is_ed25519(self) -> bool:
        kind, length, signature = self.data[_KEYS_BYTES], self.data[385:387], self.data[387:389]
        return (
            kind == _KEY_CERTIFICATE
            and int.from_bytes(length, "big") >= 4
            and int.from_bytes(signature, "big") == _ED25519
        )

    def _keys_match(self) -> bool:
        seed = self.data[-_SEED_BYTES:]
        public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
        return public == self.data[_KEYS_BYTES - _SEED_BYTES : _KEYS_BYTES]
