"""How fast one fetch may be: by its own limit, and by its part of the one that all of a node share."""

from __future__ import annotations

from collections.abc import Sized

from overlay.files.engine.transfer import MAX_OUTSTANDING
from overlay.peer.limits import Limiter

WAITING_SECONDS = 4.0
"""Seconds at most that a chunk waits here for its turn: below the silence after which a request has stalled,
and above any round trip, so that the limit is reached."""


class Pace:
    """What the driver of a fetch keeps to; without arguments there is no limit.

    Args:
        own: the fetch's own limit.
        shared: the node's, which `Chunks` keeps to.
        sharing: the fetches that share it, this one included.
    """

    def __init__(
        self, own: Limiter | None = None, shared: Limiter | None = None, sharing: Sized = ("this",)
    ) -> None:
        self._own = own or Limiter()
        self._shared = shared or Limiter()
        self._sharing = sharing

    @property
    def outstanding(self) -> int:
        """Bytes to ask for at once: what comes sooner than it may pass looks like a slow circuit."""
        rates = [rate for rate in (self._own.rate, self._part_of_shared()) if rate is not None]
        return min([MAX_OUTSTANDING, *(int(rate * WAITING_SECONDS) for rate in rates)])

    async def pass_on(self, amount: int) -> None:
        """Wait until `amount` bytes may pass."""
        await self._own.pass_on(amount)

    def _part_of_shared(self) -> float | None:
        rate = self._shared.rate
        return None if rate is None else rate / max(1, len(self._sharing))
