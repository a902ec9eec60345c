"""The channels of a node: those it opened, those that others opened to it, and when each is used.

Opening an onion circuit costs seconds, so channels are kept and shared. A *lane* says what may share one:
interactive requests, bulk transfers (which get circuits of their own, so that they never delay a message),
and anonymous requests, in which this node does not show its identifier and which share a channel with
nothing that does. What a node does on those is not noted: see `overlay.peer.reputation`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus

from overlay.channel.driver import Channel
from overlay.channel.machine import MAX_REMOTE_EXCHANGES, ChannelLimits
from overlay.channel.opening import respond
from overlay.channel.streams import Exchange
from overlay.connection import Connection, ConnectionLayer, Listener
from overlay.errors import (
    ClosedError,
    OverlayError,
    ProtocolViolationError,
    StorageError,
    TransportUnavailableError,
    UnreachableError,
)
from overlay.identity import Entropy, NodeIdentifier, NodeSecret
from overlay.locators import NodeLocator
from overlay.peer.accept import Accept
from overlay.peer.crowd import Crowd
from overlay.peer.dialling import Dialler, InconclusiveError
from overlay.peer.links import Lane, Link, Links
from overlay.peer.locator_manager import LocatorManager
from overlay.peer.reputation import ReputationManager
from overlay.peer.routes import RouteBook

logger = logging.getLogger(__name__)

MAX_HANDSHAKES = 64
"""Incoming connections that have not said who they are; one more, and one of them at random is dropped. An
honest caller takes some seconds over Tor. Among 32 new connections a second, one that takes two gets through
in every third try; were it the oldest that is dropped, it never would."""

MAX_INCOMING = 256
"""Incoming channels at once; one more, and one is closed. What they hold is bounded, but not small: whoever
fills the first windows of its 32 exchanges and takes no answer makes this side hold 10 MiB (32 times 136 KiB
that came, and 192 KiB to send), so 256 such callers 2.5 GiB. The windows of a channel grow beyond that, to
16 MiB in all, only by as much as is really read."""

MAX_DIALLED = 256
"""Channels that this node opened, likewise. Both together stay well below the 1,024 descriptors that a
process usually has."""

MAX_SERVED = 4 * MAX_REMOTE_EXCHANGES
"""Requests of one channel that are worked on at once. Who resets an exchange may open the next one before
the work is given up; one that does nothing else is cut off, or the work would pile up without end."""

REOPEN_PAUSE = 2.0
"""Seconds from a channel's death until it is asked whether its transport works: that may notice later."""

MAX_REOPENED = 8
"""Dials at once that replace such channels: a network takes them all with it."""

LISTEN_PAUSE = 5.0
"""Seconds before a listener that had no descriptor left is tried again."""


Contact = Callable[[NodeIdentifier], Coroutine[Any, Any, None]]
"""Told of each node that a channel shows to be there, in a task of its own."""


class _Dial:
    """An attempt that several requests wait for: none of them ends it by giving up."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.channel: Channel | None = None
        self.error: OverlayError | None = None

    async def result(self) -> Channel:
        await self.done.wait()
        if self.channel is None:
            raise self.error or ClosedError("this node is shutting down")
        return self.channel


class ChannelPool:
    """Opens, takes, keeps and serves channels. Lives while `run` runs.

    Args:
        secret: this node's keys.
        layer: where connections come from.
        locators: where nodes are found; learns the record that each peer shows.
        reputation: notes who was reachable and who broke the protocol, but not on anonymous channels.
        accept: serves the exchanges that peers open.
        entropy: random bytes.
        clock: seconds since 1970.
        limits: bounds of each channel.

    Attributes:
        contacts: each is told of every node that a new channel shows to be there.
        departures: each is told of every node whose last interactive channel ended.
    """

    def __init__(
        self,
        *,
        secret: NodeSecret,
        layer: ConnectionLayer,
        locators: LocatorManager,
        reputation: ReputationManager,
        accept: Accept,
        entropy: Entropy,
        clock: Callable[[], float],
        limits: ChannelLimits,
    ) -> None:
        self._secret = secret
        self._layer = layer
        self._locators = locators
        self._reputation = reputation
        self._accept = accept
        self._entropy = entropy
        self._clock = clock
        self._limits = limits
        self._links = Links()
        self._book = RouteBook(self._links.carries)
        self._dialler = Dialler(
            secret=secret, layer=layer, locators=locators, book=self._book, entropy=entropy, limits=limits
        )
        self._dials: dict[tuple[NodeIdentifier, Lane], _Dial] = {}
        self._handshakes: dict[int, anyio.CancelScope] = {}
        self._incoming = Crowd(MAX_INCOMING, self._score)
        self._dialled = Crowd(MAX_DIALLED, self._score)
        self._reopening = anyio.CapacityLimiter(MAX_REOPENED)
        self._group: TaskGroup | None = None
        self.contacts: list[Contact] = []
        self.departures: list[Callable[[NodeIdentifier], None]] = []

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Open and serve channels until cancelled; then all of them are closed."""
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                task_status.started()
                await anyio.sleep_forever()
        finally:
            self._group = None
            for dial in self._dials.values():
                dial.done.set()

    async def listen(self, listener: Listener, network: str) -> None:
        """Take the connections of `listener`, of the network with this name, until cancelled."""
        while True:
            try:
                connection = await listener.accept()
            except TransportUnavailableError as error:
                logger.warning("no connections can be taken for the moment: %s", error)
                await anyio.sleep(LISTEN_PAUSE)
                continue
            self._make_room()
            if self._group is None:
                await anyio.aclose_forcefully(connection)
            else:
                self._group.start_soon(self._take, connection, network)

    def connected(self, node: NodeIdentifier) -> bool:
        """Tell whether an interactive channel to `node` is open."""
        return self._warm(node, Lane.INTERACTIVE) is not None

    def route(self, node: NodeIdentifier) -> tuple[str, NodeLocator | None]:
        """Tell which network carries the interactive channel to `node`, and where it was dialled.

        Returns:
            the network's name, empty if there is no such channel; and no locator if the peer called.
        """
        link = self._warm(node, Lane.INTERACTIVE)
        return ("", None) if link is None else (link.network, link.locator)

    async def channel(self, node: NodeIdentifier, lane: Lane) -> Channel:
        """Find an open channel to `node`, which may have died without our knowing, or open one.

        Raises:
            NotFoundError: nobody knows where the node is reached.
            UnreachableError: it did not answer at any of its locators.
            RefusedError: reaching it would show where this node is, or none of its networks is here.
            VerificationError, ProtocolViolationError: somebody else answers at its locators.
            TransportUnavailableError: this side of a transport does not work, and no other reached it.
            ClosedError: this node is shutting down.
        """
        warm = self._warm(node, lane)
        if warm is not None:
            return warm.channel
        dial = self._dials.get((node, lane))
        if dial is None:
            if self._group is None:
                raise ClosedError("this node does not run")
            dial = self._dials[node, lane] = _Dial()
            self._group.start_soon(self._run_dial, node, lane, dial)
        return await dial.result()

    @asynccontextmanager
    async def circuit(self, node: NodeIdentifier) -> AsyncIterator[Channel]:
        """Open an anonymous channel that nothing else shares, for the length of a block.

        It has an isolation token of its own, so that over Tor it is a circuit of its own: neither the network
        nor `node` can link it to other channels by how it was opened. It ends with the block; its goodbye,
        which takes a round trip, is said while the caller goes on.

        Raises:
            ClosedError: this node does not run.
            OverlayError: any that `channel` raises.
        """
        if self._group is None:
            raise ClosedError("this node does not run")
        found = await self._dialler.dial(node, anonymous=True)
        if self._group is None:  # it ended meanwhile
            with anyio.CancelScope(shield=True):
                await found.channel.aclose()
            raise ClosedError("this node does not run any more")
        link = Link(found.channel, found.network, found.locator)
        self._group.start_soon(self._serve_dialled, link, node, Lane.ANONYMOUS)
        try:
            yield found.channel
        finally:
            found.channel.close()

    def _warm(self, node: NodeIdentifier, lane: Lane) -> Link | None:
        for link in self._links.ended(node, lane):
            self._let_go(link, node, lane)
        return self._links.next(node, lane)

    def _let_go(self, link: Link, node: NodeIdentifier, lane: Lane) -> None:
        """Forget a channel that ended, and learn from how it did, before anybody dials again."""
        if self._links.remove(link, node, lane) and link.channel.lost:
            dialled = link.locator is not None
            self._book.lost(node, link.network, anyio.current_time(), dialled=dialled)

    def _score(self, node: NodeIdentifier) -> float:
        return self._reputation.score(node, self._clock())

    # --- opening

    async def _run_dial(self, node: NodeIdentifier, lane: Lane, dial: _Dial) -> None:
        try:
            found = await self._dialler.dial(node, anonymous=lane is Lane.ANONYMOUS)
            dial.channel = found.channel
            if lane is not Lane.ANONYMOUS:  # and who only calls here earns nothing by it
                self._reputation.note(node, "answered", self._clock())
            self._adopt(Link(found.channel, found.network, found.locator), node, lane)
        except OverlayError as error:
            dial.error = error
        finally:
            del self._dials[node, lane]
            dial.done.set()
        if dial.error is not None and lane is not Lane.ANONYMOUS:
            self._blame(node, dial.error)

    def _blame(self, node: NodeIdentifier, error: OverlayError) -> None:
        if isinstance(error, UnreachableError) and not isinstance(error, InconclusiveError):
            self._reputation.note(node, "unreachable", self._clock())

    # --- taking

    def _make_room(self) -> None:
        """Drop some unfinished handshake: a flood of stalling callers then cannot keep others out."""
        if len(self._handshakes) >= MAX_HANDSHAKES:
            unlucky = int.from_bytes(self._entropy(4), "big") % len(self._handshakes)
            self._handshakes.pop(list(self._handshakes)[unlucky]).cancel()

    async def _take(self, connection: Connection, network: str) -> None:
        channel = await self._respond(connection)
        if channel is None:
            return
        node = channel.peer.identifier if channel.peer else None
        link = Link(channel, network)
        with self._incoming.place(node):
            await self._serve(link, node, Lane.INTERACTIVE)

    async def _respond(self, connection: Connection) -> Channel | None:
        with anyio.CancelScope() as scope:
            self._handshakes[id(scope)] = scope
            try:
                return await respond(
                    connection,
                    secret=self._secret,
                    hello=self._locators.own.encoded,
                    entropy=self._entropy,
                    limits=self._limits,
                )
            except OverlayError as error:
                logger.debug("an incoming connection ended in its handshake: %s", error.code)
            finally:
                self._handshakes.pop(id(scope), None)
        return None

    # --- serving

    def _adopt(self, link: Link, node: NodeIdentifier, lane: Lane) -> None:
        # At once, not when its task first runs: whoever waits for the dial uses the channel right away.
        self._links.add(link, node, lane)
        if self._group is not None:
            self._group.start_soon(self._serve_dialled, link, node, lane)

    async def _serve_dialled(self, link: Link, node: NodeIdentifier, lane: Lane) -> None:
        with self._dialled.place(node):
            await self._serve(link, node, lane)

    async def _serve(self, link: Link, node: NodeIdentifier | None, lane: Lane) -> None:
        channel, kept = link.channel, link.locator is not None
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(channel.run)
                if lane is not Lane.ANONYMOUS and node is not None:
                    if not await self._meet(channel, node):
                        await channel.aclose()
                    elif not kept:
                        kept = True
                        self._links.add(link, node, lane)
                await self._serve_exchanges(channel, node, lane, group)
        finally:
            if node is not None and kept:
                self._part(link, node, lane)

    def _part(self, link: Link, node: NodeIdentifier, lane: Lane) -> None:
        self._let_go(link, node, lane)
        if lane is Lane.INTERACTIVE and not self.connected(node):
            for departure in self.departures:
                departure(node)
            if link.channel.lost and self._group is not None:
                self._group.start_soon(self._reopen, node, link.network)

    async def _reopen(self, node: NodeIdentifier, network: str) -> None:
        """Reach a node over another network when this side's transport is gone: it may not know for long."""
        await anyio.sleep(REOPEN_PAUSE)
        async with self._reopening:
            if self._moves(node, network):
                with suppress(OverlayError):  # whoever needs the node dials it again, and is told
                    await self.channel(node, Lane.INTERACTIVE)

    def _moves(self, node: NodeIdentifier, network: str) -> bool:
        """Tell whether a network does not work here, and another that does leads to `node`."""
        works = {each.name for each in self._layer.transports if each.status.state == "ready"}
        record = self._locators.known(node)
        carriers = [self._layer.carrier(locator) for locator in record.locators] if record else []
        return network not in works and any(each is not None and each.name in works for each in carriers)

    async def _serve_exchanges(
        self, channel: Channel, node: NodeIdentifier | None, lane: Lane, group: TaskGroup
    ) -> None:
        sender = None if channel.peer is None else node
        places = anyio.Semaphore(MAX_SERVED)
        while True:
            try:
                exchange = await channel.accept()
            except ClosedError:
                return
            except ProtocolViolationError:
                if sender is not None and lane is not Lane.ANONYMOUS:
                    self._reputation.note(sender, "violation", self._clock())
                return
            if lane is Lane.ANONYMOUS and node is not None:
                # Whatever the answer to a question asked back: it could show who is at this end.
                await channel.aclose()
                return
            try:
                places.acquire_nowait()
            except anyio.WouldBlock:
                logger.debug("a caller gave up requests faster than they could be dropped")
                await channel.aclose()
                return
            group.start_soon(self._serve_exchange, exchange, sender, places)

    async def _serve_exchange(
        self, exchange: Exchange, sender: NodeIdentifier | None, places: anyio.Semaphore
    ) -> None:
        try:
            await self._accept.handle(exchange, sender)
        finally:
            places.release()

    async def _meet(self, channel: Channel, node: NodeIdentifier) -> bool:
        """Learn the peer's own record from its handshake and tell who waits for it; False if it lied."""
        if channel.hello and not await self._learn_hello(channel.hello, node):
            self._reputation.note(node, "violation", self._clock())
            return False
        if self._group is not None:
            for contact in self.contacts:
                self._group.start_soon(contact, node)
        return True

    async def _learn_hello(self, hello: bytes, node: NodeIdentifier) -> bool:
        try:
            record = await self._locators.learn(hello)
        except StorageError as error:  # not the peer's fault: what it showed does verify
            logger.warning("the record of a node could not be kept: %s", error)
            return True
        except OverlayError as error:
            logger.debug("a peer showed a record that does not hold: %s", error.code)
            return False
        return record.identifier in {node, self._secret.identifier}
