"""One request and its answer over an exchange: what the blocks push and pull have in common."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

import anyio

from overlay.channel.driver import Exchange
from overlay.errors import (
    ClosedError,
    MalformedError,
    OverlayError,
    ProtocolViolationError,
    UnreachableError,
)
from overlay.identity import NodeIdentifier
from overlay.peer.channels import ChannelPool, Lane
from overlay.peer.messages import MAX_PART_BYTES, Answer, Request
from overlay.wire.codec import decode, encode

T = TypeVar("T")

ANSWER_TIMEOUT = 90.0
"""Seconds that a node has to answer, the time for the request's parts included, or to send a next part."""


async def on_exchange(
    channels: ChannelPool,
    node: NodeIdentifier,
    lane: Lane,
    use: Callable[[Exchange], Awaitable[T]],
    *,
    repeatable: bool = True,
) -> T:
    """Open an exchange to `node` and run `use` on it.

    A channel that was kept may turn out to be dead only now; a repeatable use is then tried once more on a
    new one, so what it sends may arrive twice.

    Raises:
        UnreachableError: no channel could be opened, or it ended before `use` was done.
        RefusedError, NotFoundError, VerificationError: see `ChannelPool.channel`; and whatever `use` raises.
        ProtocolViolationError: the peer broke the protocol meanwhile; its reputation suffered.
    """
    while True:
        channel, kept = await channels.channel(node, lane)
        try:
            async with await channel.open(bulk=lane is Lane.BULK) as exchange:
                return await use(exchange)
        except ClosedError as error:
            if not (kept and repeatable):
                raise UnreachableError("the connection ended before the other node answered") from error


async def converse(exchange: Exchange, request: Request, parts: AsyncGenerator[bytes, None] | None) -> bytes:
    """Send a request with its parts and wait for the answer.

    An answer that comes before all parts are sent is a refusal: what is left of them is not sent.

    Raises:
        ClosedError: the exchange ended first.
        UnreachableError: no answer in time.
        RefusedError, NotFoundError: that was the answer.
        ProtocolViolationError: it is no answer.
    """
    await exchange.send(encode(request))
    if parts is None:
        await exchange.finish()
        return (await receive_answer(exchange)).result()
    outcome: Answer | OverlayError
    async with anyio.create_task_group() as group:
        group.start_soon(_send_parts, exchange, parts)
        try:
            outcome = await receive_answer(exchange)
        except OverlayError as error:
            outcome = error
        group.cancel_scope.cancel()
    if isinstance(outcome, OverlayError):
        raise outcome
    return outcome.result()


async def receive_answer(exchange: Exchange) -> Answer:
    """Wait for the answer to a request that was sent.

    Raises:
        UnreachableError: it did not come in time.
        ClosedError: the channel or the exchange ended first.
        ProtocolViolationError: it is no answer.
    """
    try:
        with anyio.fail_after(ANSWER_TIMEOUT):
            return decode(Answer, await exchange.receive(), limit=MAX_PART_BYTES)
    except MalformedError as error:
        raise ProtocolViolationError("what the other node sent is no answer") from error
    except TimeoutError as error:
        raise UnreachableError("the other node did not answer in time") from error
    except anyio.EndOfStream as error:
        raise ClosedError("the other node ended the exchange without an answer") from error


async def receive_parts(exchange: Exchange) -> AsyncGenerator[bytes, None]:
    """The parts after an answer, to the other side's finish.

    Raises:
        UnreachableError: the next one did not come in time.
        ClosedError: the exchange ended in the middle.
    """
    while True:
        try:
            with anyio.fail_after(ANSWER_TIMEOUT):
                part = await exchange.receive()
        except TimeoutError as error:
            raise UnreachableError("the other node stopped in the middle of its answer") from error
        except anyio.EndOfStream:
            return
        yield part


async def _send_parts(exchange: Exchange, parts: AsyncGenerator[bytes, None]) -> None:
    async with aclosing(parts):
        try:
            async for part in parts:
                await exchange.send(part)
            await exchange.finish()
        except (ClosedError, ProtocolViolationError):
            return  # whoever waits for the answer is told
