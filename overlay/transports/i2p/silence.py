"""Which peers have been silent to which session. Pure.

I2P says that a stream is open as soon as the router has a lease set of the destination, and believes it for
up to ten minutes, also when the destination's router was started again meanwhile and none of its tunnels
exists any more. Nothing comes of such a stream. Another session has no old lease set, and asks the network.
"""

from __future__ import annotations

from dataclasses import dataclass

from overlay.locators import NodeLocator

SILENT_STREAMS = 2
"""Streams in a row without one byte of an answer after which another session is tried. One can be an
accident: a broken tunnel, a peer that was just ending."""

LEASE_SET_SECONDS = 600.0
"""For which a lease set is valid, and with it an old one in a session's memory."""

MAX_DETOURS = 2
"""Further sessions that are tried for a peer while old lease sets live: one that is silent to those too is
not there, or wants sessions to be made. Each costs the router ten tunnels."""

MAX_SILENT = 1024
"""Peers that are remembered; more than a node dials within ten minutes."""


@dataclass
class _Peer:
    since: float
    silent: int = 0
    detour: int = 0


class Silence:
    """Counts the dialled streams on which nothing came."""

    def __init__(self) -> None:
        self._peers: dict[tuple[bytes, NodeLocator], _Peer] = {}

    def detour(self, isolation: bytes, locator: NodeLocator, now: float) -> int:
        """Tell how many sessions of a token a peer has been silent to; dials go through the next one."""
        peer = self._peers.get((isolation, locator))
        if peer is None or now - peer.since > LEASE_SET_SECONDS:
            return 0
        return peer.detour

    def note(
        self, isolation: bytes, locator: NodeLocator, detour: int, *, answered: bool, now: float
    ) -> None:
        """Take down how a stream went.

        Args:
            isolation: the dial's token.
            locator: the peer.
            detour: what `detour` said before the dial.
            answered: whether one byte came.
            now: on any clock that only goes forward, in seconds.
        """
        key = isolation, locator
        peer = self._peers.pop(key, None)
        if peer is None or now - peer.since > LEASE_SET_SECONDS:
            peer = _Peer(now)
        if peer.detour == detour:  # otherwise it was dialled before the peer was given up on
            peer.silent = 0 if answered else peer.silent + 1
        if peer.silent >= SILENT_STREAMS:
            peer = _Peer(now, detour=min(peer.detour + 1, MAX_DETOURS))
        if peer.silent or peer.detour:
            self._peers[key] = peer
        if len(self._peers) > MAX_SILENT:
            del self._peers[next(iter(self._peers))]
