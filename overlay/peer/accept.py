"""The building block *accept*: receivers by kind, for whatever other nodes push or pull here."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

import anyio

from overlay.channel.streams import Exchange
from overlay.errors import ClosedError, NotFoundError, OverlayError, RefusedError
from overlay.identity import NodeIdentifier
from overlay.peer.limits import Limiter
from overlay.peer.messages import MAX_PART_BYTES, Answer, Request
from overlay.peer.places import Place, Places
from overlay.wire.codec import decode, encode

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT = 60.0
"""Seconds within which an opened exchange must have brought its request; a Tor round trip takes one."""

PART_TIMEOUT = 120.0
"""Seconds in which a caller sends no part, or takes none, after which its exchange is given up."""

MAX_LATE = 512
"""Requests that are worked on for an answer over another connection: about 32 MiB of bodies. Their exchanges
are over, so the channels' own limits do not hold them back."""

MAX_LATE_OF_NODE = 16
"""Of those, the ones of one node: none can take up all places."""

MAX_STREAMS = 128
"""Answers with parts that are sent at once, at most 416 KiB for each with what is queued. The others wait,
and hold nothing meanwhile."""

MAX_STREAMS_OF_CHANNEL = 8
"""Of those, the ones of one channel: enough that its connection never waits for a disk. Who wants all places
needs 16 channels."""

LINGER_TIMEOUT = 30.0
"""Seconds that the caller has to finish its side after it was answered."""


@dataclass(frozen=True)
class Delivery:
    """One request as a receiver sees it.

    Attributes:
        sender: the node that asks, proven by the channel; `None` when it chose to stay anonymous.
        kind: what it asks for.
        body: at most `MAX_BODY_BYTES`, not yet decoded.
    """

    sender: NodeIdentifier | None
    kind: str
    body: bytes
    _exchange: Exchange | None = field(default=None, repr=False)

    @property
    def channel(self) -> int | None:
        """What came over one channel has one number here; None for what came otherwise, without parts."""
        return None if self._exchange is None else self._exchange.channel

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """The parts that follow the request, as they come.

        Raises:
            ClosedError: the caller went away, or stalled for `PART_TIMEOUT` seconds.
        """
        if self._exchange is None:
            return
        while True:
            try:
                with anyio.fail_after(PART_TIMEOUT):
                    part = await self._exchange.receive()
            except anyio.EndOfStream:
                return
            except TimeoutError as error:
                raise ClosedError("the other node stopped sending in the middle of a transfer") from error
            yield part


@dataclass(frozen=True)
class Reply:
    """An answer that goes on after its body.

    Attributes:
        body: at most `MAX_BODY_BYTES`.
        parts: are sent one by one, each at most 64 KiB.
        together: so many of them are made at once: the generator holds others but after each so many.
        count: how many there are; None where that is not known before the last.
        up: limits their bytes.
    """

    body: bytes = b""
    parts: AsyncGenerator[bytes, None] | None = None
    together: int = 1
    count: int | None = None
    up: Limiter | None = None


Receiver = Callable[[Delivery], Awaitable[Reply | bytes | None]]
"""Handles one delivery. Returning is acceptance; an `OverlayError` that it raises is told to the caller."""

LateReply = Callable[[NodeIdentifier, bytes, Answer], Awaitable[None]]
"""Sends an answer to (node, correlation) over another connection."""


@dataclass(frozen=True)
class _Registration:
    receiver: Receiver
    anonymous: bool


class Accept:
    """Hands each incoming exchange to the receiver of its kind; kinds that nobody registered are refused.

    Args:
        reply_later: how answers to requests with a correlation travel.
    """

    def __init__(self, reply_later: LateReply) -> None:
        self._receivers: dict[str, _Registration] = {}
        self._reply_later = reply_later
        self._late: Counter[NodeIdentifier] = Counter()
        self._streams = Places(MAX_STREAMS, each=MAX_STREAMS_OF_CHANNEL, patience=PART_TIMEOUT)

    def register(self, kind: str, receiver: Receiver, *, anonymous: bool = False) -> None:
        """Give all requests of `kind` to `receiver`; a kind has one receiver.

        Args:
            kind: the request's kind.
            receiver: runs in a task of its own for each request.
            anonymous: callers that do not show their identifier are let in.

        Raises:
            RefusedError: the kind is taken.
        """
        if kind in self._receivers:
            raise RefusedError(f"requests of kind '{kind}' have a receiver already")
        self._receivers[kind] = _Registration(receiver, anonymous)

    async def handle(self, exchange: Exchange, sender: NodeIdentifier | None) -> None:
        """Serve one exchange that `sender` opened, to its end; what the caller does ends no more than it."""
        async with exchange:
            try:
                request = await _read_request(exchange)
                if request.correlation is None:
                    await self._answer_here(exchange, sender, request)
                else:
                    await self._answer_later(exchange, sender, request, request.correlation)
            except (ClosedError, anyio.EndOfStream, TimeoutError):
                logger.debug("a caller went away before its exchange was over")
            except OverlayError as error:  # no request, a broken channel, or an answer that cannot be sent
                logger.debug("an exchange was given up: %s", error.code)

    async def dispatch(self, delivery: Delivery) -> Reply:
        """Run the receiver of a delivery.

        Raises:
            NotFoundError: nobody receives this kind.
            RefusedError: the caller is anonymous and this kind is not for such callers.
        """
        registration = self._receivers.get(delivery.kind)
        if registration is None:
            raise NotFoundError(f"this node does not know requests of kind '{delivery.kind}'")
        if delivery.sender is None and not registration.anonymous:
            raise RefusedError(f"requests of kind '{delivery.kind}' must show who asks")
        result = await registration.receiver(delivery)
        return result if isinstance(result, Reply) else Reply(result or b"")

    async def _answer_here(self, exchange: Exchange, sender: NodeIdentifier | None, request: Request) -> None:
        delivery = Delivery(sender, request.kind, request.body, exchange)
        try:
            reply = await self.dispatch(delivery)
        except ClosedError:
            raise
        except OverlayError as error:
            await _send(exchange, encode(Answer.of_error(error)))
        else:
            await _send(exchange, encode(Answer(body=reply.body)))
            if reply.parts is not None:
                await self._send_parts(exchange, reply, reply.parts)
        await exchange.finish()
        await _drain(exchange)

    async def _send_parts(self, exchange: Exchange, reply: Reply, parts: AsyncGenerator[bytes, None]) -> None:
        """Send parts in turns, each with a place; between them nothing is made and nothing is queued."""
        async with aclosing(parts):
            stream, over = _Stream(exchange, reply, parts), False
            while not over:
                with anyio.fail_after(PART_TIMEOUT):
                    await exchange.wait_for_room()
                async with self._streams.take(exchange.channel) as place:
                    over = await stream.send_some(place)

    async def _answer_later(
        self, exchange: Exchange, sender: NodeIdentifier | None, request: Request, correlation: bytes
    ) -> None:
        if sender is None or not self._has_place(sender):
            await _send(exchange, encode(Answer.of_error(_no_late_answer(sender))))
            await exchange.finish()
            return
        self._late[sender] += 1
        try:
            await _send(exchange, encode(Answer()))
            await exchange.finish()
            await _drain(exchange)
            await self._reply_later(sender, correlation, await self._late_answer(sender, request))
        finally:
            self._late[sender] -= 1
            self._late += Counter()  # forgets who has none

    def _has_place(self, sender: NodeIdentifier) -> bool:
        return self._late[sender] < MAX_LATE_OF_NODE and self._late.total() < MAX_LATE

    async def _late_answer(self, sender: NodeIdentifier, request: Request) -> Answer:
        try:
            return Answer(body=(await self.dispatch(Delivery(sender, request.kind, request.body))).body)
        except OverlayError as error:
            return Answer.of_error(error)


class _Stream:
    """The parts of one answer on their way out."""

    def __init__(self, exchange: Exchange, reply: Reply, parts: AsyncGenerator[bytes, None]) -> None:
        self._exchange = exchange
        self._reply = reply
        self._parts = parts
        self._up = reply.up or Limiter()
        self._sent = 0

    async def send_some(self, place: Place) -> bool:
        """Send until all is sent or others want the place, and nothing is queued; tell whether it was all."""
        over = await self._send_those_made_together(place)
        while not over and not place.wanted:
            over = await self._send_those_made_together(place)
        if over:
            await self._exchange.finish()
        with place.standing_still(), anyio.fail_after(PART_TIMEOUT):
            await self._exchange.wait_until_sent()
        return over

    async def _send_those_made_together(self, place: Place) -> bool:
        for _ in range(self._reply.together):
            part = None if self._sent == self._reply.count else await anext(self._parts, None)
            if part is None:
                return True
            await self._send(part, place)
            self._sent += 1
        return self._sent == self._reply.count

    async def _send(self, part: bytes, place: Place) -> None:
        """Send, unless the caller reads nothing: then what waits here would wait for ever.

        The limit comes last, so that nothing counts but what goes out.
        """
        send = partial(self._exchange.send_nowait, part)
        while True:
            if not self._exchange.has_room:
                with place.standing_still(), anyio.fail_after(PART_TIMEOUT):
                    await self._exchange.wait_for_room()
            if await self._up.pass_on(len(part), self._exchange.channel, send):
                return


def _no_late_answer(sender: NodeIdentifier | None) -> RefusedError:
    if sender is None:
        return RefusedError("an answer over another connection needs to know who asks")
    return RefusedError("too many requests wait for late answers here: try again later")


async def _read_request(exchange: Exchange) -> Request:
    with anyio.fail_after(REQUEST_TIMEOUT):
        return decode(Request, await exchange.receive(), limit=MAX_PART_BYTES)


async def _send(exchange: Exchange, message: bytes) -> None:
    """Send, unless the caller reads nothing: then what waits here would wait for ever."""
    if not exchange.send_nowait(message):
        with anyio.fail_after(PART_TIMEOUT):
            await exchange.send(message)


async def _drain(exchange: Exchange) -> None:
    """Let the caller finish: closing earlier would reset the exchange and could overtake the answer."""
    with anyio.move_on_after(LINGER_TIMEOUT):
        try:
            while True:
                await exchange.receive()
        except anyio.EndOfStream:
            return
