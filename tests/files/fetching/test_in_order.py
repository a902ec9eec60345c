"""A content that is handed on while it is fetched: in order, whole, and kept nowhere."""

from __future__ import annotations

import os
import random
from pathlib import Path

import anyio
import pytest

from overlay.errors import NotFoundError, RefusedError
from overlay.files.disk.target import open_target
from overlay.files.fetching.in_order import PIECE_BYTES, InOrder
from overlay.files.links import FileLink
from overlay.files.service import FILES_SCHEMAS, Files
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Latency
from overlay.units.eris import encode_content


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 20_000, 32_768 * 5, 1_000_003])
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_comes_first_it_is_handed_on_in_order(
    tmp_path: Path,
    size: int,
    told: bool,  # noqa: FBT001 - a case of the test
    seed: int,
) -> None:
    data, chance = content(size), random.Random(seed)
    chunks, capability = encode_content(data, secret=bytes(32))
    stored = {chunk.reference: chunk.data for chunk in chunks}
    got = bytearray()

    async def take(piece: bytes) -> None:
        assert 0 < len(piece) <= PIECE_BYTES
        got.extend(piece)

    async with open_target(tmp_path / "content", capability, size=size if told else None) as target:
        sink = InOrder(target)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sink.hand_on, take)
            while wanted := sink.tree.wanted(64):
                reference = chance.choice(wanted)
                sink.take(reference, stored[reference])
                if chance.random() < 0.5:
                    await sink.flush()
                assert data.startswith(bytes(got))
            await sink.flush()
        await target.discard()
    assert bytes(got) == data
    assert not os.listdir(tmp_path)  # noqa: PTH208 - of a test


async def test_nothing_is_handed_on_beyond_a_gap(tmp_path: Path) -> None:
    data = content(32_768 * 4)
    chunks, capability = encode_content(data, secret=bytes(32))
    stored = {chunk.reference: chunk.data for chunk in chunks}
    async with open_target(tmp_path / "content", capability) as target:
        sink = InOrder(target)
        while sink.tree.wanted(1) == [capability.reference]:
            sink.take(capability.reference, stored[capability.reference])
        leaves = sink.tree.wanted(64)
        for reference, ready in ((leaves[2], 0), (leaves[0], 1), (leaves[1], 3)):
            sink.take(reference, stored[reference])
            assert sink.ready < ready * 32_768 or not ready  # only what is on the disk counts
            await sink.flush()
            assert sink.ready == ready * 32_768


async def test_a_flush_that_is_cancelled_forgets_no_leaf(tmp_path: Path) -> None:
    chunks, capability = encode_content(content(1000), secret=bytes(32))
    async with open_target(tmp_path / "content", capability) as target:
        sink = InOrder(target)
        sink.take(capability.reference, chunks[0].data)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await sink.flush()
        await sink.flush()
        assert sink.ready == 1000


async def test_a_file_comes_from_another_node_and_leaves_nothing(tmp_path: Path) -> None:
    world, data, got = World(9, latency=Latency(0.001)), content(3_000_000), bytearray()
    source, folder = tmp_path / "plan", tmp_path / "room"
    source.write_bytes(data)
    folder.mkdir()

    async def take(piece: bytes) -> None:
        assert [each.task for each in files.running] == ["read"]
        got.extend(piece)

    async with (
        world.database(*FILES_SCHEMAS) as alices,
        world.database(*FILES_SCHEMAS) as bobs,
        world.node("alice", alices) as alice,
        world.node("bob", bobs) as bob,
    ):
        await introduce([alice, bob])
        shared = Files(bob, bobs)
        await shared.start()
        link, files = await shared.share(source), Files(alice, alices)
        assert await files.read(link, folder, take) == len(data)
        assert bytes(got) == data
        assert (os.listdir(folder), files.running) == ([], [])  # noqa: PTH208 - of a test
        await shared.remove(link)
        with pytest.raises(NotFoundError, match="nobody has all of this"):
            await files.read(link, folder, take)
        with pytest.raises(RefusedError, match="one of a folder, not of a file"):
            await files.read(FileLink(link.capability, kind="folder"), folder, take)
        assert not os.listdir(folder)  # noqa: PTH208 - of a test
