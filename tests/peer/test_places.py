"""Places for transfers, in virtual time: bounded, shared out by owner, and never kept by who stands still."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from trio.testing import MockClock

from overlay.errors import RefusedError
from overlay.peer.places import STILL_SECONDS, Places

PATIENCE = 100.0


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


class Scene:
    """Transfers in places, and how each ended."""

    def __init__(self, tasks: anyio.abc.TaskGroup, places: Places) -> None:
        self._tasks = tasks
        self.places = places
        self.present: list[str] = []
        self.refused: dict[str, float] = {}
        self.ends: dict[str, anyio.Event] = {}

    async def begin(self, name: str, *, still: bool = False) -> None:
        """Begin a transfer, whose owner is the first letter of its name, and let all come to rest."""
        self.ends[name] = anyio.Event()
        self._tasks.start_soon(self._hold, name, still)
        await anyio.wait_all_tasks_blocked()

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await anyio.wait_all_tasks_blocked()

    async def drip(self, name: str, pause: float, moves: float = 0.0) -> None:
        """Begin a transfer whose caller lets it wait for so long again and again; let all come to rest.

        Each time it gets on by so many seconds.
        """
        self.ends[name] = anyio.Event()
        self._tasks.start_soon(self._drip, name, pause, moves)
        await anyio.wait_all_tasks_blocked()

    async def _drip(self, name: str, pause: float, moves: float) -> None:
        try:
            async with self.places.take(name[0]) as place:
                self.present.append(name)
                try:
                    while not self.ends[name].is_set():
                        with place.standing_still():
                            await anyio.sleep(pause)
                        place.moved(moves)
                finally:
                    self.present.remove(name)
        except RefusedError:
            self.refused[name] = anyio.current_time()

    async def _hold(self, name: str, still: bool) -> None:  # noqa: FBT001 - as `begin` says
        try:
            async with self.places.take(name[0]) as place:
                self.present.append(name)
                try:
                    if still:
                        with place.standing_still():
                            await self.ends[name].wait()
                    await self.ends[name].wait()
                finally:
                    self.present.remove(name)
        except RefusedError:
            self.refused[name] = anyio.current_time()


@asynccontextmanager
async def scene(limit: int, each: int, whole: float = math.inf) -> AsyncIterator[Scene]:
    async with anyio.create_task_group() as tasks:
        yield Scene(tasks, Places(limit, each=each, patience=PATIENCE, whole=whole))
        tasks.cancel_scope.cancel()


async def test_who_moves_keeps_its_place_and_newcomers_wait_until_it_is_done() -> None:
    async with scene(2, 2) as those:
        for name in ("a1", "b1", "c1"):
            await those.begin(name)
        await anyio.sleep(PATIENCE - 1)
        assert those.present == ["a1", "b1"]
        assert not those.refused
        await those.end("a1")
        assert those.present == ["b1", "c1"]


async def test_a_newcomer_does_not_wait_for_ever() -> None:
    async with scene(1, 1) as those:
        await those.begin("a1")
        begin = anyio.current_time()
        await those.begin("b1")
        await anyio.sleep(PATIENCE + 1)
        assert those.refused == {"b1": begin + PATIENCE}
        await those.end("a1")
        assert those.present == []


async def test_who_stands_still_for_longest_gives_way_to_who_waits_and_no_other_does() -> None:
    async with scene(3, 3) as those:
        await those.begin("a1")
        await those.begin("b1", still=True)
        await anyio.sleep(1)
        await those.begin("c1", still=True)
        await anyio.sleep(10 * STILL_SECONDS)
        assert those.present == ["a1", "b1", "c1"]  # nobody waits
        await those.begin("d1")
        assert (those.present, list(those.refused)) == (["a1", "c1", "d1"], ["b1"])
        await those.begin("e1")
        assert (those.present, list(those.refused)) == (["a1", "d1", "e1"], ["b1", "c1"])


async def test_one_who_waits_ends_one_transfer_although_many_stand_still() -> None:
    async with scene(4, 2) as those:
        for name in ("a1", "a2", "b1", "b2"):
            await those.begin(name, still=True)
        await anyio.sleep(2 * STILL_SECONDS)
        await those.begin("c1")
        await anyio.sleep(1)
        assert list(those.refused) == ["a1"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_one_who_waits_ends_one_also_where_the_end_comes_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("overlay.peer.places.STILL_SECONDS", 0.01)
    async with scene(4, 2) as those:
        for name in ("a1", "a2", "b1", "b2"):
            await those.begin(name, still=True)
        await anyio.sleep(0.05)
        await those.begin("c1")
        assert list(those.refused) == ["a1"]


async def test_what_waits_of_an_owner_ends_nothing_of_the_same() -> None:
    async with scene(3, 3) as those:
        for name in ("a1", "a2", "a3", "a4", "a5"):
            await those.begin(name, still=True)
        await anyio.sleep(2 * STILL_SECONDS)
        assert not those.refused
        await those.begin("b1")
        await anyio.sleep(1)
        assert list(those.refused) == ["a1"]
        assert those.present == ["a2", "a3", "b1"]


async def test_to_stand_still_for_a_moment_is_nothing() -> None:
    async with scene(1, 1) as those:
        await those.begin("b1")
        begin = anyio.current_time()
        await those.end("b1")
        await those.begin("a1", still=True)
        await those.begin("b1")
        await anyio.sleep(STILL_SECONDS - 1)
        assert those.present == ["a1"]
        await anyio.sleep(2)
        assert those.present == ["b1"]
        assert those.refused == {"a1": begin + STILL_SECONDS}


async def test_who_moves_a_little_now_and_then_gives_way_when_it_was_waited_for_long_enough() -> None:
    async with scene(2, 2, whole=20.0) as those:
        await those.drip("a1", 4.0)
        await anyio.sleep(6)
        await those.drip("b1", 4.0)
        await anyio.sleep(6)
        begin = anyio.current_time()
        await those.begin("c1")
        await anyio.sleep(7)
        assert those.present == ["a1", "b1"]  # 19 seconds, and 13
        await anyio.sleep(2)
        assert those.refused == {"a1": begin + 8}
        assert those.present == ["b1", "c1"]
        await anyio.sleep(100)
        assert those.present == ["b1", "c1"]  # nobody waits
        await those.begin("d1")
        assert those.present == ["c1", "d1"]


async def test_who_gets_on_has_the_time_that_it_takes() -> None:
    async with scene(1, 1, whole=10.0) as those:
        await those.drip("a1", 2.0, moves=2.0)
        await those.begin("b1")
        begin = anyio.current_time()
        await anyio.sleep(PATIENCE + 1)
        assert those.present == ["a1"]
        assert those.refused == {"b1": begin + PATIENCE}


async def test_where_a_transfer_may_be_waited_for_again_and_again_who_moves_now_and_then_stays() -> None:
    async with scene(1, 1) as those:
        await those.drip("a1", STILL_SECONDS - 1)
        begin = anyio.current_time()
        await those.begin("b1")
        await anyio.sleep(PATIENCE + 1)
        assert those.present == ["a1"]
        assert those.refused == {"b1": begin + PATIENCE}


async def test_who_waits_no_more_presses_nobody() -> None:
    places = Places(1, each=1, patience=PATIENCE)
    async with places.take("a") as place:
        with place.standing_still():
            with anyio.move_on_after(STILL_SECONDS - 1):
                async with places.take("b"):
                    pass
            await anyio.sleep(10 * STILL_SECONDS)


async def test_an_owner_competes_with_itself_first() -> None:
    async with scene(4, 3) as those:
        for number in range(6):
            await those.begin(f"a{number}")
        assert those.present == ["a0", "a1", "a2"]
        await those.begin("b1")
        assert those.present == ["a0", "a1", "a2", "b1"]
        await those.begin("b2")
        await those.end("a0")
        assert those.present == ["a1", "a2", "b1", "b2"]  # although three of its own had waited for longer


async def test_who_has_fewest_comes_first() -> None:
    async with scene(3, 3) as those:
        for name in ("a1", "a2", "b1", "a3", "b2", "c1"):
            await those.begin(name)
        for name, following in (("a1", "c1"), ("c1", "b2"), ("b1", "a3")):
            await those.end(name)
            assert those.present[-1] == following


async def test_owners_who_have_nothing_yet_take_turns() -> None:
    async with scene(1, 1) as those:
        for name in ("a1", "b1", "b2", "c1"):
            await those.begin(name)
        for name, following in (("a1", "b1"), ("b1", "c1"), ("c1", "b2")):
            await those.end(name)
            assert those.present == [following]


async def test_who_just_had_a_place_is_behind_who_came_meanwhile() -> None:
    async with scene(2, 2) as those:
        for name in ("a1", "b1", "a2", "b2", "c1"):
            await those.begin(name)
        await those.end("a1")
        assert those.present == ["b1", "c1"]  # although a waited for another before
        await those.end("b1")
        assert those.present == ["c1", "a2"]


async def test_a_place_is_wanted_by_another_transfer_of_its_owner() -> None:
    async with scene(3, 1) as those, those.places.take("a") as place:
        await those.begin("b1")
        assert not place.wanted
        await those.begin("b2")
        assert not place.wanted  # b has what it may have
        await those.begin("a2")
        assert place.wanted


async def test_a_place_is_wanted_by_owners_who_have_less() -> None:
    async with scene(3, 2) as those:
        async with those.places.take("a") as first, those.places.take("a"):
            await those.begin("b1")
            assert not first.wanted
            await those.begin("b2")
            assert first.wanted
        await anyio.wait_all_tasks_blocked()
        assert those.present == ["b1", "b2"]
        async with those.places.take("a") as place:
            await those.begin("b3")
            assert not place.wanted  # it is the only one of a


async def test_places_come_back_whatever_happens_in_them() -> None:
    places = Places(1, each=1, patience=PATIENCE)
    for _ in range(3):
        with pytest.raises(LookupError):
            async with places.take("a"):
                raise LookupError
    with anyio.CancelScope() as scope:
        async with places.take("a"):
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    async with places.take("a"):
        await anyio.lowlevel.checkpoint()
    assert not places._held
    assert not places._counts


async def test_who_is_cancelled_just_when_it_is_given_a_place_does_not_keep_it() -> None:
    places = Places(1, each=1, patience=PATIENCE)
    scope = anyio.CancelScope()

    async def wait() -> None:
        with scope:
            async with places.take("b"):
                await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        async with places.take("a"):
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert not places._held
        assert not places._waiting
