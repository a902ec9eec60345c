"""Gathering content: from this node where it has all of it, else from others, and from them all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from overlay.errors import UnreachableError
from overlay.files.engine.actions import Snapshot
from overlay.files.engine.providers import Candidates
from overlay.files.fetching.bell import Bell
from overlay.files.fetching.fetch import fetch
from overlay.files.fetching.here import is_here, take_from_here
from overlay.files.fetching.keeper import CircuitKeeper, Lender
from overlay.files.fetching.pace import Pace
from overlay.files.fetching.sink import Sink, TreeSink
from overlay.peer.node import Node

Report = Callable[[Snapshot | None], None]
"""Told now and then how far a transfer is; None before others are asked."""


async def gather(
    node: Node,
    sink: TreeSink,
    candidates: Candidates,
    report: Report | None = None,
    pace: Pace | None = None,
) -> None:
    """Bring all that a sink of one content lacks, and flush it; see `here` for what this node has itself.

    Args:
        node: looks in what it offers and keeps for itself, and asks others without showing itself.
        sink: what is fetched; not finished here.
        candidates: nodes that may have it.
        report: told while nobody else is asked yet, and after each step of fetching from others.
        pace: how fast it may be, if not as the node's limit allows.

    Raises:
        OverlayError: any that `gather_from_others` raises.
        Failed or cancelled, the sink has all that came.
    """
    tree = sink.tree
    if report is not None:
        report(None)
    if not tree.finished and await is_here(node, tree.capability, tree.size):
        await take_from_here(node, sink, report)
    await gather_from_others(node, sink, candidates, report, pace)


async def gather_from_others(
    node: Node,
    sink: Sink,
    candidates: Candidates,
    report: Report | None = None,
    pace: Pace | None = None,
    *,
    circuits: Lender | None = None,
    bell: Bell | None = None,
) -> None:
    """Bring all that a sink lacks, whatever this node has of it, and flush it.

    Args:
        node: asks others, without showing itself.
        sink: what is fetched; not finished here.
        candidates: nodes that may have it.
        report: told once before others are asked, and after each step of fetching from them.
        pace: how fast it may be, if not as the node's limit allows.
        circuits: see `fetch`.
        bell: see `fetch`.

    Raises:
        TransportUnavailableError: others have to be asked, and none of this node's transports works.
        UnreachableError: nobody who may have the rest is reached.
        OverlayError: any other that `fetch` raises.
        Failed or cancelled, the sink has all that came.
    """
    if report is not None:
        report(None)
    if sink.tree.finished:
        return
    node.check_online()  # the engine would try for a minute
    try:
        await fetch(
            node,
            sink,
            candidates,
            report,
            pace=pace or Pace(shared=node.chunks.down),
            circuits=circuits,
            bell=bell,
        )
    except UnreachableError:
        node.check_online()  # where the trouble is here, that is what helps to know
        raise


@dataclass(frozen=True, slots=True)
class Supply:
    """Where all that is wanted of a folder comes from, in several transfers.

    Attributes:
        node: asks others, without showing itself.
        candidates: nodes that may have it.
        pace: how fast it may be, if not as the node's limit allows.
        circuits: live on from one transfer to the next.
        is_here: whether the node has all of it, see `overlay.files.fetching.here`.
    """

    node: Node
    candidates: Candidates
    pace: Pace | None
    circuits: CircuitKeeper
    is_here: bool

    async def take_own(self, sink: TreeSink) -> None:
        """Bring what a sink lacks from the node itself, if it has all that is wanted.

        Raises:
            OverlayError: any that `take_from_here` raises.
        """
        if self.is_here:
            await take_from_here(self.node, sink)

    async def bring(self, sink: Sink, report: Report, bell: Bell | None = None) -> None:
        """Bring what a sink lacks from others; see `gather_from_others`.

        Raises:
            OverlayError: any that this raises.
        """
        await gather_from_others(
            self.node, sink, self.candidates, report, self.pace, circuits=self.circuits, bell=bell
        )
