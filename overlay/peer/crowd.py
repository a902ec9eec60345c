"""How many channels may be open at once, and which one goes when there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio

from overlay.identity import NodeIdentifier

MAX_OF_NODE = 6
"""Channels that a node has without being taken for one that crowds others out: a lane each, twice where a
network has died and this side does not know yet."""


class Crowd:
    """A bounded number of channels; one more, and one is closed.

    Args:
        limit: channels at once.
        score: the reputation of a node.
    """

    def __init__(self, limit: int, score: Callable[[NodeIdentifier], float]) -> None:
        self._limit = limit
        self._score = score
        # What ends each, and whose it is, in the order of their beginning; None for who stays anonymous.
        self._present: dict[anyio.CancelScope, NodeIdentifier | None] = {}

    @contextmanager
    def place(self, node: NodeIdentifier | None) -> Iterator[None]:
        """Take a place for the length of a block, which may be cancelled when another comes."""
        with anyio.CancelScope() as scope:
            self._present[scope] = node
            if len(self._present) > self._limit:
                self._drop_least()
            try:
                yield
            finally:
                self._present.pop(scope, None)

    def _drop_least(self) -> None:
        """Close one: of a node that has too many, else of the worst reputation, the oldest of equal ones.

        New identifiers cost nothing, so however many there are, they push out each other and no old friend.
        """
        counts = Counter(self._present.values())
        # Each node's once: it sinks as time passes, which would put the last one asked for at a disadvantage.
        scores = {node: self._score(node) for node in counts if node is not None}

        def worth(scope: anyio.CancelScope) -> tuple[int, float]:
            node = self._present[scope]
            if node is None:
                return 0, 0.0
            return min(0, MAX_OF_NODE - counts[node]), scores[node]

        least = min(self._present, key=worth)
        del self._present[least]
        least.cancel()
