"""Several files that are fetched in one transfer, so that many small ones cost no round trips of their own.

The engine of a transfer sees one content: which chunks are wanted, how much is missing. Files come and go
behind that, a few at a time; each is a `Target` that is verified, written and finished by itself.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import anyio

from overlay.errors import MalformedError
from overlay.files.fetching.bell import Bell
from overlay.files.fetching.sink import Part


class Bundle:
    """The files of one transfer; a `Sink`, and what names its chunks.

    Args:
        block_size: bytes of each chunk of all files.
        size: bytes that all files lack together.

    Attributes:
        block_size: as given.
        bell: rung when a file came or went.
        begun: set when the first file came that lacks anything, or no file is to come any more.
    """

    def __init__(self, block_size: int, size: int) -> None:
        self.block_size = block_size
        self.bell = Bell()
        self.begun = anyio.Event()
        self._to_come = size
        self._announced: dict[Path, int] = {}
        self._ended = False
        self._open: dict[Part, anyio.Event] = {}
        self._written: dict[Part, None] = {}  # those to flush, in order
        self._given_up: set[Part] = set()

    @property
    def tree(self) -> Bundle:
        """What names the chunks: the bundle itself."""
        return self

    @property
    def finished(self) -> bool:
        """Whether no file lacks anything, and none is to come."""
        return self._ended and not self._announced and all(target.tree.finished for target in self._open)

    @property
    def missing(self) -> int:
        """Bytes still to come, those of files that are not open included."""
        return max(0, self._to_come) + self._lacking  # a file may get lost after it was counted

    @property
    def begun_bytes(self) -> int:
        """Bytes that those files lack that were announced, as far as that is known."""
        return self._lacking + sum(self._announced.values())

    @property
    def _lacking(self) -> int:
        return sum(target.tree.missing or 0 for target in self._open)

    def wanted(self, limit: int, asked: Container[bytes] = ()) -> list[bytes]:
        """Name the chunks that are needed next, those of the file that came first before others."""
        found: dict[bytes, None] = {}
        for target in self._open:
            if len(found) >= limit:
                break
            found |= dict.fromkeys(target.tree.wanted(limit - len(found), asked))
        return list(found)

    def unfolds(self, reference: bytes) -> bool:
        """Whether this is the root of a file, above further nodes."""
        return any(target.tree.unfolds(reference) for target in self._open)

    def take(self, reference: bytes, data: bytes) -> int:
        """Give a chunk to every file that lacks it; see `Target.take`.

        Raises:
            VerificationError: it does not fit its reference.
            MalformedError: a file of the folder is no content.
        """
        taken = 0
        for target in [each for each in self._open if each.tree.places(reference)]:
            try:
                taken += target.take(reference, data)
            except MalformedError as error:
                raise MalformedError(f"{target.path} cannot be had: {error}") from error
            self._written[target] = None
            self._look(target)
        return taken

    async def flush(self) -> None:
        """Write what was taken; see `Target.flush`.

        Raises:
            StorageError, MalformedError: those of a target.
        """
        while self._written:
            target = next(iter(self._written))
            del self._written[target]
            try:
                await target.flush()
            except BaseException:  # cancelled too: the next call goes on with it
                if target in self._open:
                    self._written[target] = None
                raise
            self._look(target)

    @property
    def lacking(self) -> list[Part]:
        """The files that are open and lack something."""
        return [target for target in self._open if not target.tree.finished]

    def look(self, target: Part) -> None:
        """Notice that something else than the transfer may have brought what a file lacked."""
        self._look(target)

    def give_up(self, target: Part) -> None:
        """Let a file go that cannot be had."""
        if target in self._open:  # whoever brought it may have ended meanwhile
            self._given_up.add(target)
            self._open[target].set()

    def announce(self, path: Path, size: int) -> None:
        """Say that a file will be there to be brought, which lacks `size` bytes at most."""
        self._announced[path] = size

    async def bring(self, target: Part) -> bool:
        """Let the transfer bring a file that was announced, and wait until nothing of it is missing.

        Returns:
            whether that is so; False if it was given up.
        """
        self._to_come -= self._announced.pop(target.path)
        event = self._open[target] = anyio.Event()
        self._look(target)
        self._begin()
        try:
            await event.wait()
        finally:
            del self._open[target]
            self._written.pop(target, None)
            self.bell.ring()
        return target not in self._given_up

    def end(self) -> None:
        """Say that no further file comes."""
        self._ended = True
        self._begin()

    def _begin(self) -> None:
        if (self._ended and not self._announced) or not all(it.tree.finished for it in self._open):
            self.begun.set()
        self.bell.ring()

    def _look(self, target: Part) -> None:
        if target.tree.finished and target in self._open:
            self._open[target].set()
