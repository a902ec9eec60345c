"""Nodes that are asked for ahead: while the root that names them is on its way over another circuit.

So the first leaf can be asked for one round trip sooner. The engine of the transfer knows nothing of it: a
node that did not come with its root is asked for as usual, and what came and is none is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from overlay.files.sink import ChunkTree
from overlay.peer.chunks import MAX_UNFOLDED

PATIENCE = 0.25
"""Seconds that a root that came waits for nodes that did not: asking again costs twice as much over Tor."""


class Ahead:
    """What is asked for ahead in one transfer.

    Args:
        tree: says which root is waited for.
    """

    def __init__(self, tree: ChunkTree) -> None:
        self._tree = tree
        self._circuits = 0
        self._pending = 0
        self._answered = anyio.Event()
        self._came: list[bytes] = []

    def choose(self) -> tuple[bytes, int] | None:
        """Choose what a circuit is asked for that has just been opened.

        Returns:
            a root and the number of a node beneath it; None when there is nothing to ask for ahead. The first
            circuit is left to the engine, which asks for the root.
        """
        root = next(iter(self._tree.wanted(1)), None)
        if root is None or not self._tree.unfolds(root):
            return None
        number, self._circuits = self._circuits, self._circuits + 1
        return (root, number) if 0 < number < MAX_UNFOLDED else None

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Note that something is asked for, in the block."""
        self._pending += 1
        try:
            yield
        finally:
            self._pending -= 1
            if not self._pending:
                self._answered.set()
                self._answered = anyio.Event()

    async def wait(self, reference: bytes) -> None:
        """Before a root is taken, wait a moment for the nodes that were asked for before it came."""
        if self._pending and self._tree.unfolds(reference):
            with anyio.move_on_after(PATIENCE):
                await self._answered.wait()

    def keep(self, chunk: bytes) -> None:
        """Keep what came, until its root is here."""
        self._came.append(chunk)

    def take(self) -> list[bytes]:
        """Hand out what came; to be called when a root was taken, and when something comes after it."""
        came, self._came = self._came, []
        return came
