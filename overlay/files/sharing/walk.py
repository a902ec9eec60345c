"""Walking through a folder that is shared, in the order of its manifest. Blocks: for threads."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from overlay.errors import NotFoundError, RefusedError
from overlay.files.disk.hidden import is_unfinished
from overlay.files.manifest.codec import Entry, write_manifest
from overlay.files.manifest.paths import check_path

BATCH_ITEMS = 256
"""Files looked at in one step of a thread: some milliseconds."""

_IDENTITY, _IDENTITY_BYTES = "identity", 64  # what makes a folder the home of a node


class Item(NamedTuple):
    """A file, or a folder in which nothing is.

    Attributes:
        path: the names from the shared folder down to it.
        is_file: whether it is a file.
        size: bytes; 0 of a folder, as all that follows.
        modified: when it was changed, in ns since 1970.
        executable: whether its owner may execute it.
        number: of its inode.
    """

    path: tuple[str, ...]
    is_file: bool
    size: int = 0
    modified: int = 0
    executable: bool = False
    number: int = 0


class Walk:
    """One walk; symbolic links, and what is neither file nor folder, are passed over.

    Args:
        root: the folder.

    Attributes:
        files: that were met so far.
        size: bytes of these.
        skipped: what was passed over.
    """

    def __init__(self, root: Path) -> None:
        self.files = 0
        self.size = 0
        self.skipped = 0
        self._root = root
        self._items = self._walk(())
        self._digest = hashlib.blake2b(digest_size=32)

    @property
    def digest(self) -> bytes:
        """What all items met so far looked like."""
        return self._digest.digest()

    def batch(self) -> list[Item]:
        """Give the next items; none at the end.

        Raises:
            NotFoundError: there is no such folder.
            RefusedError: a folder cannot be read, or is the home of a node.
            MalformedError: a name cannot be told to others.
        """
        items = list(islice(self._items, BATCH_ITEMS))
        for item in items:
            self._digest.update(repr(item).encode(errors="surrogatepass"))
            self.files += item.is_file
            self.size += item.size
        return items

    def _walk(self, path: tuple[str, ...]) -> Iterator[Item]:
        is_empty = True
        for name, status in self._list(path):
            child = (*path, name)
            check_path(child)
            is_empty = False
            if stat.S_ISDIR(status.st_mode):
                yield from self._walk(child)
            else:
                executable = bool(status.st_mode & stat.S_IXUSR)
                yield Item(child, True, status.st_size, status.st_mtime_ns, executable, status.st_ino)
        if is_empty and path:
            yield Item(path, is_file=False)

    def _list(self, path: tuple[str, ...]) -> list[tuple[str, os.stat_result]]:
        folder = self._root.joinpath(*path)
        found: list[tuple[str, os.stat_result]] = []
        try:
            with os.scandir(folder) as listing:
                for each in listing:
                    status = each.stat(follow_symlinks=False)
                    kind = stat.S_IFMT(status.st_mode)
                    if each.name == _IDENTITY and _is_identity(status):
                        raise RefusedError(_secret(folder))
                    if kind not in {stat.S_IFREG, stat.S_IFDIR} or is_unfinished(each.name):
                        self.skipped += 1
                    else:
                        found.append((each.name, status))
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no folder {folder}, or it changed while it was read") from error
        except OSError as error:
            raise RefusedError(f"the folder {folder} cannot be read: {error.strerror}") from error
        return sorted(found, key=itemgetter(0))


class Survey(NamedTuple):
    """What a walk through the whole folder has found."""

    files: int
    size: int
    skipped: int
    digest: bytes


def survey(root: Path) -> Survey:
    """Walk through a folder, and check that a manifest can have all that is in it.

    Raises:
        NotFoundError: there is no such folder.
        RefusedError: a folder in it cannot be read, or is the home of a node.
        MalformedError: a name cannot be told to others, clashes with another, or there are too many.
    """
    walk = Walk(root)
    items = (item for batch in iter(walk.batch, []) for item in batch)
    deque(write_manifest(Entry(item.path) for item in items), maxlen=0)
    return Survey(walk.files, walk.size, walk.skipped, walk.digest)


def refuse_home(path: Path) -> None:
    """Refuse what lies in the home of a node: whoever has its keys is the node.

    Args:
        path: of a file or folder.

    Raises:
        RefusedError: it does, or is one.
    """
    found = Path(os.path.realpath(path))
    for folder in (found, *found.parents):
        with suppress(OSError):  # what cannot be read is told by whoever reads it
            if _is_identity((folder / _IDENTITY).stat()):
                raise RefusedError(_secret(folder))


def _is_identity(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_size == _IDENTITY_BYTES


def _secret(folder: Path) -> str:
    return f"{folder} is the home of a node, whose keys are secret: share nothing in it, nor what contains it"
