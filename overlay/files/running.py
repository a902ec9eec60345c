"""The fetches and puts that go on: what `overlay file status` shows of each, and what limits a fetch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from overlay.errors import NotFoundError
from overlay.files.engine.actions import Snapshot
from overlay.identity import NodeIdentifier
from overlay.peer.limits import Limiter

Task = Literal["get", "read", "pin", "chat", "put"]
"""What a fetch is for: a file or folder, content that is handed on, a pin, a posted file. Or that it puts."""


@dataclass(slots=True, eq=False)
class Running:
    """A fetch that goes on, or a put.

    Attributes:
        task: what it is for.
        name: what it is called that is fetched or put; empty if nobody said.
        path: where it will be, or what is put; None where it becomes no file, or is no file of the user's.
        size: its bytes; None while that is not known.
        present: bytes that are there already; of a put, that others keep already.
        snapshot: how the transfer stands; None before it has begun.
        limit: how fast it may be; may be changed.
        liars: nodes that sent something else than was asked for.
        look: tells the snapshot anew where nothing else does between two steps.
    """

    task: Task
    name: str = field(repr=False)
    path: Path | None
    size: int | None
    present: int = 0
    snapshot: Snapshot | None = None
    limit: Limiter = field(default_factory=Limiter)
    liars: Collection[NodeIdentifier] = ()
    look: Callable[[], Snapshot] | None = None


Watch = Callable[[Running], None]
"""Told how a fetch stands."""

Step = Callable[[Snapshot | None, int, int | None], None]
"""Told how a transfer stands, how many bytes are there, and of how many if that is known."""


def reporting(running: Running, watch: Watch | None) -> Step:
    """Make what notes each step of a fetch, and tells `watch` of it."""

    def step(snapshot: Snapshot | None, present: int, size: int | None) -> None:
        running.snapshot, running.present, running.size = snapshot, present, size
        if snapshot is not None:
            running.liars = snapshot.liars
        if watch is not None:
            watch(running)

    return step


class Shown(list[Running]):
    """All of a kind that go on on a node, in the order of their beginning."""

    @contextmanager
    def showing(self, running: Running) -> Iterator[Running]:
        """Count one among them for the length of a block."""
        self.append(running)
        try:
            yield running
        finally:
            self.remove(running)


class Fetches(Shown):
    """All fetches that go on on a node."""

    @contextmanager
    def watching(self, watch: Watch) -> Iterator[Watch]:
        """Count those of somebody else among them, from when they are told of first until the block ends."""
        told: list[Running] = []

        def note(running: Running) -> None:
            if running not in told:
                told.append(running)
                self.append(running)
            watch(running)

        try:
            yield note
        finally:
            for running in told:
                self.remove(running)

    def limit(self, path: Path, rate: int | None) -> None:
        """Limit those to a path to so many bytes a second; None is no limit.

        Raises:
            NotFoundError: nothing is being fetched to that path.
            MalformedError: the rate can be no limit.
        """
        found = [running for running in self if running.path == path]
        if not found:
            raise NotFoundError(f"nothing is being fetched to {path}: 'overlay file status' shows what is")
        for running in found:
            running.limit.change(rate)
