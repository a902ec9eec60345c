"""A file that is there already, compared with what a folder should have in its place.

That it has the same size and time says little: both are the choice of whoever shares, and a version number
keeps its length. So its leaves are encrypted, and must have the references that its tree has. Of the tree the
nodes are fetched, 1/16 of a file of less than 16 KiB and 1/512 of a large one, in whole chunks; a file of one
chunk has none. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anyio
from anyio import to_thread

from overlay.errors import StorageError
from overlay.files.disk.partial import holds_leaf
from overlay.files.disk.target import EXAMINED_AT_ONCE
from overlay.units.capability import ReadCapability
from overlay.units.tree import Place, TreeReader


class Standing:
    """A file while it is compared; a `Part`, to which no leaf ever comes.

    Args:
        path: where it is, for errors.
        handle: of the file; closing it is the caller's matter.
        capability: of what should be there.
        size: bytes of that.

    Attributes:
        path: as given.
        tree: which nodes are wanted, and how much was looked at.
        differs: whether something else is there. Then the rest is not looked at any more.
    """

    def __init__(self, path: Path, handle: int, capability: ReadCapability, size: int) -> None:
        self.path = path
        self.tree = TreeReader(capability, size=size, resume=True)
        self.differs = False
        self._handle = handle
        self._size = size
        self._turn = anyio.Lock()

    def take(self, reference: bytes, data: bytes) -> int:
        """Take a node; see `Sink.take`.

        Raises:
            VerificationError, MalformedError: see `TreeReader.receive`.
        """
        self.tree.receive(reference, data)
        return 0

    async def flush(self) -> None:
        """Compare what the tree has opened; see `Sink.flush`.

        Raises:
            StorageError: the file cannot be read.
        """
        async with self._turn:
            while places := self.tree.planned(EXAMINED_AT_ONCE):
                self.differs = not await to_thread.run_sync(self._compare, places) or self.differs
                for place in places:
                    self.tree.settle(place, held=not place.level)

    def _compare(self, places: Sequence[Place]) -> bool:
        try:
            return self.differs or all(
                place.level or holds_leaf(self._handle, place, self.tree.block_size, self._size)
                for place in places
            )
        except OSError as error:
            raise StorageError(f"{self.path} cannot be read: {error.strerror}") from error
