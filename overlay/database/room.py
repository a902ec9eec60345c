"""How much may be written to a disk before the database on it could not be written any more."""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from overlay.errors import StorageError

DISK_RESERVE = 64 << 20
"""Bytes of the disk that are left free, whatever is fetched or kept: for the node's own database, which stops
everything where it cannot be written, and for files that begin at once and each find the room alone."""

RESERVED_SHARE = 16
"""One part in so many of a disk is left free where that is less: of a stick the whole reserve is too much."""

UNLIMITED = (1 << 63) - 1
"""Bytes that are free where nothing limits them: in memory, and where a file system does not say."""


def free_bytes(where: int | Path) -> int:
    """Tell how many bytes may still be written to a disk; below 0 if it is too full.

    Args:
        where: a file or folder on it, or a descriptor of one.

    Raises:
        OSError: the disk fails.
    """
    disk = os.statvfs(where)
    if not disk.f_blocks:  # some file systems do not say how large they are
        return UNLIMITED
    reserve = min(DISK_RESERVE, disk.f_blocks * disk.f_frsize // RESERVED_SHARE)
    return disk.f_bavail * disk.f_frsize - reserve


def has_room(connection: apsw.Connection, needed: int) -> bool:
    """Whether a database can take so many bytes more: in it, where something was deleted, or on its disk.

    Raises:
        StorageError: the disk fails.
    """
    if not connection.filename:
        return True
    deleted: int = connection.pragma("freelist_count") * connection.pragma("page_size")
    try:
        return needed <= deleted + free_bytes(Path(connection.filename))
    except OSError as error:
        raise StorageError(f"{connection.filename} cannot be written: {error.strerror}") from error
