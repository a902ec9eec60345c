"""Places for transfers: bounded, and never kept by who stands still."""

from __future__ import annotations

import anyio
import pytest

from overlay.errors import RefusedError
from overlay.peer.places import Places


async def hold(places: Places, moves: anyio.Event, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    with places.take() as moved:
        task_status.started()
        await moves.wait()
        moved()
        await anyio.sleep_forever()


async def test_who_moved_least_recently_gives_way_to_the_next() -> None:
    places = Places(2)
    first_moves, never = anyio.Event(), anyio.Event()
    ended: list[str] = []

    async def holder(
        name: str, moves: anyio.Event, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        with pytest.raises(RefusedError, match="busy"):
            await hold(places, moves, task_status=task_status)
        ended.append(name)

    async with anyio.create_task_group() as group:
        await group.start(holder, "first", first_moves)
        await group.start(holder, "second", never)
        first_moves.set()
        await anyio.wait_all_tasks_blocked()
        await group.start(holder, "third", never)
        await anyio.wait_all_tasks_blocked()
        assert ended == ["second"]
        await group.start(holder, "fourth", never)
        await anyio.wait_all_tasks_blocked()
        assert ended == ["second", "first"]
        with places.take(), places.take():
            await anyio.wait_all_tasks_blocked()
        assert ended[:2] == ["second", "first"]
        assert set(ended[2:]) == {"third", "fourth"}


async def test_places_come_back_whatever_happens_in_them() -> None:
    places = Places(1)
    for _ in range(3):
        with pytest.raises(LookupError), places.take():
            raise LookupError
    with anyio.CancelScope() as scope, places.take():
        scope.cancel()
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    with places.take() as moved:
        moved()
        await anyio.lowlevel.checkpoint()
    assert not places._scopes


async def test_a_transfer_that_gave_way_does_not_come_back_by_moving() -> None:
    places = Places(1)
    with places.take() as moved:
        with places.take():
            moved()
            assert len(places._scopes) == 1
        moved()
        assert not places._scopes
