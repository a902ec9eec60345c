"""The driver of rate limits: holds up whoever sends or takes more than a limit allows."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager

import anyio

from overlay.peer.bucket import Bucket, check_rate


class Limiter:
    """A limit that tasks share; without a rate it costs nothing.

    Owners pass in turn, one amount each, so that each has an equal part however many tasks it has. The tasks
    of one owner pass in the order in which they come.

    Args:
        rate: bytes per second; None is no limit.

    Raises:
        MalformedError: the rate can be no limit.
    """

    def __init__(self, rate: int | None = None) -> None:
        # The first change is made before anything passes, so that an event loop is needed only then.
        self._bucket = Bucket(None if rate is None else check_rate(rate), float("-inf"))
        self._turns = _Turns()
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

    async def pass_on(
        self, amount: int, owner: Hashable = None, send: Callable[[], bool] = lambda: True
    ) -> bool:
        """Wait until `amount` bytes may pass, and have them sent. Cancelled, they have not passed.

        Args:
            amount: bytes.
            owner: with whose tasks this one shares.
            send: sends them and tells whether it could; if not, or if it raises, they have not passed.

        Returns:
            what `send` does.
        """
        if self.rate is None:
            return send()
        async with self._turns.take(owner):
            while (free_at := self._bucket.free_at(anyio.current_time())) > anyio.current_time():
                with anyio.CancelScope(deadline=free_at):
                    await self._changed.wait()
            if not send():
                return False
            self._bucket.take(amount, anyio.current_time())
            return True


class _Turns:
    """One task at a time: of the owners in turn, and of each in the order in which its tasks came."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: dict[Hashable, deque[anyio.Event]] = {}

    @asynccontextmanager
    async def take(self, owner: Hashable) -> AsyncIterator[None]:
        turn = anyio.Event()
        self._waiting.setdefault(owner, deque()).append(turn)
        if not self._taken:
            self._hand_on()
        try:
            await turn.wait()
            yield
        finally:
            if turn.is_set():
                self._put_last(owner)
                self._hand_on()
            else:
                self._forget(owner, turn)

    def _put_last(self, owner: Hashable) -> None:
        """Put an owner behind the others, those included who came while it had its turn."""
        if owner in self._waiting:
            self._waiting[owner] = self._waiting.pop(owner)

    def _hand_on(self) -> None:
        self._taken = bool(self._waiting)
        if self._taken:
            owner, queue = next(iter(self._waiting.items()))
            queue.popleft().set()
            if not queue:
                del self._waiting[owner]

    def _forget(self, owner: Hashable, turn: anyio.Event) -> None:
        queue = self._waiting[owner]
        queue.remove(turn)
        if not queue:
            del self._waiting[owner]
