"""What a transfer tells its driver to do, and what it shows of itself."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from overlay.identity import NodeIdentifier


@dataclass(frozen=True, slots=True)
class Open:
    """Open a circuit of its own to a provider: shared with nothing else."""

    circuit: int
    provider: NodeIdentifier


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask for chunks on an open circuit: 1 to 64 references."""

    circuit: int
    request: int
    references: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """Close a circuit, or stop opening it; its requests end with it. It may be over by itself already."""

    circuit: int


Action = Open | Ask | Close


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a display of progress shows.

    Attributes:
        received: bytes of chunks that came, each counted once: what was there already is not among them.
        rate: bytes per second, smoothed over some seconds.
        seconds_left: at this rate; None while the size or the rate is not known.
        circuits: that are open.
        providers: to whom a circuit is open.
        outstanding: chunks that are asked for.
        absent: where it has failed, chunks that all who can still be asked say are not there.
        liars: who sent something else than was asked for, and is asked no more.
    """

    received: int
    rate: float
    seconds_left: float | None
    circuits: int
    providers: int
    outstanding: int
    absent: Collection[bytes] = ()
    liars: Collection[NodeIdentifier] = ()
