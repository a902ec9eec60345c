"""What is known of a share: the values that pass between the index, the files and who uses them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from overlay.units.eris import NULL_SECRET, ReadCapability

Kind = Literal["file", "folder"]
Problem = Literal["gone", "changed"]
"""`gone`: the file is not there or cannot be read; `changed`: it is not what it was when it was shared."""


class Stamp(NamedTuple):
    """How a file looked: bytes, and when its content and when its entry changed, in ns since 1970."""

    size: int
    modified: int
    touched: int

    def looks_like(self, other: Stamp) -> bool:
        """Whether the content seems to be the same: a file may be renamed, or get another mode, meanwhile."""
        return self.size == other.size and self.modified == other.modified


@dataclass(frozen=True, slots=True)
class Share:
    """Something that this node offers.

    Attributes:
        id: number by which it is removed; never given to another.
        parent: the folder share as whose part it was encoded, although others may have it too; None for what
            was shared by itself.
        kind: a file, or a folder, whose content is its manifest.
        name: what it is called; empty for a part, whose name the manifest has.
        path: the file itself, or the folder.
        stamp: how the file looked when it was shared; of a folder, the bytes of all parts and zeros.
        secret: the convergence secret that it was encoded with.
        capability: reads it.
        problem: what was found out last; of a folder, a problem of any of its parts.
        added: seconds since 1970.
    """

    id: int
    parent: int | None
    kind: Kind
    name: str
    path: Path
    stamp: Stamp
    secret: bytes = field(repr=False)
    capability: ReadCapability
    problem: Problem | None
    added: float

    @property
    def size(self) -> int:
        """Bytes of the file, or of all files of the folder."""
        return self.stamp.size

    @property
    def convergent(self) -> bool:
        """Whether its secret is the one that everybody knows."""
        return self.secret == NULL_SECRET


class NewShare(NamedTuple):
    """What is known of a share before its content was read."""

    parent: int | None
    kind: Kind
    name: str
    path: Path
    stamp: Stamp
    secret: bytes
    added: float


class Leaf(NamedTuple):
    """A leaf of a file: what it is asked for by, its place in the file, and what it is read with."""

    reference: bytes
    number: int
    key: bytes


class Place(NamedTuple):
    """Where a leaf is made from: leaf `number` of the file of a share; with its key, where that is known."""

    share: int
    path: Path
    stamp: Stamp
    secret: bytes
    block_size: int
    number: int
    key: bytes | None
    problem: Problem | None
