"""Which chunk is asked for where: each at most twice at once, and never twice on one circuit."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from overlay.files.engine.circuits import Request

MAX_HOLDERS = 2
"""Requests that ask for one chunk at once: the second is the remedy for a slow first, a third is waste."""


@dataclass(slots=True)
class _Entry:
    requests: dict[int, Request] = field(default_factory=dict)
    arrived: bool = False


class Asked(Container[bytes]):
    """Chunks that are asked for. One is *in* it while a request that has not stalled may bring it.

    Attributes:
        stalled: whether requests may have stalled; as long as none has, looking up is fast.
    """

    def __init__(self) -> None:
        self.stalled = False
        self._entries: dict[bytes, _Entry] = {}

    def __len__(self) -> int:
        """Count the chunks that are asked for, once each."""
        return len(self._entries)

    @property
    def doubled(self) -> int:
        """Count the chunks that two requests may bring."""
        return sum(len(entry.requests) > 1 for entry in self._entries.values())

    def __contains__(self, reference: object) -> bool:
        """Whether it need not be asked for, because it is on its way."""
        if reference not in self._entries:
            return False
        if not self.stalled or not isinstance(reference, bytes):
            return True
        return not all(request.overdue for request in self._entries[reference].requests.values())

    def add(self, request: Request) -> None:
        """Note all that `request` asks for."""
        for reference in request.references:
            self._entries.setdefault(reference, _Entry()).requests[request.number] = request

    def arrive(self, request: Request, reference: bytes) -> bool:
        """Note that a chunk came with `request`; returns whether it is the first time."""
        entry = self._entries[reference]
        first = not entry.arrived
        entry.arrived = True
        self._drop(request, reference)
        return first

    def end(self, request: Request) -> None:
        """Note that what is missing of `request` will not come."""
        for reference in request.missing:
            self._drop(request, reference)

    def may_ask(self, reference: bytes, circuit: int) -> bool:
        """Whether one more request, on this circuit, may ask for a chunk."""
        entry = self._entries.get(reference)
        if entry is None:
            return True
        holders = entry.requests.values()
        return (
            not entry.arrived
            and len(holders) < MAX_HOLDERS
            and all(request.circuit != circuit for request in holders)
        )

    def _drop(self, request: Request, reference: bytes) -> None:
        entry = self._entries[reference]
        del entry.requests[request.number]
        if not entry.requests:
            del self._entries[reference]
