from __future__ import annotations

from collections.abc import Container

import anyio
import pytest

from overlay.files.ahead import PATIENCE, Ahead
from overlay.files.sink import ChunkTree
from overlay.peer.chunks import MAX_UNFOLDED

ROOT, LEAF = b"root", b"leaf"


class Tree(ChunkTree):
    block_size = 32768
    finished = False
    missing = 1 << 30

    def __init__(self, waited_for: bytes) -> None:
        self.waited_for = waited_for

    def wanted(self, limit: int, asked: Container[bytes] = ()) -> list[bytes]:
        return [it for it in (self.waited_for,) if it not in asked][:limit]

    def unfolds(self, reference: bytes) -> bool:
        return reference == ROOT == self.waited_for


def test_each_circuit_but_the_first_is_asked_for_another_node() -> None:
    ahead = Ahead(Tree(ROOT))
    chosen = [ahead.choose() for _ in range(MAX_UNFOLDED + 2)]
    assert chosen == [None, *((ROOT, number) for number in range(1, MAX_UNFOLDED)), None, None]


def test_nothing_is_asked_for_ahead_once_the_root_is_here_nor_where_it_has_only_leaves() -> None:
    ahead = Ahead(Tree(LEAF))
    assert [ahead.choose(), ahead.choose()] == [None, None]


def test_what_came_is_handed_out_once() -> None:
    ahead = Ahead(Tree(ROOT))
    ahead.keep(b"one")
    ahead.keep(b"two")
    assert ahead.take() == [b"one", b"two"]
    assert ahead.take() == []


@pytest.mark.parametrize("late", [False, True])
async def test_a_root_waits_for_its_nodes_but_not_for_long(late: bool) -> None:  # noqa: FBT001 - a parameter
    ahead = Ahead(Tree(ROOT))
    answer, begun = anyio.Event(), anyio.current_time()

    async def ask() -> None:
        with ahead.asking():
            await answer.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        await ahead.wait(LEAF)
        assert anyio.current_time() - begun < PATIENCE
        if not late:
            answer.set()
        await ahead.wait(ROOT)
        assert (anyio.current_time() - begun >= PATIENCE) == late
        answer.set()
    await ahead.wait(ROOT)


async def test_nothing_is_waited_for_where_nothing_is_asked() -> None:
    with anyio.fail_after(PATIENCE / 2):
        await Ahead(Tree(ROOT)).wait(ROOT)
