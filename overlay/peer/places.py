"""A bounded number of transfers at once, shared out among those who ask for them."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio

from overlay.errors import RefusedError

STILL_SECONDS = 5.0
"""Seconds for which a transfer may wait for its caller while somebody waits for its place. An honest caller
over Tor takes a second; and who holds every place for nothing keeps others out no longer than this."""


class Place:
    """A place that was taken or is waited for. Made by `Places`.

    Attributes:
        owner: whose it is.
        scope: ends the transfer.
        given: set once it is taken.
        still: whether the transfer waits for its caller.
        since: from when on.
        waited: seconds for which it did so before.
    """

    def __init__(self, places: Places, owner: Hashable) -> None:
        self.owner = owner
        self.scope = anyio.CancelScope()
        self.given = anyio.Event()
        self.still = False
        self.since = 0.0
        self.waited = 0.0
        self._places = places

    @property
    def ends_at(self) -> float:
        """When a transfer that stands still is ended, if somebody else needs its place."""
        return self.since + min(STILL_SECONDS, self._places.whole - self.waited)

    @property
    def wanted(self) -> bool:
        """Whether somebody waits who has a better claim; also somebody else of the same owner has."""
        return self._places.wants(self)

    def moved(self, seconds: float) -> None:
        """Give back some of the time that the transfer may wait for its caller in all: it got on."""
        self.waited = max(0.0, self.waited - seconds)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Say that the transfer waits for its caller for the length of a block; it may be ended in it."""
        self.still, self.since = True, anyio.current_time()
        self._places.press()
        try:
            yield
        finally:
            self.still, self.scope.deadline = False, math.inf
            self.waited += anyio.current_time() - self.since
            self._places.press()


class Places:
    """Places for transfers. Where all are taken, newcomers wait, and those with the fewest places come first.

    So who asks for much competes with itself first. A transfer that moves is never ended for another. One
    that stands still is: else a few callers who take nothing, which costs nothing, would keep everybody out;
    or who take or bring a little now and then, where `whole` bounds that.

    Args:
        limit: how many there are.
        each: how many of them one owner has at most.
        patience: seconds for which a newcomer waits.
        whole: seconds for which a transfer may wait for its caller in all while somebody waits for its place.
            Needed where it keeps the place to its end; less than `patience`, or who waits gains nothing.

    Attributes:
        whole: as given.
    """

    def __init__(self, limit: int, *, each: int, patience: float, whole: float = math.inf) -> None:
        self.whole = whole
        self._limit = limit
        self._each = each
        self._patience = patience
        self._held: dict[Place, None] = {}  # a set that keeps the order in which they were taken
        self._counts: Counter[Hashable] = Counter()
        self._waiting: dict[Hashable, deque[Place]] = {}
        self._pressing = False

    @asynccontextmanager
    async def take(self, owner: Hashable) -> AsyncIterator[Place]:
        """Have a place for the length of a block, which is ended when it stands still and others wait.

        Args:
            owner: who competes with itself first.

        Raises:
            RefusedError: none became free in time, or this one was given to somebody else meanwhile.
        """
        place = Place(self, owner)
        try:
            if not self._has_room_for(owner):
                await self._wait(place)
            else:
                self._give(place)
            with place.scope:
                yield place
        finally:
            self._let_go(place)
        if place.scope.cancelled_caught:
            raise RefusedError("this node is busy with transfers that move: try again later")

    def wants(self, place: Place) -> bool:
        """Tell whether it would be fair to leave a place now, and to come back for another."""
        return any(
            owner == place.owner or (self._full and self._counts[owner] < self._counts[place.owner])
            for owner in self._waiting
        )

    def press(self) -> None:
        """Let as many of those that stand still go as others need: first whose time is over first.

        Only owners with fewer places press: else what waits of one would end what stands still of the same.
        Called whenever somebody begins or ends to wait or to stand still.
        """
        if not (self._waiting or self._pressing):
            return
        least, wanted = self._needed()
        still = sorted((place for place in self._held if place.still), key=lambda place: place.ends_at)
        for place in still:
            pressed = wanted > 0 and self._counts[place.owner] > least and not place.scope.cancel_called
            place.scope.deadline = place.ends_at if pressed else math.inf
            wanted -= pressed
        self._pressing = bool(self._waiting)

    def _needed(self) -> tuple[int, int]:
        """Give the fewest places of an owner who waits, and how many places owners with so few need."""
        if not self._full or not self._waiting:
            return 0, 0
        counts = [self._counts[owner] for owner in self._waiting]
        ending = sum(place.scope.cancel_called for place in self._held)
        return min(counts), counts.count(min(counts)) - ending

    @property
    def _full(self) -> bool:
        return len(self._held) >= self._limit

    def _may_have_more(self, owner: Hashable) -> bool:
        return self._counts[owner] < self._each

    def _has_room_for(self, owner: Hashable) -> bool:
        return not self._full and self._may_have_more(owner)

    def _give(self, place: Place) -> None:
        self._held[place] = None
        self._counts[place.owner] += 1
        place.given.set()

    async def _wait(self, place: Place) -> None:
        self._waiting.setdefault(place.owner, deque()).append(place)
        self.press()
        with anyio.move_on_after(self._patience):
            await place.given.wait()
        if not place.given.is_set():
            raise RefusedError("this node is busy with other transfers: try again later")

    def _let_go(self, place: Place) -> None:
        if place in self._held:
            del self._held[place]
            self._counts[place.owner] -= 1
            self._counts += Counter()  # forgets who has none
            self._put_last(place.owner)
        else:
            self._leave_queue(place)
        if self._waiting:
            self._hand_on()
            self.press()

    def _put_last(self, owner: Hashable) -> None:
        """Put what waits of an owner who just had a place behind those who have waited meanwhile."""
        if owner in self._waiting:
            self._waiting[owner] = self._waiting.pop(owner)

    def _leave_queue(self, place: Place) -> None:
        queue = self._waiting.get(place.owner)
        if queue is not None and place in queue:
            queue.remove(place)
            if not queue:
                del self._waiting[place.owner]
        if not self._waiting:
            self.press()

    def _hand_on(self) -> None:
        """Give what is free to those who wait: to the owner with the fewest places, of equal ones in turn."""
        while owners := [owner for owner in self._waiting if self._has_room_for(owner)]:
            owner = min(owners, key=self._counts.__getitem__)
            queue = self._waiting.pop(owner)
            self._give(queue.popleft())
            if queue:
                self._waiting[owner] = queue  # behind the others
