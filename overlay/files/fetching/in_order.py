"""Handing on a content while it is fetched: verified, from its beginning to its end, and kept nowhere.

Chunks come in any order, so what came too early waits on the disk, in the hidden files of a target that is
never finished. Memory has a piece at a time, and however slowly the content is taken, the fetch goes on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from overlay.files.disk.target import Target
from overlay.files.engine.providers import Candidates
from overlay.files.fetching.bell import Bell
from overlay.files.fetching.gathering import Report, gather
from overlay.files.fetching.pace import Pace
from overlay.files.fetching.together import together
from overlay.peer.node import Node

PIECE_BYTES = 1 << 19
"""Bytes handed on at once: as base64 they fit a line of the control protocol."""

Take = Callable[[bytes], Awaitable[None]]
"""Given the next piece of the content; awaited before the one after it."""


class InOrder:
    """A sink that knows how much of a target is there without a gap.

    Args:
        target: has nothing yet.

    Attributes:
        tree: see `Sink.tree`.
        ready: bytes from the beginning that are there.
    """

    def __init__(self, target: Target) -> None:
        self.tree = target.tree
        self.ready = 0
        self._target = target
        self._next = 0  # the first leaf that is not there
        self._taken: set[int] = set()  # leaves that are not flushed yet
        self._early: set[int] = set()  # those that are, behind the first that is missing
        self._bell = Bell()

    def take(self, reference: bytes, data: bytes) -> int:
        """See `Sink.take`.

        Raises:
            VerificationError, MalformedError: see there.
        """
        leaves = [place.first for place in self.tree.places(reference) if not place.level]
        count = self._target.take(reference, data)
        self._taken.update(leaves)
        return count

    async def flush(self) -> None:
        """See `Sink.flush`."""
        taken = set(self._taken)
        await self._target.flush()
        self._taken -= taken
        self._early |= {leaf for leaf in taken if leaf >= self._next}
        while self._next in self._early:
            self._early.remove(self._next)
            self._next += 1
        there = self._next * self.tree.block_size
        self.ready = there if self.tree.size is None else min(there, self.tree.size)
        self._bell.ring()

    async def hand_on(self, take: Take) -> None:
        """Give all content to `take`, each piece as soon as nothing before it is missing.

        Raises:
            StorageError: the disk fails.
        """
        given = 0
        while not self.tree.finished or self.tree.size != given:
            changed = self._bell.next
            if given == self.ready:
                await changed.wait()
            while given < self.ready:
                piece = await self._target.read(given, min(PIECE_BYTES, self.ready - given))
                await take(piece)
                given += len(piece)


async def read_in_order(
    node: Node,
    target: Target,
    candidates: Candidates,
    take: Take,
    *,
    report: Report | None = None,
    pace: Pace | None = None,
) -> None:
    """Fetch a content and hand it on.

    Args:
        node: see `gather`.
        target: has nothing yet; it is discarded in any case.
        candidates: nodes that may have it.
        take: given the content.
        report: see `gather`.
        pace: see `gather`.

    Raises:
        OverlayError: see `gather`. Failed or cancelled, a part was handed on.
    """
    sink = InOrder(target)

    try:
        async with together() as start:
            start(partial(gather, node, sink, candidates, report, pace))
            start(partial(sink.hand_on, take))
    finally:
        with anyio.CancelScope(shield=True):
            await target.discard()
