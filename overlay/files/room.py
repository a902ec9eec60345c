"""How much a fetch may write to a disk. Blocks: for threads."""

from __future__ import annotations

import os
from pathlib import Path

from overlay.errors import StorageError
from overlay.units.tree import MAX_CONTENT

DISK_RESERVE = 64 << 20
"""Bytes of the disk that a fetch leaves free: for the node's own database, which is often on the same one and
stops everything where it cannot be written, and for files that begin at once and each find the room alone."""

RESERVED_SHARE = 16
"""One part in so many of a disk is left free where that is less: of a stick the whole reserve is too much."""

_MIB = 1 << 20


def free_bytes(handle: int) -> int:
    """Tell how many bytes may still be written to the disk of a file or folder; below 0 if it is too full.

    Raises:
        OSError: the disk fails.
    """
    disk = os.fstatvfs(handle)
    if not disk.f_blocks:  # some file systems do not say how large they are
        return MAX_CONTENT
    reserve = min(DISK_RESERVE, disk.f_blocks * disk.f_frsize // RESERVED_SHARE)
    return disk.f_bavail * disk.f_frsize - reserve


def check_room(handle: int, path: Path, needed: int, advice: str) -> None:
    """Check that a disk has room.

    Args:
        handle: of a file or folder on it.
        path: what is to be written, for the error.
        needed: bytes that it takes, at least; 0 or less always fits.
        advice: what to do where there is no room.

    Raises:
        StorageError: there is none.
        OSError: the disk fails.
    """
    room = max(0, free_bytes(handle))
    if needed > room:
        raise StorageError(
            f"the disk has no room for {path}: it takes {needed / _MIB:.1f} MiB and more, and "
            f"{room / _MIB:.1f} MiB are free beside what always stays free: {advice}"
        )
