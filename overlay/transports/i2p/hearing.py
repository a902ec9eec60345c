"""Whether a node hears anybody at all over its sessions, and when it may have them made anew. Pure.

A peer that is silent is one peer's matter, and `silence` finds the way around an old lease set. When all are
silent, what they have in common is to blame: the tunnels of this node. A router mends those by itself, so it
is given time; but that they are mended always is not known, and a node that is deaf does not get better by
waiting on.

Measured with i2pd 2.45.1, a router killed that tunnels of one and of three hops led through: streams paused
for 27 to 63 s and went on, and of new ones the last that failed did so after 21 to 81 s.
"""

from __future__ import annotations

import math

from overlay.locators import NodeLocator

DEAF_SECONDS = 120.0
"""For which all have to be silent: one and a half times what i2pd was seen to need to mend its tunnels."""

DEAF_PEERS = 2
"""Peers that have to be silent so long, each by itself: a single one may simply be gone. More would keep a
node deaf that knows few others; and two that are gone at once cost one session, and then pauses that grow."""

TUNNEL_SECONDS = 600.0
"""For which a tunnel lives: what was in vain longer ago than this went through none of the present ones."""

FIRST_PAUSE = 240.0
"""Seconds from the first time that sessions are made anew to the second, doubled each further time: they have
tunnels after 20 s or more, during which nobody reaches the node, and then the time to be found deaf."""

MAX_PAUSE = 3600.0
"""Seconds at most; after as many without need the pauses begin anew. Peers that are all gone cost a node
about one minute of each hour."""

MAX_SILENT = 1024
"""Peers that are remembered; more than a node dials within ten minutes."""


class Hearing:
    """What came, and what was in vain, over the sessions of one time; new ones have a new `Hearing`.

    Only streams that this node opened show that it is deaf, for only they are owed an answer: what is sent on
    an open connection need not be answered, and one that has broken is dialled again by whoever needs it.

    Attributes:
        count: how often something came.
    """

    def __init__(self) -> None:
        self.count = 0
        self._in_vain: dict[
            NodeLocator, tuple[float, float]
        ] = {}  # since something was heard: first and last

    def heard(self) -> None:
        """Take down that something came over the network, from whomever."""
        self.count += 1
        self._in_vain.clear()

    def in_vain(self, locator: NodeLocator, now: float) -> None:
        """Take down that a peer was not found, or that nothing came on a stream to it.

        Args:
            locator: the peer.
            now: on any clock that only goes forward, in seconds.
        """
        first, last = self._in_vain.pop(locator, (now, now))
        self._in_vain[locator] = (first if now - last <= TUNNEL_SECONDS else now), now
        if len(self._in_vain) > MAX_SILENT:
            del self._in_vain[next(iter(self._in_vain))]

    def deaf(self, now: float) -> bool:
        """Tell whether several peers have been dialled in vain for long, while nobody at all was heard."""
        silent = [
            last - first >= DEAF_SECONDS and now - last <= TUNNEL_SECONDS
            for first, last in self._in_vain.values()
        ]
        return sum(silent) >= DEAF_PEERS


class Rebuilds:
    """When the sessions of a deaf node may be made anew: at pauses that grow, in case that it is not they."""

    def __init__(self) -> None:
        self._next = -math.inf
        self._pause = FIRST_PAUSE

    def take(self, now: float) -> bool:
        """Tell whether they may be now; if so, it counts as done, and the next time is later."""
        if now < self._next:
            return False
        rested = now - self._next >= MAX_PAUSE
        self._pause = FIRST_PAUSE if rested else min(2 * self._pause, MAX_PAUSE)
        self._next = now + self._pause
        return True
