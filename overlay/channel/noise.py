"""The Noise Protocol Framework, revision 34, for Curve25519 and ChaCha20-Poly1305. Pure.

Section numbers are those of https://noiseprotocol.org/noise.html. Not here: pre-shared keys, the deferred
patterns, rekeying and fallback, which the channel does not use.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from overlay.errors import ClosedError, MalformedError, ProtocolViolationError, VerificationError
from overlay.identity import Entropy

KEY_BYTES = 32
"""DHLEN of section 12.1, and the length of a cipher key."""

TAG_BYTES = 16
"""What encryption adds to a plaintext."""

MAX_NOISE_BYTES = 65_535
"""The longest Noise message, section 3."""

_MAX_NONCE = 2**64 - 1
_pack_nonce = struct.Struct("<4xQ").pack

Buffer = bytes | bytearray | memoryview
T = TypeVar("T")


class CipherState:
    """A key and the number of the next message under it, section 5.1."""

    def __init__(self, key: bytes, nonce: int = 0) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._nonce = nonce

    def encrypt(self, plaintext: Buffer, associated: bytes = b"") -> bytes:
        """Encrypt the next message.

        Args:
            plaintext: what to encrypt.
            associated: what to authenticate along with it.

        Returns:
            the ciphertext, `TAG_BYTES` longer than the plaintext.

        Raises:
            ClosedError: the key has encrypted as many messages as it may.
        """
        ciphertext = self._cipher.encrypt(self._next_nonce(), plaintext, associated)
        self._nonce += 1
        return ciphertext

    def decrypt(self, ciphertext: Buffer, associated: bytes = b"") -> bytes:
        """Decrypt the next message; one that fails leaves the state as it was.

        Args:
            ciphertext: what `encrypt` of the other side gave, in the same order.
            associated: what was authenticated along with it.

        Returns:
            the plaintext.

        Raises:
            VerificationError: changed, repeated, out of order, or made with another key.
            ClosedError: the key has encrypted as many messages as it may.
        """
        nonce = self._next_nonce()
        try:
            plaintext = self._cipher.decrypt(nonce, ciphertext, associated)
        except InvalidTag as error:
            raise VerificationError("an encrypted message was not made by the peer in this place") from error
        self._nonce += 1
        return plaintext

    def _next_nonce(self) -> bytes:
        if self._nonce >= _MAX_NONCE:
            raise ClosedError("this channel's key is used up: open a new channel")
        return _pack_nonce(self._nonce)


class SymmetricState:
    """The chaining key and the hash of all that was said, section 5.2.

    Args:
        protocol: the full name, such as `Noise_XX_25519_ChaChaPoly_BLAKE2b`.
    """

    def __init__(self, protocol: str) -> None:
        self._hash_name = protocol.rsplit("_", 1)[1].lower()
        size = hashlib.new(self._hash_name).digest_size
        name = protocol.encode("ascii")
        self.hash = name.ljust(size, b"\0") if len(name) <= size else self._hash(name)
        self._chaining_key = self.hash
        self._cipher: CipherState | None = None

    @property
    def has_key(self) -> bool:
        """Whether what is written from here on is encrypted."""
        return self._cipher is not None

    def mix_hash(self, data: bytes) -> None:
        """Make everything that follows depend on `data`."""
        self.hash = self._hash(self.hash + data)

    def mix_key(self, secret: bytes) -> None:
        """Make the keys that follow depend on `secret`."""
        self._chaining_key, key = self._derive(secret)
        self._cipher = CipherState(key)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        """Encrypt, if there is a key by now, and take the result into the hash."""
        sealed = self._cipher.encrypt(plaintext, self.hash) if self._cipher else plaintext
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, sealed: bytes) -> bytes:
        """The inverse of `encrypt_and_hash`."""
        plaintext = self._cipher.decrypt(sealed, self.hash) if self._cipher else sealed
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        """The ciphers of the transport phase: the initiator's sending one, then the responder's."""
        first, second = self._derive(b"")
        return CipherState(first[:KEY_BYTES]), CipherState(second)

    def _derive(self, secret: bytes) -> tuple[bytes, bytes]:
        """HKDF with two outputs, section 4.3; the second is cut to the length of a key."""
        extracted = hmac.digest(self._chaining_key, secret, self._hash_name)
        first = hmac.digest(extracted, b"\x01", self._hash_name)
        second = hmac.digest(extracted, first + b"\x02", self._hash_name)
        return first, second[:KEY_BYTES]

    def _hash(self, data: bytes) -> bytes:
        return hashlib.new(self._hash_name, data).digest()


@dataclass(frozen=True, slots=True)
class Pattern:
    """A handshake pattern, section 7: what each side's key is known for beforehand, then the messages.

    Attributes:
        initiator_known: the responder knows the initiator's static key before the handshake.
        responder_known: the initiator knows the responder's static key before the handshake.
        messages: the tokens of each message, the initiator's first, then in turn.
    """

    initiator_known: bool
    responder_known: bool
    messages: tuple[tuple[str, ...], ...]


PATTERNS = {
    "NN": Pattern(False, False, (("e",), ("e", "ee"))),
    "NK": Pattern(False, True, (("e", "es"), ("e", "ee"))),
    "NX": Pattern(False, False, (("e",), ("e", "ee", "s", "es"))),
    "XX": Pattern(False, False, (("e",), ("e", "ee", "s", "es"), ("s", "se"))),
    "XK": Pattern(False, True, (("e", "es"), ("e", "ee"), ("s", "se"))),
    "IK": Pattern(False, True, (("e", "es", "s", "ss"), ("e", "ee", "se"))),
    "KK": Pattern(True, True, (("e", "es", "ss"), ("e", "ee", "se"))),
}


class HandshakeState:
    """One side of a handshake, section 5.3.

    Args:
        protocol: the full name, which says pattern and hash: `Noise_XX_25519_ChaChaPoly_BLAKE2b`.
        initiator: whether this side writes the first message.
        prologue: bytes that both sides must agree on beforehand.
        entropy: where the ephemeral key's 32 bytes come from.
        static: this side's long-term key, where the pattern uses one.
        remote_static: the other side's long-term public key, where the pattern knows it beforehand.

    Attributes:
        remote_static: the other side's long-term public key, proven when a message that uses it was read.
    """

    def __init__(
        self,
        protocol: str,
        *,
        initiator: bool,
        prologue: bytes,
        entropy: Entropy,
        static: X25519PrivateKey | None = None,
        remote_static: bytes | None = None,
    ) -> None:
        pattern = PATTERNS[protocol.split("_")[1]]
        self.remote_static = remote_static
        self._initiator = initiator
        self._entropy = entropy
        self._static = static
        self._ephemeral: X25519PrivateKey | None = None
        self._remote_ephemeral: bytes | None = None
        self._messages = list(pattern.messages)
        self._symmetric = SymmetricState(protocol)
        self._symmetric.mix_hash(prologue)
        for known, owner_is_initiator in ((pattern.initiator_known, True), (pattern.responder_known, False)):
            if known:
                ours = owner_is_initiator is initiator
                self._symmetric.mix_hash(_public(static) if ours else _present(remote_static))

    @property
    def finished(self) -> bool:
        """Whether every message of the pattern was written or read."""
        return not self._messages

    @property
    def hash(self) -> bytes:
        """The handshake hash: the same on both sides, and of this handshake only, section 11.2."""
        return self._symmetric.hash

    def write_message(self, payload: bytes) -> bytes:
        """Write this side's next message.

        Args:
            payload: carried along; encrypted as far as the pattern has keys at this point.

        Returns:
            the message.

        Raises:
            VerificationError: the other side's key makes an insecure secret.
        """
        out = bytearray()
        for step in self._messages.pop(0):
            if step == "e":
                self._ephemeral = X25519PrivateKey.from_private_bytes(self._entropy(KEY_BYTES))
                out += _public(self._ephemeral)
                self._symmetric.mix_hash(_public(self._ephemeral))
            elif step == "s":
                out += self._symmetric.encrypt_and_hash(_public(self._static))
            else:
                self._mix_shared(step)
        out += self._symmetric.encrypt_and_hash(payload)
        return bytes(out)

    def read_message(self, message: bytes) -> bytes:
        """Read the other side's next message.

        Args:
            message: all of its bytes.

        Returns:
            the payload that it carries.

        Raises:
            ProtocolViolationError: longer than Noise messages are, or shorter than this one must be.
            VerificationError: not made by the holder of the keys that it should be, or for another prologue.
        """
        if len(message) > MAX_NOISE_BYTES:
            raise ProtocolViolationError(f"a handshake message is longer than {MAX_NOISE_BYTES} bytes")
        rest = message
        for step in self._messages.pop(0):
            if step == "e":
                self._remote_ephemeral, rest = _cut(rest, KEY_BYTES)
                self._symmetric.mix_hash(self._remote_ephemeral)
            elif step == "s":
                sealed, rest = _cut(rest, KEY_BYTES + (TAG_BYTES if self._symmetric.has_key else 0))
                self.remote_static = self._symmetric.decrypt_and_hash(sealed)
            else:
                self._mix_shared(step)
        return self._symmetric.decrypt_and_hash(rest)

    def split(self) -> tuple[CipherState, CipherState]:
        """The transport phase's ciphers of this side, once `finished`: the sending one, the receiving one."""
        first, second = self._symmetric.split()
        return (first, second) if self._initiator else (second, first)

    def _mix_shared(self, token: str) -> None:
        """Mix in a Diffie-Hellman secret; the token names the initiator's key, then the responder's."""
        pair = token if self._initiator else token[::-1]
        private = self._ephemeral if pair[0] == "e" else self._static
        public = self._remote_ephemeral if pair[1] == "e" else self.remote_static
        self._symmetric.mix_key(_exchange(private, _present(public)))


def _exchange(private: X25519PrivateKey | None, public: bytes) -> bytes:
    try:
        return _present(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # the all-zero output of a low-order point
        raise VerificationError("the peer's key is one that makes no secret") from error


def _public(key: X25519PrivateKey | None) -> bytes:
    return _present(key).public_key().public_bytes_raw()


def _present(value: T | None) -> T:
    if value is None:
        raise MalformedError("this handshake pattern needs a key that was not given")
    return value


def _cut(data: bytes, size: int) -> tuple[bytes, bytes]:
    if len(data) < size:
        raise ProtocolViolationError("a handshake message is cut short")
    return data[:size], data[size:]
