"""What is asked for when a folder is fetched, and what its manifest makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from overlay.files.links import FileLink

DEFAULT_NAME = "folder"
"""What a folder is called whose link does not say it."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for.

    Attributes:
        link: of a folder.
        destination: the folder that it is put into; made if only the last of its names is missing.
        only: patterns of what is wanted of it, see `overlay.files.manifest.selection`; none for all.
        overwrite: whether a file that is there may be replaced by one of another content.
    """

    link: FileLink
    destination: Path
    only: Sequence[str] = ()
    overwrite: bool = False

    @property
    def path(self) -> Path:
        """Where the folder will be."""
        return self.destination / (self.link.name or DEFAULT_NAME)


@dataclass(slots=True)
class Found:
    """What a manifest asks for, of what is wanted of it.

    Attributes:
        files: how many.
        size: their bytes.
        standing: bytes of those that are still to be compared, by the size of their chunks.
        lacking: bytes of those that are still to be fetched, the same.
        kept: bytes that an earlier attempt left of these in hidden files.
        folders: how many of those in which nothing is.
    """

    files: int = 0
    size: int = 0
    standing: Counter[int] = field(default_factory=Counter)
    lacking: Counter[int] = field(default_factory=Counter)
    kept: int = 0
    folders: int = 0
