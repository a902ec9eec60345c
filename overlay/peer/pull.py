"""The building block *pull*: ask a node for something and get it, at once or later.

Synchronous: the answer comes back in the exchange that asked. Asynchronous: the exchange only confirms, and
the answer is pushed over any other connection under the request's correlation (see `overlay.peer.reply`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import TypeVar

import anyio

from overlay.channel.driver import Channel
from overlay.channel.streams import Exchange
from overlay.errors import ClosedError, NotFoundError, RefusedError, UnreachableError
from overlay.identity import Entropy, NodeIdentifier
from overlay.peer.accept import Accept, Delivery
from overlay.peer.channels import ChannelPool
from overlay.peer.links import Lane
from overlay.peer.messages import LATE_ANSWER_KIND, MAX_PART_BYTES, Answer, LateAnswer, Request
from overlay.peer.requests import converse, on_exchange, receive_answer, receive_parts
from overlay.wire.codec import decode, encode

T = TypeVar("T")

MAX_WAITING = 1_024
"""Asynchronous requests whose answers may be awaited at once."""


class _Waiting:
    def __init__(self, node: NodeIdentifier) -> None:
        self.node = node
        self.answered = anyio.Event()
        self.answer = Answer()


class Pull:
    """Sends requests that want something back.

    Args:
        channels: where exchanges come from.
        accept: gets the receiver of late answers registered.
        entropy: makes correlations.
    """

    def __init__(self, channels: ChannelPool, accept: Accept, entropy: Entropy) -> None:
        self._channels = channels
        self._entropy = entropy
        self._waiting: dict[bytes, _Waiting] = {}
        accept.register(LATE_ANSWER_KIND, self._receive_late)

    async def __call__(
        self, node: NodeIdentifier, kind: str, body: bytes = b"", *, lane: Lane = Lane.INTERACTIVE
    ) -> bytes:
        """Ask, and wait for the answer in the same exchange.

        Returns:
            the answer's body.

        Raises:
            NotFoundError: the node does not have it, or nobody knows where the node is.
            RefusedError: the node, or a policy of this one, says no.
            UnreachableError: it was not reached or did not answer in time.
            VerificationError: somebody else answers in its place.
        """
        request = Request(kind=kind, body=body)

        async def use(exchange: Exchange) -> bytes:
            return await converse(exchange, request, None)

        return await on_exchange(self._channels, node, lane, use)

    async def parts(
        self,
        node: NodeIdentifier,
        kind: str,
        body: bytes,
        consume: Callable[[AsyncIterator[bytes]], Awaitable[T]],
        *,
        lane: Lane = Lane.BULK,
    ) -> T:
        """Ask for an answer that has parts, and have `consume` take them as they come.

        Returns:
            what `consume` returns. It runs again, when a channel dies before it is done.

        Raises:
            NotFoundError, RefusedError, UnreachableError, VerificationError: as for a plain pull; also in
                the middle of the parts, from the iterator.
        """
        return await on_exchange(self._channels, node, lane, partial(_ask_parts, kind, body, consume))

    async def parts_over(
        self,
        channel: Channel,
        kind: str,
        body: bytes,
        consume: Callable[[AsyncIterator[bytes]], Awaitable[T]],
    ) -> T:
        """Ask as `parts` does, over one channel and no other.

        Raises:
            UnreachableError: the channel ended before `consume` was done, or the node stopped answering.
            NotFoundError, RefusedError: the node's answer.
            ProtocolViolationError: the node broke the protocol; the channel has ended.
        """
        try:
            async with await channel.open() as exchange:
                return await _ask_parts(kind, body, consume, exchange)
        except ClosedError as error:
            raise UnreachableError("the connection ended before the other node answered") from error

    async def later(self, node: NodeIdentifier, kind: str, body: bytes, *, timeout: float) -> bytes:  # noqa: ASYNC109 - the time that the other node is given, also told in the error
        """Ask, and wait for an answer that comes over another connection.

        Args:
            node: whom.
            kind: which receiver is meant.
            body: at most `MAX_BODY_BYTES`.
            timeout: seconds to wait for the answer, once the request is confirmed.

        Returns:
            the answer's body.

        Raises:
            UnreachableError: not reached, or no answer in time; a later one is then refused.
            RefusedError: the node says no, or too many requests wait for answers here already.
            NotFoundError, VerificationError: as for a plain pull.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise RefusedError(f"{MAX_WAITING} requests wait for answers already")
        correlation = self._entropy(16)
        waiting = self._waiting[correlation] = _Waiting(node)
        request = Request(kind=kind, body=body, correlation=correlation)

        async def use(exchange: Exchange) -> bytes:
            return await converse(exchange, request, None)

        try:
            await on_exchange(self._channels, node, Lane.INTERACTIVE, use)
            with anyio.fail_after(timeout):
                await waiting.answered.wait()
        except TimeoutError as error:
            raise UnreachableError(f"the other node sent no answer within {timeout:.0f} seconds") from error
        finally:
            del self._waiting[correlation]
        return waiting.answer.result()

    async def _receive_late(self, delivery: Delivery) -> None:
        late = decode(LateAnswer, delivery.body, limit=MAX_PART_BYTES)
        waiting = self._waiting.get(late.correlation)
        if waiting is None or waiting.node != delivery.sender or waiting.answered.is_set():
            raise NotFoundError("nobody here waits for that answer from this node")
        waiting.answer = late.answer
        waiting.answered.set()


async def _ask_parts(
    kind: str, body: bytes, consume: Callable[[AsyncIterator[bytes]], Awaitable[T]], exchange: Exchange
) -> T:
    await exchange.send(encode(Request(kind=kind, body=body)))
    await exchange.finish()
    (await receive_answer(exchange)).result()
    async with aclosing(receive_parts(exchange)) as parts:
        return await consume(parts)
