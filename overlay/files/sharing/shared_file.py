"""A shared file on the disk: encoded once without keeping what comes out, and its leaves made anew on demand.

Everything here waits for the disk, so it runs in worker threads. No descriptor is kept open from one call to
the next: opening costs a tenth of what one chunk does, and a file that is gone is noticed at once.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Self

from overlay.errors import NotFoundError, RefusedError
from overlay.files.sharing.records import Leaf, Place, Problem, Stamp
from overlay.units.capability import PAIR_BYTES
from overlay.units.eris import Chunk, Encoder, ReadCapability, choose_block_size, encode_leaf

STEP_BYTES = 8 << 20
"""Bytes that are encoded in one call: some hundredths of a second, which is how long cancelling takes."""
_PIECE_BYTES = 1 << 20
"""Bytes in memory at once, and as many again encrypted."""


@contextmanager
def opened(path: Path) -> Iterator[tuple[FileIO, Stamp]]:
    """Open a regular file, for the length of a block, and say how it looks.

    Raises:
        OSError: it is not there, cannot be read, or is a symbolic link.
        RefusedError: it is a folder, a pipe, a device.
    """
    with FileIO(path, opener=_open) as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise RefusedError(f"{path} is not a regular file")
        yield file, Stamp(state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def _open(path: str, flags: int) -> int:
    # The path was resolved when it was shared, so a link in its place is another file. A pipe would wait for
    # whoever writes to it.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def examine(path: Path, stamp: Stamp) -> Problem | None:
    """Say whether a file looks as it did when it was shared; its content is not read."""
    try:
        with opened(path) as (_, now):
            return None if now.looks_like(stamp) else "changed"
    except (OSError, RefusedError) as error:
        return _problem(error)


def locate(path: Path) -> tuple[Path, Stamp]:
    """Find the file that a path leads to, through any links.

    Raises:
        NotFoundError, RefusedError: see `FileEncoding.step`.
    """
    with _explained(path):
        target = Path(os.path.realpath(path, strict=True))
        with opened(target) as (_, stamp):
            return target, stamp


class FileEncoding:
    """Encodes one file, and gathers what is needed to make its chunks again.

    Args:
        path: a regular file.
        stamp: how it looks.
        secret: the convergence secret.

    Attributes:
        leaves: all leaves since the last `take`.
        nodes: the chunks of its tree, since the last `take`.
        position: bytes that were read.

    Raises:
        MalformedError: the secret has not 32 bytes.
    """

    def __init__(self, path: Path, stamp: Stamp, secret: bytes) -> None:
        block_size = choose_block_size(stamp.size)
        self._path = path
        self._stamp = stamp
        self._keys: deque[bytes] = deque()  # of the leaves that are not sorted yet
        self._encoder = Encoder(block_size, secret, self._keys.append)
        self._arity = block_size // PAIR_BYTES
        self._total = stamp.size // block_size + 1
        self._count = 0
        self._nodes_due = 0
        self.leaves: list[Leaf] = []
        self.nodes: list[Chunk] = []
        self.position = 0

    @property
    def read(self) -> bool:
        """Whether all content was read, so that `finish` is next."""
        return self.position == self._stamp.size

    def step(self) -> None:
        """Read and encode the next `STEP_BYTES`.

        Raises:
            NotFoundError: there is no such file.
            RefusedError: it is not a regular file, cannot be read, or is not as it was before.
        """
        with self._unchanged() as file:
            end = min(self.position + STEP_BYTES, self._stamp.size)
            while self.position < end:
                piece = os.pread(file.fileno(), min(_PIECE_BYTES, end - self.position), self.position)
                if not piece:
                    raise self._changed()
                self._sort(self._encoder.feed(piece))
                self.position += len(piece)

    def finish(self) -> ReadCapability:
        """End the content, after one more look at the file.

        Raises:
            NotFoundError, RefusedError: see `step`.
        """
        with self._unchanged():
            chunks, capability = self._encoder.finish()
        self._sort(chunks)
        return capability

    def take(self) -> tuple[list[Leaf], list[Chunk]]:
        """Hand over the leaves and nodes that were gathered, and begin anew."""
        taken = self.leaves, self.nodes
        self.leaves, self.nodes = [], []
        return taken

    @contextmanager
    def _unchanged(self) -> Iterator[FileIO]:
        with _explained(self._path), opened(self._path) as (file, now):
            if now != self._stamp:
                raise self._changed()
            yield file

    def _changed(self) -> RefusedError:
        return RefusedError(f"{self._path} changed while it was read: share it when nothing writes to it")

    def _sort(self, chunks: Sequence[Chunk]) -> None:
        """Tell leaves from nodes: a node follows the last of its children, and at the end come nodes only."""
        for chunk in chunks:
            if self._nodes_due or self._count == self._total:
                self.nodes.append(chunk)
                self._nodes_due = max(0, self._nodes_due - 1)
            else:
                self.leaves.append(Leaf(chunk.reference, self._count, self._keys.popleft()))
                self._count += 1
                self._nodes_due = self._closed_by(self._count)

    def _closed_by(self, count: int) -> int:
        """Count the nodes that are full when there are `count` leaves, and were not with one less."""
        closed = 0
        while count % self._arity == 0:
            count //= self._arity
            closed += 1
        return closed


class LeafReader:
    """Makes leaves from shared files, one file open at a time; a context manager that closes it.

    Attributes:
        verdicts: what was found out about each share that was read.
    """

    def __init__(self) -> None:
        self._current: int | None = None
        self._file: FileIO | None = None
        self._closing = ExitStack()
        self.verdicts: dict[int, Problem | None] = {}

    def __enter__(self) -> Self:
        """Use the reader for the length of a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file that is open."""
        self._closing.close()

    def read(self, reference: bytes, places: Sequence[Place]) -> bytes | None:
        """Make the chunk `reference` from the first of `places` that still has it."""
        for place in places:
            self._turn_to(place)
            if self._file is None:
                continue
            try:
                chunk = _make_leaf(self._file, place)
            except OSError as error:
                self.verdicts[place.share] = _problem(error)
                continue
            if chunk.reference == reference:
                return chunk.data
            self.verdicts[place.share] = "changed"
        return None

    def _turn_to(self, place: Place) -> None:
        if self._current == place.share:
            return
        self._closing.close()
        self._current, self._file = place.share, None
        try:
            file, stamp = self._closing.enter_context(opened(place.path))
        except (OSError, RefusedError) as error:
            self.verdicts[place.share] = _problem(error)
            return
        if not stamp.looks_like(place.stamp):
            self.verdicts[place.share] = "changed"
            return
        self.verdicts.setdefault(place.share, None)
        self._file = file


def _make_leaf(file: FileIO, place: Place) -> Chunk:
    """Encode one block, as it is now: who calls compares its reference."""
    start = place.number * place.block_size
    block = os.pread(file.fileno(), min(place.block_size, place.stamp.size - start), start)
    return encode_leaf(block, place.block_size, place.secret, key=place.key)


def _problem(error: OSError | RefusedError) -> Problem:
    is_other = isinstance(error, RefusedError | IsADirectoryError) or error.errno == errno.ELOOP
    return "changed" if is_other else "gone"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the system says of a file into this library's errors.

    Raises:
        NotFoundError: there is no such file.
        RefusedError: it is a folder, or cannot be read.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}") from error
    except IsADirectoryError as error:
        raise RefusedError(f"{path} is a folder, not a file") from error
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {error.strerror}") from error
