"""One request and its answer over an exchange: what the blocks push and pull have in common."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

import anyio

from overlay.channel.driver import Channel
from overlay.channel.streams import Exchange
from overlay.errors import (
    ClosedError,
    MalformedError,
    OverlayError,
    ProtocolViolationError,
    UnreachableError,
)
from overlay.identity import NodeIdentifier
from overlay.peer.channels import ChannelPool
from overlay.peer.links import Lane
from overlay.peer.messages import MAX_PART_BYTES, Answer, Request
from overlay.wire.codec import decode, encode

T = TypeVar("T")

Parts = Callable[[], AsyncGenerator[bytes, None]]
"""Makes the parts of a request, from the first, for each channel that it is tried on."""

ANSWER_TIMEOUT = 120.0
"""Seconds that a node has to answer, the time for the request's parts included, or to send a next part. More
than the 90 after which a silent channel counts as dead: then another channel is tried, while a node that is
there and does not answer is given up."""

CHANNEL_TRIES = 4
"""Channels on which a request is tried: on each of two networks one that was kept and one that is new."""


async def on_exchange(
    channels: ChannelPool,
    node: NodeIdentifier,
    lane: Lane,
    use: Callable[[Exchange], Awaitable[T]],
) -> T:
    """Open an exchange to `node` and run `use` on it.

    A channel may turn out to be dead only now, with its network or alone: `use` is then run again on another
    one, so what it sends may arrive several times. An exchange that the peer ended while its channel lives on
    is not repeated.

    Raises:
        UnreachableError: no channel could be opened, or they ended before `use` was done.
        RefusedError, NotFoundError, VerificationError: see `ChannelPool.channel`; and whatever `use` raises.
        ProtocolViolationError: the peer broke the protocol meanwhile; its reputation suffered.
    """
    failure: ClosedError | None = None
    tried: list[Channel] = []
    while len(tried) < CHANNEL_TRIES:
        channel = await channels.channel(node, lane)
        if channel in tried:
            break
        tried.append(channel)
        try:
            async with await channel.open(bulk=lane is Lane.BULK) as exchange:
                return await use(exchange)
        except ClosedError as error:
            failure = error
    raise UnreachableError("the connection ended before the other node answered") from failure


async def converse(exchange: Exchange, request: Request, parts: Parts | None) -> bytes:
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
        group.start_soon(_send_parts, exchange, parts())
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
        part = exchange.receive_nowait()  # most often it is here; then a time-out would cost most of the work
        if part is None:
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
