"""Where the files of a folder land. Blocks: for threads.

Names come from whoever shared the folder, and others may be able to write where it lands. So no path is ever
opened: each folder on the way is opened in the one above it, and nothing that is a symbolic link is entered.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from overlay.database.room import free_bytes
from overlay.errors import NotFoundError, RefusedError, StorageError
from overlay.files.disk.hidden import kept_bytes, tidy
from overlay.files.disk.room import check_room
from overlay.files.manifest.codec import Entry

State = Literal["absent", "there", "other"]
"""Of a file: not there; there with as many bytes as the manifest says, so perhaps whole; something else."""

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_FOLDER = {errno.ENOTDIR, errno.ELOOP}


class Landing:
    """A folder that is being fetched, on disk. Used by one thread at a time.

    The folders on the way to the last path are held open: the next one is most often in one of them.

    Args:
        path: where the folder will be. The folder that it is put into is made if only that is missing.

    Raises:
        NotFoundError: there is no such folder.
        RefusedError: it is something else.
        StorageError: it cannot be made or opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names: list[str] = []
        self._handles: list[int] = []
        with _explained(path.parent):
            handle, self._is_new = _open_destination(path.parent)
            self._handles.append(handle)

    def close(self) -> None:
        """Let go of everything; what the folder is put into goes too if it was made here and stayed empty."""
        while self._handles:
            os.close(self._handles.pop())
        if self._is_new:
            with suppress(OSError):  # it is not empty, or gone
                self.path.parent.rmdir()

    def look(self, entry: Entry) -> State:
        """See what is there of a file, or of an empty folder; what a whole file left behind is removed.

        Raises:
            RefusedError: something is there that cannot be replaced, or stands in the way to it.
            StorageError: the disk fails.
        """
        path = self.path.joinpath(*entry.path)
        with _explained(path, "cannot be looked at"):
            status = self._status(entry.path)
            if status is None:
                return "absent"
            if entry.capability is None:
                if not stat.S_ISDIR(status.st_mode):
                    raise RefusedError(_not_a_folder(path))
                return "there"
            if not stat.S_ISREG(status.st_mode):
                raise RefusedError(_not_a_file(path))
            if status.st_size != entry.size:  # times say less: no disk keeps all that a manifest can say
                return "other"
            if status.st_nlink > 1:
                tidy(self._handles[-1], entry.path[-1], entry.capability)
            return "there"

    def kept(self, entry: Entry) -> int:
        """Tell how many bytes an earlier attempt left of a file that is not whole.

        Raises:
            RefusedError: something stands in the way to it.
            StorageError: the disk fails.
        """
        with _explained(self.path.joinpath(*entry.path), "cannot be looked at"):
            try:
                folder = self._walk((self.path.name, *entry.path[:-1]), make=False)
            except FileNotFoundError:
                return 0
            return kept_bytes(folder, entry.path[-1], entry.capability) if entry.capability else 0

    def room(self) -> int:
        """Tell how many bytes more there is room for on the disk.

        Raises:
            StorageError: the disk fails.
        """
        with _explained(self.path):
            return max(0, free_bytes(self._handles[0]))

    def check_room(self, size: int) -> None:
        """Check that the disk has room for so many bytes more.

        Raises:
            StorageError: it has not.
        """
        with _explained(self.path):
            check_room(self._handles[0], self.path, size, "make room, or fetch a part with --only")

    def open(self, entry: Entry) -> int:
        """Open a file to read it.

        Returns:
            its descriptor, the caller's to close.

        Raises:
            NotFoundError: it is not there any more.
            RefusedError: something else is there now.
            StorageError: it cannot be read.
        """
        path = self.path.joinpath(*entry.path)
        with _explained(path, "cannot be read"):
            status = self._status(entry.path)
            if status is None:
                raise NotFoundError(f"{path} has just been removed: give the same command again")
            if not stat.S_ISREG(status.st_mode):
                raise RefusedError(_not_a_file(path))
            return os.open(entry.path[-1], _FILE_FLAGS, dir_fd=self._handles[-1])

    def enter(self, path: tuple[str, ...]) -> int:
        """Open a folder, and make it and those above it where they are missing.

        Returns:
            its descriptor, the caller's to close.

        Raises:
            RefusedError: something else has its name, or that of one above it.
            StorageError: it cannot be made.
        """
        with _explained(self.path.joinpath(*path)):
            return os.dup(self._walk((self.path.name, *path), make=True))

    def make(self, path: tuple[str, ...]) -> None:
        """Make a folder, and those above it that are missing.

        Raises:
            RefusedError, StorageError: see `enter`.
        """
        os.close(self.enter(path))

    def _status(self, path: tuple[str, ...]) -> os.stat_result | None:
        try:
            folder = self._walk((self.path.name, *path[:-1]), make=False)
            return os.stat(path[-1], dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _walk(self, names: tuple[str, ...], *, make: bool) -> int:
        """Open a folder and give its descriptor, which stays open here.

        Raises:
            RefusedError: something else has its name, or that of one above it.
            OSError: it is not there, or cannot be opened.
        """
        self._go_back(names)
        for name in names[len(self._names) :]:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=self._handles[-1])
            try:
                self._handles.append(os.open(name, _FLAGS, dir_fd=self._handles[-1]))
            except OSError as error:
                if error.errno in _NO_FOLDER:
                    where = self.path.parent.joinpath(*self._names, name)
                    raise RefusedError(_not_a_folder(where)) from error
                raise
            self._names.append(name)
        return self._handles[-1]

    def _go_back(self, names: tuple[str, ...]) -> None:
        """Leave the folders that are not on the way."""
        while tuple(self._names) != names[: len(self._names)]:
            self._names.pop()
            os.close(self._handles.pop())


@contextmanager
def _explained(path: Path, trouble: str = "cannot be written") -> Iterator[None]:
    """Turn what the system says of a path into this library's errors.

    Raises:
        NotFoundError: there is no folder to put it into.
        StorageError: anything else.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no folder {path.parent}: make it, or name another place") from error
    except OSError as error:
        raise StorageError(
            f"{path} {trouble}, {error.strerror}: "
            "mend that and give the same command again, or name another place"
        ) from error


def _open_destination(path: Path) -> tuple[int, bool]:
    """Open what a folder is put into, and make it if it is missing; links on the way are those of the user.

    Returns:
        its descriptor, and whether it was made.

    Raises:
        RefusedError: something else is there.
        OSError: it cannot be made or opened.
    """
    is_new = False
    try:
        with suppress(FileExistsError):
            path.mkdir()
            is_new = True
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), is_new
    except OSError as error:
        if is_new:
            with suppress(OSError):
                path.rmdir()
        if os.path.lexists(path) and error.errno in _NO_FOLDER | {errno.ENOENT}:
            raise RefusedError(
                f"{path} is something else where a folder should be: name another place"
            ) from error
        if error.errno in _NO_FOLDER:
            raise RefusedError(
                f"{path.parent} is something else where a folder should be: name another place"
            ) from error
        raise


def _not_a_file(path: Path) -> str:
    return f"{path} is there and is no file: remove it, or name another place"


def _not_a_folder(path: Path) -> str:
    return f"{path} is no folder but a file or a symbolic link: remove it, or name another place"
