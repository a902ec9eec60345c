"""Where callers arrive: an ACCEPT waits in the router, and who was connected waits in a queue.

One ACCEPT waits at a time. With several, i2pd 2.45.1 gives two callers who come together the same socket,
one after the other, so that the bytes of both are mixed up (it did in half of all bursts of eight), and it
forgets all that wait when one of them is closed; later versions close those that come within three seconds
of each other. Nobody is refused for that: a router keeps 128 callers for 10 s while no ACCEPT waits, and the
next one is there within milliseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import anyio
from anyio.abc import ByteStream, TaskGroup
from anyio.lowlevel import checkpoint

from overlay.connection import Connection, Listener, Properties
from overlay.errors import MalformedError, TransportUnavailableError, UnreachableError
from overlay.locators import NodeLocator
from overlay.transports.i2p.protocol import Retry, parse_peer
from overlay.transports.i2p.sam import SamSocket
from overlay.transports.i2p.session import SamRefusal, StreamSession
from overlay.transports.i2p.streams import AcceptedConnection

MAX_QUEUED = 128
"""Callers who wait for `accept`, and who are just being connected; a router's own queue is as long."""

LINE_TIMEOUT = 10.0
"""Seconds in which the line with the caller's destination has to be whole once it has begun; a router
writes it in one piece."""

FIRST_PAUSE = 0.1
"""Seconds until the next ACCEPT when the router dropped one; each further time in a row twice as many."""

MAX_PAUSE = 10.0
"""Seconds at most: as long as a router keeps a caller."""


class I2pListener(Listener):
    """Takes connections from one session after the other. Made by `I2pTransport.listen`.

    Args:
        locator: where callers reach it.
        properties: of the transport.
        heard: called when somebody calls over the network, and whenever something comes from a caller.
        on_close: called once, when it is closed.
    """

    def __init__(
        self,
        locator: NodeLocator,
        properties: Properties,
        heard: Callable[[], None],
        on_close: Callable[[], None],
    ) -> None:
        self._locator = locator
        self._properties = properties
        self._heard = heard
        self._on_close = on_close
        self._ready: deque[Connection] = deque()
        self._places = anyio.Semaphore(MAX_QUEUED, max_value=MAX_QUEUED)
        self._changed = anyio.Event()
        self._closed = False
        self._ended = anyio.Event()
        self._scope = anyio.CancelScope()

    @property
    def locators(self) -> Sequence[NodeLocator]:
        """The node's destination."""
        return (self._locator,)

    async def accept(self) -> Connection:
        """Wait for the next connection; a cancelled wait loses none.

        Raises:
            anyio.ClosedResourceError: the listener was closed.
        """
        await checkpoint()
        while not self._closed:
            if self._ready:
                self._places.release()
                return self._ready.popleft()
            await self._changed.wait()
        raise anyio.ClosedResourceError

    async def aclose(self) -> None:
        """Let no more callers in, and turn those away who wait for `accept`."""
        if not self._closed:
            self._closed = True
            self._on_close()
            self._scope.cancel()
            self._announce()
        with anyio.CancelScope(shield=True):  # short: everything that it waits for is cancelled
            await self._ended.wait()  # until then somebody may still be put in the queue
            while self._ready:
                await anyio.aclose_forcefully(self._ready.popleft())

    async def run(self, next_session: Callable[[], Awaitable[StreamSession]], waiting: anyio.Event) -> None:
        """Let callers in, until the listener is closed.

        Args:
            next_session: waits for a session that is alive.
            waiting: set when the first ACCEPT waits in the router.
        """
        try:
            with self._scope:
                while True:
                    session = await next_session()
                    await self._serve(session, waiting)
        finally:
            self._ended.set()

    def offer(self, stream: ByteStream, caller: NodeLocator) -> None:
        """Put a connection in the queue that came from within this process.

        Raises:
            UnreachableError: the queue is full.
        """
        try:
            self._places.acquire_nowait()
        except anyio.WouldBlock as error:
            raise UnreachableError("this node takes no more connections at the moment") from error
        self._put(stream, caller, heard=_say_nothing)

    async def _serve(self, session: StreamSession, waiting: anyio.Event) -> None:
        """Let callers of one session in, until it is lost."""
        async with anyio.create_task_group() as greetings:
            greetings.start_soon(self._let_in, session, greetings, waiting)
            await session.lost.wait()
            greetings.cancel_scope.cancel()

    async def _let_in(self, session: StreamSession, greetings: TaskGroup, waiting: anyio.Event) -> None:
        """Have one ACCEPT wait after the other, as long as there are places in the queue."""
        pause = FIRST_PAUSE
        while True:
            await self._places.acquire()
            try:
                sam = await self._await_caller(session, waiting)
            except BaseException:  # cancelled: nobody comes to this place
                self._places.release()
                raise
            if sam is not None:
                greetings.start_soon(self._greet, sam)
                pause = FIRST_PAUSE
                continue
            self._places.release()
            await anyio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE)

    @staticmethod
    async def _await_caller(session: StreamSession, waiting: anyio.Event) -> SamSocket | None:
        """Wait for a caller; None when the router does not let us."""
        try:
            sam = await session.accept()
        except SamRefusal as refusal:
            if refusal.rule is Retry.NEW_SESSION:
                await session.give_up()
            return None
        except TransportUnavailableError:
            return None
        try:
            waiting.set()
            await sam.wait_begun()
        except TransportUnavailableError:
            await anyio.aclose_forcefully(sam)
            return None
        except BaseException:  # cancelled: nobody else knows of the socket
            await anyio.aclose_forcefully(sam)
            raise
        return sam

    async def _greet(self, sam: SamSocket) -> None:
        """Read who calls, and put the connection in the queue."""
        try:
            with anyio.fail_after(LINE_TIMEOUT):
                caller = parse_peer(await sam.read_line())
        except (TimeoutError, MalformedError, TransportUnavailableError):
            self._places.release()
            await anyio.aclose_forcefully(sam)
        except BaseException:  # cancelled: nobody else knows of the caller
            self._places.release()
            await anyio.aclose_forcefully(sam)
            raise
        else:
            self._heard()
            self._put(sam.stream(), caller.locator, heard=self._heard)

    def _put(self, stream: ByteStream, caller: NodeLocator, *, heard: Callable[[], None]) -> None:
        connection = AcceptedConnection(
            stream, locator=self._locator, properties=self._properties, heard=heard, caller=caller
        )
        self._ready.append(connection)
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def _say_nothing() -> None:
    """For what comes from within this process: it tells nothing about the network."""
