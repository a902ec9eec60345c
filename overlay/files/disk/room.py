"""How much a fetch may write to a disk. Blocks: for threads."""

from __future__ import annotations

from pathlib import Path

from overlay.database.room import free_bytes
from overlay.errors import StorageError

_MIB = 1 << 20


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
