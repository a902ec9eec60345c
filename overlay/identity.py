"""Keys and the identifiers that follow from them.

A node has one long-term `NodeSecret`: an Ed25519 key that signs what it publishes and an X25519 key that
its channels use. Its `NodeIdentifier` is the BLAKE2b-256 hash of both public keys together, so nobody can
claim another's identifier, and a Noise handshake that proves the X25519 key proves the identifier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from overlay.errors import MalformedError, VerificationError
from overlay.wire.tokens import base32, unbase32

IDENTIFIER_BYTES = 32
PUBLIC_BYTES = 64
SECRET_BYTES = 64
_TEXT_CHECKSUM_BYTES = 3  # makes 35 bytes, which is exactly 56 base32 characters

Entropy = Callable[[int], bytes]
"""A source of random bytes: `os.urandom` in earnest, a seeded generator in a simulation."""


@dataclass(frozen=True, slots=True, order=True)
class NodeIdentifier:
    """32 bytes that name a node; derived from its public keys."""

    value: bytes

    def __post_init__(self) -> None:
        """Refuse any other length.

        Raises:
            MalformedError: not 32 bytes.
        """
        if len(self.value) != IDENTIFIER_BYTES:
            raise MalformedError(f"a node identifier has {IDENTIFIER_BYTES} bytes, not {len(self.value)}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the 56-character text form.

        Raises:
            MalformedError: not a node identifier, or mistyped.
        """
        return cls(parse_identifier("node", text))

    def __str__(self) -> str:
        """56 base32 characters: the identifier and a checksum."""
        return format_identifier("node", self.value)


def format_identifier(kind: str, value: bytes) -> str:
    """Write a 32-byte identifier as 56 base32 characters; the checksum tells kinds apart."""
    return base32(value + _identifier_checksum(kind, value))


def parse_identifier(kind: str, text: str) -> bytes:
    """Read what `format_identifier` wrote for the same kind.

    Raises:
        MalformedError: wrong length, wrong characters, mistyped, or an identifier of another kind.
    """
    data = unbase32(text.strip()) if len(text) < 2 * PUBLIC_BYTES else b""
    value, checksum = data[:IDENTIFIER_BYTES], data[IDENTIFIER_BYTES:]
    if len(value) != IDENTIFIER_BYTES or checksum != _identifier_checksum(kind, value):
        raise MalformedError(f"this is not a {kind} identifier: it has 56 letters and digits, copy it whole")
    return value


def _identifier_checksum(kind: str, value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=_TEXT_CHECKSUM_BYTES, key=kind.encode("ascii")).digest()


def verify_signature(public: bytes, context: str, body: bytes, signature: bytes) -> None:
    """Check an Ed25519 signature that `SigningSecret.sign` made for the same context.

    Raises:
        VerificationError: the signature does not fit key, context and body, or the key is no key.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _signed_bytes(context, body))
    except (InvalidSignature, ValueError) as error:
        raise VerificationError(f"the signature of this {context} does not fit its key") from error


@dataclass(frozen=True)
class SigningSecret:
    """An Ed25519 private key, from its 32-byte seed: a session's, a participant's, half of a node's."""

    seed: bytes = field(repr=False)

    @classmethod
    def generate(cls, entropy: Entropy) -> Self:
        """Make a new key from 32 random bytes."""
        return cls(entropy(32))

    @cached_property
    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @cached_property
    def public(self) -> bytes:
        """The 32-byte public key."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, context: str, body: bytes) -> bytes:
        """Sign `body`, 64 bytes; `context` names what it is, so that it cannot pass for something else."""
        return self._key.sign(_signed_bytes(context, body))


def _signed_bytes(context: str, body: bytes) -> bytes:
    return b"overlay/" + context.encode("ascii") + b"\0" + body


@dataclass(frozen=True, slots=True)
class NodePublic:
    """A node's two public keys: `signing` (Ed25519) and `static` (X25519), 32 bytes each."""

    signing: bytes
    static: bytes

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the 64-byte form.

        Raises:
            MalformedError: not 64 bytes.
        """
        if len(data) != PUBLIC_BYTES:
            raise MalformedError(f"a node's public keys are {PUBLIC_BYTES} bytes, not {len(data)}")
        return cls(data[:32], data[32:])

    def to_bytes(self) -> bytes:
        """Ed25519 key, then X25519 key: 64 bytes."""
        return self.signing + self.static

    @property
    def identifier(self) -> NodeIdentifier:
        """The identifier that these keys, and no others, give."""
        digest = hashlib.blake2b(self.to_bytes(), digest_size=IDENTIFIER_BYTES, person=b"overlay/node")
        return NodeIdentifier(digest.digest())


@dataclass(frozen=True)
class NodeSecret:
    """A node's private keys, from 64 secret bytes: the Ed25519 seed, then the X25519 scalar."""

    signing: SigningSecret = field(repr=False)
    static: X25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls, entropy: Entropy) -> Self:
        """Make a new node."""
        return cls.from_bytes(entropy(SECRET_BYTES))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the 64-byte form.

        Raises:
            MalformedError: not 64 bytes.
        """
        if len(data) != SECRET_BYTES:
            raise MalformedError(f"a node's secret is {SECRET_BYTES} bytes, not {len(data)}")
        return cls(SigningSecret(data[:32]), X25519PrivateKey.from_private_bytes(data[32:]))

    def to_bytes(self) -> bytes:
        """The 64 secret bytes; whoever holds them is the node."""
        return self.signing.seed + self.static.private_bytes_raw()

    @cached_property
    def public(self) -> NodePublic:
        """The public keys."""
        return NodePublic(self.signing.public, self.static.public_key().public_bytes_raw())

    @cached_property
    def identifier(self) -> NodeIdentifier:
        """The node's identifier."""
        return self.public.identifier
