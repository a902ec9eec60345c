from __future__ import annotations

import random
from pathlib import Path

import anyio

from overlay.errors import NotFoundError, UnreachableError, VerificationError
from overlay.files.engine.actions import Snapshot
from overlay.files.folders.bundle import Bundle
from overlay.files.folders.missing import MAX_SHOWN_CHARACTERS, Meeting, Missing, give_up_absent
from overlay.files.manifest.codec import Entry
from overlay.units.capability import SMALL_BLOCK
from overlay.units.eris import Chunk, encode_content
from overlay.units.tree import TreeReader


class Part:
    """A file in memory."""

    def __init__(self, name: str, size: int) -> None:
        content = random.Random(name).randbytes(size)
        self.chunks, capability = encode_content(content, secret=bytes(32))
        self.path = Path(name)
        self.tree = TreeReader(capability, size=size)

    @property
    def root(self) -> Chunk:
        return self.chunks[-1]

    def take(self, reference: bytes, data: bytes) -> int:
        return sum(len(piece.content) for piece in self.tree.receive(reference, data))

    async def flush(self) -> None:
        """There is nothing to write."""


async def test_those_that_need_what_nobody_has_are_given_up_and_no_others() -> None:
    bundle, brought = Bundle(SMALL_BLOCK, 9000), dict[str, bool]()
    first, second, third = parts = [Part(name, 3000) for name in ("first", "second", "third")]

    async def bring(part: Part) -> None:
        brought[part.path.name] = await bundle.bring(part)

    async with anyio.create_task_group() as tasks:
        for part in parts:
            bundle.announce(part.path, 3000)
            tasks.start_soon(bring, part)
        await bundle.begun.wait()
        await anyio.wait_all_tasks_blocked()
        bundle.take(*second.root)  # it waits for a leaf then
        absent = [first.root.reference, second.chunks[0].reference, third.chunks[0].reference, bytes(32)]
        assert await give_up_absent(bundle, absent)
        assert bundle.lacking == [third]  # whose leaf is not waited for yet
        assert not await give_up_absent(bundle, absent)
        for chunk in reversed(third.chunks):
            bundle.take(*chunk)
    assert brought == {"first": False, "second": False, "third": True}


def snapshot(circuits: int, *absent: bytes) -> Snapshot:
    return Snapshot(0, 0.0, None, circuits=circuits, providers=circuits, outstanding=0, absent=absent)


def test_a_meeting_knows_whether_anybody_was_reached_and_what_is_absent_at_the_end() -> None:
    told: list[Snapshot | None] = []
    meeting = Meeting(told.append)
    for each in (None, snapshot(0)):
        meeting(each)
        assert not meeting.met
    for each in (snapshot(1), snapshot(0, b"1")):
        meeting(each)
        assert meeting.met
    assert meeting.absent == (b"1",)
    assert len(told) == 4


def test_the_error_names_three_of_what_is_missing_and_says_why() -> None:
    missing = Missing()
    for name in ("a", "b" * 200, "c", "d"):
        missing.add(Entry((name,)), 5)
    assert (missing.files, missing.bytes) == (4, 20)
    text = str(missing.error(9, ""))
    assert text.startswith("4 of 9 files cannot be had from anybody any more, a, …")
    assert "b" * (MAX_SHOWN_CHARACTERS - 1) in text
    assert "b" * MAX_SHOWN_CHARACTERS not in text
    assert ", c and 1 more: the others are here" in text
    missing.judge(NotFoundError("x"))
    assert isinstance(missing.error(9, ""), NotFoundError)
    assert str(missing.error(9, "mallory sent something else")).endswith("again; mallory sent something else")
    missing.judge(VerificationError("x"))
    lied = missing.error(9, "mallory sent something else")
    assert isinstance(lied, VerificationError)
    assert "cannot be had because mallory sent something else, a, …" in str(lied)
    missing.judge(UnreachableError("x"))
    assert isinstance(missing.error(9, "mallory sent something else"), UnreachableError)
