"""The names of the hidden files that hold what came of a file until it is whole. Blocks: for threads."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress

from overlay.files.manifest.paths import fold
from overlay.units.capability import ReadCapability

MAX_NAME_BYTES = 220
"""Bytes of a file's name in the names of its hidden files: file systems take 255, and 16 are added."""

CONTENT, NODES = ".part", ".nodes"
"""How the names of the hidden files end: of its content, and of the nodes of its tree."""

_UNFINISHED = re.compile(r"\..*\.[0-9a-f]{8}\.(part|nodes)", re.DOTALL)


def hidden_stem(name: str, capability: ReadCapability) -> str:
    """Tell how the names of the hidden files begin that belong to a file.

    Args:
        name: of the file.
        capability: what it will be: another content has other files.
    """
    raw = os.fsencode(name)
    digest = hashlib.blake2b(capability.to_bytes() + raw, digest_size=4, person=b"overlay/part").hexdigest()
    return f".{raw[:MAX_NAME_BYTES].decode(errors='ignore')}.{digest}"


def is_unfinished(name: str) -> bool:
    """Whether a file is called, to any system, like those that hold what was fetched of another one."""
    return _UNFINISHED.fullmatch(fold(name)) is not None


def tidy(folder: int, name: str, capability: ReadCapability) -> None:
    """Remove the hidden name that a file kept besides its own, because the fetch was killed between the two.

    Args:
        folder: descriptor of the folder that the file is in.
        name: of the file.
        capability: what it is.

    Raises:
        OSError: the disk fails.
    """
    hidden = hidden_stem(name, capability) + CONTENT
    with suppress(FileNotFoundError):
        left, file = (os.stat(each, dir_fd=folder, follow_symlinks=False) for each in (hidden, name))
        if os.path.samestat(left, file):
            os.unlink(hidden, dir_fd=folder)


def kept_bytes(folder: int, name: str, capability: ReadCapability) -> int:
    """Tell how many bytes a fetch that was not finished has of a file on the disk.

    Args:
        folder: descriptor of the folder that the file will be in.
        name: of the file.
        capability: what it is.

    Raises:
        OSError: the disk fails.
    """
    try:
        hidden = hidden_stem(name, capability) + CONTENT
        return os.stat(hidden, dir_fd=folder, follow_symlinks=False).st_blocks * 512
    except FileNotFoundError:
        return 0
