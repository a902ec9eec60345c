"""The reconciler: brings histories together whenever participants could have missed something."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable

import anyio
from anyio.abc import TaskGroup, TaskStatus

from overlay.chat.session import Participant, Session
from overlay.chat.sync import Sync
from overlay.errors import OverlayError
from overlay.identity import NodeIdentifier
from overlay.peer.node import Node
from overlay.units.locators import UnitLocator

logger = logging.getLogger(__name__)

INTERVAL = 60.0
"""Seconds between rounds, a quarter more or less by chance."""
LONGEST_PAUSE = 900.0
"""Seconds at most before a node that was not reached is tried again; when it comes back, it makes contact."""
MAX_DIALS = 8
"""Exchanges at once that need a new connection."""
MAX_EXCHANGES = 64
"""Exchanges in a row with one node, enough for the longest history there may be."""


class Reconciler:
    """Exchanges with everybody at the start, with whoever is met, and with some in every round.

    Args:
        node: tells who is connected.
        sync: does the exchanges.
        sessions: gives those of this node.
    """

    def __init__(self, node: Node, sync: Sync, sessions: Callable[[], Collection[Session]]) -> None:
        self._node = node
        self._sync = sync
        self._sessions = sessions
        self._dials = anyio.CapacityLimiter(MAX_DIALS)
        self._running: set[tuple[bytes, NodeIdentifier]] = set()
        self._again: set[tuple[bytes, NodeIdentifier]] = set()
        self._pauses: dict[NodeIdentifier, tuple[float, float]] = {}
        self._group: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Reconcile until cancelled."""
        self._node.channels.contacts.append(self.meet)
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                task_status.started()
                for session in list(self._sessions()):
                    for other in await self._others(session):
                        self.start(session, other.locator)
                await self._rounds()
        finally:
            self._group = None
            self._node.channels.contacts.remove(self.meet)

    async def meet(self, node: NodeIdentifier) -> None:
        """Exchange about every session that `node` takes part in: it is there now."""
        self._pauses.pop(node, None)
        for session in list(self._sessions()):
            for other in await self._others(session):
                if other.node == node:
                    self.start(session, other.locator)

    def start(self, session: Session, other: UnitLocator) -> None:
        """Begin an exchange in the background; one that goes on already is followed by another."""
        if self._group is None:
            return
        key = (session.public, other.node)
        if key in self._running:
            self._again.add(key)
            return
        self._running.add(key)
        self._group.start_soon(self._exchange, session, other, key)

    async def _rounds(self) -> None:
        while True:
            await anyio.sleep(INTERVAL * (0.75 + self._node.entropy(1)[0] / 510))
            for session in list(self._sessions()):
                for other in self._pick(await self._others(session)):
                    self.start(session, other.locator)

    async def _others(self, session: Session) -> list[Participant]:
        try:
            people = await session.people()
        except OverlayError as error:  # left in this very moment, or the disk does not work
            logger.debug("a session was passed over: %s", error.code)
            return []
        me = self._node.identifier
        return [other for other in people.values() if not other.left and other.node != me]

    def _pick(self, others: Iterable[Participant]) -> list[Participant]:
        """One of those who are connected, one of the others whose pause is over."""
        now = anyio.current_time()
        near, far = [], []
        for other in others:
            if self._node.channels.connected(other.node):
                near.append(other)
            elif self._pauses.get(other.node, (0.0, 0.0))[1] <= now:
                far.append(other)
        return [group[self._chance(len(group))] for group in (near, far) if group]

    def _chance(self, count: int) -> int:
        return int.from_bytes(self._node.entropy(4), "big") % count

    async def _exchange(
        self, session: Session, other: UnitLocator, key: tuple[bytes, NodeIdentifier]
    ) -> None:
        try:
            if self._node.channels.connected(other.node):
                await self._exchange_all(session, other, key)
            else:
                async with self._dials:
                    await self._exchange_all(session, other, key)
        except OverlayError as error:
            logger.debug("histories were not brought together: %s", error.code)
            pause = min(2 * self._pauses.get(other.node, (INTERVAL / 2, 0.0))[0], LONGEST_PAUSE)
            self._pauses[other.node] = (pause, anyio.current_time() + pause)
        else:
            self._pauses.pop(other.node, None)
        finally:
            self._running.discard(key)
            self._again.discard(key)

    async def _exchange_all(
        self, session: Session, other: UnitLocator, key: tuple[bytes, NodeIdentifier]
    ) -> None:
        for _ in range(MAX_EXCHANGES):
            self._again.discard(key)
            if await self._sync.exchange(session, other) and key not in self._again:
                return
