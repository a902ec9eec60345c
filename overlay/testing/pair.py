"""Two transports that can reach each other, and what the conformance checks do with them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from overlay.connection import Connection, Listener, Transport
from overlay.locators import NodeLocator

_TOKEN_BYTES = 8
_PERIOD = bytes(range(251))  # a prime length, so that no power of two hides a lost or swapped piece


class TransportPair:
    """A caller and a receiver, for `overlay.testing.conformance`.

    The listener is opened when it is first needed and kept, because publishing one and finding it can take
    seconds. Leaving the pair closes it; starting and stopping the transports is up to whoever made them.

    Args:
        caller: a started transport that dials.
        receiver: a started transport of the same kind that listens; it may be the same object.
        nobody: a locator of the right kind that nobody serves.
        foreign: a locator of a kind that the transport does not carry.
        impostor: for a transport that authenticates the receiver: a locator that leads to where `receiver`
            listens, but names another key. Where the key is the address, that is `nobody`.

    Attributes:
        patience: seconds that any single step may take: a dial, and a hundred round trips.
        moment: seconds in which a few round trips are over, for what has to be seen not to happen.
    """

    def __init__(
        self,
        caller: Transport,
        receiver: Transport,
        *,
        nobody: NodeLocator,
        foreign: NodeLocator = NodeLocator("garlic32", bytes(32)),  # noqa: B008 - frozen
        impostor: NodeLocator | None = None,
    ) -> None:
        self.caller = caller
        self.receiver = receiver
        self.nobody = nobody
        self.foreign = foreign
        self.impostor = impostor
        self.patience = caller.properties.dial_timeout + 100 * caller.properties.round_trip
        self.moment = 4 * caller.properties.round_trip
        self._listener: Listener | None = None
        self._meetings = 0

    async def listening(self) -> Listener:
        """Give the receiver's listener, opened if it is not open."""
        if self._listener is None:
            self._listener = await self.receiver.listen()
        return self._listener

    async def stop_listening(self) -> None:
        """Close the listener, so that the next `listening` opens another."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            await listener.aclose()

    @asynccontextmanager
    async def connected(
        self, isolation: bytes = b"", *, begun: bool = False
    ) -> AsyncIterator[tuple[Connection, Connection]]:
        """Dial, and give both ends of that very connection: the caller's and the receiver's.

        The first bytes, which are read here, tell it from others; `begun` with the dial or sent after it.

        Connections that an earlier, cancelled dial left in the listener's queue are waited out: each of
        them has to end by itself.
        """
        listener = await self.listening()
        self._meetings += 1
        token = self._meetings.to_bytes(_TOKEN_BYTES, "big")
        ends: list[Connection] = []

        async def dial() -> None:
            locator = listener.locators[0]
            if begun:
                ends.append(await self.caller.connect_with(locator, token, isolation=isolation))
            else:
                ends.append(await self.caller.connect(locator, isolation=isolation))
                await ends[0].send(token)

        with self.within("a dialled connection is accepted, and carries the first bytes"):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(dial)
                accepted = await _find(listener, token)
        async with ends[0], accepted:
            yield ends[0], accepted

    @contextmanager
    def within(self, promise: str, seconds: float | None = None) -> Iterator[None]:
        """Fail when the block takes longer than `seconds`, by default the pair's patience.

        Raises:
            AssertionError: it did; `promise` says what was to happen.
        """
        limit = self.patience if seconds is None else seconds
        try:
            with anyio.fail_after(limit):
                yield
        except TimeoutError as error:
            raise AssertionError(f"{promise}: not within {limit:g} seconds") from error

    async def __aenter__(self) -> Self:
        """Use the pair for the length of a block."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the listener."""
        await self.stop_listening()


class SocketWatch:
    """Finds sockets that something left open: at the listener, and among the process's descriptors.

    Args:
        pair: where to look; nothing else may open descriptors meanwhile.
    """

    def __init__(self, pair: TransportPair) -> None:
        self._pair = pair
        self._before = _open_descriptors()
        self._unended = 0

    async def settle(self) -> None:
        """Wait until every connection in the listener's queue has ended and no descriptor is left over.

        Raises:
            AssertionError: that does not happen.
        """
        listener = await self._pair.listening()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._drain, listener)
            await anyio.sleep(self._pair.moment)
            with anyio.move_on_after(self._pair.patience):
                while self._unended or _open_descriptors() > self._before:  # noqa: ASYNC110 - nobody tells of a closed descriptor
                    await anyio.sleep(self._pair.moment)
            tasks.cancel_scope.cancel()
        extra = max(_open_descriptors() - self._before, 0)
        if self._unended or extra:
            raise AssertionError(
                f"what was cancelled leaves nothing open:"
                f" {self._unended} connections have not ended, {extra} descriptors are left"
            )

    async def _drain(self, listener: Listener) -> None:
        async with anyio.create_task_group() as tasks:
            while True:
                tasks.start_soon(self._see_end, await listener.accept())

    async def _see_end(self, accepted: Connection) -> None:
        self._unended += 1
        async with accepted:
            await read_to_end(accepted)
        self._unended -= 1


def pattern(start: int, size: int) -> bytes:
    """Give `size` bytes of an endless sequence, from `start`: any other order of pieces looks different."""
    offset = start % len(_PERIOD)
    return (_PERIOD * (size // len(_PERIOD) + 2))[offset : offset + size]


async def read_exactly(stream: ByteReceiveStream, size: int) -> bytes:
    """Read `size` bytes, or fewer when the stream ends before."""
    data = bytearray()
    try:
        while len(data) < size:
            data += await stream.receive(size - len(data))
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        pass
    return bytes(data)


async def read_to_end(stream: ByteReceiveStream) -> bytes:
    """Read all that comes until the stream ends, properly or not."""
    data = bytearray()
    try:
        async for piece in stream:
            data += piece
    except anyio.BrokenResourceError:
        pass
    return bytes(data)


async def send_pieces(stream: ByteSendStream, size: int, pieces: int) -> None:
    """Send `pieces` consecutive pieces of the pattern, `size` bytes each."""
    for index in range(pieces):
        await stream.send(pattern(index * size, size))


async def _find(listener: Listener, token: bytes) -> Connection:
    while True:
        accepted = await listener.accept()
        if await read_exactly(accepted, len(token)) == token:
            return accepted
        await accepted.aclose()


def _open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 - names only, without looking at what they lead to
