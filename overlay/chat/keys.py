"""What follows from a session's secret: boxes between participants' nodes, and the proof of joining. Pure.

A box is a 32-byte salt, then ChaCha20-Poly1305 ciphertext and tag. Its key is BLAKE2b over salt and
context, keyed by a key of the session, so it is used once and the nonce can be zero. The context names
session, purpose, sender, receiver and, in an answer, the request: a box that is replayed at another node,
in another role, or as the answer to another request does not open.

Source: docs/spec/chat.md, sections "Keys" and "Boxes".
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from overlay.errors import MalformedError, VerificationError
from overlay.identity import Entropy, NodeIdentifier

SECRET_BYTES = 32
SALT_BYTES = 32
TAG_BYTES = 16
BOX_OVERHEAD = SALT_BYTES + TAG_BYTES
MAX_BOX_BYTES = 60_000
"""With the place and the framing around it, a box fits one message between nodes (65,536 bytes)."""

_ZERO_NONCE = bytes(12)

Purpose = Literal["events", "sync", "page"]


@dataclass(frozen=True, slots=True)
class BoxContext:
    """Where a box belongs.

    Attributes:
        purpose: `events` (pushed), `sync` (asks) or `page` (answers).
        sender: the node that sealed it.
        receiver: the node that opens it.
        request: in a `page`, the salt of the `sync` that it answers.
    """

    purpose: Purpose
    sender: NodeIdentifier
    receiver: NodeIdentifier
    request: bytes = b""

    def to_bytes(self) -> bytes:
        """The bytes that key and tag depend on; only the last two parts vary in length, one at a time."""
        return self.sender.value + self.receiver.value + self.purpose.encode("ascii") + b"\0" + self.request


class SessionKeys:
    """The keys of one session.

    Args:
        secret: the session's 32 secret bytes; whoever holds them may join.
        session: the session's public key.

    Raises:
        MalformedError: the secret does not have 32 bytes.
    """

    def __init__(self, secret: bytes, session: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise MalformedError(f"a session secret has {SECRET_BYTES} bytes, not {len(secret)}")
        self._session = session
        self._box_key = _derive(secret, b"chat-box", session)
        self._join_key = _derive(secret, b"chat-join", session)

    def prove(self, author: bytes) -> bytes:
        """The 32 bytes by which participant key `author` shows that it holds the secret."""
        return hashlib.blake2b(author, digest_size=32, key=self._join_key).digest()

    def proves(self, author: bytes, proof: bytes) -> bool:
        """Tell whether `proof` is the proof of `author`, in constant time."""
        return hmac.compare_digest(self.prove(author), proof)

    def seal(self, plain: bytes, context: BoxContext, entropy: Entropy) -> bytes:
        """Close `plain` into a box for its context.

        Raises:
            MalformedError: longer than a box may be.
        """
        if len(plain) + BOX_OVERHEAD > MAX_BOX_BYTES:
            raise MalformedError(f"a box holds at most {MAX_BOX_BYTES - BOX_OVERHEAD} bytes")
        salt = entropy(SALT_BYTES)
        key, bound = self._key_for(salt, context)
        return salt + ChaCha20Poly1305(key).encrypt(_ZERO_NONCE, plain, bound)

    def open(self, box: bytes, context: BoxContext) -> bytes:
        """Read a box that was closed for this context.

        Raises:
            MalformedError: shorter or longer than any box.
            VerificationError: closed with another secret or for another context, or damaged.
        """
        if not BOX_OVERHEAD <= len(box) <= MAX_BOX_BYTES:
            raise MalformedError(f"a box has {BOX_OVERHEAD} to {MAX_BOX_BYTES} bytes, not {len(box)}")
        key, bound = self._key_for(box[:SALT_BYTES], context)
        try:
            return ChaCha20Poly1305(key).decrypt(_ZERO_NONCE, box[SALT_BYTES:], bound)
        except InvalidTag as error:
            raise VerificationError("this was not sealed for this session, sender and receiver") from error

    def _key_for(self, salt: bytes, context: BoxContext) -> tuple[bytes, bytes]:
        bound = self._session + context.to_bytes()
        return hashlib.blake2b(salt + bound, digest_size=32, key=self._box_key).digest(), bound


def _derive(secret: bytes, label: bytes, session: bytes) -> bytes:
    return hashlib.blake2b(session, digest_size=32, key=secret, person=label).digest()
