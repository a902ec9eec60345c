"""Reaching a Unix socket whose path is longer than socket addresses are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overlay.errors import RefusedError

MAX_ADDRESS_BYTES = 103
"""Bytes of a path in a socket address without the final NUL: 103 on macOS and the BSDs, 107 on Linux."""

_OPEN_FOLDERS = Path("/proc/self/fd")


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """Give an address for the socket at `path`, valid inside the block.

    A path that is too long is reached through a descriptor of its folder, which Linux offers as a short path.

    Raises:
        RefusedError: the path is too long, and this system has no such way.
    """
    if len(os.fsencode(path)) <= MAX_ADDRESS_BYTES:
        yield str(path)
        return
    if not _OPEN_FOLDERS.is_dir():
        raise RefusedError(f"{path.parent} is too long a path for a home: choose one of at most 90 bytes")
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield str(_OPEN_FOLDERS / str(folder) / path.name)
    finally:
        os.close(folder)
