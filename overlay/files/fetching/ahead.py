"""Nodes that are asked for ahead: while the root that names them is on its way over another circuit.

So the first leaf can be asked for one round trip sooner. The engine of the transfer knows nothing of it: it
asks for the same nodes as soon as the root is here, and whichever answer comes first is taken. To wait a
moment for those that are on their way was tried: it cost more than the few chunks that come twice.
"""

from __future__ import annotations

from overlay.files.fetching.sink import ChunkTree
from overlay.peer.chunks import MAX_UNFOLDED


class Ahead:
    """What is asked for ahead in one transfer.

    Args:
        tree: says which root is waited for.
    """

    def __init__(self, tree: ChunkTree) -> None:
        self._tree = tree
        self._circuits = 0
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

    def keep(self, chunk: bytes) -> None:
        """Keep what came, until its root is here."""
        self._came.append(chunk)

    def take(self) -> list[bytes]:
        """Hand out what came; to be called when a root was taken, and when something comes after it."""
        came, self._came = self._came, []
        return came
