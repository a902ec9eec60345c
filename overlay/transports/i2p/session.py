"""One SAM session for streams: made, watched, dialled from and accepted on.

A session is a destination with tunnels of its own, and lives as long as the socket that it was made on.

What i2pd 2.45.1 does about keys, and what follows from it: a second session with the same key is granted at
once, and ends the first when it is closed. The destination of a closed session is kept for 5 s, is given to
a new session with its key meanwhile, and is then taken away from that one too, without a word. A request
that was given up on goes on in the router until its next look at the tunnels, up to 20 s later. So the
identifier of a session follows from its key, which makes the router refuse a second one, and a session
that is granted at once is closed and made again after the router has forgotten the old one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from weakref import WeakSet

import anyio
from anyio.abc import ByteStream

from overlay.errors import MalformedError, OverlayError, TransportUnavailableError, VerificationError
from overlay.identity import Entropy
from overlay.locators import NodeLocator
from overlay.transports.i2p.destination import Destination, PrivateDestination
from overlay.transports.i2p.protocol import (
    TRANSIENT,
    Reply,
    Retry,
    failure,
    retry_rule,
    session_create,
    stream_accept,
    stream_connect,
)
from overlay.transports.i2p.sam import SamSocket, cut_off, open_sam
from overlay.transports.i2p.settings import I2pTimeouts, TunnelOptions

AT_ONCE = 0.5
"""Seconds from asking for a session within which no router makes tunnels: i2pd's first look at new ones comes
after 20 s, or after 1.3 s on the hastened clock of a private network. A session that is there sooner has an
old destination. Reaching the router does not count: a busy one is slow to greet and then quick to answer."""

LINGERS = 5
"""Times the linger of a closed session for which a router may still have one of the same key: i2pd notices
only at its next look that nobody waits any more for a session, up to 20 s later."""

_IDENTIFIER_BYTES = 12

_ENDED = "the I2P router ended, or ended the session"

_NAMES = 3  # tried for a session whose name nobody can have: a router that knows them all is none


class SamRefusal(Exception):  # noqa: N818 - not an error of the library: it says what to do next
    """The router said no.

    Attributes:
        error: for the caller, when nothing more is tried.
        rule: what can be tried.
    """

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.result)
        self.error: OverlayError = failure(reply)
        self.rule: Retry = retry_rule(reply)

    @property
    def session_error(self) -> TransportUnavailableError:
        """The error when it was a session that was refused: neither a peer nor a key of ours is to blame."""
        if isinstance(self.error, TransportUnavailableError):
            return self.error
        return TransportUnavailableError(f"the I2P router refuses to make a session, with {self}: restart it")


@dataclass(frozen=True)
class SessionMaker:
    """What it takes to make sessions on one router.

    Attributes:
        address: of its SAM bridge.
        tunnels: what the sessions' tunnels are like.
        timeouts: how long to wait.
        entropy: for identifiers.
    """

    address: tuple[str, int]
    tunnels: TunnelOptions
    timeouts: I2pTimeouts
    entropy: Entropy = field(repr=False)

    @asynccontextmanager
    async def own(self, key: PrivateDestination) -> AsyncIterator[StreamSession]:
        """Make the session of a lasting key, for the length of a block.

        Raises:
            TransportUnavailableError: the router is gone, refuses, has no tunnels within the limit, or
                has a session of this key already.
            MalformedError: the router does not accept the key.
        """
        # SAM lets any program on this machine that knows a session's identifier take calls for it and dial in
        # its name, so it follows from the secret key: nobody can guess it from the address.
        name = hashlib.blake2b(key.data, digest_size=_IDENTIFIER_BYTES, person=b"overlay/sam").hexdigest()
        sam = await self._make_own(name, key)
        async with self._kept(sam, key.public.locator) as session:
            yield session

    @asynccontextmanager
    async def transient(self) -> AsyncIterator[StreamSession]:
        """Make a session with a new destination, whose keys nobody keeps, for the length of a block.

        Raises:
            TransportUnavailableError: the router is gone, refuses, or has no tunnels within the limit.
        """
        sam = await self._make_transient()
        async with self._kept(sam, None) as session:
            yield session

    @asynccontextmanager
    async def _kept(self, made: _Made, expected: NodeLocator | None) -> AsyncIterator[StreamSession]:
        """Close the session at the end; there is no pause in which it could be lost before.

        Raises:
            TransportUnavailableError: the session has another destination than was asked for.
        """
        try:
            destination = _destination(made.reply, made.sam.where)
            if expected not in {None, destination.locator}:
                raise TransportUnavailableError(
                    f"the I2P router at {made.sam.where} made a session with another destination than it"
                    " was asked for: restart it"
                )
            session = StreamSession(made, destination, self)
            try:
                yield session
            finally:
                session.end()
        finally:
            await made.sam.aclose()

    async def _make_own(self, identifier: str, key: PrivateDestination) -> _Made:
        """Make a session that no earlier one of the same key takes down with it.

        Raises:
            TransportUnavailableError: see `own`.
        """
        patience = anyio.current_time() + LINGERS * self.timeouts.linger
        while True:
            began = anyio.current_time()
            try:
                made = await self._request(identifier, key.base64)
            except SamRefusal as refusal:
                if isinstance(refusal.error, MalformedError):
                    raise refusal.error from None
                if refusal.rule is not Retry.NEW_IDENTIFIER:
                    raise refusal.session_error from None
                if began >= patience:
                    raise TransportUnavailableError(
                        "this node's I2P destination is in use on this router already: end the other program"
                        " that has its key, or restart the router"
                    ) from None
                await anyio.sleep(self.timeouts.linger / LINGERS)
                continue
            if made.took >= AT_ONCE or began >= patience:
                return made
            await made.sam.aclose()
            await anyio.sleep(self.timeouts.linger)

    async def _make_transient(self) -> _Made:
        names = 0
        while True:
            names += 1
            try:
                return await self._request(self.entropy(_IDENTIFIER_BYTES).hex(), TRANSIENT)
            except SamRefusal as refusal:
                if refusal.rule is not Retry.NEW_IDENTIFIER or names == _NAMES:
                    raise refusal.session_error from None

    async def _request(self, identifier: str, destination: str) -> _Made:
        command = session_create(identifier, "STREAM", destination, self.tunnels.options())
        async with _opened(self.address, self.timeouts) as sam:
            began = anyio.current_time()
            with anyio.move_on_after(self.timeouts.create):
                reply = _granted(await sam.request(command, math.inf))
                return _Made(identifier, sam, reply, anyio.current_time() - began)
            # It did answer the greeting, so it is not the router that is missing.
            raise TransportUnavailableError(
                f"the I2P router at {sam.where} has built no tunnels yet within {self.timeouts.create:.0f} s,"
                " being new or cut off from its network: try again in some minutes"
            )


@dataclass(frozen=True)
class _Made:
    identifier: str
    sam: SamSocket
    reply: Reply = field(repr=False)  # holds private keys
    took: float  # seconds from the question to the answer


@asynccontextmanager
async def _opened(address: tuple[str, int], timeouts: I2pTimeouts) -> AsyncIterator[SamSocket]:
    """Open a socket for one command, which stays open for what the command was about unless the block fails.

    Raises:
        TransportUnavailableError: the router is gone.
        Cancelled, it leaves no socket behind.
    """
    sam = await open_sam(address, timeouts)
    try:
        yield sam
    except BaseException:  # failed or cancelled: nobody else knows of the socket
        await anyio.aclose_forcefully(sam)
        raise


def _granted(reply: Reply) -> Reply:
    if not reply.ok:
        raise SamRefusal(reply)
    return reply


def _destination(reply: Reply, where: str) -> Destination:
    try:
        return PrivateDestination.from_base64(reply.fields.get("DESTINATION", "")).public
    except (MalformedError, VerificationError) as error:
        raise TransportUnavailableError(
            f"the I2P router at {where} made a session and did not say with which destination"
        ) from error


class StreamSession:
    """A session that is ready. Made by `SessionMaker`.

    Attributes:
        destination: where its streams come from, and where callers reach it.
        lost: set when the session has ended; its streams end with it, also where the router hangs and closes
            nothing.
    """

    def __init__(self, made: _Made, destination: Destination, maker: SessionMaker) -> None:
        self.destination = destination
        self.lost = anyio.Event()
        self._made = made
        self._address = maker.address
        self._timeouts = maker.timeouts
        # Of its streams, and of what is asked for on it. Weakly: whoever has one closes it and tells nobody.
        self._sockets: WeakSet[ByteStream] = WeakSet()

    async def watch(self) -> str:
        """Wait until the session ends, and tell why it did; whoever made it does this all the time."""
        # Nothing comes on this socket but a complaint, after which the router closes it.
        with suppress(TransportUnavailableError):
            await self._made.sam.read_line()
        self.end()
        return _ENDED

    async def watch_until(self, event: anyio.Event) -> None:
        """Wait for an event, while nobody else calls `watch`.

        Raises:
            TransportUnavailableError: the session ended before.
        """
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                await self.watch()
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            await event.wait()
            tasks.cancel_scope.cancel()
        if self.lost.is_set():
            raise TransportUnavailableError(_ENDED)

    async def give_up(self) -> None:
        """End it, because the router no longer knows it; `watch` returns."""
        await self._made.sam.aclose()

    def end(self) -> None:
        """Say that it has ended, and end its streams; whoever has one still closes it."""
        self.lost.set()
        for connection in self._sockets:
            cut_off(connection)

    async def connect(self, locator: NodeLocator) -> ByteStream:
        """Dial; there is no limit of time but the router's own.

        Returns:
            a stream, of which nothing is known but that the router has a lease set of the destination.

        Raises:
            SamRefusal: the router says no.
            TransportUnavailableError: the router is gone.
            Cancelled, it leaves no socket behind.
        """
        command = stream_connect(self._made.identifier, locator.host)
        async with self._opened() as sam:
            _granted(await sam.request(command, self._timeouts.dial))
        return sam.stream()

    async def accept(self) -> SamSocket:
        """Have the router wait for a caller.

        Returns:
            a socket on which one line comes when there is a caller, and then what the caller sends.

        Raises:
            SamRefusal: the router says no.
            TransportUnavailableError: the router is gone.
            Cancelled, it leaves no socket behind.
        """
        command = stream_accept(self._made.identifier)
        async with self._opened() as sam:
            _granted(await sam.request(command, self._timeouts.reply))
        return sam

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[SamSocket]:
        """Open a socket that ends with the session.

        Raises:
            TransportUnavailableError: the router is gone, or the session.
        """
        async with _opened(self._address, self._timeouts) as sam:
            if self.lost.is_set():  # meanwhile
                raise TransportUnavailableError(_ENDED)
            self._sockets.add(sam.connection)
            yield sam
