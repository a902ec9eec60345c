"""The application as a whole: what a fetch leaves behind in what the node does under its name."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from overlay.files.service import FILES_SCHEMAS, Files
from overlay.peer.chunks import ChunkSource
from overlay.peer.node import Node
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Latency


@asynccontextmanager
async def person(world: World, name: str) -> AsyncIterator[tuple[Node, Files]]:
    async with world.database(*FILES_SCHEMAS) as database, world.node(name, database) as node:
        files = Files(node, database)
        await files.start()
        yield node, files


@pytest.mark.parametrize("way", ["get", "read", "pin"])
async def test_who_is_known_from_a_link_only_is_asked_for_it_and_for_nothing_else(
    tmp_path: Path, way: str
) -> None:
    world = World(3, latency=Latency(0.001))
    (tmp_path / "bait").write_bytes(random.Random(2).randbytes(400_000))
    (tmp_path / "secret").write_bytes(bytes(50_000))
    async with (
        person(world, "alice") as (alice, files),
        person(world, "carol") as (carol, _),
        person(world, "made up for this link") as (mallory, bait),
    ):
        await introduce([alice, carol])
        link = await bait.share(tmp_path / "bait")
        if way == "get":
            await files.get(link, tmp_path / "copy")
        elif way == "read":
            await files.read(link, tmp_path, drop)
        else:
            await files.pin(link)
        assert alice.locators.known(mallory.identifier) is None
        assert [peer.identifier for peer in alice.peers()] == alice.choose(9) == [carol.identifier]
        await files.put(tmp_path / "secret")
        assert (await mallory.storage.usage()).chunks == 0 < (await carol.storage.usage()).chunks
        assert mallory.locators.known(alice.identifier) is None


async def drop(_piece: bytes) -> None:
    """Takes a piece and does nothing with it."""


class Absent(ChunkSource):
    async def get(self, references: Sequence[bytes]) -> Sequence[bytes | None]:
        return [None] * len(references)


class Liar(ChunkSource):
    async def get(self, references: Sequence[bytes]) -> Sequence[bytes | None]:
        return [bytes(32_768)] * len(references)


@pytest.mark.parametrize("source", [Absent(), Liar()], ids=["absent", "lied"])
async def test_what_comes_of_a_fetch_changes_nobodys_score(tmp_path: Path, source: ChunkSource) -> None:
    world = World(4, latency=Latency(0.001))
    data = random.Random(2).randbytes(2_000_000)
    (tmp_path / "plan").write_bytes(data)
    async with (
        person(world, "alice") as (alice, files),
        person(world, "bob") as (bob, theirs),
        person(world, "mallory") as (mallory, _),
    ):
        await introduce([alice, bob, mallory])
        mallory.chunks.sources[:] = [source]
        link = await theirs.share(tmp_path / "plan")
        link = replace(link, providers=(mallory.record.encoded, *link.providers))
        await files.get(link, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data
        assert [peer.score for peer in alice.peers()] == [0, 0]
