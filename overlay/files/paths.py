"""What a path that somebody typed leads to."""

from __future__ import annotations

from pathlib import Path

import anyio


async def is_folder(path: Path) -> bool:
    """Whether a path leads to a folder.

    Where the system does not say, because a name is too long or links go round in a circle, it is none: who
    opens it next says why that cannot be done.
    """
    try:
        return await anyio.Path(path).is_dir()
    except OSError:
        return False
