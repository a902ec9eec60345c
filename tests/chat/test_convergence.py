"""Whole nodes on a bad network, in virtual time: whatever happens in between, all end with one order."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import anyio
import pytest

from overlay.chat.reconciler import INTERVAL, LONGEST_PAUSE
from overlay.chat.service import Chat
from overlay.chat.session import Session
from overlay.chat.store import CHAT_SCHEMA
from overlay.chat.views import Entry
from overlay.peer.links import Lane
from overlay.peer.node import Node
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Faults, Latency
from overlay.units.locators import UnitLocator

NAMES = ["alice", "bob", "carol", "dave", "erin"]

pytestmark = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)


@asynccontextmanager
async def session_on(world: World, names: Sequence[str]) -> AsyncGenerator[tuple[list[Chat], str], None]:
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        chats: list[Chat] = []
        for name in names:
            database = await stack.enter_async_context(world.database(CHAT_SCHEMA))
            nodes.append(await stack.enter_async_context(world.node(name, database)))
            chats.append(Chat(nodes[-1], database))
        await introduce(nodes)
        async with anyio.create_task_group() as group:
            for chat in chats:
                await group.start(chat.run)
            info = await chats[0].create("Tea", names[0])
            for chat, name in zip(chats[1:], names[1:], strict=True):
                await chat.join(await chats[0].invite(info.session), name)
            yield chats, info.session
            group.cancel_scope.cancel()


async def wait_for_texts(chat: Chat, session: str, expected: set[str]) -> list[Entry]:
    async with aclosing(chat.follow(session, 10_000)) as entries:
        missing = set(expected)
        async for entry in entries:
            missing.discard(entry.text)
            if not missing:
                break
    return await chat.read(session, 10_000)


async def same_order(chats: Sequence[Chat], session: str, said: set[str]) -> list[Entry]:
    """Wait until everybody has everything that was said; fail unless all read the same."""
    logs: list[list[Entry]] = []
    with anyio.fail_after(20 * LONGEST_PAUSE):
        for chat in chats:
            logs.append(await wait_for_texts(chat, session, said))  # noqa: PERF401 - shows who lacks what
    texts = [[entry.text for entry in log if entry.kind == "text"] for log in logs]
    assert all(each == texts[0] for each in texts)
    assert sorted(texts[0]) == sorted(said)
    return logs[0]


@pytest.mark.parametrize("seed", range(3))
async def test_all_read_one_order_after_partitions_and_losses(seed: int) -> None:
    chance = random.Random(seed)
    world = World(seed, latency=Latency(median=0.3, sigma=0.8), faults=Faults(death=0.005, refusal=0.05))
    numbers = [world.number(name) for name in NAMES]
    async with session_on(world, NAMES) as (chats, session):
        said: set[str] = set()

        async def talk(number: int, words: int) -> None:
            for word in range(words):
                await anyio.sleep(chance.expovariate(1 / 20))
                text = f"{NAMES[number]} {word}"
                said.add(text)
                await chats[number].send(session, text)

        async with anyio.create_task_group() as group:
            for number in range(len(chats)):
                group.start_soon(talk, number, 12)
            for _ in range(3):
                await anyio.sleep(chance.uniform(10, 60))
                sides = chance.sample(numbers, 5)
                world.network.partition(sides[:2], sides[2:])
                await anyio.sleep(chance.uniform(10, 60))
                world.network.heal()
        log = await same_order(chats, session, said)
        for name in NAMES:  # nobody's own words change places
            own = [entry.text for entry in log if entry.sender == name and entry.kind == "text"]
            assert own == [f"{name} {word}" for word in range(12)]


async def test_the_one_who_was_cut_off_gets_all_although_its_author_is_gone() -> None:
    world = World(7, latency=Latency(median=0.3))
    alice, _, carol = (world.number(name) for name in NAMES[:3])
    async with session_on(world, NAMES[:3]) as (chats, session):
        said = {"hello"}
        await chats[0].send(session, "hello")
        await same_order(chats, session, said)
        world.network.take_down(carol)
        said |= {f"number {number}" for number in range(100)}
        for number in range(100):
            await chats[0].send(session, f"number {number}")
        await wait_for_texts(chats[1], session, said)
        world.network.take_down(alice)
        world.network.bring_up(carol)
        await same_order(chats[1:], session, said)


async def test_what_nobody_pushed_comes_with_the_next_round(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(3, latency=Latency(median=0.1))
    async with session_on(world, NAMES[:2]) as (chats, session):
        await chats[0].send(session, "hello")
        await same_order(chats, session, {"hello"})
        monkeypatch.setattr(chats[0]._outbox, "post", lambda *_: None)
        before = anyio.current_time()
        await chats[0].send(session, "silent")
        await same_order(chats, session, {"hello", "silent"})
        assert anyio.current_time() - before < 1.5 * INTERVAL


async def test_whoever_makes_contact_is_brought_up_to_date_at_once() -> None:
    world = World(5, latency=Latency(median=0.1))
    async with session_on(world, NAMES[:2]) as (chats, session):
        world.network.take_down(world.number("bob"))
        await chats[0].send(session, "hello")
        await anyio.sleep(3 * LONGEST_PAUSE)
        world.network.bring_up(world.number("bob"))
        before = anyio.current_time()
        bob, alice = chats[1]._node, chats[0]._node.identifier
        await bob.channels.channel(alice, Lane.INTERACTIVE)  # about something else
        await same_order(chats, session, {"hello"})
        assert anyio.current_time() - before < 5


async def test_an_idle_session_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(4, latency=Latency(median=0.1))
    async with session_on(world, NAMES[:3]) as (chats, session):
        await chats[0].send(session, "hello")
        await same_order(chats, session, {"hello"})
        asked: list[UnitLocator] = []
        exchange = chats[0]._sync.exchange

        async def count(session: Session, other: UnitLocator) -> bool:
            asked.append(other)
            return await exchange(session, other)

        monkeypatch.setattr(chats[0]._sync, "exchange", count)
        await anyio.sleep(3600)
        assert 30 < len(asked) < 100
