"""Files between whole nodes; they are read and written in threads, so time is real here."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from overlay.chat.service import Chat
from overlay.chat.store import CHAT_SCHEMA
from overlay.connection import TransportStatus
from overlay.errors import MalformedError, NotFoundError, TransportUnavailableError, UnreachableError
from overlay.peer.node import Node
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Latency


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, {}


@asynccontextmanager
async def three(world: World) -> AsyncGenerator[tuple[list[Node], list[Chat], str], None]:
    """Alice and Bob share a session; Carol's node is only there."""
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        chats: list[Chat] = []
        for name in ("alice", "bob", "carol"):
            database = await stack.enter_async_context(world.database(CHAT_SCHEMA))
            nodes.append(await stack.enter_async_context(world.node(name, database)))
            chats.append(Chat(nodes[-1], database))
        await introduce(nodes)
        async with anyio.create_task_group() as group:
            for chat in chats:
                await group.start(chat.run)
            info = await chats[0].create("Tea", "Alice")
            await chats[1].join(await chats[0].invite(info.session), "Bob")
            yield nodes, chats, info.session
            group.cancel_scope.cancel()


def make_file(path: Path, size: int) -> bytes:
    content = random.Random(size).randbytes(size)
    path.write_bytes(content)
    return content


async def wait_for_files(chat: Chat, session: str, count: int) -> list[str]:
    with anyio.fail_after(10):
        while len(files := await chat.files(session)) < count:
            changed = chat._sessions[next(iter(chat._sessions))].changed
            if len(await chat.files(session)) < count:
                await changed.wait()
    return [file.file for file in files]


async def test_a_posted_file_is_stored_elsewhere_and_comes_back(tmp_path: Path) -> None:
    world = World(1, latency=Latency(median=0.001))
    async with three(world) as (nodes, (alice, bob, carol), session):
        content = make_file(tmp_path / "plan.pdf", 3_000_000)
        posted = await alice.post(session, tmp_path / "plan.pdf")
        assert (posted.name, posted.size, posted.sender) == ("plan.pdf", 3_000_000, "Alice")
        usages = [(await node.storage.usage()).chunks for node in nodes]
        assert usages[0] == 0 < usages[1] == usages[2]
        assert await wait_for_files(bob, session, 1) == [posted.file]
        (tmp_path / "inbox").mkdir()
        for name in (posted.file, "plan.pdf", posted.file[:10]):
            path, size = await bob.get(session, name, tmp_path / "inbox")
            assert (path.name, size) == ("plan.pdf", 3_000_000)
            assert path.read_bytes() == content
            path.unlink()
        with pytest.raises(NotFoundError):
            await bob.get(session, "other.pdf", tmp_path / "inbox")
        assert await carol.sessions() == []
        assert [entry.size for entry in await bob.read(session, 1)] == [3_000_000]


async def test_the_latest_of_two_files_of_one_name_is_meant(tmp_path: Path) -> None:
    world = World(2, latency=Latency(median=0.001))
    async with three(world) as (_, (alice, bob, _), session):
        for size in (100, 200):
            make_file(tmp_path / "plan", size)
            await alice.post(session, tmp_path / "plan")
        await wait_for_files(bob, session, 2)
        assert (await bob.get(session, "plan", tmp_path / "copy"))[1] == 200


async def test_a_node_whose_only_transport_is_lost_says_so_at_once(tmp_path: Path) -> None:
    world = World(5, latency=Latency(median=0.001))
    transport = world.network.transport(number=world.number("alice"))
    async with (
        world.database(CHAT_SCHEMA) as database,
        world.node("alice", database, transports=[transport]) as node,
    ):
        alice = Chat(node, database)
        info = await alice.create("Tea", "Alice")
        make_file(tmp_path / "plan", 100)
        transport._report(TransportStatus("starting", "its router is gone"))
        with pytest.raises(TransportUnavailableError, match="memory is starting: its router is gone"):
            await alice.post(info.session, tmp_path / "plan")
        assert await alice.files(info.session) == []


async def test_nothing_is_posted_when_nobody_keeps_it(tmp_path: Path) -> None:
    world = World(3, latency=Latency(median=0.001))
    async with world.database(CHAT_SCHEMA) as database, world.node("alice", database) as node:
        alice = Chat(node, database)
        info = await alice.create("Tea", "Alice")
        make_file(tmp_path / "plan", 100)
        with pytest.raises(UnreachableError):
            await alice.post(info.session, tmp_path / "plan")
        with pytest.raises(MalformedError):
            await alice.post(info.session, tmp_path / "plan\n")
        assert await alice.files(info.session) == []
