"""A byte stream inside one process: two pipes, one for each direction, with bounded buffers and delays."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import anyio
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint

BUFFER_BYTES = 65536
"""Bytes of one direction that were sent and not yet read; a sender waits while it is full. About what a
socket takes before its sender has to wait, and small enough for thousands of connections in a process."""


class Change:
    """Lets tasks wait for the next change of a state that they look at themselves."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def announce(self) -> None:
        """Wake everybody who waits."""
        event, self._event = self._event, anyio.Event()
        event.set()

    async def wait(self, until: float = math.inf) -> None:
        """Wait for a change, or for the time `until` on the event loop's clock."""
        with anyio.CancelScope(deadline=until):
            await self._event.wait()


class Pipe:
    """One direction of a connection: what was sent and not yet read, each piece with its arrival.

    Args:
        delay: asked with the length of each piece, 0 for the end: seconds until it arrives, or None.
        die: called when `delay` gave None; breaks this pipe, and the one of the other direction.
    """

    def __init__(self, delay: Callable[[int], float | None], die: Callable[[], None]) -> None:
        self._delay = delay
        self._die = die
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._buffered = 0
        self._latest = -math.inf
        self._finished = False
        self._reader_gone = False
        self._broken = False
        self._change = Change()
        self._sending = anyio.ResourceGuard("sending to")
        self._receiving = anyio.ResourceGuard("receiving from")

    async def send(self, item: bytes) -> None:
        """Send all of `item`; see `anyio.abc.ByteSendStream`."""
        with self._sending:
            await checkpoint()
            self._check_writable()
            rest = memoryview(item)
            while rest:
                while self._buffered >= BUFFER_BYTES:
                    await self._change.wait()
                    self._check_writable()
                room = BUFFER_BYTES - self._buffered
                self._put(bytes(rest[:room]))
                rest = rest[room:]

    def finish(self) -> None:
        """Let the reader find the end of the stream after all that was sent before."""
        if not (self._finished or self._broken):
            self._finished = True
            self._put(b"")

    async def receive(self, max_bytes: int) -> bytes:
        """Receive 1 to `max_bytes` bytes that have arrived; see `anyio.abc.ByteReceiveStream`."""
        with self._receiving:
            await checkpoint()
            while True:
                self._check_readable()
                arrival = self._pieces[0][0] if self._pieces else math.inf
                if arrival <= anyio.current_time():
                    return self._take(max_bytes)
                await self._change.wait(until=arrival)

    def close_reader(self) -> None:
        """Read no more: what is buffered is forgotten, and the writer is told."""
        self._reader_gone = True
        self._forget()

    def break_off(self) -> None:
        """Fail both sides at once, as a reset does; what was not yet read is lost."""
        self._broken = True
        self._forget()

    def _put(self, piece: bytes) -> None:
        delay = self._delay(len(piece))
        if delay is None:
            self._die()
        if self._broken:
            # To the sender the bytes are gone all the same; it learns of it with its next call, as over TCP.
            return
        if not self._reader_gone and delay is not None:
            self._latest = max(self._latest, anyio.current_time() + delay)
            self._pieces.append((self._latest, piece))
            self._buffered += len(piece)
            self._change.announce()

    def _take(self, max_bytes: int) -> bytes:
        arrival, piece = self._pieces[0]
        if not piece:  # stays, so that every further call finds the end as well
            raise anyio.EndOfStream
        self._pieces.popleft()
        if len(piece) > max_bytes:
            self._pieces.appendleft((arrival, piece[max_bytes:]))
            piece = piece[:max_bytes]
        self._buffered -= len(piece)
        self._change.announce()
        return piece

    def _forget(self) -> None:
        self._pieces.clear()
        self._buffered = 0
        self._change.announce()

    def _check_writable(self) -> None:
        if self._finished:
            raise anyio.ClosedResourceError
        if self._broken or self._reader_gone:
            raise anyio.BrokenResourceError

    def _check_readable(self) -> None:
        if self._reader_gone:
            raise anyio.ClosedResourceError
        if self._broken:
            raise anyio.BrokenResourceError


class MemoryStream(ByteStream):
    """One end of a connection.

    Args:
        incoming: the pipe to read.
        outgoing: the pipe to write.
        on_close: called once, when this end has been closed.
    """

    def __init__(self, incoming: Pipe, outgoing: Pipe, on_close: Callable[[], None]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._on_close = on_close
        self._closed = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive 1 to `max_bytes` bytes."""
        return await self._incoming.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        """Send all of `item`, waiting while the buffer is full."""
        await self._outgoing.send(item)

    async def send_eof(self) -> None:
        """Say that nothing more comes from this side."""
        self._outgoing.finish()
        await checkpoint()

    def close(self) -> None:
        """Close both directions; what was sent before still arrives."""
        if not self._closed:
            self._closed = True
            self._outgoing.finish()
            self._incoming.close_reader()
            self._on_close()

    async def aclose(self) -> None:
        """Close, then let other tasks run."""
        self.close()
        await checkpoint()
