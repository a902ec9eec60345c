"""What joins the private I2P network with the outside: a router's SAM port, seen from another namespace.

The listening socket is made before its process enters the network's namespace, and so stays outside; what it
accepts is passed on to the router inside. The bridge reads the SAM commands that pass, to know when a session
is being made, for which i2pd takes 20 s of its clock.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import SocketStream, TaskGroup, TaskStatus

from overlay.testing.i2p_clock import SharedClock
from overlay.transports.i2p.sam import acknowledge

CHUNK_BYTES = 65_536
"""Bytes passed on at once, and the most that the bridge holds of one direction."""

BACKLOG = 128
"""Connections that may wait to be accepted; the kernel's own limit is commonly the same or more."""

_LINE_BYTES = 32  # enough to tell commands apart by their first two words
_PAYLOAD_FOLLOWS = (b"STREAM CONNECT", b"STREAM ACCEPT", b"STREAM FORWARD")


class SessionWatch:
    """Tells from the bytes of one SAM connection when a session is being made on it.

    Args:
        begun: called when a SESSION CREATE has been sent.
        ended: called when it was answered, or never will be.
    """

    def __init__(self, begun: Callable[[], None], ended: Callable[[], None]) -> None:
        self._begun = begun
        self._ended = ended
        self._commands = _Lines()
        self._replies = _Lines()
        self._over = False
        self._waiting = False

    def sent(self, data: bytes) -> None:
        """Take note of what the client sent."""
        for line in () if self._over else self._commands.feed(data):
            if line.startswith(_PAYLOAD_FOLLOWS):
                self._over = True
                return
            if line.startswith(b"SESSION CREATE") and not self._waiting:
                self._waiting = True
                self._begun()

    def answered(self, data: bytes) -> None:
        """Take note of what the router sent."""
        if not self._over and any(line.startswith(b"SESSION STATUS") for line in self._replies.feed(data)):
            self.close()

    def close(self) -> None:
        """Take note that the connection is gone."""
        if self._waiting:
            self._waiting = False
            self._ended()


class _Lines:
    """The beginnings of the lines in a stream of bytes."""

    def __init__(self) -> None:
        self._begun = b""

    def feed(self, data: bytes) -> list[bytes]:
        *ended, last = data.split(b"\n")
        lines = []
        for line in ended:
            lines.append((self._begun + line)[:_LINE_BYTES])
            self._begun = b""
        self._begun = (self._begun + last)[:_LINE_BYTES]
        return lines


class Haste:
    """The pace of the network's clock: its own, or a faster one while sessions are being made.

    Args:
        clock: the routers' clock.
        pace: the pace while anything waits; None for no haste at all.
        afterwards: true seconds for which the haste lasts after that, in which a new session's LeaseSet
            reaches the routers that serve the network database.
    """

    def __init__(self, clock: SharedClock, pace: float | None, afterwards: float) -> None:
        self._clock = clock
        self._hasty = pace
        self._afterwards = afterwards
        self._calm = clock.pace
        self._waiting = 0
        self._until = -math.inf
        self._ended = anyio.Event()

    def set_pace(self, pace: float) -> None:
        """Set the pace at which the clock runs when nothing waits."""
        self._calm = pace
        self._apply()

    def begin(self) -> None:
        """Note that a session is being made."""
        self._waiting += 1
        self._apply()

    def end(self) -> None:
        """Note that one of them was made, or was not."""
        self._waiting -= 1
        self._until = anyio.current_time() + self._afterwards
        self._ended.set()

    async def run(self) -> None:
        """End the haste in time, until cancelled."""
        while True:
            await self._ended.wait()
            self._ended = anyio.Event()
            await anyio.sleep_until(self._until)
            self._apply()

    def _apply(self) -> None:
        hasty = self._waiting > 0 or anyio.current_time() < self._until
        pace = max(self._calm, self._hasty) if hasty and self._hasty is not None else self._calm
        if pace != self._clock.pace:
            self._clock.set_pace(pace)


class Door:
    """A SAM port outside the namespace; made before the namespace is entered. A context manager.

    Nobody is let in until it is opened: connections are refused, as when no router runs.
    """

    def __init__(self) -> None:
        # A port that was asked for by number stays this socket's own while it does not listen.
        with socket.socket() as chosen:
            chosen.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            chosen.bind(("127.0.0.1", 0))
            self._socket = socket.socket()
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(chosen.getsockname())
        self._serving: tuple[anyio.CancelScope, anyio.Event] | None = None

    def __enter__(self) -> Self:
        """Use the port."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the port up."""
        self._socket.close()

    @property
    def address(self) -> str:
        """Where it is, as `127.0.0.1:PORT`."""
        host, port = self._socket.getsockname()
        return f"{host}:{port}"

    async def serve(
        self, port: int, haste: Haste, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Pass connections on to a port of the namespace until shut or cancelled; then they break.

        Args:
            port: the router's SAM port on 127.0.0.1.
            haste: told when a session is being made.
            task_status: told when connections are taken.
        """
        closed = anyio.Event()
        with anyio.CancelScope() as scope:
            self._serving = scope, closed
            self._socket.listen(BACKLOG)
            task_status.started()
            try:
                async with anyio.create_task_group() as tasks:
                    while True:
                        await anyio.wait_readable(self._socket)
                        tasks.start_soon(_join, self._socket.accept()[0], port, haste)
            finally:
                self._socket.shutdown(socket.SHUT_RD)  # Linux: refuses, keeps the port, and may listen again
                self._serving = None
                closed.set()

    async def shut(self) -> None:
        """Break all connections and refuse new ones; does nothing when it is not open."""
        if self._serving is not None:
            scope, closed = self._serving
            scope.cancel()
            await closed.wait()


async def _join(accepted: socket.socket, port: int, haste: Haste) -> None:
    async with await SocketStream.from_socket(accepted) as outside:
        try:
            inside = await anyio.connect_tcp("127.0.0.1", port)
        except OSError:  # the router is gone: so is the connection
            return
        watch = SessionWatch(haste.begin, haste.end)
        try:
            async with inside, anyio.create_task_group() as tasks:
                tasks.start_soon(_pass_on, outside, inside, watch.sent, tasks)
                tasks.start_soon(_pass_on, inside, outside, watch.answered, tasks)
        finally:
            watch.close()


async def _pass_on(
    source: SocketStream, target: SocketStream, look: Callable[[bytes], None], tasks: TaskGroup
) -> None:
    try:
        while True:
            data = await source.receive(CHUNK_BYTES)
            acknowledge(source)
            look(data)
            await target.send(data)
    except anyio.EndOfStream:
        await target.send_eof()
    except anyio.BrokenResourceError:  # of no use to the other side either
        tasks.cancel_scope.cancel()
