"""One socket to the SAM bridge of an I2P router: greeted, its lines read within bounds, then a stream.

SAM has a socket for each thing: one for a session, and another for each stream dialled or accepted, on
which the router's last line is followed by what the peer sends. `SamSocket.stream` hands both over.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import anyio
import anyio.lowlevel
from anyio.abc import AsyncResource, ByteStream, SocketAttribute

from overlay.errors import MalformedError, TransportUnavailableError
from overlay.transports.i2p.protocol import (
    MAX_REPLY_BYTES,
    VERSION,
    LineReader,
    Reply,
    hello,
    parse_reply,
)
from overlay.transports.i2p.settings import I2pTimeouts

_MAX_SHOWN = 200  # letters of a router's own words in an error; its sentences have a few dozen


class SamSocket(AsyncResource):
    """A connection to a SAM bridge that has been greeted. Made by `open_sam`; used by one task at a time.

    Attributes:
        where: the bridge's address and port, for messages.
        version: of SAM, as granted.
    """

    def __init__(self, stream: ByteStream, where: str) -> None:
        self.where = where
        self.version = ""
        self._stream = stream
        self._lines = LineReader()

    @property
    def connection(self) -> ByteStream:
        """What carries it, and the stream after it; for `cut_off`."""
        return self._stream

    async def send(self, data: bytes) -> None:
        """Send all of `data`, in one piece where the system can.

        Raises:
            TransportUnavailableError: the router is gone.
        """
        with self._explained():
            await self._stream.send(data)

    async def read_line(self) -> bytes:
        """Wait for the next line, for as long as it takes; a cancelled wait loses nothing.

        Raises:
            TransportUnavailableError: the router closed the connection, or sends no lines.
        """
        while (line := self._next_line()) is None:
            await self._receive()
        return line

    async def wait_begun(self) -> None:
        """Wait until a part of the next line has come; a cancelled wait loses nothing.

        Raises:
            TransportUnavailableError: the router closed the connection.
        """
        while not len(self._lines):
            await self._receive()

    async def read_reply(self) -> Reply:
        """Wait for the next line and read it; a cancelled wait loses nothing.

        Raises:
            TransportUnavailableError: the router closed the connection, or does not speak SAM.
        """
        line = await self.read_line()
        try:
            return parse_reply(line)
        except MalformedError as error:
            raise self._not_sam() from error

    async def read_exactly(self, size: int) -> bytes:
        """Wait for `size` bytes that follow a line; a cancelled wait loses nothing.

        Raises:
            TransportUnavailableError: the router closed the connection before.
        """
        while len(self._lines) < size:
            await self._receive()
        return self._lines.take(size)

    async def request(self, command: bytes, timeout: float) -> Reply:  # noqa: ASYNC109 - its error says it
        """Send a command and wait for the reply, whatever it says.

        Args:
            command: made by `protocol`.
            timeout: seconds to wait.

        Returns:
            the reply; `protocol.failure` makes an error of one that is not OK.

        Raises:
            TransportUnavailableError: no reply came in time, the router closed the connection, or it does
                not speak SAM. The socket is of no more use then, nor after a cancelled request: the reply
                may still come, and would be taken for that of the next command.
        """
        try:
            with anyio.fail_after(timeout):
                await self.send(command)
                return await self.read_reply()
        except TimeoutError as error:
            raise TransportUnavailableError(
                f"the I2P router at {self.where} did not answer within {timeout:.0f} s"
            ) from error

    def stream(self) -> ByteStream:
        """Hand over the bytes that follow the last line, and the socket, which only the stream closes now."""
        return SamStream(self._stream, self._lines)

    async def aclose(self) -> None:
        """Close; a session or stream on this socket ends with it. Cancelled or not, it is closed after."""
        await self._stream.aclose()

    async def _receive(self) -> None:
        with self._explained():
            self._lines.feed(await self._stream.receive(MAX_REPLY_BYTES))
        acknowledge(self._stream)

    def _next_line(self) -> bytes | None:
        try:
            return self._lines.line()
        except MalformedError as error:
            raise self._not_sam() from error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            where = "in the middle of a line" if len(self._lines) else "without an answer"
            raise TransportUnavailableError(
                f"the I2P router at {self.where} closed the connection {where}"
            ) from error

    def _not_sam(self) -> TransportUnavailableError:
        return TransportUnavailableError(
            f"what answers at {self.where} is no SAM bridge of an I2P router: correct the address"
        )


class SamStream(ByteStream):
    """The peer's bytes on a SAM socket, those first that were read together with the router's line."""

    def __init__(self, stream: ByteStream, ahead: LineReader) -> None:
        self._stream = stream
        self._ahead = ahead

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive 1 to `max_bytes` bytes."""
        if len(self._ahead):
            await anyio.lowlevel.checkpoint()
            return self._ahead.take(max_bytes)
        data = await self._stream.receive(max_bytes)
        acknowledge(self._stream)
        return data

    async def send(self, item: bytes) -> None:
        """Send all of `item`."""
        await self._stream.send(item)

    async def send_eof(self) -> None:
        """End both directions: I2P streams have no half-close."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close both directions; what was sent before still arrives."""
        await self._stream.aclose()


def acknowledge(stream: ByteStream) -> None:
    """Acknowledge at once what was received, where the system can (Linux).

    i2pd leaves Nagle's algorithm on: it sends what follows a reply, the caller's name or the first bytes of
    a stream, only when that is acknowledged, which the kernel would do 40 ms later.
    """
    raw: socket.socket | None = stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610 - not Django
    if raw is not None and raw.fileno() >= 0 and hasattr(socket, "TCP_QUICKACK"):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def cut_off(stream: ByteStream) -> None:
    """End both directions at once for whoever uses a stream, who still has to close it.

    What came before can be received; then it has ended, and what is sent fails. Closed it is left alone.
    """
    raw: socket.socket | None = stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610 - not Django
    if raw is not None and raw.fileno() >= 0:
        with suppress(OSError):  # the router has ended it already
            raw.shutdown(socket.SHUT_RDWR)


async def open_sam(address: tuple[str, int], timeouts: I2pTimeouts) -> SamSocket:
    """Connect to a SAM bridge and greet it.

    Args:
        address: an IP address and a port; nothing is looked up.
        timeouts: `hello` is the limit.

    Returns:
        the socket, which the caller closes.

    Raises:
        TransportUnavailableError: nothing listens there, it is no SAM bridge, one too old, or refuses.
        Cancelled, it leaves no socket behind.
    """
    where = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
    try:
        with anyio.fail_after(timeouts.hello):
            stream = await _connect(address, where)
            return await _greet(SamSocket(stream, where))
    except TimeoutError as error:
        raise TransportUnavailableError(
            f"what listens at {where} does not answer as an I2P router's SAM bridge does within"
            f" {timeouts.hello:.0f} s: correct the address, or restart the router"
        ) from error


async def _connect(address: tuple[str, int], where: str) -> ByteStream:
    try:
        stream = await anyio.connect_tcp(*address)
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error  # anyio wraps the system's
        if isinstance(cause, ConnectionRefusedError):
            raise TransportUnavailableError(
                f"no I2P router answers at {where}: start i2pd (or Java I2P with its SAM bridge on), or give"
                " --sam HOST:PORT"
            ) from error
        raise TransportUnavailableError(
            f"the I2P router at {where} cannot be connected to: {cause.strerror or cause}"
        ) from error
    # Nagle's algorithm would hold back small frames until the router, next door, acknowledges the one before.
    raw: socket.socket = stream.extra_attributes[SocketAttribute.raw_socket]()
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


async def _greet(opened: SamSocket) -> SamSocket:
    try:
        await opened.send(hello())
        opened.version = _granted(await opened.read_reply(), opened.where)
    except BaseException:  # failed or cancelled: nobody else knows of the socket
        with anyio.CancelScope(shield=True):
            await opened.aclose()
        raise
    return opened


def _granted(reply: Reply, where: str) -> str:
    """Read the version of SAM that the router grants.

    Raises:
        TransportUnavailableError: it does not have the one that was asked for, grants another, or refuses,
            for whatever reason: nothing was asked yet, so neither a peer nor a key is to blame.
    """
    if not reply.ok and reply.result != "NOVERSION":
        said = (reply.message or reply.result or "without a reason")[:_MAX_SHOWN]
        raise TransportUnavailableError(f"the I2P router at {where} refuses a greeting, {said}: restart it")
    version = reply.fields.get("VERSION", "") if reply.ok else ""
    if version != VERSION:
        raise TransportUnavailableError(f"the I2P router at {where} does not speak SAM {VERSION}: update it")
    return version
