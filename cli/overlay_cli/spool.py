"""What comes on stdin, as a file that the node can read; what goes to stdout, as the node hands it on.

Both need room in the home for a while: a file or a folder of the user's own, locked as long as it is in use,
and removed by whoever comes next where a command was killed: the node that starts, or a command of these.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from overlay.errors import MalformedError, StorageError
from overlay_cli.signals import cleaning_up

MAX_STDIN_BYTES = 16 << 30
"""Bytes that stdin may have: 16 GiB, for which there must be room on the home's disk."""

_PREFIX, _FOLDER_PREFIX = "stdin-", "stdout-"
_PIECE_BYTES = 1 << 20


@contextmanager
def spooled_stdin(folder: Path) -> Iterator[Path]:
    """Copy stdin into a file of this user alone, for the length of a block; then it is gone.

    What a command left that was killed is removed first, as `remove_left` does.

    Args:
        folder: where the file will be: nobody else may enter it.

    Raises:
        MalformedError: stdin is closed, or longer than `MAX_STDIN_BYTES`.
        StorageError: the disk is full or fails.
    """
    if sys.stdin is None:  # whoever started the command closed it
        raise MalformedError("stdin is closed: give the file as PATH, or something to read it from")
    with cleaning_up(), ExitStack() as stack:
        try:
            file = stack.enter_context(_make(folder))
            _copy(sys.stdin.buffer, file)
        except OSError as error:
            raise StorageError(f"what comes on stdin cannot be kept in {folder}: {error.strerror}") from error
        yield Path(file.name)


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Make a folder of this user alone, for the length of a block; then it is gone, with all that is in it.

    What a command left that was killed is removed first, as `remove_left` does.

    Args:
        folder: where the folder will be: nobody else may enter it.

    Raises:
        StorageError: it cannot be made.
    """
    with cleaning_up():
        try:
            path, lock = _make_scratch(folder)
        except OSError as error:
            raise StorageError(f"what goes to stdout cannot be kept in {folder}: {error.strerror}") from error
        try:
            yield path
        finally:
            _remove_scratch(path)
            os.close(lock)


def remove_left(folder: Path) -> None:
    """Remove what commands left that were killed, and nothing that one still uses.

    Args:
        folder: a home; what cannot be removed stays.
    """
    with suppress(OSError), _tidied(folder):
        pass


@contextmanager
def binary_stdout() -> Iterator[FileIO]:
    """Give what writes to stdout at once: nothing is left in a buffer when somebody stops reading.

    Raises:
        MalformedError: stdout is closed, or a terminal, on which foreign bytes could do anything.
    """
    if sys.stdout is None:  # whoever started the command closed it
        raise MalformedError("stdout is closed: give a path with -o, or something to write to")
    if sys.stdout.isatty():
        raise MalformedError(
            "stdout is a terminal, for which the content of a file is not made: "
            "send it to a program or a file, or give a path with -o"
        )
    with FileIO(sys.stdout.fileno(), "wb", closefd=False) as stdout:
        yield stdout


def write_all(file: FileIO, data: bytes) -> None:
    """Write all of it.

    Raises:
        OSError: it cannot be written; `BrokenPipeError` where nobody reads any more.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(file.fileno(), rest) :]
        except BlockingIOError:  # another program has made the pipe one that does not wait
            select.select([], [file], [])


def _make_scratch(folder: Path) -> tuple[Path, int]:
    with _tidied(folder):
        path = Path(tempfile.mkdtemp(dir=folder, prefix=_FOLDER_PREFIX))
        return path, _lock(path)


@contextmanager
def _tidied(folder: Path) -> Iterator[None]:
    """Remove what was left; what is made in the block, and not locked at once, nobody takes for that.

    Raises:
        OSError: there is no such folder.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in (*folder.glob(_PREFIX + "*"), *folder.glob(_FOLDER_PREFIX + "*")):
            with suppress(OSError):  # somebody uses it, or has removed it
                _remove_left(left)
        yield
    finally:
        os.close(handle)


def _remove_left(path: Path) -> None:
    handle = _lock(path)
    try:
        if path.name.startswith(_FOLDER_PREFIX):
            _remove_scratch(path)
        else:
            path.unlink()
    finally:
        os.close(handle)


def _lock(path: Path) -> int:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _remove_scratch(path: Path) -> None:
    # A node that still lets go of its files may remove one of them in between; then the next command does it.
    shutil.rmtree(path, ignore_errors=True)


def _make(folder: Path) -> tempfile._TemporaryFileWrapper[bytes]:
    """Make a file that is locked as long as it is open."""
    with _tidied(folder):
        file = tempfile.NamedTemporaryFile(dir=folder, prefix=_PREFIX)  # noqa: SIM115 - the caller closes it
        fcntl.flock(file, fcntl.LOCK_EX)
        return file


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
