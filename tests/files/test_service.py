"""The application as a whole: what a fetch leaves behind in what the node does under its name."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from overlay.channel.driver import Channel
from overlay.errors import NotFoundError, UnreachableError, VerificationError
from overlay.files.engine.transfer import FIRST_CIRCUITS
from overlay.files.folders.order import Order
from overlay.files.links import FileLink
from overlay.files.running import Running
from overlay.files.service import FILES_SCHEMAS, Files
from overlay.identity import NodeIdentifier
from overlay.locators import MAX_CLOCK_SKEW, LocatorRecord, NodeLocator
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


@pytest.mark.parametrize(("ahead", "kind"), [(3600, "file"), (MAX_CLOCK_SKEW - 60, "folder")])
async def test_a_provider_whose_clock_is_ahead_is_asked_all_the_same(
    tmp_path: Path, ahead: float, kind: str
) -> None:
    world = World(5, latency=Latency(0.001))
    (tmp_path / "garden").mkdir()
    (tmp_path / "garden" / "rose").write_bytes(b"red")
    async with person(world, "alice") as (alice, files), person(world, "bob") as (bob, theirs):
        if kind == "file":
            link = issued(await theirs.share(tmp_path / "garden" / "rose"), world, bob, ahead)
            await files.get(link, tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == b"red"
        else:
            folder, _ = await theirs.share_folder(tmp_path / "garden")
            await files.get_folder(Order(issued(folder, world, bob, ahead), tmp_path / "to"))
            assert (tmp_path / "to" / "garden" / "rose").read_bytes() == b"red"
        assert alice.locators.known(bob.identifier) is None


async def test_one_who_lives_in_another_time_is_not(tmp_path: Path) -> None:
    world = World(6, latency=Latency(0.001))
    (tmp_path / "plan").write_bytes(b"red")
    async with person(world, "alice") as (_, files), person(world, "bob") as (bob, theirs):
        link = issued(await theirs.share(tmp_path / "plan"), world, bob, MAX_CLOCK_SKEW + 60)
        with pytest.raises(UnreachableError, match="nobody who may have what is missing was reached"):
            await files.get(link, tmp_path / "copy")


def issued(link: FileLink, world: World, by: Node, ahead: float) -> FileLink:
    """Make a link say what it would if its provider's clock were so many seconds ahead."""
    record = by.record
    later = LocatorRecord.sign(
        world.secret("bob"), record.locators, number=record.number + 1, now=by.clock() + ahead
    )
    return replace(link, providers=(later.encoded,))


async def drop(_piece: bytes) -> None:
    """Takes a piece and does nothing with it."""


class Absent(ChunkSource):
    async def get(self, references: Sequence[bytes]) -> Sequence[bytes | None]:
        return [None] * len(references)


class Liar(ChunkSource):
    """Tells the truth about one chunk, at most."""

    def __init__(self, known: bytes = b"", chunk: bytes | None = None) -> None:
        self.asked = anyio.Event()
        self._known = known
        self._chunk = chunk

    async def get(self, references: Sequence[bytes]) -> Sequence[bytes | None]:
        self.asked.set()
        return [self._chunk if reference == self._known else bytes(32_768) for reference in references]


@pytest.mark.parametrize("make", [Absent, Liar], ids=["absent", "lied"])
async def test_what_comes_of_a_fetch_changes_nobodys_score(
    tmp_path: Path, make: Callable[[], ChunkSource]
) -> None:
    source = make()
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
        liars: set[NodeIdentifier] = set()
        await files.get(link, tmp_path / "copy", lambda running: liars.update(running.liars))
        assert liars == ({mallory.identifier} if isinstance(source, Liar) else set())  # who fetches is told
        assert (tmp_path / "copy").read_bytes() == data
        assert [peer.score for peer in alice.peers()] == [0, 0]


@pytest.mark.parametrize("way", ["get", "pin"])
async def test_who_lied_about_one_file_of_a_folder_is_not_asked_for_the_others(
    tmp_path: Path, way: str
) -> None:
    world = World(7, latency=Latency(0.001))
    (tmp_path / "garden").mkdir()
    for number in range(30):
        (tmp_path / "garden" / f"{number}").write_bytes(
            random.Random(number).randbytes(900 if number % 2 else 40_000)
        )
    async with (
        person(world, "alice") as (alice, files),
        person(world, "bob") as (bob, theirs),
        person(world, "mallory") as (mallory, _),
    ):
        link, _ = await theirs.share_folder(tmp_path / "garden")
        link = replace(link, providers=(mallory.record.encoded, *link.providers))
        liar = Liar()
        mallory.chunks.sources[:] = [liar]
        bob.chunks.sources[:] = [After(liar.asked, theirs._shares.chunks)]
        opened: list[NodeIdentifier] = []
        circuit = alice.channels.circuit

        def watched(node: NodeIdentifier) -> AbstractAsyncContextManager[Channel]:
            opened.append(node)
            return circuit(node)

        alice.channels.circuit = watched  # type: ignore[method-assign, assignment]
        running: list[Running] = []
        if way == "get":
            await files.get_folder(Order(link, tmp_path / "to"), running.append)
        else:
            await files.pin(link, running.append)
        assert running[-1].liars == [mallory.identifier]
        assert opened.count(mallory.identifier) <= FIRST_CIRCUITS  # those of the first transfer


@pytest.mark.parametrize("way", ["get", "pin", "folder"])
async def test_who_is_named_and_lied_is_told_whoever_else_was_asked(tmp_path: Path, way: str) -> None:
    world = World(9, latency=Latency(0.001))
    (tmp_path / "garden").mkdir()
    (tmp_path / "garden" / "rose").write_bytes(random.Random(2).randbytes(400_000))
    async with (
        person(world, "alice") as (alice, files),
        person(world, "bob") as (bob, _),
        person(world, "mallory") as (mallory, theirs),
    ):
        await introduce([alice, bob])
        if way == "folder":
            link, _ = await theirs.share_folder(tmp_path / "garden")
        else:
            link = await theirs.share(tmp_path / "garden" / "rose")
        manifest = await theirs._shares.chunks.get([link.capability.reference])
        mallory.chunks.sources[:] = [Liar(link.capability.reference, manifest[0])]
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "get": lambda: files.get(link, tmp_path / "copy"),
            "pin": lambda: files.pin(link),
            "folder": lambda: files.get_folder(Order(link, tmp_path / "to")),
        }
        with pytest.raises(VerificationError, match=r"something else.*ask for another link") as caught:
            await calls[way]()
        assert "is kept" not in str(caught.value)  # nothing came
        assert str(mallory.identifier) in str(caught.value)
        if way == "folder":
            assert "1 of 1 files cannot be had because" in str(caught.value)


async def test_where_no_network_is_shared_that_is_said(tmp_path: Path) -> None:
    world = World(10, latency=Latency(0.001))
    (tmp_path / "rose").write_bytes(b"red")
    async with person(world, "alice") as (alice, files), person(world, "bob") as (bob, theirs):
        await introduce([alice])
        link = await theirs.share(tmp_path / "rose")
        elsewhere = [NodeLocator.tcp("127.0.0.1", 4000)]
        record = LocatorRecord.sign(
            world.secret("bob"), elsewhere, number=bob.record.number + 1, now=bob.clock()
        )
        with pytest.raises(UnreachableError, match="start this node with a transport they share"):
            await files.get(replace(link, providers=(record.encoded,)), tmp_path / "copy")


async def test_what_came_of_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    world = World(11, latency=Latency(0.001))
    (tmp_path / "rose").write_bytes(random.Random(2).randbytes(400_000))
    async with person(world, "alice") as (_, files), person(world, "bob") as (bob, theirs):
        link = await theirs.share(tmp_path / "rose")
        bob.chunks.sources[:] = [Half(theirs._shares.chunks)]
        with pytest.raises(NotFoundError, match=r"shared again; what came is kept in .*\.part$"):
            await files.get(link, tmp_path / "copy")
    assert sum(path.suffix == ".part" for path in hidden(tmp_path)) == 1


class After(ChunkSource):
    """Has what another has, after an event."""

    def __init__(self, event: anyio.Event, source: ChunkSource) -> None:
        self._event = event
        self._source = source

    async def get(self, references: Sequence[bytes]) -> Sequence[bytes | None]:
        await self._event.wait()
        return await self._source.get(references)


class Half(ChunkSource):
    """Has the first chunks that it is asked for, and no others."""

    def __init__(self, source: ChunkSource) -> None:
        self._source = source
        self._had: set[bytes] = set()

    async def get(self, references: Sequence[bytes]) -> Sequence[bytes | None]:
        for reference in references:
            if len(self._had) < 6:
                self._had.add(reference)
        found = await self._source.get(references)
        return [chunk if name in self._had else None for name, chunk in zip(references, found, strict=True)]


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


async def test_who_lied_is_told_too_where_others_have_not_all(tmp_path: Path) -> None:
    world = World(12, latency=Latency(0.001))
    (tmp_path / "rose").write_bytes(random.Random(2).randbytes(400_000))
    async with (
        person(world, "alice") as (_, files),
        person(world, "bob") as (bob, theirs),
        person(world, "mallory") as (mallory, _),
    ):
        link = await theirs.share(tmp_path / "rose")
        liar = Liar()
        mallory.chunks.sources[:] = [liar]
        bob.chunks.sources[:] = [After(liar.asked, Absent())]
        link = replace(link, providers=(mallory.record.encoded, *link.providers))
        sentence = f"shared again; {mallory.identifier} sent something else$"
        with pytest.raises(NotFoundError, match=sentence):
            await files.get(link, tmp_path / "copy")
