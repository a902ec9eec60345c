"""Posted files: what participants are told, and how a file is fetched from nodes that keep it."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from overlay.chat.events import File
from overlay.chat.fetching import fetch_file
from overlay.chat.posting import post_file
from overlay.errors import (
    MalformedError,
    NotFoundError,
    RefusedError,
    StorageError,
    TransportUnavailableError,
    UnreachableError,
    VerificationError,
)
from overlay.files.engine import providers
from overlay.files.running import Running
from overlay.identity import NodeIdentifier
from overlay.peer.accept import Delivery, Reply
from overlay.peer.chunks import FETCH, REFERENCE_BYTES, ChunkSource
from overlay.peer.node import Node
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Latency
from overlay.units.eris import encode_content


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Files are read and written in threads, so time is real here."""
    return request.param, {}


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not reached once is not tried for a minute."""
    monkeypatch.setattr(providers, "MAX_FIRST_FAILURES", 1)


@asynccontextmanager
async def people(seed: int, *names: str) -> AsyncIterator[tuple[World, list[Node]]]:
    world = World(seed, latency=Latency(median=0.001))
    async with AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(
                world.node(name, await stack.enter_async_context(world.database()))
            )
            for name in names
        ]
        await introduce(found)
        yield world, found


def write_file(folder: Path, size: int, name: str = "photo.jpg") -> Path:
    path = folder / name
    path.write_bytes(random.Random(size).randbytes(size))
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def asked_of(node: Node) -> list[bytes]:
    """The references that a node is asked for from now on."""
    references: list[bytes] = []
    registration = node.accept._receivers[FETCH]

    async def note(delivery: Delivery) -> Reply | bytes | None:
        body = delivery.body
        references.extend(body[at : at + REFERENCE_BYTES] for at in range(0, len(body), REFERENCE_BYTES))
        return await registration.receiver(delivery)

    node.accept._receivers[FETCH] = replace(registration, receiver=note)
    return references


def changed(posted: File, **fields: Any) -> File:  # noqa: ANN401 - of any field
    known = {"name": posted.name, "size": posted.size, "capability": posted.capability}
    return File(**{**known, "holders": posted.holders, **fields})


@pytest.mark.parametrize("size", [0, 1, 1024, 16_384, 3_000_077])
async def test_what_is_posted_is_what_is_fetched(tmp_path: Path, size: int) -> None:
    path = write_file(tmp_path, size)
    steps: list[tuple[int, int | None]] = []
    async with people(1, "alice", "bob", "carol") as (_, (alice, bob, carol)):
        posted = await post_file(alice, path)
        assert (posted.name, posted.size) == ("photo.jpg", size)
        assert {NodeIdentifier(each) for each in posted.holders} == {bob.identifier, carol.identifier}
        target, fetched = await fetch_file(
            alice, posted, tmp_path / "copy", lambda running: steps.append((running.present, running.size))
        )
    assert (target, fetched) == (tmp_path / "copy", size)
    assert target.read_bytes() == path.read_bytes()
    assert names_in(tmp_path) == ["copy", "photo.jpg"]
    assert [present for present, _ in steps] == sorted(present for present, _ in steps)
    assert steps[-1] == (size, size)


async def test_a_file_whose_name_cannot_be_told_is_not_posted(tmp_path: Path) -> None:
    async with people(2, "alice", "bob") as (_, (alice, bob)):
        with pytest.raises(MalformedError):
            await post_file(alice, write_file(tmp_path, 1, "two\nlines"))
        assert (await bob.storage.usage()).chunks == 0


async def test_a_node_that_keeps_a_file_asks_for_it_as_anybody_does(tmp_path: Path) -> None:
    async with people(3, "alice", "bob", "carol") as (_, (alice, bob, carol)):
        posted = await post_file(alice, write_file(tmp_path, 8_000_000))
        asked = asked_of(bob), asked_of(carol)
        await fetch_file(bob, posted, tmp_path / "copy")
        assert min(map(len, asked)) > 16
        assert set(asked[0]) | set(asked[1]) == set(await every_reference(bob))


async def test_the_only_one_who_keeps_a_file_can_fetch_it(tmp_path: Path) -> None:
    path = write_file(tmp_path, 3_000_000)
    async with people(3, "alice", "bob") as (_, (alice, bob)):
        posted = await post_file(alice, path)
        assert posted.holders == (bob.identifier.value,)
        await fetch_file(bob, posted, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == path.read_bytes()


async def every_reference(node: Node) -> list[bytes]:
    """Of all that a node stores for others."""
    rows = await node.storage._database.read(
        lambda connection: connection.execute("SELECT reference FROM chunks").fetchall()
    )
    return [reference for (reference,) in rows if isinstance(reference, bytes)]


async def test_two_holders_share_the_work(tmp_path: Path) -> None:
    async with people(4, "alice", "bob", "carol") as (_, (alice, bob, carol)):
        posted = await post_file(alice, write_file(tmp_path, 8_000_000))
        asked = asked_of(bob), asked_of(carol)
        await fetch_file(alice, posted, tmp_path / "copy")
        assert min(map(len, asked)) > 16


class Liar(ChunkSource):
    async def get(self, references: Sequence[bytes]) -> Sequence[bytes | None]:
        return [bytes(32_768) for _ in references]


async def test_a_liar_is_left_and_the_other_has_it(tmp_path: Path) -> None:
    path = write_file(tmp_path, 2_000_000)
    async with people(5, "alice", "bob", "mallory") as (world, (alice, _, mallory)):
        posted = await post_file(alice, path)
        await mallory.storage.purge(world.clock() * 2)
        mallory.chunks.sources.append(Liar())
        await fetch_file(alice, posted, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == path.read_bytes()


async def test_where_all_lie_that_is_said(tmp_path: Path) -> None:
    async with people(14, "alice", "mallory") as (world, (alice, mallory)):
        posted = await post_file(alice, write_file(tmp_path, 100_000))
        await mallory.storage.purge(world.clock() * 2)
        mallory.chunks.sources.append(Liar())
        with pytest.raises(VerificationError, match="sent something else"):
            await fetch_file(alice, posted, tmp_path / "copy")


@pytest.mark.usefixtures("hasty")
async def test_what_is_not_all_there_is_said_kept_and_gone_on_with(tmp_path: Path) -> None:
    path = write_file(tmp_path, 3_000_000)
    async with people(6, "alice", "bob") as (world, (alice, bob)):
        chunks, capability = encode_content(path.read_bytes(), secret=bytes(32))
        data = [chunk.data for chunk in chunks]
        posted = File(
            name="photo.jpg",
            size=3_000_000,
            capability=capability.to_bytes(),
            holders=(bob.identifier.value, world.secret("nobody").identifier.value),
        )
        await bob.storage.put(data[:60] + data[-1:], now=bob.clock())
        with pytest.raises(UnreachableError, match="a node that keeps this file is not reached"):
            await fetch_file(alice, posted, tmp_path / "copy")
        with pytest.raises(NotFoundError, match="nobody has all of this file any more: ask its sender"):
            await fetch_file(alice, changed(posted, holders=posted.holders[:1]), tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
        await bob.storage.put(data[60:], now=bob.clock())
        asked = asked_of(bob)
        await fetch_file(alice, posted, tmp_path / "copy")
        assert set(asked) <= {chunk.reference for chunk in chunks[60:]}
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    assert names_in(tmp_path) == ["copy", "photo.jpg"]


async def test_a_cancelled_fetch_leaves_no_file_and_is_gone_on_with(tmp_path: Path) -> None:
    path = write_file(tmp_path, 16_000_000)
    scope = anyio.CancelScope()

    def stop(running: Running) -> None:
        if running.present > 4_000_000:
            scope.cancel()

    async with people(7, "alice", "bob") as (_, (alice, bob)):
        posted = await post_file(alice, path)
        with scope:
            await fetch_file(alice, posted, tmp_path / "copy", stop)
        assert scope.cancelled_caught
        assert not (tmp_path / "copy").exists()
        asked = asked_of(bob)
        await fetch_file(alice, posted, tmp_path / "copy")
        assert len(set(asked)) * 32_768 < 12_500_000
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    assert names_in(tmp_path) == ["copy", "photo.jpg"]


@pytest.mark.parametrize("size", [99_999, 100_001, 10, 2**40])
async def test_a_lie_about_the_size_is_noticed_and_leaves_nothing(tmp_path: Path, size: int) -> None:
    async with people(8, "alice", "bob") as (_, (alice, _)):
        posted = await post_file(alice, write_file(tmp_path, 100_000))
        with pytest.raises(VerificationError, match="not the content that it says it is"):
            await fetch_file(alice, changed(posted, size=size), tmp_path / "copy")
    assert names_in(tmp_path) == ["photo.jpg"]


async def test_what_is_no_capability_is_the_posters_fault(tmp_path: Path) -> None:
    async with people(9, "alice", "bob") as (_, (alice, _)):
        posted = await post_file(alice, write_file(tmp_path, 100))
        wrong = changed(posted, capability=b"\xff" + posted.capability[1:])
        with pytest.raises(VerificationError, match="not the content that it says it is"):
            await fetch_file(alice, wrong, tmp_path / "copy")
    assert names_in(tmp_path) == ["photo.jpg"]


async def test_a_folder_gets_the_file_under_a_safe_name_and_nothing_is_overwritten(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    async with people(10, "alice", "bob") as (_, (alice, _)):
        posted = await post_file(alice, write_file(tmp_path, 10, ".bashrc"))
        assert (await fetch_file(alice, posted, inbox))[0] == inbox / "_bashrc"
        with pytest.raises(RefusedError, match="exists already: name another path"):
            await fetch_file(alice, posted, inbox)
        with pytest.raises(NotFoundError, match="no folder"):
            await fetch_file(alice, posted, tmp_path / "missing" / "copy")
        with pytest.raises(MalformedError, match="device"):
            await fetch_file(alice, changed(posted, name="con.txt"), inbox)
    assert names_in(inbox) == ["_bashrc"]


async def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async with people(11, "alice", "bob") as (_, (alice, _)):
        posted = await post_file(alice, write_file(tmp_path, 10))
        with monkeypatch.context() as broken:
            broken.setattr(os, "pwrite", fail)
            with pytest.raises(StorageError, match="No space left"):
                await fetch_file(alice, posted, tmp_path / "copy")
        await fetch_file(alice, posted, tmp_path / "copy")
    assert names_in(tmp_path) == ["copy", "photo.jpg"]


def offline() -> None:
    raise TransportUnavailableError("i2p is starting: its router is gone")


async def test_a_node_without_a_network_says_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with people(12, "alice", "bob", "carol") as (_, (alice, bob, _)):
        posted = await post_file(alice, write_file(tmp_path, 100))
        asked = asked_of(bob)
        for node in (alice, bob):  # Bob keeps it himself, and asks for it all the same
            monkeypatch.setattr(node, "check_online", offline)
            with pytest.raises(TransportUnavailableError, match="its router is gone"):
                await fetch_file(node, posted, tmp_path / "copy")
        assert asked == []


@pytest.mark.usefixtures("hasty")
async def test_a_node_that_loses_its_network_says_so_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with people(13, "alice", "bob") as (world, (alice, _)):
        posted = await post_file(alice, write_file(tmp_path, 100))
        nobody = changed(posted, holders=(world.secret("nobody").identifier.value,))
        checks = iter([False, True])

        def check() -> None:
            if next(checks):
                offline()

        monkeypatch.setattr(alice, "check_online", check)
        with pytest.raises(TransportUnavailableError, match="its router is gone"):
            await fetch_file(alice, nobody, tmp_path / "copy")
