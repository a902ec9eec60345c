"""A bounded number of transfers at once, of which none can be kept from others by standing still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio

from overlay.errors import RefusedError


class Places:
    """Places for transfers. Where all are taken, the one that moved least recently gives way to the next.

    Waiting instead would let a few callers who take nothing, and cost them nothing, keep everybody out.

    Args:
        limit: how many there are.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._scopes: dict[int, anyio.CancelScope] = {}

    @contextmanager
    def take(self) -> Iterator[Callable[[], None]]:
        """Have a place for the length of a block, and call what this gives whenever the transfer moves.

        Raises:
            RefusedError: the place was given to somebody else meanwhile.
        """
        if len(self._scopes) >= self._limit:
            self._scopes.pop(next(iter(self._scopes))).cancel()
        scope = anyio.CancelScope()
        self._scopes[id(scope)] = scope

        def moved() -> None:
            if self._scopes.pop(id(scope), None) is not None:
                self._scopes[id(scope)] = scope

        try:
            with scope:
                yield moved
        finally:
            self._scopes.pop(id(scope), None)
        if scope.cancelled_caught:
            raise RefusedError("this node is busy with transfers that move: try again later")
