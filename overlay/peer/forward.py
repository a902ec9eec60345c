"""The building block *forward*: a request that reaches its target through other nodes.

The sender names a route of nodes and seals the request to the last of them (HPKE, RFC 9180), so those in
between learn the route that is left, but not what is carried; the target learns who forwarded, but not who
sent. *Simple*: nothing comes back but the word that the next node took it. *Bidirectional*: the answer
travels back along the same exchanges, sealed under a key that only sender and target know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from overlay.errors import MalformedError, OverlayError, RefusedError, VerificationError
from overlay.identity import Entropy, NodeIdentifier, NodePublic, NodeSecret
from overlay.peer.accept import Accept, Delivery
from overlay.peer.messages import MAX_PART_BYTES, Answer, Kind
from overlay.peer.pull import Pull
from overlay.wire.codec import Key32, Message, decode, encode

MAX_HOPS = 8
"""Nodes on a route, the target included: more only costs time, each adds a whole connection."""

MAX_FORWARDED_BYTES = 48 * 1024
"""Leaves room for eight identifiers, the sealing, and an answer's fields within one part."""

FORWARD_KIND = "forward"

_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
_INFO = b"overlay/forward/1"
_NONCE_BYTES = 12  # a request that is sent again, or played again by a relay, is answered again under its key


class _Envelope(Message, frozen=True):
    route: Annotated[tuple[Key32, ...], msgspec.Meta(min_length=1, max_length=MAX_HOPS)]
    sealed: Annotated[bytes, msgspec.Meta(max_length=MAX_FORWARDED_BYTES + 256)]


class _Sealed(Message, frozen=True):
    kind: Kind
    body: Annotated[bytes, msgspec.Meta(max_length=MAX_FORWARDED_BYTES)]
    answer_key: Key32 | None = None


class Forward:
    """Sends along routes, and passes on what others send along theirs.

    Args:
        secret: this node's keys.
        pull: carries envelopes one hop.
        accept: gets the receiver of envelopes registered, and serves what is sealed to this node.
        entropy: makes answer keys and the nonces of answers.
        relays: pass on for others; without it only what is sealed to this node is taken.
    """

    def __init__(
        self, *, secret: NodeSecret, pull: Pull, accept: Accept, entropy: Entropy, relays: bool
    ) -> None:
        self._secret = secret
        self._pull = pull
        self._accept = accept
        self._entropy = entropy
        self._relays = relays
        accept.register(FORWARD_KIND, self._receive, anonymous=True)

    async def simple(self, via: Sequence[NodeIdentifier], target: NodePublic, kind: str, body: bytes) -> None:
        """Send one request through `via` to `target`, and expect nothing back.

        Returns when the target took it, without learning what became of it.

        Raises:
            MalformedError: the route or the body is too long.
            RefusedError, NotFoundError, UnreachableError, VerificationError: from the first hop, or as
                some hop reported it.
        """
        await self._send(via, target, _Sealed(kind=kind, body=body))

    async def bidirectional(
        self, via: Sequence[NodeIdentifier], target: NodePublic, kind: str, body: bytes
    ) -> bytes:
        """Send one request through `via` to `target` and wait for the answer to come back the same way.

        Raises:
            VerificationError: what came back was not made by the target.
            MalformedError, RefusedError, NotFoundError, UnreachableError: as for `simple`, or the target's.
        """
        key = self._entropy(32)
        answer = await self._send(via, target, _Sealed(kind=kind, body=body, answer_key=key))
        try:
            opened = ChaCha20Poly1305(key).decrypt(answer[:_NONCE_BYTES], answer[_NONCE_BYTES:], _INFO)
        except (InvalidTag, ValueError) as error:  # the latter for one shorter than a nonce
            raise VerificationError("the answer that came back was not made by its target") from error
        return decode(Answer, opened, limit=MAX_PART_BYTES).result()

    async def _send(self, via: Sequence[NodeIdentifier], target: NodePublic, content: _Sealed) -> bytes:
        route = [*via, target.identifier]
        if len(route) > MAX_HOPS or len(content.body) > MAX_FORWARDED_BYTES:
            raise MalformedError(f"at most {MAX_HOPS} hops and {MAX_FORWARDED_BYTES} bytes can be forwarded")
        public = X25519PublicKey.from_public_bytes(target.static)
        envelope = _Envelope(
            route=tuple(node.value for node in route[1:]) or (route[0].value,),
            sealed=_SUITE.encrypt(encode(content), public, info=_INFO),
        )
        return await self._pull(route[0], FORWARD_KIND, encode(envelope))

    async def _receive(self, delivery: Delivery) -> bytes:
        envelope = decode(_Envelope, delivery.body, limit=MAX_PART_BYTES)
        following = NodeIdentifier(envelope.route[0])
        if following == self._secret.identifier:
            return await self._deliver(envelope.sealed)
        if not self._relays:
            raise RefusedError("this node does not forward for others")
        rest = msgspec.structs.replace(envelope, route=envelope.route[1:] or envelope.route)
        return await self._pull(following, FORWARD_KIND, encode(rest))

    async def _deliver(self, sealed: bytes) -> bytes:
        try:
            content = decode(
                _Sealed, _SUITE.decrypt(sealed, self._secret.static, info=_INFO), limit=MAX_PART_BYTES
            )
        except (InvalidTag, ValueError) as error:
            raise VerificationError("what was forwarded here is not sealed to this node") from error
        if content.kind == FORWARD_KIND:  # a nest of a few hundred would exhaust the stack
            raise RefusedError("what was forwarded is not forwarded again: name the nodes in one route")
        # The sender stays unknown: only receivers that take anonymous requests are reached this way.
        delivery = Delivery(None, content.kind, content.body)
        if content.answer_key is None:
            await self._accept.dispatch(delivery)
            return b""
        try:
            answer = Answer(body=(await self._accept.dispatch(delivery)).body)
        except OverlayError as error:
            answer = Answer.of_error(error)
        nonce = self._entropy(_NONCE_BYTES)
        return nonce + ChaCha20Poly1305(content.answer_key).encrypt(nonce, encode(answer), _INFO)
