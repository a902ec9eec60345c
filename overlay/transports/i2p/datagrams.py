"""Messages over I2P: repliable datagrams, each of which carries, signed, the destination of its sender."""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

from overlay.connection import MessageTransport, Parcel, Properties, TransportStatus
from overlay.errors import MalformedError, TransportUnavailableError, UnreachableError
from overlay.identity import Entropy
from overlay.locators import NodeLocator
from overlay.transports.i2p.datagram_session import (
    MAX_MESSAGE_BYTES,
    DatagramSession,
    look_up,
    require_ok,
)
from overlay.transports.i2p.destination import Destination, PrivateDestination
from overlay.transports.i2p.keys import load_key
from overlay.transports.i2p.protocol import session_create
from overlay.transports.i2p.router import RouterHandle, open_router
from overlay.transports.i2p.sam import SamSocket, open_sam
from overlay.transports.i2p.session import AT_ONCE
from overlay.transports.i2p.settings import AttachedRouter, I2pTimeouts, LaunchedRouter, TunnelOptions
from overlay.transports.i2p.watch import while_it_answers
from overlay.transports.supervision import Lost, Supervisor

MAX_WAITING = 256
"""Messages received and not asked for yet, 8 MiB of the longest; the oldest is dropped for one more."""

MAX_KNOWN = 1024
"""Destinations remembered by their address, about 1 MiB; the one not used for longest is forgotten."""

ACQUAINTANCE = 480.0
"""Seconds after which a peer counts as new again; what a router knows of where it is lasts up to 600."""

I2P_MESSAGE_PROPERTIES = Properties(
    hides_sender=True,
    hides_receiver=True,
    encrypts=True,
    authenticates_receiver=True,
    reorders=True,
    pads=False,
    synchronous=False,
    half_closes=False,
    round_trip=I2pTimeouts().round_trip,
    dial_timeout=I2pTimeouts().dial,
)
"""What datagrams give. The sender is hidden as a stream's caller is: behind a destination of its own."""


class I2pDatagrams(MessageTransport):
    """Carries messages between I2P destinations.

    It has a destination and a session of its own; to be linked with no other, both are used for nothing
    else. When the router ends, the session is made again with the same destination as soon as it can be.

    Args:
        router: launched, or attached to. A router launched for streams is attached to here.
        key_path: where the destination is kept; made when it is first needed.
        tunnels: how the session's tunnels are.
        timeouts: how long to wait; the defaults are for the public network.
        entropy: for the session's name.
    """

    def __init__(
        self,
        router: LaunchedRouter | AttachedRouter,
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
        self._properties = replace(I2P_MESSAGE_PROPERTIES, dial_timeout=self._timeouts.dial)
        self._entropy = entropy
        self._key: PrivateDestination | None = None
        self._session: DatagramSession | None = None
        self._address = ("", 0)
        self._changed = anyio.Event()
        self._waiting: deque[Parcel] = deque(maxlen=MAX_WAITING)
        self._received = 0
        self._known: OrderedDict[NodeLocator, Destination] = OrderedDict()
        self._met: dict[NodeLocator, float] = {}  # when we last began to know where a known peer is
        self._supervisor = Supervisor(self._go_online, self._report_and_wake, again="trying")

    @property
    def name(self) -> str:
        """`i2p`."""
        return "i2p"

    @property
    def properties(self) -> Properties:
        """What its messages give."""
        return self._properties

    @property
    def locator(self) -> NodeLocator:
        """Where messages to this side are sent.

        Raises:
            TransportUnavailableError: it is known only once the transport was entered.
        """
        if self._key is None:
            raise TransportUnavailableError("I2P messages are not started: enter the transport first")
        return self._key.public.locator

    @property
    def max_bytes(self) -> int:
        """Bytes of the longest message."""
        return MAX_MESSAGE_BYTES

    @property
    def facts(self) -> Mapping[str, str]:
        """The router, the tunnels, the own destination and the last error, as far as there are any."""
        host, port = self._address
        facts = {
            "router": f"{host}:{port}" if port else "",
            "session": "open" if self._session else "",
            "tunnels": str(self._tunnels),
            "destination": self._key.public.locator.host if self._key else "",
            "error": self._supervisor.why,
        }
        return {name: text for name, text in facts.items() if text}

    def carries(self, locator: NodeLocator) -> bool:
        """Tell whether `locator` is a destination; encrypted lease sets take no datagrams by their hash."""
        return locator.protocol == "garlic32" and len(locator.address) == 32

    async def __aenter__(self) -> Self:
        """Find the router, and make the session.

        Raises:
            OverlayError: TransportUnavailableError: the router cannot be used, and the message says why and
                what to do; MalformedError, VerificationError: the key file is damaged.
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
        """End the session; whoever waits in `receive` is told."""
        await self._supervisor.stop()
        return None

    async def send(self, locator: NodeLocator, body: bytes) -> None:
        """Hand a message to the router; waits while the session is being made again.

        i2pd asks the network where a new peer is when it gets the first message for it, which it drops. So
        that one is handed over again after a round trip, and takes as long.
        Cancelled, the message may have been sent or not.

        Raises:
            MalformedError: empty, or longer than `max_bytes`.
            UnreachableError: nobody publishes the destination.
            TransportUnavailableError: there is no session, or the router does not take the message.
        """
        if not 1 <= len(body) <= MAX_MESSAGE_BYTES:
            raise MalformedError(f"an I2P message has 1 to {MAX_MESSAGE_BYTES} bytes, not {len(body)}")
        if not self.carries(locator):
            raise UnreachableError(f"a {locator.protocol} address of this kind gets no messages through I2P")
        try:
            with anyio.fail_after(self._timeouts.dial):
                session = await self._wait_session()
                destination = await self._resolve(locator)
                await session.send(destination, body)
                if self._meets(locator):
                    await anyio.sleep(self._timeouts.round_trip)
                    await session.send(destination, body)
        except TimeoutError as error:
            raise TransportUnavailableError(
                f"the message was not sent within {self._timeouts.dial:.0f} s: {self._why_not()}"
            ) from error

    async def receive(self) -> Parcel:
        """Wait for the next message; a cancelled wait loses none.

        Raises:
            TransportUnavailableError: the transport was stopped.
        """
        while not self._waiting:
            self._require_started()
            await self._changed.wait()
        return self._waiting.popleft()

    def _why_not(self) -> str:
        return "the I2P router is slow" if self._session else self.status.detail

    def _require_started(self) -> None:
        """Refuse to wait for what will not come.

        Raises:
            TransportUnavailableError: the transport is not entered.
        """
        if self.status.state in {"stopped", "failed"}:
            raise TransportUnavailableError("I2P messages are not started: enter the transport first")

    async def _wait_session(self) -> DatagramSession:
        while self._session is None:
            self._require_started()
            await self._changed.wait()
        return self._session

    def _report_and_wake(self, status: TransportStatus) -> None:
        self._report(status)
        self._wake()  # who waits for a session or a message has one now, or has to be told that none comes

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _meets(self, locator: NodeLocator) -> bool:
        """Tell whether a known peer is new to this session, or new again; from now on it is not."""
        now = anyio.current_time()
        if now - self._met.get(locator, -ACQUAINTANCE) < ACQUAINTANCE:
            return False
        self._met[locator] = now
        return True

    def _deliver(self, sender: Destination, body: bytes) -> None:
        self._learn(sender)
        self._met[sender.locator] = anyio.current_time()  # its router sends where it is along
        self._waiting.append(Parcel(body, sender.locator))
        self._received += 1
        self._wake()

    def _learn(self, destination: Destination) -> None:
        self._known[destination.locator] = destination
        self._known.move_to_end(destination.locator)
        if len(self._known) > MAX_KNOWN:
            forgotten, _ = self._known.popitem(last=False)
            self._met.pop(forgotten, None)

    async def _resolve(self, locator: NodeLocator) -> Destination:
        """Find the full destination, which SAM wants, of an address; a new one may take 10 s."""
        destination = self._known.get(locator)
        if destination is None:
            destination = await look_up(self._address, locator, self._timeouts)
        self._learn(destination)
        return destination

    @asynccontextmanager
    async def _go_online(self) -> AsyncIterator[Lost]:
        """Find the router, and have a session on it, for the length of a block."""
        async with (
            open_router(self._router, self._timeouts, self._report) as router,
            while_it_answers(router.address, self._timeouts, heard=lambda: self._received),
        ):
            if self._key is None:
                self._key = await load_key(self._key_path, router.address, self._timeouts)
            self._address = router.address
            self._report(TransportStatus("starting", "building tunnels, which takes 20 s and more"))
            async with await self._create(router, self._key) as sam:
                self._met.clear()
                self._session = DatagramSession(sam, self._timeouts)
                try:
                    yield partial(self._session.read, self._deliver)
                finally:
                    self._session = None

    async def _create(self, router: RouterHandle, key: PrivateDestination) -> SamSocket:
        """Make the session; again when it was there at once: then it is what is left of an old one."""
        sam, took = await self._request(router, key)
        if took < AT_ONCE:
            await sam.aclose()
            await anyio.sleep(self._timeouts.linger)
            sam, _ = await self._request(router, key)
        return sam

    async def _request(self, router: RouterHandle, key: PrivateDestination) -> tuple[SamSocket, float]:
        """Ask for the session; the seconds are those until the answer."""
        identifier = f"overlay-{self._entropy(8).hex()}"
        command = session_create(identifier, "DATAGRAM", key.base64, self._tunnels.options())
        sam = await open_sam(router.address, self._timeouts)
        began = anyio.current_time()
        try:
            require_ok(await sam.request(command, self._timeouts.create))
        except BaseException:  # failed or cancelled: nobody else knows of the socket
            await anyio.aclose_forcefully(sam)
            raise
        return sam, anyio.current_time() - began
