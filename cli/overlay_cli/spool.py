"""What comes on stdin, as a file that the node can read."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from overlay.errors import MalformedError, StorageError

MAX_STDIN_BYTES = 16 << 30
"""Bytes that stdin may have: 16 GiB, for which there must be room on the home's disk."""

_PREFIX = "stdin-"
_PIECE_BYTES = 1 << 20


@contextmanager
def spooled_stdin(folder: Path) -> Iterator[Path]:
    """Copy stdin into a file of this user alone, for the length of a block; then it is gone.

    What a command left that was killed is removed by the next one.

    Args:
        folder: where the file will be: nobody else may enter it.

    Raises:
        MalformedError: stdin is closed, or longer than `MAX_STDIN_BYTES`.
        StorageError: the disk is full or fails.
    """
    if sys.stdin is None:  # whoever started the command closed it
        raise MalformedError("stdin is closed: give the file as PATH, or something to read it from")
    with ExitStack() as stack:
        try:
            file = stack.enter_context(_make(folder))
            _copy(sys.stdin.buffer, file)
        except OSError as error:
            raise StorageError(f"what comes on stdin cannot be kept in {folder}: {error.strerror}") from error
        yield Path(file.name)


def _make(folder: Path) -> tempfile._TemporaryFileWrapper[bytes]:
    """Make a file that is locked as long as it is open; what others have left is removed first."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # so that nobody takes this one for left, before it is locked
        for path in folder.glob(_PREFIX + "*"):
            _remove_left(path)
        file = tempfile.NamedTemporaryFile(dir=folder, prefix=_PREFIX)  # noqa: SIM115 - the caller closes it
        fcntl.flock(file, fcntl.LOCK_EX)
        return file
    finally:
        os.close(handle)


def _remove_left(path: Path) -> None:
    with suppress(BlockingIOError), path.open("rb") as file:  # somebody uses it
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)


def _copy(source: BinaryIO, file: tempfile._TemporaryFileWrapper[bytes]) -> None:
    left = MAX_STDIN_BYTES
    while left >= 0 and (piece := source.read(min(_PIECE_BYTES, left + 1))):
        file.write(piece)
        left -= len(piece)
    if left < 0:
        raise MalformedError(
            f"stdin has more than {MAX_STDIN_BYTES >> 30} GiB: write it to a file, and give that as PATH"
        )
    file.flush()
