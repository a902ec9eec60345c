"""A listening Unix socket and its connections, on anyio.

anyio's own Unix streams, on asyncio, report a spurious error when a read is cancelled in the same turn of
the event loop in which its bytes arrive; these wait with `anyio.wait_readable`, which does not.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import anyio
import anyio.lowlevel

from overlay.control.address import socket_address

RECEIVE_BYTES = 65536
BACKLOG = 64
"""Connections that wait to be accepted; the system takes as many again before it refuses."""
_SOCKET_MODE = 0o600
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED})
_RESOURCE_PAUSE = 0.5  # seconds; whoever connects waits that long, while others give descriptors back


class UnixListener:
    """Listens at `path`, which only this user may connect to; what stood there is removed.

    Raises:
        RefusedError: the path is too long on this system.
        OSError: the socket cannot be made there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            with socket_address(path) as address:
                self._socket.bind(address)
            path.chmod(_SOCKET_MODE)  # before `listen`, so that nobody slips in
            self._socket.listen(BACKLOG)
        except BaseException:  # no listener came of it that could be closed
            self._socket.close()
            raise

    async def accept(self) -> UnixStream:
        """Wait for the next connection; a cancelled wait loses none.

        Raises:
            OSError: the listening socket itself is broken.
        """
        while True:
            try:
                connection, _ = self._socket.accept()
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                await anyio.sleep(_RESOURCE_PAUSE)
            else:
                return UnixStream(connection)

    def close(self) -> None:
        """Stop listening and leave nothing at the path. No task may be waiting."""
        self._socket.close()
        self._path.unlink(missing_ok=True)


class UnixStream:
    """One connection. One task may receive while another sends."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection

    async def receive(self) -> bytes:
        """Receive some bytes; none when the other side has gone, in whatever way."""
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                return self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
            except ConnectionError:
                return b""

    async def send(self, data: bytes) -> None:
        """Send all of `data`; cancelled, some of it.

        Raises:
            ConnectionError: the other side has gone.
        """
        await anyio.lowlevel.checkpoint()
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket)

    def close(self) -> None:
        """Close both directions. No task may be waiting."""
        self._socket.close()
