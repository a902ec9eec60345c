"""Circuits that outlive a transfer: the next one to the same provider need not wait for new ones.

Opening a circuit takes seconds. A folder is fetched in several transfers, one after the other, and all of
them ask the same few providers. Who serves one of them learns nothing new when the others come over it too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import anyio
from anyio.abc import TaskGroup, TaskStatus

from overlay.channel.driver import Channel
from overlay.errors import OverlayError
from overlay.identity import NodeIdentifier
from overlay.peer.node import Node


@dataclass(slots=True)
class Loan:
    """A circuit that somebody uses; it ends with the loan unless `keep` says that it is worth keeping."""

    channel: Channel
    keep: bool = False


class Lender(Protocol):
    """Gives out circuits."""

    def lend(self, provider: NodeIdentifier) -> AbstractAsyncContextManager[Loan]:
        """Open a circuit, or find one, for the length of a block.

        Raises:
            OverlayError: any that `ChannelPool.circuit` raises.
        """


class FreshCircuits:
    """Opens each circuit anew.

    Args:
        node: opens them.
    """

    def __init__(self, node: Node) -> None:
        self._node = node

    @asynccontextmanager
    async def lend(self, provider: NodeIdentifier) -> AsyncIterator[Loan]:
        """See `Lender`; none is kept."""
        async with self._node.channels.circuit(provider) as channel:
            yield Loan(channel)


@dataclass(slots=True)
class _Held:
    channel: Channel
    scope: anyio.CancelScope


class CircuitKeeper:
    """Keeps what its borrowers found worth keeping, until the block of `open_keeper` ends."""

    def __init__(self, node: Node, tasks: TaskGroup) -> None:
        self._node = node
        self._tasks = tasks
        self._idle: dict[NodeIdentifier, list[_Held]] = {}

    @asynccontextmanager
    async def lend(self, provider: NodeIdentifier) -> AsyncIterator[Loan]:
        """See `Lender`."""
        held = self._find(provider) or await self._tasks.start(self._hold, provider)
        loan = Loan(held.channel)
        try:
            yield loan
        finally:
            if loan.keep and not held.channel.closed:
                self._idle.setdefault(provider, []).append(held)
            else:
                held.scope.cancel()

    def _find(self, provider: NodeIdentifier) -> _Held | None:
        idle = self._idle.get(provider, [])
        while idle:
            held = idle.pop()
            if not held.channel.closed:
                return held
        return None

    async def _hold(self, provider: NodeIdentifier, *, task_status: TaskStatus[_Held]) -> None:
        async with self._node.channels.circuit(provider) as channel:
            with anyio.CancelScope() as scope:
                task_status.started(_Held(channel, scope))
                await channel.wait_closed()


@asynccontextmanager
async def open_keeper(node: Node) -> AsyncIterator[CircuitKeeper]:
    """Keep circuits for the length of a block; then all are closed.

    Raises:
        OverlayError: that of the block.
    """
    failure: OverlayError | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield CircuitKeeper(node, tasks)
        except OverlayError as error:  # as it is, not in the group that a task group would make of it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
