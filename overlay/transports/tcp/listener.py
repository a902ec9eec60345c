"""Where the TCP transport takes connections in.

The listening socket is used directly rather than through `anyio.create_tcp_listener`, for two promises of
`Listener.accept` that the latter does not make: a cancelled wait loses no connection, and a process that has
run out of descriptors for a moment does not lose its listener.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

import anyio
from anyio.abc import SocketStream
from anyio.lowlevel import checkpoint

from overlay.connection import Connection, Listener, Properties, StreamConnection
from overlay.errors import TransportUnavailableError
from overlay.locators import NodeLocator

BACKLOG = 128
"""Connections that the kernel completes before anybody accepts them; the usual figure."""

EXHAUSTION_PAUSE = 0.1
"""Seconds between two attempts to accept while descriptors or memory are short: the kernel reports the same
connection again at once, so without a pause the loop would spin."""
EXHAUSTION_ATTEMPTS = 300
"""Attempts, 30 s together, before `accept` gives up: longer than a burst lasts, shorter than a night."""

OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""What the system says when this process, or the machine, has no descriptor or memory left."""


class TcpListener(Listener):
    """A bound, listening socket. One task at a time may accept.

    Args:
        listening: the socket, in non-blocking mode; the listener closes it.
        locator: what to publish for it.
        properties: what its connections give.
    """

    def __init__(self, listening: socket.socket, locator: NodeLocator, properties: Properties) -> None:
        self._socket = listening
        self._locator = locator
        self._properties = properties
        self._accepting = anyio.ResourceGuard("accepting connections from")

    @property
    def is_open(self) -> bool:
        """Whether nobody has closed it."""
        return self._socket.fileno() >= 0

    @property
    def locators(self) -> Sequence[NodeLocator]:
        """The bound address, or the one to advertise."""
        return (self._locator,)

    async def accept(self) -> Connection:
        """Wait for the next connection; see `Listener.accept`.

        Raises:
            TransportUnavailableError: for 30 s the system had no descriptor or memory left for one.
        """
        with self._accepting:
            while True:
                accepted = await self._accept_socket()
                stream = await _wrap(accepted)
                if stream is not None:
                    return StreamConnection(stream, locator=self._locator, properties=self._properties)

    async def aclose(self) -> None:
        """Stop listening; a task in `accept` gets `anyio.ClosedResourceError`."""
        self.close()
        await checkpoint()

    def close(self) -> None:
        """Stop listening, without a checkpoint."""
        if self.is_open:
            anyio.notify_closing(self._socket)
            self._socket.close()

    async def _accept_socket(self) -> socket.socket:
        attempts = 0
        while True:
            if not self.is_open:
                raise anyio.ClosedResourceError
            await anyio.wait_readable(self._socket)
            try:
                accepted, _ = self._socket.accept()
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    attempts += 1
                    await _pause(attempts, error)
                # Any other error is that of one connection that ended before it was accepted (accept(2)).
                continue
            return accepted


async def _wrap(accepted: socket.socket) -> SocketStream | None:
    """Make a stream of an accepted socket, or None of one that its peer has reset in the meantime."""
    try:
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with anyio.CancelScope(shield=True):  # takes one turn of the event loop, and must not lose it
            stream = await SocketStream.from_socket(accepted)
    except (OSError, ValueError):  # anyio says ValueError for a socket that is no longer connected
        accepted.close()
        return None
    return stream


async def _pause(attempts: int, error: OSError) -> None:
    if attempts == EXHAUSTION_ATTEMPTS:
        reason = os.strerror(error.errno or 0)
        raise TransportUnavailableError(
            f"no TCP connection can be accepted ({reason}): raise the limit of open files, or close some"
        ) from error
    await anyio.sleep(EXHAUSTION_PAUSE)
