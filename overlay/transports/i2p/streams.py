"""The connections that the transport hands out, and those of a node with itself."""

from __future__ import annotations

import socket
from collections.abc import Callable

import anyio
from anyio.abc import ByteStream, SocketStream

from overlay.connection import Properties, StreamConnection
from overlay.locators import NodeLocator

Verdict = Callable[[bool], None]
"""Told once of each dialled stream whether one byte came on it."""


class HeardConnection(StreamConnection):
    """A connection that tells whenever something comes on it.

    Args:
        stream: from the router.
        locator: what was dialled.
        properties: of the transport.
        heard: called each time.
    """

    def __init__(
        self, stream: ByteStream, *, locator: NodeLocator, properties: Properties, heard: Callable[[], None]
    ) -> None:
        super().__init__(stream, locator=locator, properties=properties)
        self._heard = heard

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive 1 to `max_bytes` bytes."""
        data = await super().receive(max_bytes)
        self._heard()
        return data


class AcceptedConnection(HeardConnection):
    """A connection that somebody made to this node.

    Attributes:
        caller: the destination that called, as the router says: of the node, or one made for this token.
    """

    def __init__(
        self,
        stream: ByteStream,
        *,
        locator: NodeLocator,
        properties: Properties,
        heard: Callable[[], None],
        caller: NodeLocator,
    ) -> None:
        super().__init__(stream, locator=locator, properties=properties, heard=heard)
        self.caller = caller


class DialledConnection(HeardConnection):
    """A connection that this node made, which is watched for the first byte of an answer.

    Args:
        stream: from the router.
        locator: what was dialled.
        properties: of the transport.
        heard: called each time that something comes.
        verdict: told, once, whether an answer came; not told of a stream that is closed here so soon that
            none was to be expected.
        release: called when the connection is closed.
        patience: seconds within which no answer is to be expected.
    """

    def __init__(
        self,
        stream: ByteStream,
        *,
        locator: NodeLocator,
        properties: Properties,
        heard: Callable[[], None],
        verdict: Verdict,
        release: Callable[[], None],
        patience: float,
    ) -> None:
        super().__init__(stream, locator=locator, properties=properties, heard=heard)
        self._verdict: Verdict | None = verdict
        self._release = release
        self._expected = anyio.current_time() + patience

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive 1 to `max_bytes` bytes.

        Raises:
            anyio.EndOfStream: the stream has ended.
            anyio.BrokenResourceError: it was reset, or the router is gone.
        """
        try:
            data = await super().receive(max_bytes)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            self._judge(answered=False)
            raise
        self._judge(answered=True)
        return data

    async def aclose(self) -> None:
        """Close both directions; cancelled or not, the connection is closed afterwards."""
        if anyio.current_time() < self._expected:
            self._verdict = None
        self._judge(answered=False)
        self._release()
        await super().aclose()

    def _judge(self, *, answered: bool) -> None:
        verdict, self._verdict = self._verdict, None
        if verdict is not None:
            verdict(answered)


async def connect_to_self() -> tuple[ByteStream, ByteStream]:
    """Make both ends of a connection inside this process.

    Raises:
        OSError: the process has no descriptor left.
    """
    ends = socket.socketpair()
    try:
        with anyio.CancelScope(shield=True):  # takes a turn of the event loop for each, and must not lose it
            first, second = [await SocketStream.from_socket(end) for end in ends]
    except BaseException:  # no descriptor left; nobody else knows of these
        for end in ends:
            end.close()
        raise
    return first, second
