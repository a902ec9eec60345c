"""Gathering a content: what this node has itself, then the rest from others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from overlay.errors import UnreachableError
from overlay.files.actions import Snapshot
from overlay.files.bell import Bell
from overlay.files.fetch import fetch
from overlay.files.keeper import Lender
from overlay.files.pace import Pace
from overlay.files.sink import Sink
from overlay.identity import NodeIdentifier
from overlay.peer.chunks import ChunkSource
from overlay.peer.node import Node

LOCAL_CHUNKS = 64
"""Chunks looked for on this node at once: 2 MiB."""


Report = Callable[[Snapshot | None], None]
"""Told now and then how far a transfer is; None before others are asked."""


async def gather(
    node: Node,
    sink: Sink,
    providers: Iterable[NodeIdentifier],
    report: Report | None = None,
    pace: Pace | None = None,
    *,
    circuits: Lender | None = None,
    bell: Bell | None = None,
) -> None:
    """Bring all that a sink lacks.

    Args:
        node: looks in what it stores and offers, and asks others without showing itself.
        sink: what is fetched; not finished here.
        providers: nodes that may have it, the best first.
        report: told once what this node has itself, and after each step of fetching from others.
        pace: how fast it may be, if not as the node's limit allows.
        circuits: see `fetch`.
        bell: see `fetch`.

    Raises:
        TransportUnavailableError: others have to be asked, and none of this node's transports works.
        UnreachableError: nobody who may have the rest is reached.
        OverlayError: any other that `fetch` raises.
        Failed or cancelled, the sink has all that came.
    """
    await take_local(node, sink)
    if report is not None:
        report(None)
    if sink.tree.finished:
        return
    node.check_online()  # the engine would try for a minute
    try:
        await fetch(
            node,
            sink,
            providers,
            report,
            pace=pace or Pace(shared=node.chunks.down),
            circuits=circuits,
            bell=bell,
        )
    except UnreachableError:
        node.check_online()  # where the trouble is here, that is what helps to know
        raise


async def take_local(node: Node, sink: Sink) -> None:
    """Bring what this node stores or offers itself.

    Raises:
        OverlayError: any of the sink.
        StorageError: the database does not work.
    """
    sources: Sequence[ChunkSource] = [node.storage, *node.chunks.sources]
    lacking: set[bytes] = set()
    while wanted := sink.tree.wanted(LOCAL_CHUNKS, lacking):
        lacking.update(wanted)
        for source in sources:
            missing = [reference for reference in wanted if reference in lacking]
            for reference, chunk in zip(missing, await source.get(missing), strict=True):
                if chunk is not None:
                    sink.take(reference, chunk)
                    lacking.discard(reference)
        await sink.flush()
