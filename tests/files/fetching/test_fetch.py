"""Whole fetches between simulated nodes: shared on one, over circuits, into a file on the other."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from overlay.errors import NotFoundError, StorageError, UnreachableError, VerificationError
from overlay.files.disk.target import open_target
from overlay.files.engine import providers, transfer
from overlay.files.engine.actions import Snapshot
from overlay.files.engine.providers import Candidates
from overlay.files.fetching.fetch import fetch
from overlay.files.sharing.records import Share
from overlay.files.sharing.shares import SHARES_SCHEMA, Shares
from overlay.peer.chunks import ChunkSource, Lookup
from overlay.peer.node import Node
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Latency
from overlay.units.eris import chunk_reference

SECRET = bytes(32)
"""Of all shares, so that equal files have equal chunks."""


@dataclass
class Provider:
    node: Node
    shares: Shares


@asynccontextmanager
async def provider(world: World, name: str) -> AsyncIterator[Provider]:
    async with world.database(SHARES_SCHEMA) as database, world.node(name, database) as node:
        shares = Shares(database, entropy=lambda _: SECRET, clock=world.clock)
        await shares.load()
        node.chunks.sources.append(shares.chunks)
        node.chunks.unfolding.append(shares.chunks.unfold)
        yield Provider(node, shares)


@asynccontextmanager
async def people(world: World, *names: str) -> AsyncIterator[tuple[Node, list[Provider]]]:
    """Alice, who fetches, and those who have something."""
    async with anyio.create_task_group() as tasks, world.database() as database:
        async with world.node("alice", database) as alice:
            found: list[Provider] = []
            async with _all(world, names, found):
                await introduce([alice, *(each.node for each in found)])
                yield alice, found
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def _all(world: World, names: Sequence[str], found: list[Provider]) -> AsyncIterator[None]:
    if not names:
        yield
        return
    async with provider(world, names[0]) as first:
        found.append(first)
        async with _all(world, names[1:], found):
            yield


def content(path: Path, size: int) -> bytes:
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    return data


def damage(path: Path, data: bytes) -> None:
    """Change a file so that only its chunks show it."""
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


async def get(alice: Node, share: Share, path: Path, asked: Sequence[Provider]) -> list[Snapshot]:
    shown: list[Snapshot] = []
    assert share.capability is not None
    async with open_target(path, share.capability, size=share.size) as target:
        await fetch(alice, target, Candidates([each.node.identifier for each in asked]), shown.append)
        await target.finish()
    return shown


async def test_a_file_comes_whole_over_several_circuits(tmp_path: Path) -> None:
    data = content(tmp_path / "plan", 8_000_003)
    async with people(World(1, latency=Latency(0.001)), "bob") as (alice, (bob,)):
        share = await bob.shares.add(tmp_path / "plan")
        shown = await get(alice, share, tmp_path / "copy", [bob])
    assert (tmp_path / "copy").read_bytes() == data
    assert max(each.circuits for each in shown) >= 2
    assert sorted(os.listdir(tmp_path)) == ["copy", "plan"]  # noqa: PTH208 - of a test


async def test_nodes_are_asked_for_while_their_root_is_on_its_way(tmp_path: Path) -> None:
    data = content(tmp_path / "plan", 40_000_000)
    async with people(World(1, latency=Latency(0.03)), "bob") as (alice, (bob,)):
        share = await bob.shares.add(tmp_path / "plan")
        assert share.capability is not None
        asked: set[tuple[bytes, int]] = set()
        unfold = bob.shares.chunks.unfold

        async def watch(root: bytes, number: int) -> bytes | None:
            asked.add((root, number))
            return await unfold(root, number)

        bob.node.chunks.unfolding[:] = [watch]
        await get(alice, share, tmp_path / "copy", [bob])
    assert (tmp_path / "copy").read_bytes() == data
    assert asked
    assert asked <= {(share.capability.reference, number) for number in range(1, 8)}


async def test_a_node_that_comes_before_its_root_is_not_asked_for_again(tmp_path: Path) -> None:
    data = content(tmp_path / "plan", 20_000_000)
    async with people(World(1, latency=Latency(0.03)), "bob") as (alice, (bob,)):
        share = await bob.shares.add(tmp_path / "plan")
        assert share.capability is not None
        nodes = [await bob.shares.chunks.unfold(share.capability.reference, number) for number in (1, 2)]
        asked: list[bytes] = []
        look_up, unfolded = bob.shares.chunks.look_up, anyio.Event()
        unfold = bob.shares.chunks.unfold

        async def watch(references: Sequence[bytes]) -> Lookup:
            asked.extend(references)
            await unfolded.wait()
            await anyio.sleep(0.2)  # the way of what was unfolded
            return await look_up(references)

        async def tell(root: bytes, number: int) -> bytes | None:
            if number == 2:
                unfolded.set()
            return await unfold(root, number)

        bob.shares.chunks.look_up = watch  # type: ignore[method-assign, assignment]
        bob.node.chunks.unfolding[:] = [tell]
        await get(alice, share, tmp_path / "copy", [bob])
    assert (tmp_path / "copy").read_bytes() == data
    assert not {chunk_reference(node or b"") for node in nodes} & set(asked)


async def test_what_is_sent_for_nodes_and_is_none_of_them_is_dropped(tmp_path: Path) -> None:
    data = content(tmp_path / "plan", 20_000_000)
    async with people(World(1, latency=Latency(0.03)), "mallory") as (alice, (mallory,)):
        share = await mallory.shares.add(tmp_path / "plan")
        lies: set[int] = set()

        async def lie(_: bytes, number: int) -> bytes:
            lies.add(number)
            return bytes(32768)

        mallory.node.chunks.unfolding[:] = [lie]
        await get(alice, share, tmp_path / "copy", [mallory])
    assert (tmp_path / "copy").read_bytes() == data
    assert lies


@pytest.mark.parametrize("size", [0, 1, 1024, 20_000, 100_000])
async def test_small_files_come_too(tmp_path: Path, size: int) -> None:
    data = content(tmp_path / "plan", size)
    async with people(World(2, latency=Latency(0.001)), "bob") as (alice, (bob,)):
        share = await bob.shares.add(tmp_path / "plan")
        await get(alice, share, tmp_path / "copy", [bob])
    assert (tmp_path / "copy").read_bytes() == data


async def test_what_one_has_no_more_comes_from_another(tmp_path: Path) -> None:
    data = content(tmp_path / "plan", 3_000_000)
    (tmp_path / "same").write_bytes(data)
    async with people(World(3, latency=Latency(0.001)), "bob", "carol") as (alice, (bob, carol)):
        share = await bob.shares.add(tmp_path / "plan")
        await carol.shares.add(tmp_path / "same")
        (tmp_path / "plan").write_bytes(data[:1_000_000] + bytes(2_000_000))
        await get(alice, share, tmp_path / "copy", [bob, carol])
    assert (tmp_path / "copy").read_bytes() == data


async def test_what_nobody_has_any_more_is_said_and_what_came_is_kept(tmp_path: Path) -> None:
    data = content(tmp_path / "plan", 3_000_000)
    async with people(World(4, latency=Latency(0.001)), "bob") as (alice, (bob,)):
        share = await bob.shares.add(tmp_path / "plan")
        damage(tmp_path / "plan", data[:1_000_000] + bytes(2_000_000))
        with pytest.raises(NotFoundError, match="nobody has all of this any more"):
            await get(alice, share, tmp_path / "copy", [bob])
        (tmp_path / "plan").write_bytes(data)
        await bob.shares.add(tmp_path / "plan")
        shown = await get(alice, share, tmp_path / "copy", [bob])
    assert (tmp_path / "copy").read_bytes() == data
    assert shown[-1].received < 2_300_000


async def test_a_liar_is_left_and_nothing_wrong_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "FAILED_PAUSE", 0.0)
    data = content(tmp_path / "plan", 3_000_000)

    class Liar(ChunkSource):
        requests = 0

        async def look_up(self, references: Sequence[bytes]) -> Lookup:
            self.requests += 1
            return await super().look_up(references)

        async def get(self, references: Sequence[bytes]) -> Sequence[bytes | None]:
            return [bytes(32768) for _ in references]

    async with people(World(5, latency=Latency(0.001)), "mallory", "bob") as (alice, (mallory, bob)):
        share = await bob.shares.add(tmp_path / "plan")
        liar = Liar()
        mallory.node.chunks.sources.append(liar)
        await get(alice, share, tmp_path / "copy", [mallory, bob])
        assert liar.requests == 1  # and never again, as it would be at once if it had only failed
        assert [peer.score for peer in alice.peers()] == [0, 0]  # she cannot see who was lied to
        with pytest.raises(VerificationError, match="sent something else"):
            await get(alice, share, tmp_path / "again", [mallory])
    assert (tmp_path / "copy").read_bytes() == data


async def test_nobody_to_ask_is_said_at_once(tmp_path: Path) -> None:
    content(tmp_path / "plan", 1000)
    async with people(World(6), "bob") as (alice, (bob,)):
        share = await bob.shares.add(tmp_path / "plan")
        with pytest.raises(NotFoundError, match="nobody is known"):
            await get(alice, share, tmp_path / "copy", [])


async def test_a_provider_that_is_gone_is_unreachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "MAX_FIRST_FAILURES", 1)
    content(tmp_path / "plan", 100_000)
    world = World(7, latency=Latency(0.001))
    async with people(world, "bob") as (alice, (bob,)):
        share = await bob.shares.add(tmp_path / "plan")
        world.network.take_down(world.number("bob"))
        with pytest.raises(UnreachableError, match="try again later"):
            await get(alice, share, tmp_path / "copy", [bob])


async def test_a_disk_that_fails_ends_the_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content(tmp_path / "plan", 3_000_000)
    async with people(World(8, latency=Latency(0.001)), "bob") as (alice, (bob,)):
        share = await bob.shares.add(tmp_path / "plan")
        assert share.capability is not None
        async with open_target(tmp_path / "copy", share.capability, size=share.size) as target:

            def fail(*_: object) -> None:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(target._files, "write", fail)
            with pytest.raises(StorageError, match="No space left"):
                await fetch(alice, target, Candidates([bob.node.identifier]))


async def test_a_cancelled_fetch_goes_on_where_it_was(tmp_path: Path) -> None:
    data = content(tmp_path / "plan", 8_000_000)
    async with people(World(9, latency=Latency(0.001)), "bob") as (alice, (bob,)):
        share = await bob.shares.add(tmp_path / "plan")
        assert share.capability is not None
        async with open_target(tmp_path / "copy", share.capability, size=share.size) as target:
            with anyio.CancelScope() as scope:

                def stop(snapshot: Snapshot) -> None:
                    if snapshot.received > 3_000_000:
                        scope.cancel()

                await fetch(alice, target, Candidates([bob.node.identifier]), stop)
        shown = await get(alice, share, tmp_path / "copy", [bob])
        assert shown[-1].received < 5_200_000
    assert (tmp_path / "copy").read_bytes() == data
