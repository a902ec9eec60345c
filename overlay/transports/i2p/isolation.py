"""Sessions to dial from, each with a destination that lives no longer than it does.

Dials without a token share one. It is not the node's own: whoever knew that one before this node was started
again sends its answers to tunnels that are gone, for more than a minute, and knows nothing of a new one. Each
token has another, because dials with different tokens must not be linked. Tokens take no room from dials
without one, which the node cannot do without.

A session costs the router ten tunnels and takes 20 s to make, so there are few of them, and while tokens are
being used one that nobody has used yet is kept ready. A used one is ended when it is needed no longer: those
that lived until the node stops would all vanish with the node's own, and be known by that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup

from overlay.errors import OverlayError, TransportUnavailableError
from overlay.transports.i2p.session import StreamSession

MAX_ISOLATED = 8
"""Sessions for tokens, the spare one included. Each keeps ten tunnels built, which other routers work for,
and a router takes half a MiB for it. On top of these come the one without a token and its detours, of which
there are as many as `silence.MAX_DETOURS`."""

KEEP = 120.0
"""Seconds that a session is kept which no stream uses: within them a dial with its repetitions is over."""


class Token(NamedTuple):
    """What a session is for, and for ever.

    Attributes:
        isolation: the dialler's token.
        detour: how many sessions of this token were silent before; see `silence`.
    """

    isolation: bytes
    detour: int


WITHOUT_TOKEN = Token(b"", 0)
"""The session of this is made at the start, and kept."""

Make = Callable[[], AbstractAsyncContextManager[StreamSession]]
"""Gives a context manager that makes a session and ends it."""


class Lease:
    """The use of a session for one dial and for the stream that comes of it.

    Attributes:
        session: which.
    """

    def __init__(self, session: StreamSession, release: Callable[[], None]) -> None:
        self.session = session
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Say that the stream is closed, or that there is none; a second time it does nothing."""
        release, self._release = self._release, None
        if release is not None:
            release()


class _Place:
    """Room for one session, from when it is asked for until it has ended."""

    def __init__(self, token: Token | None) -> None:
        self.token = token
        self.users = 0
        self.lent = False
        self.used = -math.inf
        self.session: StreamSession | None = None
        self.failure: OverlayError | None = None
        self.settled = anyio.Event()
        self.idle = anyio.Event()
        self.scope = anyio.CancelScope()

    @property
    def counts(self) -> bool:
        """Whether it is one of those that the limit is for."""
        return self.token is None or bool(self.token.isolation)

    async def ready(self) -> StreamSession:
        """Wait until the session is made.

        Raises:
            TransportUnavailableError: it was not, or was lost again.
        """
        await self.settled.wait()
        if self.session is None:
            why = self.failure or "the router ended it"
            raise TransportUnavailableError(f"an I2P session of its own could not be had: {why}")
        return self.session

    def lend(self, session: StreamSession) -> Lease:
        self.lent = True
        return Lease(session, self.release)

    def release(self) -> None:
        self.users -= 1
        if not self.lent and not self.users and self.token != WITHOUT_TOKEN:
            self.token = None  # nothing was dialled from it, so it may serve for any other
            return
        self.used = anyio.current_time()
        self.idle.set()


class IsolationPool:
    """Sessions by token.

    Args:
        make: how sessions are made.
        tasks: in which the sessions live; cancelling it ends them all.
        rest: seconds that a session is kept after its last stream was closed, in which the router still sends
            what the stream was given.
        limit: sessions for tokens at most, 1 or more.
        keep: seconds after which a session that was used is ended, when it is used no more.

    Attributes:
        trouble: why the session without a token could not be made when it was last tried; empty if it was.
    """

    def __init__(
        self,
        make: Make,
        tasks: TaskGroup,
        *,
        rest: float,
        limit: int = MAX_ISOLATED,
        keep: float = KEEP,
    ) -> None:
        self.trouble = ""
        self._make = make
        self._tasks = tasks
        self._rest = rest
        self._limit = limit
        self._keep = keep
        self._places: list[_Place] = []  # that used last comes last

    def begin(self, make: Make) -> anyio.Event:
        """Have the session made that dials without a token come from.

        Args:
            make: how it is made this first time.

        Returns:
            what is set when it is made, or could not be.
        """
        return self._open(WITHOUT_TOKEN, make).settled

    async def acquire(self, token: Token) -> Lease:
        """Give the session of a token, and wait while it is being made.

        Raises:
            TransportUnavailableError: it could not be made, or all sessions are in use by other tokens.
            Cancelled, it leaves the session for others.
        """
        place = self._find(token)
        place.users += 1
        try:
            if token != WITHOUT_TOKEN:
                self._keep_spare()
            session = await place.ready()
            if token == WITHOUT_TOKEN:
                self.trouble = ""
            return place.lend(session)
        except BaseException:  # not made, or cancelled: either way this user is gone
            place.release()
            raise

    def _find(self, token: Token) -> _Place:
        for wanted in (token, None):
            for place in self._places:
                if place.token == wanted:
                    place.token = token
                    self._places.remove(place)
                    self._places.append(place)
                    return place
        if token.isolation and not self._make_room():
            raise TransportUnavailableError(
                f"all {self._limit} I2P sessions that this node may have are in use: close connections, or"
                " try again later"
            )
        return self._open(token, self._make)

    def _keep_spare(self) -> None:
        if all(place.token is not None for place in self._places) and self._make_room():
            self._open(None, self._make)

    def _make_room(self) -> bool:
        """End the session that has been idle for longest, where there is no room for another."""
        counted = [place for place in self._places if place.counts]
        if len(counted) < self._limit:
            return True
        for place in counted:
            if not place.users and anyio.current_time() >= place.used + self._rest:
                self._places.remove(place)
                place.scope.cancel()
                return True
        return False

    def _open(self, token: Token | None, make: Make) -> _Place:
        place = _Place(token)
        self._places.append(place)
        self._tasks.start_soon(self._run, place, make)
        return place

    async def _run(self, place: _Place, make: Make) -> None:
        try:
            with place.scope:
                async with make() as place.session, anyio.create_task_group() as group:
                    place.settled.set()
                    group.start_soon(self._end_unused, place)
                    await place.session.watch()
                    self._forget(place)  # at once, and not when its socket is closed
                    group.cancel_scope.cancel()
        except OverlayError as error:
            place.failure = error
            if place.token == WITHOUT_TOKEN:
                self.trouble = str(error)
        finally:
            self._forget(place)

    async def _end_unused(self, place: _Place) -> None:
        while True:
            await place.idle.wait()
            if place.token == WITHOUT_TOKEN:
                return
            place.idle = anyio.Event()
            await anyio.sleep_until(place.used + self._keep)
            if not place.users and anyio.current_time() >= place.used + self._keep:
                break
        self._forget(place)
        place.scope.cancel()

    def _forget(self, place: _Place) -> None:
        place.session = None
        place.settled.set()
        if place in self._places:
            self._places.remove(place)
