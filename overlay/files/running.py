"""The fetches that go on: what `overlay file status` shows of each, and what limits it."""

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

Task = Literal["get", "read", "pin", "chat"]
"""What a fetch is for: a file or folder, content that is handed on, a pin, a file that was posted."""


@dataclass(slots=True, eq=False)
class Running:
    """A fetch that goes on.

    Attributes:
        task: what it is for.
        name: what it is called that is fetched; empty if nobody said.
        path: where it will be; None where it becomes no file.
        size: its bytes; None while that is not known.
        present: bytes that are there already.
        snapshot: how the transfer stands; None before it has begun.
        limit: how fast it may be; may be changed.
        liars: nodes that sent something else than was asked for.
    """

    task: Task
    name: str = field(repr=False)
    path: Path | None
    size: int | None
    present: int = 0
    snapshot: Snapshot | None = None
    limit: Limiter = field(default_factory=Limiter)
    liars: Collection[NodeIdentifier] = ()


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


class Fetches(list[Running]):
    """All that go on on a node, in the order of their beginning."""

    @contextmanager
    def showing(self, running: Running) -> Iterator[Running]:
        """Count a fetch among them for the length of a block."""
        self.append(running)
        try:
            yield running
        finally:
            self.remove(running)

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
