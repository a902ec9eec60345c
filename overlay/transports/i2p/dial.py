"""One dial: through which session it goes, and what is in its way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import anyio

from overlay.connection import Connection, Properties
from overlay.errors import OverlayError, TransportUnavailableError, UnreachableError
from overlay.identity import Entropy
from overlay.locators import NodeLocator
from overlay.transports.i2p.hearing import Hearing
from overlay.transports.i2p.isolation import IsolationPool, Token
from overlay.transports.i2p.protocol import Retry
from overlay.transports.i2p.session import SamRefusal, StreamSession
from overlay.transports.i2p.silence import Silence
from overlay.transports.i2p.streams import DialledConnection

MAX_PAUSE = 16.0
"""Seconds between two dials at most; a lookup in the network takes ten."""

ANSWER_ROUND_TRIPS = 2
"""Round trips within which a stream that is closed again proves nothing of the peer's silence, and after
which a router has sent what a closed stream was given."""


@dataclass(frozen=True)
class Online:
    """All that depends on a router that is there.

    Attributes:
        session: the node's own, where callers reach it.
        pool: those that are dialled from.
        silence: of these sessions. New ones remember no lease set, and are not to blame for old streams.
        hearing: over these sessions.
    """

    session: StreamSession
    pool: IsolationPool
    silence: Silence
    hearing: Hearing


@dataclass
class Dial:
    """What is dialled, and what stands in its way so far.

    Attributes:
        locator: the destination.
        isolation: the token; empty for dials that may be linked.
        waiting: the error of what is being waited for.
        refused: what the last attempt failed for; it says more.
    """

    locator: NodeLocator
    isolation: bytes
    waiting: OverlayError
    refused: OverlayError | None = None

    @property
    def why(self) -> OverlayError:
        """For the caller, when time is up."""
        return self.refused or self.waiting

    async def once(self, online: Online, properties: Properties) -> Connection:
        """Dial once; there is no limit of time but the router's own.

        Args:
            online: what to dial with.
            properties: of the transport.

        Returns:
            a connection of which nothing is known but that the router would send something.

        Raises:
            SamRefusal: the router says no; the session, if it was to blame, is lost by now.
            TransportUnavailableError: the router was lost, or the session could not be had.
            Cancelled, it leaves no socket behind.
        """
        detour = online.silence.detour(self.isolation, self.locator, anyio.current_time())

        def judge(answered: bool) -> None:  # noqa: FBT001 - what a Verdict is told
            now = anyio.current_time()
            online.silence.note(self.isolation, self.locator, detour, answered=answered, now=now)
            if not answered:
                online.hearing.in_vain(self.locator, now)

        with ExitStack() as stack:
            session = await self._session(online, detour, stack)
            self.waiting = UnreachableError("the I2P router did not find the destination in time; try again")
            try:
                stream = await session.connect(self.locator)
            except SamRefusal as refusal:
                if isinstance(refusal.error, UnreachableError):
                    online.hearing.in_vain(self.locator, anyio.current_time())
                if refusal.rule is Retry.NEW_SESSION:
                    await session.give_up()
                    await session.lost.wait()
                raise
            return DialledConnection(
                stream,
                locator=self.locator,
                properties=properties,
                heard=online.hearing.heard,
                verdict=judge,
                release=stack.pop_all().close,
                patience=ANSWER_ROUND_TRIPS * properties.round_trip,
            )

    async def _session(self, online: Online, detour: int, stack: ExitStack) -> StreamSession:
        """Find the session, which `stack` gives back.

        Raises:
            TransportUnavailableError: it could not be had.
        """
        self.waiting = TransportUnavailableError(
            "the I2P router did not make a session for this dial in time; try again"
        )
        lease = await online.pool.acquire(Token(self.isolation, detour))
        stack.callback(lease.release)
        return lease.session


def pauses(round_trip: float, entropy: Entropy) -> Iterator[float]:
    """Give the seconds between dials: from a quarter of a round trip, each about twice the one before."""
    pause = round_trip / 4
    while True:
        yield pause * (0.75 + entropy(1)[0] / 510)
        pause = min(2 * pause, MAX_PAUSE)
