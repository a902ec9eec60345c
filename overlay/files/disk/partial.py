"""What a fetch has on disk: the hidden files that `disk.target` describes. Blocks: for threads."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from overlay.errors import MalformedError, NotFoundError, OverlayError, RefusedError, StorageError
from overlay.files.disk.hidden import CONTENT, NODES, hidden_stem
from overlay.files.disk.room import check_room
from overlay.units.capability import ReadCapability, apply_cipher, chunk_reference
from overlay.units.tree import Piece, Place

SYNC_BYTES = 64 << 20
"""Content that is brought to the disk while more comes, not all of it at the end: some hundredths of a second
each time, during which the network goes on. A power failure takes no more than this; and where the disk is
slower than the network, that shows at once, and not when a fetch seems to be over."""

_PADDING = b"\x80"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_PERMISSIONS, _READING, _EXECUTION = 0o777, 0o444, 0o111
_NOT_A_FILE = {errno.ELOOP, errno.EISDIR, errno.ENXIO}


class Found(NamedTuple):
    """What is on disk of a place: a leaf that can stay there, or a chunk to be received; or neither."""

    place: Place
    held: bool
    chunk: bytes = b""


class Details(NamedTuple):
    """What a file has besides its content: when it was changed, seconds since 1970; who may execute it."""

    modified: int
    executable: bool


class PartialFiles:
    """What a fetch has on disk. Every method may block, and raises OSError where nothing else is said.

    The folder is held open, so that all names stay in it whatever is renamed above.
    """

    def __init__(self, path: Path, stem: str, *, overwrite: bool, folder: int | None = None) -> None:
        self._path = path
        self._overwrite = overwrite
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._folder = os.open(path.parent, flags) if folder is None else os.dup(folder)
        self._content_name, self._nodes_name = stem + CONTENT, stem + NODES
        self._handles: dict[str, int] = {}
        self._mode: int | None = None  # of the file that is replaced
        self._is_nameless = False
        self._gone = False
        self._unsynced = 0

    def open(self, *, nameless: bool = False) -> None:
        """Open what is there, or make it, and lock it.

        Args:
            nameless: whether it will never be published: whatever has the name means nothing then.

        Raises:
            RefusedError: another fetch has it, or some of the names do not belong to files of this user.
        """
        self._content = self._handles[self._content_name] = self._open_locked()
        self._nodes = self._handles[self._nodes_name] = self._open_own(self._nodes_name)
        self._is_nameless = nameless
        if not nameless:
            self._check_target()
            if self._mode is not None:  # nobody else is to read the new one either, and not before either
                os.fchmod(self._content, self._mode | stat.S_IRUSR | stat.S_IWUSR)

    @property
    def hint(self) -> str:
        """Where content is kept until the file is whole, for an error; nothing if it will be no file."""
        return "" if self._is_nameless else f" in {self._path.with_name(self._content_name)}"

    @property
    def empty(self) -> bool:
        """Whether nothing is there of an earlier run."""
        return not any(os.fstat(handle).st_size for handle in self._handles.values())

    def check_room(self, size: int) -> None:
        """Check that the disk has room for content of so many bytes, those counted that are on it.

        Raises:
            StorageError: it has not.
        """
        needed = size - os.fstat(self._content).st_blocks * 512
        kept = "" if self.empty else f", or remove what came, which is kept{self.hint}"
        check_room(self._content, self._path, needed, f"make room and give the same command again{kept}")

    def write(self, pieces: Iterable[Piece], nodes: Iterable[tuple[int, bytes]]) -> None:
        """Write content at its places, and chunks of nodes by their numbers."""
        for offset, content in pieces:
            # What is a hole reads as zeros already; but where an earlier run left something, it must go.
            if content.strip(b"\0") or not self._is_hole(offset, len(content)):
                _write_all(self._content, content, offset)
                self._unsynced += len(content)
        if self._unsynced >= SYNC_BYTES:
            os.fsync(self._content)
            self._unsynced = 0
        for number, chunk in nodes:
            _write_all(self._nodes, chunk, number * len(chunk))

    def find(self, places: Iterable[tuple[Place, int]], block: int, size: int | None) -> list[Found]:
        """Look for places: nodes by their number, leaves in content of `size` bytes."""
        return [
            self._find_node(place, number, block) if place.level else self._find_leaf(place, block, size)
            for place, number in places
        ]

    def read(self, offset: int, length: int) -> bytes:
        """Read content that is there; what is a hole at the end reads as zeros."""
        found = bytearray()
        while piece := os.pread(self._content, length - len(found), offset + len(found)):
            found += piece
        return bytes(found.ljust(length, b"\0"))

    def settle(self, size: int, details: Details | None) -> None:
        """Bring the whole content to the disk."""
        os.ftruncate(self._content, size)
        if details is not None:
            self._describe(details)
        os.fsync(self._content)

    def publish(self) -> None:
        """Give the content its name.

        Raises:
            RefusedError: something else has it, and may not be overwritten.
        """
        self._check_target()
        if self._mode is not None:
            os.fchmod(self._content, self._mode)
        # The content is last to lose its hidden name: with it, the next who fetches this may begin.
        self._unlink(self._nodes_name)
        if not self._overwrite and self._link():
            self._unlink(self._content_name)
        else:
            os.rename(self._content_name, self._path.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._gone = True
        with suppress(OSError):  # some file systems cannot be asked to; the names are as they must be
            os.fsync(self._folder)

    def remove(self) -> None:
        """Remove the hidden files, once: after that another fetch may have made its own."""
        if self._gone:
            return
        self._gone = True
        for name in reversed(self._handles):  # the locked one is the last to go
            self._unlink(name)

    def close(self) -> None:
        """Let go of everything; a fetch that brought nothing leaves nothing."""
        if not self._gone and self.empty:
            self.remove()
        for handle in (*self._handles.values(), self._folder):
            os.close(handle)

    def _unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._folder)

    def _open_locked(self) -> int:
        while True:
            handle = self._open_own(self._content_name)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(handle)
                raise RefusedError(
                    f"{self._path} is being fetched already: wait until that has ended"
                ) from error
            # Whoever had the lock may have finished in between, and this file may have got another name.
            if self._is_named(handle, self._content_name):
                return handle
            os.close(handle)

    def _open_own(self, name: str) -> int:
        """Open a file that has this name alone, and that this user made, or make it.

        In a folder where others write, a link could lead to what they want to have overwritten.

        Raises:
            RefusedError: it is something else.
        """
        while True:
            handle = os.open(name, _FLAGS, 0o666, dir_fd=self._folder)
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                os.close(handle)
                raise RefusedError(f"{self._path.with_name(name)} is not a file of yours: remove it")
            if status.st_nlink == 1:
                return handle
            os.close(handle)
            if status.st_nlink > 1:
                os.unlink(name, dir_fd=self._folder)

    def _is_named(self, handle: int, name: str) -> bool:
        try:
            named = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(handle))

    def _check_target(self) -> None:
        try:
            mode = os.stat(self._path.name or ".", dir_fd=self._folder, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            raise RefusedError(f"{self._path} is a folder: name a file in it")
        if stat.S_ISLNK(mode):
            raise RefusedError(f"{self._path} is a symbolic link: name the file that it leads to")
        if not stat.S_ISREG(mode):
            raise RefusedError(f"{self._path} is not a file: name another path to write to")
        if not self._overwrite:
            raise RefusedError(self._is_taken())
        if self._mode is None:
            self._mode = mode & _PERMISSIONS

    def _is_taken(self) -> str:
        if self.empty:
            return f"{self._path} exists already: name another path to write to"
        return (
            f"{self._path} exists already: what was fetched is kept{self.hint} and is there at once when the "
            "same command is given after that was renamed or removed"
        )

    def _describe(self, details: Details) -> None:
        mode = os.fstat(self._content).st_mode if self._mode is None else self._mode
        mode &= _PERMISSIONS & ~_EXECUTION
        if details.executable:
            mode |= (mode & _READING) >> 2
        if self._mode is None:
            os.fchmod(self._content, mode)
        else:
            self._mode = mode
        with suppress(OSError, OverflowError):  # not every file system knows every time
            os.utime(self._content, ns=(details.modified * 10**9,) * 2)

    def _link(self) -> bool:
        """Name the content, unless the name was taken in this very moment; False where links are unknown.

        Raises:
            RefusedError: it was.
            OSError: the disk fails.
        """
        try:
            os.link(self._content_name, self._path.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except FileExistsError as error:
            raise RefusedError(self._is_taken()) from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return False
        return True

    def _find_node(self, place: Place, number: int, block: int) -> Found:
        chunk = os.pread(self._nodes, block, number * block)
        return Found(place, held=False, chunk=chunk if chunk_reference(chunk) == place.reference else b"")

    def _find_leaf(self, place: Place, block: int, size: int | None) -> Found:
        start = place.first * block
        if not place.last and self._is_hole(start, block):
            return Found(place, held=False)
        if not place.last or size is not None:
            return Found(place, held=holds_leaf(self._content, place, block, size))
        # Its end is not marked on disk: it is received once more, and then known.
        leaf = (os.pread(self._content, block - 1, start) + _PADDING).ljust(block, b"\0")
        chunk = apply_cipher(place.key, 0, leaf)
        return Found(place, held=False, chunk=chunk if chunk_reference(chunk) == place.reference else b"")

    def _is_hole(self, offset: int, length: int) -> bool:
        try:
            return os.lseek(self._content, offset, os.SEEK_DATA) >= offset + length
        except OSError as error:
            return error.errno == errno.ENXIO  # no data follows; anything else: holes are not known here


def open_partial(
    path: Path,
    capability: ReadCapability,
    overwrite: bool,  # noqa: FBT001 - for a thread
    folder: int | None = None,
    nameless: bool = False,  # noqa: FBT001, FBT002 - the same
) -> PartialFiles:
    """Open what an earlier run left, or begin anew.

    Raises:
        MalformedError: no file can have this path.
        OverlayError: see `overlay.files.disk.target.open_target`.
    """
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise MalformedError("a path holds characters that no name has here") from error
    if b"\0" in raw:
        raise MalformedError("a path holds a NUL character")
    try:
        with ExitStack() as stack:
            files = PartialFiles(path, hidden_stem(path.name, capability), overwrite=overwrite, folder=folder)
            stack.callback(files.close)
            files.open(nameless=nameless)
            stack.pop_all()
    except OSError as error:
        failure: OverlayError = _why_not_opened(path, error)
        raise failure from error
    return files


def _why_not_opened(path: Path, error: OSError) -> OverlayError:
    if error.errno in _NOT_A_FILE:
        return RefusedError(
            f"what lies beside {path} with the ending .part or .nodes is not a file: remove it"
        )
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return NotFoundError(f"there is no folder {path.parent}")
    return StorageError(f"{path} cannot be written: {error.strerror}")


def holds_leaf(handle: int, place: Place, block: int, size: int | None) -> bool:
    """Tell whether a file has a leaf at its place.

    Args:
        handle: of the file.
        place: of the leaf.
        block: bytes of a chunk.
        size: bytes of the content; None only where more content follows the leaf.

    Raises:
        OSError: the disk fails.
    """
    start = place.first * block
    if size is None or not place.last:
        return _matches(place, os.pread(handle, block, start))
    return _matches(place, (os.pread(handle, size - start, start) + _PADDING).ljust(block, b"\0"))


def _matches(place: Place, leaf: bytes) -> bool:
    return chunk_reference(apply_cipher(place.key, 0, leaf)) == place.reference


def _write_all(handle: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written
