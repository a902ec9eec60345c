"""Opening a channel to a node over whichever of its networks answers first.

The best network is started at once, the next when that one fails or is slow, and the first channel whose
handshake is through is the one that stays. Every dial has a circuit of its own, except where that would cost
seconds: there, whoever shows its identifier anyway dials from its own address.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import anyio

from overlay.channel.driver import Channel
from overlay.channel.machine import ChannelLimits
from overlay.channel.opening import Connect, call
from overlay.connection import Connection, ConnectionLayer, Properties, Transport, TransportStatus
from overlay.errors import (
    OverlayError,
    ProtocolViolationError,
    RefusedError,
    TransportUnavailableError,
    UnreachableError,
    VerificationError,
)
from overlay.identity import Entropy, NodeIdentifier, NodeSecret
from overlay.locators import LocatorRecord, NodeLocator
from overlay.peer.locator_manager import LocatorManager
from overlay.peer.routes import RouteBook, Way

DIAL_ATTEMPTS = 3
"""Each on circuits of its own: a path that does not work is not tried twice (a dead relay stays listed)."""

MAX_TRIED = 2
"""Locators of one network that are dialled in an attempt: a node has one, or two while it moves. Whoever
names eight of other people in its record would have every node that looks for it dial all of them."""

DIAL_DEADLINE = 120.0
"""Seconds for all attempts to reach one node; a first dial over Tor may take 60."""

DIAL_ROUND_TRIPS = 15
LEAST_PATIENCE = 5.0
"""The first attempt is given so many of the transport's usual round trips, and so many seconds at least; each
further one twice as much, up to what the transport calls a failed dial. A dial that begins while a service is
away hangs to its end, so the first limit decides how long an outage seems to last."""

USUAL_ROUND_TRIPS = 5
"""Round trips of a dial with its handshake where nothing hinders it."""

DIAL_PAUSE = 1.0
"""Seconds before the second attempt, doubled for each further one, plus up to as much again at random."""

ANONYMOUS_IDLE = 30.0
"""Seconds without an exchange after which an anonymous channel is closed, where others are not closed sooner:
one task asks again at once, and what comes later is better not linked to it by who was asked."""

_WORTH_AN_ATTEMPT = (UnreachableError, VerificationError, ProtocolViolationError)
"""Somebody else may have its old address by now: the model may know the new one."""

_TOO_LATE = "the other node did not answer in time; it may be offline"


class InconclusiveError(UnreachableError):
    """A node was not reached in time, and nothing shows that it was ever asked: no word against it.

    A dial that hangs does not tell where. A transport may be ready before its first dial can go out.
    """


@dataclass(frozen=True, slots=True)
class Dialled:
    """A channel that was opened from here.

    Attributes:
        channel: not running yet; it belongs to the caller.
        network: the name of the transport that carries it.
        locator: where it was dialled.
    """

    channel: Channel
    network: str
    locator: NodeLocator


@dataclass(slots=True)
class _Trouble:
    """What went wrong in one attempt; what is wrong on this side comes first: it can be mended here.

    Next comes what is in doubt: the other networks do not prove that the node is away.
    """

    unavailable: TransportUnavailableError | None = None
    doubt: InconclusiveError | None = None
    failure: OverlayError | None = None
    again: bool = False

    def note(self, error: OverlayError) -> None:
        if isinstance(error, TransportUnavailableError):
            self.unavailable = error
        elif isinstance(error, InconclusiveError):
            self.doubt = error
        else:
            self.failure = error
        self.again = self.again or isinstance(error, _WORTH_AN_ATTEMPT)

    def clear(self) -> None:
        self.unavailable, self.doubt, self.failure, self.again = None, None, None, False

    @property
    def error(self) -> OverlayError:
        unknown = "where the other node is reached was not found out in time; try again later"
        return self.unavailable or self.doubt or self.failure or InconclusiveError(unknown)


@dataclass(eq=False, slots=True)
class _Run:
    """One network in a race. `hurry` is set when the next one is not to wait for it any longer."""

    transport: Transport
    way: Way
    locators: list[NodeLocator]
    isolation: Callable[[], bytes]
    patience: float
    hurry: anyio.Event = field(default_factory=anyio.Event)
    began: float | None = None
    over: bool = False


class Dialler:
    """Opens channels.

    Args:
        secret: this node's keys.
        layer: where connections come from.
        locators: where nodes are found, and this node's own record.
        book: what earlier dials brought; learns of these.
        entropy: random bytes.
        limits: bounds of each channel.
    """

    def __init__(
        self,
        *,
        secret: NodeSecret,
        layer: ConnectionLayer,
        locators: LocatorManager,
        book: RouteBook,
        entropy: Entropy,
        limits: ChannelLimits,
    ) -> None:
        self._secret = secret
        self._layer = layer
        self._locators = locators
        self._book = book
        self._entropy = entropy
        self._limits = limits
        self._anonymous_limits = replace(limits, idle_timeout=min(limits.idle_timeout, ANONYMOUS_IDLE))
        self._runs: set[_Run] = set()
        for transport in layer.transports:
            transport.observe(partial(self._hear, transport))

    async def dial(self, node: NodeIdentifier, *, anonymous: bool) -> Dialled:
        """Open a channel to `node`; cancelled, nothing stays open.

        Args:
            node: whom.
            anonymous: this node does not show who it is; each network gets a token for this channel alone.

        Raises:
            NotFoundError: nobody knows where the node is reached.
            UnreachableError: it did not answer at any of its locators.
            InconclusiveError: likewise, and nothing shows that it was asked.
            RefusedError: reaching it would show where this node is, or none of its networks is here.
            VerificationError, ProtocolViolationError: somebody else answers at its locators.
            TransportUnavailableError: this side of a transport does not work, and no other reached it.
        """
        trouble = _Trouble()
        try:
            with anyio.fail_after(DIAL_DEADLINE):
                return await self._attempts(node, trouble, anonymous=anonymous)
        except TimeoutError:
            raise trouble.error from None

    async def _attempts(self, node: NodeIdentifier, trouble: _Trouble, *, anonymous: bool) -> Dialled:
        record = await self._locators.resolve(node, anonymous=anonymous)
        tokens: dict[str, bytes] = {}
        for attempt in range(DIAL_ATTEMPTS):
            runs = self._prepare(record, attempt, tokens if anonymous else None)
            if not runs:
                raise RefusedError(
                    "that node has no address that this node may dial; start this node with a transport"
                    " they share"
                )
            trouble.clear()
            dialled = await self._race(record, runs, trouble, anonymous=anonymous)
            if dialled is not None:
                return dialled
            if not trouble.again or attempt + 1 == DIAL_ATTEMPTS:
                break
            await anyio.sleep(DIAL_PAUSE * (1 << attempt) * (1 + self._entropy(1)[0] / 255))
            record = await self._locators.refresh(node, anonymous=anonymous)
        raise trouble.error

    # --- what to try

    def _prepare(self, record: LocatorRecord, attempt: int, tokens: dict[str, bytes] | None) -> list[_Run]:
        """The networks that lead there, best first, each with its locators in the order of the record."""
        found: dict[Transport, list[NodeLocator]] = {each: [] for each in self._layer.transports}
        for locator in record.locators:
            carrier = self._layer.carrier(locator)
            if carrier is None or locator in found[carrier]:
                continue
            if len(found[carrier]) < MAX_TRIED:
                found[carrier].append(locator)
        runs = [
            self._make_run(transport, locators, attempt, tokens)
            for transport, locators in found.items()
            if locators
        ]
        ranked = self._book.rank(record.identifier, [run.way for run in runs], anyio.current_time())
        return sorted(runs, key=lambda run: ranked.index(run.way))

    def _make_run(
        self,
        transport: Transport,
        locators: list[NodeLocator],
        attempt: int,
        tokens: dict[str, bytes] | None,
    ) -> _Run:
        properties, name = transport.properties, transport.name
        isolated = tokens is not None and properties.isolation_delay > 0
        delay = properties.isolation_delay if isolated else 0.0

        def isolation() -> bytes:
            if not properties.isolation_delay:
                return self._entropy(16)  # none is tried twice, and none links two nodes
            if tokens is None:
                return b""
            if name not in tokens:
                tokens[name] = self._entropy(16)
            return tokens[name]

        return _Run(
            transport,
            Way(
                name,
                ready=transport.status.state == "ready",
                seconds=USUAL_ROUND_TRIPS * properties.round_trip + delay,
                isolated=isolated,
            ),
            locators,
            isolation,
            _patience(properties, attempt) + delay,
        )

    # --- the race

    async def _race(
        self, record: LocatorRecord, runs: list[_Run], trouble: _Trouble, *, anonymous: bool
    ) -> Dialled | None:
        """Start one network after another until a channel is open; None if all failed."""
        winners: list[Dialled] = []
        self._runs.update(runs)
        try:
            async with anyio.create_task_group() as group:

                async def compete(run: _Run) -> None:
                    dialled = await self._try_network(record, run, trouble, anonymous=anonymous)
                    if dialled is None:
                        return
                    if winners:
                        await dialled.channel.aclose()
                        return
                    winners.append(dialled)
                    self._note_winner(record.identifier, run, runs)
                    group.cancel_scope.cancel()

                for run in runs:
                    run.began = anyio.current_time()
                    group.start_soon(compete, run)
                    with anyio.move_on_after(self._book.head_start(run.way)):
                        await run.hurry.wait()
        except BaseException:  # cancelled in the moment in which it was won: nobody else knows of the channel
            with anyio.CancelScope(shield=True):
                for dialled in winners:
                    await dialled.channel.aclose()
            for run in runs:  # or by the deadline, whose error tells what was in the way
                if run.began is not None and not run.over:
                    trouble.note(self._too_late(run))
            raise
        finally:
            self._runs.difference_update(runs)
        return winners[0] if winners else None

    async def _try_network(
        self, record: LocatorRecord, run: _Run, trouble: _Trouble, *, anonymous: bool
    ) -> Dialled | None:
        silent = False
        for locator in run.locators:
            try:
                with anyio.fail_after(run.patience):
                    channel = await call(
                        self._connect(locator, run.isolation()),
                        locator,
                        run.transport.properties,
                        secret=None if anonymous else self._secret,
                        responder=record.public,
                        hello=b"" if anonymous else self._locators.own.encoded,
                        entropy=self._entropy,
                        limits=self._anonymous_limits if anonymous else self._limits,
                    )
                return Dialled(channel, run.way.network, locator)
            except TimeoutError:
                failure = self._too_late(run)
                trouble.again = True  # on another path, or when the transport is back
            except OverlayError as error:
                failure = error
            trouble.note(failure)
            silent = silent or not isinstance(failure, TransportUnavailableError)
        if silent:  # also where it is in doubt whose fault that was: another network is the better choice
            self._book.failed(record.identifier, run.way.network, anyio.current_time())
        run.over = True
        run.hurry.set()
        return None

    def _connect(self, locator: NodeLocator, isolation: bytes) -> Connect:
        async def connect(first: bytes) -> Connection:
            return await self._layer.connect(locator, isolation=isolation, first=first)

        return connect

    def _too_late(self, run: _Run) -> OverlayError:
        """Why nobody waits any longer for a network, as far as can be told: its transport did not say."""
        name = run.way.network
        if run.transport.status.state != "ready":
            return TransportUnavailableError(f"{name} is not ready: {run.transport.status.detail}")
        if not self._book.proven(name):
            nor = f"the other node was not reached in time, nor lately anybody over {name}"
            return InconclusiveError(f"{nor}: try again in a moment")
        return UnreachableError(_TOO_LATE)

    def _note_winner(self, node: NodeIdentifier, winner: _Run, runs: list[_Run]) -> None:
        now = anyio.current_time()
        if winner.began is not None:
            self._book.answered(node, winner.way, now - winner.began, now)
        for run in runs:
            if run is not winner and run.began is not None and not run.over:
                self._book.outrun(node, run.way.network, now)

    def _hear(self, transport: Transport, status: TransportStatus) -> None:
        """Nobody waits any longer for a network whose transport has stopped to work."""
        if status.state != "ready":
            self._book.stopped(transport.name)
            for run in self._runs:
                if run.transport is transport:
                    run.hurry.set()


def _patience(properties: Properties, attempt: int) -> float:
    """Seconds that one attempt to open a channel may take."""
    first = max(LEAST_PATIENCE, DIAL_ROUND_TRIPS * properties.round_trip)
    return min(properties.dial_timeout, first * (1 << attempt))
