from __future__ import annotations

import anyio
import pytest

from overlay.identity import NodeIdentifier
from overlay.peer.crowd import MAX_OF_NODE, Crowd

ALICE, BOB, CAROL = (NodeIdentifier(bytes([number]) * 32) for number in range(1, 4))


class Scene:
    """A crowd, and who is still there."""

    def __init__(self, limit: int, scores: dict[NodeIdentifier, float]) -> None:
        self.crowd = Crowd(limit, scores.__getitem__)
        self.present: list[tuple[NodeIdentifier | None, int]] = []

    async def stay(self, node: NodeIdentifier | None, number: int = 0) -> None:
        self.present.append((node, number))
        with self.crowd.place(node):
            try:
                await anyio.sleep_forever()
            finally:
                self.present.remove((node, number))


async def settle() -> None:
    """Let those who were cancelled end: on asyncio a task that waits for its cancellation looks blocked."""
    for _ in range(3):
        await anyio.wait_all_tasks_blocked()


@pytest.mark.parametrize(
    ("comers", "gone"),
    [
        ([ALICE, BOB], None),
        ([BOB, ALICE, CAROL], BOB),
        ([ALICE, CAROL, BOB], BOB),
        ([ALICE, None, CAROL], None),
        ([ALICE, CAROL, ALICE], CAROL),
    ],
)
async def test_the_worst_reputation_goes_first(
    comers: list[NodeIdentifier | None], gone: NodeIdentifier | None
) -> None:
    scene = Scene(2, {ALICE: 5.0, BOB: -1.0, CAROL: 3.0})
    left = list(comers)
    if len(comers) > 2:
        left.remove(gone)
    async with anyio.create_task_group() as tasks:
        for number, comer in enumerate(comers):
            tasks.start_soon(scene.stay, comer, number)
            await settle()
        assert [node for node, _ in scene.present] == left
        tasks.cancel_scope.cancel()


async def test_of_equal_ones_the_oldest_goes() -> None:
    scene = Scene(2, {ALICE: 1.0})
    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(scene.stay, ALICE, number)
            await settle()
        assert scene.present == [(ALICE, 1), (ALICE, 2)]
        tasks.cancel_scope.cancel()


async def test_a_node_with_too_many_makes_room_for_a_worse_one() -> None:
    scene = Scene(MAX_OF_NODE + 1, {ALICE: 9.0, BOB: -9.0})
    async with anyio.create_task_group() as tasks:
        for number in range(MAX_OF_NODE + 1):
            tasks.start_soon(scene.stay, ALICE, number)
            await settle()
        tasks.start_soon(scene.stay, BOB)
        await settle()
        assert scene.present[0] == (ALICE, 1)
        assert scene.present[-1] == (BOB, 0)
        tasks.cancel_scope.cancel()


async def test_who_left_needs_no_place() -> None:
    scene = Scene(1, {ALICE: 1.0, BOB: 0.0})
    with anyio.move_on_after(0), scene.crowd.place(ALICE):
        await anyio.sleep_forever()
    with scene.crowd.place(BOB):
        await anyio.lowlevel.checkpoint()
