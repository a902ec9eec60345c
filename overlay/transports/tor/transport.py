"""The Tor transport: onion services in, SOCKS dials out, and a supervisor that keeps tor alive."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
from anyio import CapacityLimiter

from overlay.connection import (
    Connection,
    Listener,
    Properties,
    StreamConnection,
    Transport,
    TransportStatus,
)
from overlay.errors import TransportUnavailableError, UnreachableError
from overlay.identity import Entropy
from overlay.locators import NodeLocator
from overlay.transports.supervision import Lost, Supervisor
from overlay.transports.tor.dial import MAX_DIALS, Credentials, dial
from overlay.transports.tor.listener import LoopbackListener
from overlay.transports.tor.onion import OnionService, load_key
from overlay.transports.tor.session import TorSession, open_session
from overlay.transports.tor.settings import ONION_PORT, AttachedTor, LaunchedTor, TorTimeouts

TOR_PROPERTIES = Properties(
    hides_sender=True,
    hides_receiver=True,
    encrypts=True,
    authenticates_receiver=True,
    reorders=False,
    pads=True,  # relay cells of 512 bytes
    synchronous=True,
    half_closes=False,
    round_trip=1.0,
    dial_timeout=TorTimeouts().dial,
)
"""What connections through onion services give; the receiver is authenticated by its onion key."""

FAILURES_BEFORE_NEWNYM = 2
"""Failed dials to one service after which tor is told to use new circuits; one failure is everyday."""

NEWNYM_INTERVAL = 10.0
"""Seconds between two requests for new circuits; tor ignores more (MAX_SIGNEWNYM_RATE)."""

MAX_FAILING = 1024
"""Services whose failures are counted; more than a node ever dials within minutes."""


class TorTransport(Transport):
    """Connects nodes through Tor v3 onion services.

    When tor ends or its control connection is lost, it is started or attached to again, the onion service
    is published again under the same address, and the status says so; a listener and its locators live on.
    Connections that were open end.

    Two things that Tor does not do: its streams end both ways at once, so `send_eof` also ends what would
    come back; and on a fresh circuit tor takes in hundreds of MiB before it makes a sender wait. The channel
    has both: exchanges that finish one way, and credit.

    Args:
        tor: launched by the transport, or attached to.
        key_path: where the onion service's key is kept; made when the service is first needed.
        timeouts: how long to wait; the defaults are for the public network.
        entropy: for the key, and for keeping this transport's circuits apart from other users of its tor.
    """

    def __init__(
        self,
        tor: LaunchedTor | AttachedTor,
        *,
        key_path: Path,
        timeouts: TorTimeouts | None = None,
        entropy: Entropy = os.urandom,
    ) -> None:
        super().__init__()
        self._tor = tor
        self._key_path = key_path
        self._timeouts = timeouts or TorTimeouts()
        self._properties = replace(TOR_PROPERTIES, dial_timeout=self._timeouts.dial)
        self._entropy = entropy
        self._isolation_secret = entropy(32)
        self._dials = CapacityLimiter(MAX_DIALS)
        self._session: TorSession | None = None
        self._session_changed = anyio.Event()
        self._listener: OnionListener | None = None
        self._failures: dict[NodeLocator, int] = {}
        self._next_newnym = 0.0
        again = "starting it" if isinstance(tor, LaunchedTor) else "attaching to it"
        self._supervisor = Supervisor(self._go_online, self._report, again=again)

    @property
    def name(self) -> str:
        """`tor`."""
        return "tor"

    @property
    def properties(self) -> Properties:
        """What its connections give."""
        return self._properties

    @property
    def facts(self) -> Mapping[str, str]:
        """`tor`: its version, and who runs it; `onion`: the service's address; each while there is one."""
        found = {}
        if self._session is not None:
            owner = "launched" if isinstance(self._tor, LaunchedTor) else f"attached at {self._tor.control}"
            found["tor"] = f"{self._session.version}, {owner}"
        if self._listener is not None:
            found["onion"] = self._listener.locator.host
        return found

    @property
    def session(self) -> TorSession | None:
        """The tor in use; None while there is none."""
        return self._session

    def carries(self, locator: NodeLocator) -> bool:
        """Tell whether `locator` is an onion service."""
        return locator.protocol == "onion3"

    async def __aenter__(self) -> Self:
        """Start tor, or attach to it, and wait until it is connected to its network.

        Raises:
            TransportUnavailableError: it cannot be used; the message says why and what to do.
        """
        self._report(TransportStatus("starting", "starting tor"))
        await self._supervisor.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Stop listening, and end the tor that was launched."""
        try:
            if self._listener is not None:
                await self._listener.aclose()
        finally:
            await self._supervisor.stop()
        return None

    async def connect(self, locator: NodeLocator, *, isolation: bytes = b"") -> Connection:
        """Dial an onion service; see `connect_with`."""
        return await self.connect_with(locator, b"", isolation=isolation)

    async def connect_with(self, locator: NodeLocator, first: bytes, *, isolation: bytes = b"") -> Connection:
        """Dial an onion service; waits while tor is being started again. See `Transport.connect_with`.

        Raises:
            UnreachableError: the service does not answer or is not published, or `dial_timeout` passed.
            RefusedError: the service is for authorized clients.
            TransportUnavailableError: tor is not started, or did not come back within `dial_timeout`.
        """
        if not self.carries(locator):
            raise UnreachableError(f"a {locator.protocol} address is not reached through Tor")
        try:
            with anyio.fail_after(self._timeouts.dial):
                session = await self._wait_session()
                stream = await dial(
                    session.proxy,
                    (locator.host, locator.port),
                    credentials=Credentials.derive(self._isolation_secret, isolation),
                    limiter=self._dials,
                    first=first,
                )
        except TimeoutError as error:
            if self._session is None:
                raise TransportUnavailableError(f"tor is not ready: {self.status.detail}") from error
            await self._count_failure(locator)
            raise UnreachableError(
                f"the onion service did not answer within {self._timeouts.dial:.0f} s; it may be offline"
            ) from error
        except UnreachableError:
            await self._count_failure(locator)
            raise
        self._failures.pop(locator, None)
        return StreamConnection(stream, locator=locator, properties=self._properties)

    async def listen(self) -> Listener:
        """Publish the onion service and take connections in. See `Transport.listen`.

        Raises:
            TransportUnavailableError: there is a listener already, tor is not ready, or the service could
                not be published.
            MalformedError: the key file is damaged.
        """
        if self._listener is not None:
            raise TransportUnavailableError("the onion service is open already")
        session = self._session
        if session is None:
            raise TransportUnavailableError("tor is not ready: wait until the transport is")
        key = await load_key(self._key_path, self._entropy)
        local = LoopbackListener()
        try:
            service = OnionService(key, ONION_PORT, local.port)
            locator = await service.publish(session.control, timeout=self._timeouts.publish)
        except BaseException:  # failed or cancelled: nobody else knows of the port
            local.close()
            raise
        self._listener = OnionListener(self, local, service, locator)
        return self._listener

    async def withdraw(self, listener: OnionListener) -> None:
        """Take a listener's service down; called by its `aclose`."""
        if self._listener is listener:
            self._listener = None
            if self._session is not None:
                await listener.service.withdraw(self._session.control, listener.locator)

    @asynccontextmanager
    async def _go_online(self) -> AsyncIterator[Lost]:
        """Have a tor that is ready, publish what was published before, and let dials through."""
        async with open_session(self._tor, self._timeouts, self._report) as session:
            if self._listener is not None:
                self._report(TransportStatus("starting", "publishing the onion service again", 100))
                await self._listener.service.publish(session.control, timeout=self._timeouts.publish)
            self._set_session(session)

            async def lost() -> str:
                await session.control.lost.wait()
                self._set_session(None)  # before the tor is ended, so that no dial is begun meanwhile
                return "tor ended" if session.process else "the connection to tor was lost"

            try:
                yield lost
            finally:
                self._set_session(None)

    def _set_session(self, session: TorSession | None) -> None:
        if session is not self._session:
            self._session = session
            self._session_changed.set()
            self._session_changed = anyio.Event()

    async def _wait_session(self) -> TorSession:
        if self.status.state in {"stopped", "failed"}:
            raise TransportUnavailableError("the Tor transport is not started: enter it first")
        while self._session is None:
            await self._session_changed.wait()
        return self._session

    async def _count_failure(self, locator: NodeLocator) -> None:
        """After repeated failures ask for new circuits, which ends the bad spell that a dead relay causes."""
        count = self._failures.pop(locator, 0) + 1
        self._failures[locator] = count
        if len(self._failures) > MAX_FAILING:
            del self._failures[next(iter(self._failures))]
        session, now = self._session, anyio.current_time()
        if session is not None and count >= FAILURES_BEFORE_NEWNYM and now >= self._next_newnym:
            self._next_newnym = now + NEWNYM_INTERVAL
            try:
                await session.control.request("SIGNAL NEWNYM")
            except TransportUnavailableError:  # the supervisor has seen it too
                return


class OnionListener(Listener):
    """The local end of an onion service. Made by `TorTransport.listen`.

    Attributes:
        service: what is published.
        locator: where it is reached.
    """

    def __init__(
        self,
        transport: TorTransport,
        local: LoopbackListener,
        service: OnionService,
        locator: NodeLocator,
    ) -> None:
        self.service = service
        self.locator = locator
        self._transport = transport
        self._local = local

    @property
    def locators(self) -> Sequence[NodeLocator]:
        """The onion service's locator."""
        return (self.locator,)

    async def accept(self) -> Connection:
        """Wait for the next connection; see `Listener.accept`."""
        stream = await self._local.accept()
        return StreamConnection(stream, locator=self.locator, properties=self._transport.properties)

    async def aclose(self) -> None:
        """Take the service down and stop listening."""
        try:
            await self._transport.withdraw(self)
        finally:
            self._local.close()
