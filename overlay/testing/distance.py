"""Distance for programs that talk over loopback: forwarders that pass on bytes late, and no faster than told.

Each stands in front of one port. They run in a process of their own, so that their pace does not depend on
what the tests beside them compute; it ends with the process that started it, also by SIGKILL.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import anyio
import msgspec
from anyio.abc import ByteReceiveStream, ByteSendStream, Process
from anyio.streams.buffered import BufferedByteReceiveStream

from overlay.errors import TransportUnavailableError
from overlay.testing.delay_line import DelayLine, Distance, Pace

LOOPBACK = "127.0.0.1"

BACKLOG = 128
"""Connections that may wait to be accepted; the kernel's own limit is commonly the same or more."""

START_TIMEOUT = 30.0
"""Seconds for the process to say its ports, which takes about 0.4 s."""

END_TIMEOUT = 5.0
"""Seconds for the process to end by itself before it is killed."""

MAX_FILES = 16_384
"""Files that the process may have open, where the system lets it: two for each connection, of which 33 relays
that all know each other have a thousand. Many systems give 1024 to those who do not ask."""

MAX_PORTS_BYTES = 1024
"""Bytes of the line with the ports; 33 of them need 200."""

_QUICK_ACKNOWLEDGEMENT = getattr(socket, "TCP_QUICKACK", None)  # Linux


class Forwarder:
    """Passes connections on to a port of loopback, over a distance. A context manager: it listens at once.

    The rate is that of the whole link: all connections share it, each direction has its own.

    Args:
        distance: what lies between.
        target: the port that connections are passed on to; nobody needs to listen there yet.
    """

    def __init__(self, distance: Distance, target: int) -> None:
        self._distance = distance
        self._target = target
        self._paces = Pace(distance.rate), Pace(distance.rate)
        self._listener = socket.create_server((LOOPBACK, 0), backlog=BACKLOG)
        self._listener.setblocking(False)

    def __enter__(self) -> Self:
        """Use it."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Listen no more."""
        self._listener.close()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port: int = self._listener.getsockname()[1]
        return port

    async def run(self) -> None:
        """Pass on what comes until cancelled; then all connections break."""
        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.wait_readable(self._listener)
                with suppress(BlockingIOError, ConnectionError):  # whoever called is gone already
                    tasks.start_soon(self._pass_on, self._listener.accept()[0])

    async def _pass_on(self, near: socket.socket) -> None:
        with near, socket.socket() as far, suppress(OSError):  # a connection that breaks breaks alone
            await anyio.sleep(2 * self._distance.delay)  # a TCP handshake crosses the link twice
            if not await _connect(far, self._target):
                return
            near.setblocking(False)
            async with anyio.create_task_group() as tasks:
                for source, target, pace in zip((near, far), (far, near), self._paces, strict=True):
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    tasks.start_soon(_Direction(source, target, self._distance, pace).run)


class _Direction:
    """One direction of a connection: a task that fills its line, and one that empties it.

    The sockets are read here and not by anyio's streams, which on asyncio may read on ahead without bounds.
    """

    def __init__(self, source: socket.socket, target: socket.socket, distance: Distance, pace: Pace) -> None:
        self._source = source
        self._target = target
        self._line = DelayLine(distance, pace)
        self._size = distance.piece_bytes
        self._fed = anyio.Event()
        self._taken = anyio.Event()

    async def run(self) -> None:
        """Pass on until the source has said everything, or the target hears nothing any more.

        A target that is gone ends this direction alone: what it said before is still on its way, and its
        end ends the other one.
        """
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._fill)
            with suppress(OSError):
                await self._empty()
            tasks.cancel_scope.cancel()

    async def _fill(self) -> None:
        while data := await _receive(self._source, self._size):
            while self._line.full:
                self._taken = anyio.Event()
                await self._taken.wait()
            # Again and again, because others may go first.
            while (open_at := self._line.open_at) > anyio.current_time():  # noqa: ASYNC110 - no event tells
                await anyio.sleep_until(open_at)
            self._line.feed(data, anyio.current_time())
            self._fed.set()
        self._line.end(anyio.current_time())
        self._fed.set()

    async def _empty(self) -> None:
        while not self._line.ended:
            while (due := self._line.due) is None:
                self._fed = anyio.Event()
                await self._fed.wait()
            await anyio.sleep_until(due)
            data = self._line.take(anyio.current_time())
            self._taken.set()
            await _send(self._target, data)
        self._target.shutdown(socket.SHUT_WR)


async def _connect(far: socket.socket, port: int) -> bool:
    far.setblocking(False)
    with suppress(BlockingIOError):
        far.connect((LOOPBACK, port))
    await anyio.wait_writable(far)
    return far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


async def _receive(source: socket.socket, size: int) -> bytes:
    """Receive something; nothing at the end, also when the connection broke."""
    while True:
        await anyio.wait_readable(source)
        try:
            data = source.recv(size)
        except BlockingIOError:
            continue
        except OSError:
            return b""
        _acknowledge(source)
        return data


def _acknowledge(source: socket.socket) -> None:
    """Acknowledge at once what was received.

    Nagle's algorithm in tor waits for it with the rest of what it has to say, and the kernel would take
    40 ms. The small packets of a real link hide that; those of loopback hold 64 KiB.
    """
    if _QUICK_ACKNOWLEDGEMENT is not None:
        with suppress(OSError):  # the connection is gone, and what came from it is not
            source.setsockopt(socket.IPPROTO_TCP, _QUICK_ACKNOWLEDGEMENT, 1)


async def _send(target: socket.socket, data: bytes) -> None:
    left = memoryview(data)
    while left:
        await anyio.wait_writable(target)
        with suppress(BlockingIOError):
            left = left[target.send(left) :]


class _Task(msgspec.Struct, frozen=True):
    """What the process is told when it is started."""

    distance: Distance
    ports: tuple[int, ...]


@asynccontextmanager
async def open_distance(distance: Distance, ports: Sequence[int], log: Path) -> AsyncIterator[list[int]]:
    """Put a forwarder in front of each of some ports of loopback, for the length of a block.

    Args:
        distance: what lies between a forwarder and its port.
        ports: where connections are passed on to; nobody needs to listen there yet.
        log: where the process complains; written anew.

    Yields:
        the ports of the forwarders, in the same order, listening.

    Raises:
        TransportUnavailableError: the process does not start; the message has its last words.
    """
    task = msgspec.json.encode(_Task(distance, tuple(ports))).decode()
    # A session of its own: a Ctrl-C on the terminal is for us, and we end it in order.
    with log.open("wb") as errors:
        process = await anyio.open_process(
            [sys.executable, "-m", __name__, task], stderr=errors, start_new_session=True
        )
    try:
        yield await _read_ports(process, log)
    finally:
        with anyio.CancelScope(shield=True):
            await _end(process)


async def _read_ports(process: Process, log: Path) -> list[int]:
    output = BufferedByteReceiveStream(cast("ByteReceiveStream", process.stdout))  # a pipe, so it is there
    try:
        with anyio.fail_after(START_TIMEOUT):
            line = await output.receive_until(b"\n", MAX_PORTS_BYTES)
    except (TimeoutError, anyio.IncompleteRead) as error:
        raise TransportUnavailableError(
            f"the process that keeps the links' distance did not start: {_last_words(log)}"
        ) from error
    return msgspec.json.decode(line, type=list[int])


def _last_words(log: Path) -> str:
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return said[-1] if said else "it gave no reason"


async def _end(process: Process) -> None:
    await cast("ByteSendStream", process.stdin).aclose()
    with anyio.move_on_after(END_TIMEOUT):
        await process.wait()
    if process.returncode is None:
        process.kill()
    await process.aclose()


async def _forward(task: _Task) -> None:
    """Forward until standard input ends."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, MAX_FILES), most))
    with ExitStack() as stack:
        forwarders = [stack.enter_context(Forwarder(task.distance, port)) for port in task.ports]
        ports = msgspec.json.encode([forwarder.port for forwarder in forwarders])
        os.write(sys.stdout.fileno(), ports + b"\n")
        async with anyio.create_task_group() as tasks:
            for forwarder in forwarders:
                tasks.start_soon(forwarder.run)
            await anyio.wait_readable(sys.stdin)  # nothing is ever written to it: this is its end
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(_forward, msgspec.json.decode(sys.argv[1], type=_Task))
