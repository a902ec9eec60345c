"""The engine of a transfer without the command: a node of this process that fetches from one that offers."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

import anyio

from overlay.connection import ConnectionLayer, Transport
from overlay.database import Database
from overlay.files.disk.target import open_target
from overlay.files.engine.providers import Candidates
from overlay.files.engine.transfer import MAX_CIRCUITS
from overlay.files.fetching.fetch import Report, fetch
from overlay.files.links import FileLink
from overlay.identity import NodeSecret
from overlay.locators import LocatorRecord
from overlay.peer.node import NODE_SCHEMAS, Node, NodeOptions


@asynccontextmanager
async def fetching(transport: Transport) -> AsyncIterator[Node]:
    """Run a node over a started transport, for the length of a block."""
    async with await Database.open(None, NODE_SCHEMAS) as database, anyio.create_task_group() as tasks:
        node = Node(
            secret=NodeSecret.generate(os.urandom),
            layer=ConnectionLayer([transport], anonymous=transport.properties.hides_sender),
            database=database,
            clock=time.time,  # noqa: TID251 - here it is chosen
            entropy=os.urandom,
            options=NodeOptions(),
        )
        await tasks.start(node.run)
        yield node
        tasks.cancel_scope.cancel()


async def fetch_link(
    node: Node, text: str, path: Path, *, report: Report | None = None, max_circuits: int = MAX_CIRCUITS
) -> float:
    """Fetch what a link leads to, from whom it names; gives the seconds until it is whole and on disk.

    Raises:
        OverlayError: see `overlay.files.fetching.fetch.fetch`; what came is kept.
    """
    link = FileLink.parse(text)
    records = [LocatorRecord.from_store(encoded) for encoded in link.providers]
    for record in records:
        await node.locators.keep(record)
    began = perf_counter()
    async with open_target(path, link.capability, size=link.size) as target:
        providers = [record.identifier for record in records]
        await fetch(node, target, Candidates(providers), report, max_circuits=max_circuits)
        await target.finish()
    return perf_counter() - began
