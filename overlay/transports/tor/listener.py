"""Where tor hands over the connections that callers made to the onion service: a socket on loopback.

The socket is used directly, because a cancelled `anyio` accept can lose a connection that arrives meanwhile.
"""

from __future__ import annotations

import errno
import socket

import anyio
from anyio.abc import SocketStream

from overlay.errors import TransportUnavailableError

BACKLOG = 128
"""Connections that the kernel completes before anybody accepts them; the usual figure."""

EXHAUSTION_PAUSE = 0.1
"""Seconds between attempts to accept while the process has no descriptor left for a connection."""

_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class LoopbackListener:
    """A listening socket on 127.0.0.1, which nobody outside this machine reaches."""

    def __init__(self) -> None:
        """Bind a free port.

        Raises:
            TransportUnavailableError: the system has none, or no descriptor.
        """
        try:
            self._socket = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        except OSError as error:
            raise TransportUnavailableError(
                f"no port on 127.0.0.1 can be opened for the onion service: {error.strerror}"
            ) from error
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]

    async def accept(self) -> SocketStream:
        """Wait for the next connection; a cancelled wait loses none.

        Raises:
            anyio.ClosedResourceError: closed.
        """
        while True:
            if self._socket.fileno() < 0:
                raise anyio.ClosedResourceError
            await anyio.wait_readable(self._socket)
            try:
                accepted, _ = self._socket.accept()
            except OSError as error:
                # Any other error is that of one connection that ended before it was accepted (accept(2)).
                if error.errno in _OUT_OF_RESOURCES:
                    await anyio.sleep(EXHAUSTION_PAUSE)
                continue
            stream = await _wrap(accepted)
            if stream is not None:
                return stream

    def close(self) -> None:
        """Stop listening; a task in `accept` gets `anyio.ClosedResourceError`."""
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            self._socket.close()


async def _wrap(accepted: socket.socket) -> SocketStream | None:
    """Make a stream of an accepted socket, or None of one that tor has closed in the meantime."""
    try:
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with anyio.CancelScope(shield=True):  # takes one turn of the event loop, and must not lose it
            return await SocketStream.from_socket(accepted)
    except (OSError, ValueError):  # anyio says ValueError for a socket that is no longer connected
        accepted.close()
    return None
