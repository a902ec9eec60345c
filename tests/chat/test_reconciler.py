from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import anyio
import pytest

from overlay.chat.reconciler import MAX_EXCHANGES, Reconciler
from overlay.chat.session import Session
from overlay.chat.sync import Sync
from overlay.errors import StorageError, UnreachableError
from overlay.identity import NodeIdentifier
from overlay.peer.node import Node
from overlay.units.locators import UnitLocator

OTHER = UnitLocator(NodeIdentifier(b"o" * 32), bytes(92))
SESSION = cast("Session", SimpleNamespace(public=b"s" * 32))


class Exchanges:
    """Stands for `Sync`: counts, and waits until the test lets an exchange go on."""

    def __init__(self, outcome: bool | Exception = True) -> None:  # noqa: FBT001, FBT002 - what `exchange` gives
        self.count = 0
        self.begun = anyio.Event()
        self.go_on = anyio.Event()
        self._outcome = outcome

    async def exchange(self, _session: Session, _other: UnitLocator) -> bool:
        self.count += 1
        self.begun.set()
        await self.go_on.wait()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


def make(exchanges: Exchanges) -> Reconciler:
    channels = SimpleNamespace(contacts=[], connected=lambda _node: True)
    node = SimpleNamespace(channels=channels, entropy=bytes)
    return Reconciler(cast("Node", node), cast("Sync", exchanges), list)


async def run_once(exchanges: Exchanges, starts: int) -> Reconciler:
    reconciler = make(exchanges)
    async with anyio.create_task_group() as group:
        await group.start(reconciler.run)
        reconciler.start(SESSION, OTHER)
        await exchanges.begun.wait()
        for _ in range(starts - 1):
            reconciler.start(SESSION, OTHER)
        exchanges.go_on.set()
        while reconciler._running:
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    return reconciler


async def test_a_wish_during_an_exchange_is_followed_by_one_more() -> None:
    exchanges = Exchanges()
    await run_once(exchanges, starts=5)
    assert exchanges.count == 2


async def test_one_who_never_finishes_is_let_go() -> None:
    exchanges = Exchanges(outcome=False)
    await run_once(exchanges, starts=1)
    assert exchanges.count == MAX_EXCHANGES


@pytest.mark.parametrize("failure", [UnreachableError("away"), StorageError("full")])
async def test_a_failure_ends_one_exchange_and_nothing_else(failure: Exception) -> None:
    exchanges = Exchanges(failure)
    reconciler = await run_once(exchanges, starts=1)
    assert exchanges.count == 1
    assert reconciler._pauses
    assert not reconciler._again


async def test_nothing_starts_while_it_does_not_run() -> None:
    exchanges = Exchanges()
    make(exchanges).start(SESSION, OTHER)
    await anyio.lowlevel.checkpoint()
    assert exchanges.count == 0
