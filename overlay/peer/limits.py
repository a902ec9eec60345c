"""The driver of rate limits: holds up whoever sends or takes more than a limit allows."""

from __future__ import annotations

import anyio

from overlay.peer.bucket import Bucket, check_rate


class Limiter:
    """A limit that tasks share, in the order in which they come; without a rate it costs nothing.

    Args:
        rate: bytes per second; None is no limit.

    Raises:
        MalformedError: the rate can be no limit.
    """

    def __init__(self, rate: int | None = None) -> None:
        # The first change is made before anything passes, so that an event loop is needed only then.
        self._bucket = Bucket(None if rate is None else check_rate(rate), float("-inf"))
        self._turn = anyio.Lock()
        self._changed = anyio.Event()

    @property
    def rate(self) -> int | None:
        """Bytes per second; None is no limit."""
        return self._bucket.rate

    def change(self, rate: int | None) -> None:
        """Set another limit, also for those who wait already.

        Raises:
            MalformedError: the rate can be no limit; the old one holds on.
        """
        self._bucket.change(None if rate is None else check_rate(rate), anyio.current_time())
        self._changed.set()
        self._changed = anyio.Event()

    async def pass_on(self, amount: int) -> None:
        """Wait until `amount` bytes may pass. Cancelled, they have not passed."""
        if self.rate is None:
            return
        async with self._turn:
            while (free_at := self._bucket.free_at(anyio.current_time())) > anyio.current_time():
                with anyio.CancelScope(deadline=free_at):
                    await self._changed.wait()
            self._bucket.take(amount, anyio.current_time())
