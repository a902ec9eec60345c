"""The I2P transport: streams between destinations, and a supervisor that keeps a session alive."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

from overlay.connection import Connection, Listener, Properties, StreamConnection, Transport, TransportStatus
from overlay.errors import TransportUnavailableError, UnreachableError
from overlay.identity import Entropy
from overlay.locators import NodeLocator
from overlay.transports.i2p.destination import PrivateDestination
from overlay.transports.i2p.dial import ANSWER_ROUND_TRIPS, Dial, Online, pauses
from overlay.transports.i2p.hearing import Hearing, Rebuilds
from overlay.transports.i2p.isolation import IsolationPool
from overlay.transports.i2p.keys import load_key
from overlay.transports.i2p.listener import I2pListener
from overlay.transports.i2p.protocol import Retry
from overlay.transports.i2p.router import RouterHandle, open_router
from overlay.transports.i2p.session import SamRefusal, SessionMaker, StreamSession
from overlay.transports.i2p.settings import AttachedRouter, I2pTimeouts, LaunchedRouter, TunnelOptions
from overlay.transports.i2p.silence import Silence
from overlay.transports.i2p.streams import connect_to_self
from overlay.transports.i2p.watch import while_it_answers
from overlay.transports.supervision import Lost, Supervisor

I2P_PROPERTIES = Properties(
    hides_sender=True,
    hides_receiver=True,
    encrypts=True,
    authenticates_receiver=True,
    reorders=False,
    pads=False,  # cells of 1 KiB within a tunnel; but between the two, a message goes at its own length
    synchronous=True,
    half_closes=False,
    round_trip=I2pTimeouts().round_trip,
    dial_timeout=I2pTimeouts().dial,
    isolation_delay=20.0,  # i2pd's first look at a new session's tunnels
)
"""What connections between I2P destinations give; the receiver is authenticated by its signed lease set."""

FIRST_TUNNELS = 900.0
"""Seconds that an i2pd of our own has for its first sessions, where `create` is not longer. A new one first
has to learn of other routers, which takes minutes; given up on, it would be ended and begin again."""

_BUILDING = "building tunnels, which takes 20 s and more"
_BUILDING_FIRST = "building tunnels, which may take some minutes when the router is new"

_DEAF = "the I2P router has brought nothing from anybody for two minutes or longer"

_ROUTER_PROGRESS = 40  # percent of a start: the router is there, its tunnels are not


class I2pTransport(Transport):
    """Connects nodes through I2P destinations.

    When the router goes away, it is launched or attached to again, a session with the same destination is
    made, and the status says so; a listener and its locator live on. Connections that were open end on this
    side; the other side may not see it, for I2P carries no such news.

    A connection that was dialled may be one with nobody: I2P says that a stream is open before it has reached
    the peer. Whoever dials exchanges something first. After streams without an answer the transport dials
    that peer through another session, since an old lease set may be in the way. When several peers have been
    dialled in vain for two minutes, and nothing was heard from anybody, all sessions are made anew.

    Args:
        router: launched by the transport, or attached to.
        key_path: where the destination's key is kept; made when there is none.
        tunnels: what each session's tunnels are like; by default three hops, five tunnels each way.
        timeouts: how long to wait; the defaults are for the public network.
        entropy: for the names of sessions, and to spread repeated dials.
    """

    def __init__(
        self,
        router: AttachedRouter | LaunchedRouter,
        *,
        key_path: Path,
        tunnels: TunnelOptions | None = None,
        timeouts: I2pTimeouts | None = None,
        entropy: Entropy = os.urandom,
    ) -> None:
        super().__init__()
        self._router = router
        self._key_path = key_path
        self._tunnels = tunnels or TunnelOptions()
        self._timeouts = timeouts or I2pTimeouts()
        self._properties = replace(
            I2P_PROPERTIES, round_trip=self._timeouts.round_trip, dial_timeout=self._timeouts.dial
        )
        self._entropy = entropy
        self._key: PrivateDestination | None = None
        self._found: RouterHandle | None = None
        self._online: Online | None = None
        self._online_changed = anyio.Event()
        self._listener: I2pListener | None = None
        self._rebuilds = Rebuilds()
        again = "starting it" if isinstance(router, LaunchedRouter) else "attaching to it"
        self._supervisor = Supervisor(self._go_online, self._report, again=again)

    @property
    def name(self) -> str:
        """`i2p`."""
        return "i2p"

    @property
    def properties(self) -> Properties:
        """What its connections give."""
        return self._properties

    @property
    def facts(self) -> Mapping[str, str]:
        """The router, the version of SAM, the session, its tunnels, this node's address, the last error."""
        session = "none" if self._online is None else "ready"
        facts = {"session": session, "tunnels": str(self._tunnels)}
        if self._found is not None:
            host, port = self._found.address
            facts |= {"router": f"{host}:{port}", "sam": self._found.version}
        if self._key is not None:
            facts["destination"] = self._key.public.locator.host
        trouble = "" if self._online is None else self._online.pool.trouble
        error = f"no session to dial from: {trouble}" if trouble else self._supervisor.why
        return facts | ({"error": error} if error else {})

    def carries(self, locator: NodeLocator) -> bool:
        """Tell whether `locator` is a destination that can be dialled; encrypted lease sets cannot."""
        return locator.protocol == "garlic32" and len(locator.address) == 32

    async def __aenter__(self) -> Self:
        """Start the router, or attach to it, and wait until it has tunnels for this node's sessions.

        Where that to dial from cannot be made, `facts` says so, and each dial tries again.

        Raises:
            TransportUnavailableError: it cannot be used; the message says why and what to do.
            MalformedError: the key file is damaged.
        """
        self._report(TransportStatus("starting", "looking for the I2P router"))
        await self._supervisor.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Stop listening, end all sessions, and end the router that was launched."""
        try:
            if self._listener is not None:
                await self._listener.aclose()
        finally:
            await self._supervisor.stop()
        return None

    async def connect(self, locator: NodeLocator, *, isolation: bytes = b"") -> Connection:
        """Dial a destination, again and again until `dial_timeout`. See `Transport.connect`.

        Waits while the router is being started again, and while a session for a new token is being made.

        Raises:
            UnreachableError: nobody publishes the destination.
            TransportUnavailableError: the router or the session was not there in time, or all sessions that
                can be had are in use by other tokens.
        """
        if not self.carries(locator):
            raise UnreachableError(f"a {locator.protocol} address is not reached through I2P")
        if self.status.state in {"stopped", "failed"}:
            raise TransportUnavailableError("the I2P transport is not started: enter it first")
        if self._key is not None and locator == self._key.public.locator:
            return await self._connect_to_self(locator)
        dial = Dial(locator, isolation, TransportUnavailableError("the I2P transport is not ready"))
        with anyio.move_on_after(self._timeouts.dial):
            for pause in pauses(self._timeouts.round_trip, self._entropy):
                try:
                    return await dial.once(await self._wait_online(dial), self._properties)
                except SamRefusal as refusal:
                    dial.refused = refusal.error
                    if refusal.rule is Retry.NEVER:
                        break
                except TransportUnavailableError as error:
                    dial.refused = error
                await anyio.sleep(pause)
        raise dial.why

    async def _connect_to_self(self, locator: NodeLocator) -> Connection:
        """Dial this node's own destination, to which I2P opens streams that carry nothing.

        Raises:
            UnreachableError: it does not listen, or its queue is full.
            TransportUnavailableError: the process has no descriptor left.
        """
        if self._listener is None:
            raise UnreachableError("this is the node's own destination, and it does not listen")
        try:
            near, far = await connect_to_self()
        except OSError as error:
            raise TransportUnavailableError(f"no connection can be made: {error.strerror}") from error
        try:
            self._listener.offer(far, locator)
        except UnreachableError:
            await anyio.aclose_forcefully(near)
            await anyio.aclose_forcefully(far)
            raise
        return StreamConnection(near, locator=locator, properties=self._properties)

    async def listen(self) -> Listener:
        """Take connections in. See `Transport.listen`.

        Raises:
            TransportUnavailableError: there is a listener already, or I2P is not ready.
        """
        if self._listener is not None:
            raise TransportUnavailableError("this node listens on I2P already")
        if self._key is None or self._online is None:
            raise TransportUnavailableError("I2P is not ready: wait until the transport is")
        listener = I2pListener(
            self._key.public.locator, self._properties, self._note_caller, self._forget_listener
        )
        self._listener = listener
        waiting = anyio.Event()
        self._supervisor.tasks.start_soon(listener.run, self._next_session, waiting)
        try:
            with anyio.fail_after(self._timeouts.reply):
                await waiting.wait()
        except BaseException as error:  # failed or cancelled: nobody else can close it
            with anyio.CancelScope(shield=True):
                await listener.aclose()
            if isinstance(error, TimeoutError):
                raise TransportUnavailableError(
                    "the I2P router takes no callers for this node: restart it"
                ) from error
            raise
        return listener

    def _note_caller(self) -> None:
        if self._online is not None:
            self._online.hearing.heard()

    def _forget_listener(self) -> None:
        self._listener = None

    async def _next_session(self) -> StreamSession:
        while self._online is None or self._online.session.lost.is_set():
            await self._online_changed.wait()
        return self._online.session

    async def _wait_online(self, dial: Dial) -> Online:
        while self._online is None or self._online.session.lost.is_set():
            dial.waiting = TransportUnavailableError(f"I2P is not ready: {self.status.detail}")
            dial.refused = None
            await self._online_changed.wait()
        return self._online

    def _set_online(self, online: Online | None) -> None:
        if online is not self._online:
            self._online = online
            self._online_changed.set()
            self._online_changed = anyio.Event()

    @asynccontextmanager
    async def _go_online(self) -> AsyncIterator[Lost]:
        """Find the router, and make the sessions on it, for the length of a block."""
        async with open_router(self._router, self._timeouts, self._report) as router:
            self._found, hearing = router, Hearing()
            watch = while_it_answers(
                router.address,
                self._timeouts,
                heard=lambda: hearing.count,
                complaint=lambda: self._complain(hearing),
            )
            try:
                async with watch as tasks, self._make_sessions(router, hearing, tasks) as online:
                    yield online.session.watch
            finally:
                self._set_online(None)
                self._found = None

    @asynccontextmanager
    async def _make_sessions(
        self, router: RouterHandle, hearing: Hearing, tasks: TaskGroup
    ) -> AsyncIterator[Online]:
        """Make this node's session and that it dials from, both at the same time."""
        if self._key is None:
            self._key = await load_key(self._key_path, router.address, self._timeouts)
        maker = SessionMaker(router.address, self._tunnels, self._timeouts, self._entropy)
        first, building = maker, _BUILDING
        if router.launched:
            patience = max(self._timeouts.create, FIRST_TUNNELS)
            first = replace(maker, timeouts=replace(self._timeouts, create=patience))
            building = _BUILDING_FIRST
        self._report(TransportStatus("starting", building, _ROUTER_PROGRESS))
        pool = IsolationPool(maker.transient, tasks, rest=ANSWER_ROUND_TRIPS * self._timeouts.round_trip)
        settled = pool.begin(first.transient)
        async with first.own(self._key) as session:
            online = Online(session, pool, Silence(), hearing)
            self._set_online(online)  # callers may come while there is nothing to dial from yet
            await session.watch_until(settled)
            yield online

    def _complain(self, hearing: Hearing) -> str:
        """Tell why the sessions are to be made anew, if they are."""
        now = anyio.current_time()
        return _DEAF if hearing.deaf(now) and self._rebuilds.take(now) else ""
