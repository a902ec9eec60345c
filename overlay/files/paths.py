"""What a path that somebody typed leads to."""

from __future__ import annotations

import stat
from pathlib import Path

import anyio

from overlay.errors import RefusedError


async def is_folder(path: Path) -> bool:
    """Whether a path leads to a folder.

    Where the system does not say, because a name is too long or links go round in a circle, it is none: who
    opens it next says why that cannot be done.
    """
    try:
        return await anyio.Path(path).is_dir()
    except OSError:
        return False


async def _is_file(path: Path) -> bool:
    """Whether a path is that of a file itself, and not of a link; not where the system does not say."""
    try:
        return stat.S_ISREG((await anyio.Path(path).lstat()).st_mode)
    except OSError:
        return False


async def check_free(path: Path) -> None:
    """Look whether there is a file, to say how it would be replaced.

    Raises:
        RefusedError: there is.
    """
    if await _is_file(path):
        raise RefusedError(
            f"{path} exists already: name another path to write to, or replace what is there with --force"
        )
