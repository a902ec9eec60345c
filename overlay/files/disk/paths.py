"""What a path that somebody typed leads to."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import anyio
from anyio import to_thread

from overlay.errors import RefusedError
from overlay.files.disk.hidden import tidy
from overlay.units.capability import ReadCapability


async def is_folder(path: Path) -> bool:
    """Whether a path leads to a folder.

    Where the system does not say, because a name is too long, or none at all, or links go round in a circle,
    it is none: who opens it next says why that cannot be done.
    """
    try:
        return await anyio.Path(path).is_dir()
    except (OSError, ValueError):
        return False


async def _is_file(path: Path) -> bool:
    """Whether a path is that of a file itself, and not of a link; not where the system does not say."""
    try:
        return stat.S_ISREG((await anyio.Path(path).lstat()).st_mode)
    except (OSError, ValueError):
        return False


async def check_free(path: Path, capability: ReadCapability) -> None:
    """Look whether there is a file, to say how it would be replaced; what fetching it left behind is removed.

    Args:
        path: where a file is to be.
        capability: what it is to be.

    Raises:
        RefusedError: there is a file.
    """
    if await _is_file(path):
        with suppress(OSError):  # a hidden name more; that the file is there is what matters
            await to_thread.run_sync(_tidy, path, capability)
        raise RefusedError(
            f"{path} exists already: name another path to write to, or replace what is there with --force"
        )


def _tidy(path: Path, capability: ReadCapability) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tidy(folder, path.name, capability)
    finally:
        os.close(folder)
