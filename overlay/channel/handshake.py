"""The channel's handshake: which keys the two ends hold, and so which nodes they are. Pure.

Two Noise handshakes: XX, after which each side knows the other's node, and NK, in which the caller stays
anonymous and is sure of the node that it called. Each side is a generator that yields what to send and how
many bytes to read next, takes those bytes, and returns what came of it. Bytes: docs/spec/channel.md,
section 2.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple

from overlay.channel.noise import KEY_BYTES, TAG_BYTES, CipherState, HandshakeState
from overlay.errors import MalformedError, ProtocolViolationError, VerificationError
from overlay.identity import Entropy, NodePublic, NodeSecret

VERSION = 1
MUTUAL = 1
"""The pattern byte of XX: both sides show who they are."""
ANONYMOUS = 2
"""The pattern byte of NK: the caller shows nothing."""

MAX_HELLO_BYTES = 2048
"""Enough for a signed locator record, the largest thing that is said here."""

HEAD_BYTES = 2
PAYLOAD_BYTES = KEY_BYTES + 2 + MAX_HELLO_BYTES
"""Signing key, length of the hello, hello, zeros. Always this long, so that its length says nothing."""

_SEALED_PAYLOAD = PAYLOAD_BYTES + TAG_BYTES
_SEALED_KEY = KEY_BYTES + TAG_BYTES
FIRST_BYTES = {MUTUAL: KEY_BYTES, ANONYMOUS: KEY_BYTES + TAG_BYTES}
"""Length of the caller's first Noise message, by pattern; its payload is empty."""
ANSWER_BYTES = {MUTUAL: KEY_BYTES + _SEALED_KEY + _SEALED_PAYLOAD, ANONYMOUS: KEY_BYTES + _SEALED_PAYLOAD}
"""Length of the responder's message, by pattern."""
PROOF_BYTES = {MUTUAL: _SEALED_KEY + _SEALED_PAYLOAD, ANONYMOUS: 0}
"""Length of the caller's second message, by pattern; an anonymous caller sends none."""

_PROTOCOLS = {
    MUTUAL: "Noise_XX_25519_ChaChaPoly_BLAKE2b",
    ANONYMOUS: "Noise_NK_25519_ChaChaPoly_BLAKE2b",
}
_PROLOGUE_LABEL = b"overlay/channel"


class Step(NamedTuple):
    """What a handshake wants: send these bytes, then read exactly `need` more."""

    send: bytes
    need: int


@dataclass(frozen=True, slots=True)
class Established:
    """What a handshake gives.

    Attributes:
        peer: the keys that the other side has proven; None for an anonymous caller.
        hello: what the other side said along with them; empty for an anonymous caller.
        sending: the cipher of what this side sends.
        receiving: the cipher of what the other side sends.
    """

    peer: NodePublic | None
    hello: bytes
    sending: CipherState
    receiving: CipherState


Script = Generator[Step, bytes, Established]


def initiate_script(
    *, secret: NodeSecret | None, responder: NodePublic, hello: bytes, place: bytes, entropy: Entropy
) -> Script:
    """Play the caller.

    Args:
        secret: who calls, or None to stay anonymous.
        responder: who must answer.
        hello: said to the responder, once that has shown who it is; empty for an anonymous caller.
        place: the bytes of the dialled locator where the transport proves them, else empty.
        entropy: where the ephemeral key comes from.

    Returns:
        the script; it ends with what the handshake gave.

    Raises:
        MalformedError: a hello that is too long, or that would make an anonymous caller known.
        VerificationError: another node answers, or one that was dialled elsewhere.
    """
    pattern = ANONYMOUS if secret is None else MUTUAL
    if secret is None and hello:
        raise MalformedError("an anonymous caller says no hello")
    noise = HandshakeState(
        _PROTOCOLS[pattern],
        initiator=True,
        prologue=_prologue(pattern, place),
        entropy=entropy,
        static=secret.static if secret else None,
        remote_static=responder.static if secret is None else None,
    )
    proof = _payload(secret, hello) if secret else b""
    first = bytes((VERSION, pattern)) + noise.write_message(b"")
    answer = yield Step(first, ANSWER_BYTES[pattern])
    peer, said = _read_payload(noise, answer)
    if peer != responder:
        raise VerificationError("another node answered than the one that was called")
    if secret:
        yield Step(noise.write_message(proof), 0)
    return Established(peer, said, *noise.split())


def respond_script(*, secret: NodeSecret, hello: bytes, place: bytes, entropy: Entropy) -> Script:
    """Play the responder.

    Args:
        secret: who answers.
        hello: said to the caller.
        place: the bytes of the locator that was dialled where the transport proves them, else empty.
        entropy: where the ephemeral key comes from.

    Returns:
        the script; it ends with what the handshake gave.

    Raises:
        MalformedError: a hello that is too long.
        ProtocolViolationError: a version or pattern that is not known, or a payload without its form.
        VerificationError: the caller means another node or locator, or does not hold its keys.
    """
    payload = _payload(secret, hello)
    version, pattern = yield Step(b"", HEAD_BYTES)
    if version != VERSION or pattern not in _PROTOCOLS:
        raise ProtocolViolationError("the peer speaks another version of the channel protocol")
    noise = HandshakeState(
        _PROTOCOLS[pattern],
        initiator=False,
        prologue=_prologue(pattern, place),
        entropy=entropy,
        static=secret.static,
    )
    noise.read_message((yield Step(b"", FIRST_BYTES[pattern])))
    proof = yield Step(noise.write_message(payload), PROOF_BYTES[pattern])
    peer, said = _read_payload(noise, proof) if pattern == MUTUAL else (None, b"")
    return Established(peer, said, *noise.split())


def _prologue(pattern: int, place: bytes) -> bytes:
    return _PROLOGUE_LABEL + bytes((VERSION, pattern)) + place


def _payload(secret: NodeSecret, hello: bytes) -> bytes:
    if len(hello) > MAX_HELLO_BYTES:
        raise MalformedError(f"a hello of {len(hello)} bytes is longer than {MAX_HELLO_BYTES}")
    said = secret.public.signing + len(hello).to_bytes(2, "big") + hello
    return said.ljust(PAYLOAD_BYTES, b"\0")


def _read_payload(noise: HandshakeState, message: bytes) -> tuple[NodePublic, bytes]:
    payload = noise.read_message(message)
    if len(payload) != PAYLOAD_BYTES or noise.remote_static is None:
        raise ProtocolViolationError("a handshake payload has another length than it must")
    size = int.from_bytes(payload[KEY_BYTES : KEY_BYTES + 2], "big")
    said, padding = payload[KEY_BYTES + 2 :][:size], payload[KEY_BYTES + 2 + size :]
    if size > MAX_HELLO_BYTES or any(padding):
        raise ProtocolViolationError("a handshake payload does not have the form that it must")
    return NodePublic(payload[:KEY_BYTES], noise.remote_static), said
