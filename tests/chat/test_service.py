from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import anyio
import pytest

from overlay.chat import history
from overlay.chat.events import Created, Event, Left, Text
from overlay.chat.invite import Invite
from overlay.chat.service import Chat
from overlay.chat.store import CHAT_SCHEMA, ChatStore, SessionRow
from overlay.chat.views import Entry, SessionInfo
from overlay.connection import Connection, Transport, TransportStatus
from overlay.database import Database
from overlay.errors import (
    MalformedError,
    NotFoundError,
    RefusedError,
    TransportUnavailableError,
    UnreachableError,
)
from overlay.identity import NodeIdentifier, SigningSecret
from overlay.locators import NodeLocator
from overlay.peer.node import Node, NodeOptions
from overlay.peer.push import Push
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Latency

virtual_time = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
"""For what waits long: nodes that are away are dialled for some seconds."""


def make_world(seed: int = 1) -> World:
    return World(seed, latency=Latency(median=0.002))


@asynccontextmanager
async def running(
    world: World,
    name: str,
    database: Database,
    options: NodeOptions | None = None,
    transports: Sequence[Transport] | None = None,
) -> AsyncIterator[tuple[Node, Chat]]:
    async with (
        world.node(name, database, options=options, transports=transports) as node,
        anyio.create_task_group() as group,
    ):
        chat = Chat(node, database)
        await group.start(chat.run)
        yield node, chat
        group.cancel_scope.cancel()


@asynccontextmanager
async def several(world: World, *names: str) -> AsyncIterator[list[Chat]]:
    """Nodes that know where each other is."""
    async with AsyncExitStack() as stack:
        both = []
        for name in names:
            database = await stack.enter_async_context(world.database(CHAT_SCHEMA))
            both.append(await stack.enter_async_context(running(world, name, database)))
        await introduce([node for node, _ in both])
        yield [chat for _, chat in both]


async def meet(chats: Sequence[Chat], names: Sequence[str]) -> SessionInfo:
    """The first creates a session, the others join one after the other, and all have heard of all."""
    info = await chats[0].create("Tea", names[0])
    for chat, name in zip(chats[1:], names[1:], strict=True):
        await chat.join(await chats[0].invite(info.session), name)
    for chat in chats:
        await wait_for(chat, info.session, 1 + len(chats))
    return info


async def wait_for(chat: Chat, session: str, count: int) -> list[Entry]:
    """All entries, as soon as there are `count`."""
    seen = 0
    async with aclosing(chat.follow(session, 10_000)) as entries:
        async for _ in entries:
            seen += 1
            if seen >= count:
                break
    return await chat.read(session, 10_000)


async def test_a_session_has_its_creator_in_it() -> None:
    async with several(make_world(), "alice") as (alice,):
        info = await alice.create("Tea ☕", "Alice")
        assert (info.title, info.name, info.people, info.messages) == ("Tea ☕", "Alice", 1, 2)
        assert await alice.sessions() == [info]
        assert [entry.kind for entry in await alice.read(info.session)] == ["created", "joined"]
        (me,) = await alice.people(info.session)
        assert (me.name, me.me, me.left) == ("Alice", True, False)


async def test_two_talk_both_ways() -> None:
    async with several(make_world(), "alice", "bob") as (alice, bob):
        info = await meet([alice, bob], ["Alice", "Bob"])
        said = await alice.send(info.session, "hello")
        assert (await wait_for(bob, info.session, 4))[-1].id == said
        await bob.send("Tea", "hi")
        heard = (await wait_for(alice, info.session[:8], 5))[-1]
        assert (heard.sender, heard.kind, heard.text) == ("Bob", "text", "hi")
        assert await alice.read(info.session) == await bob.read(info.session)
        assert [person.name for person in await alice.people(info.session)] == ["Alice", "Bob"]


async def test_three_who_talk_at_once_read_the_same_order() -> None:
    async with several(make_world(), "alice", "bob", "carol") as chats:
        info = await meet(chats, ["Alice", "Bob", "Carol"])

        async def talk(chat: Chat) -> None:
            for number in range(5):
                await chat.send(info.session, f"number {number}")

        async with anyio.create_task_group() as group:
            for chat in chats:
                group.start_soon(talk, chat)
        logs = [await wait_for(chat, info.session, 19) for chat in chats]
        assert logs[0] == logs[1] == logs[2]
        assert len(logs[0]) == 19


async def test_those_who_join_at_the_same_time_hear_of_each_other_at_once() -> None:
    async with several(make_world(), "alice", "bob", "carol", "dave") as chats:
        info = await chats[0].create("Tea", "Alice")
        invite = await chats[0].invite(info.session)

        async def join_and_talk(chat: Chat, name: str) -> None:
            await chat.join(invite, name)
            await chat.send(info.session, f"{name} is here")

        async with anyio.create_task_group() as group:
            for chat, name in zip(chats[1:], ["Bob", "Carol", "Dave"], strict=True):
                group.start_soon(join_and_talk, chat, name)
        with anyio.fail_after(10):  # far less than the minute between two rounds
            logs = [await wait_for(chat, info.session, 8) for chat in chats]
        assert logs[0] == logs[1] == logs[2] == logs[3]
        assert [len(await chat.people(info.session)) for chat in chats] == [4, 4, 4, 4]


@pytest.mark.parametrize("seed", range(8))
async def test_what_is_said_while_somebody_joins_reaches_the_newcomer_at_once(seed: int) -> None:
    world = World(seed, latency=Latency(0.02))
    async with several(world, "alice", "bob") as (alice, bob):
        info = await alice.create("Tea", "Alice")
        invite = await alice.invite(info.session)

        async def talk_till_there_is_somebody() -> int:
            count = 0
            while len(await alice.people(info.session)) == 1:
                await alice.send(info.session, f"number {count}")
                await anyio.sleep(0.002)
                count += 1
            return count

        async with anyio.create_task_group() as group:
            group.start_soon(bob.join, invite, "Bob")
            said = await talk_till_there_is_somebody()
        with anyio.fail_after(10):  # far less than the minute between two rounds
            await wait_for(bob, info.session, said + 3)


async def test_follow_gives_what_was_and_what_comes_and_ends_with_leaving() -> None:
    async with several(make_world(), "alice", "bob") as (alice, bob):
        info = await meet([alice, bob], ["Alice", "Bob"])
        await alice.send(info.session, "one")
        seen: list[str] = []
        ready = anyio.Event()

        async def listen() -> None:
            async for entry in bob.follow(info.session, last=100):
                seen.append(entry.text)
                if entry.text == "two":
                    ready.set()

        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            await alice.send(info.session, "two")
            await ready.wait()
            await bob.leave(info.session)
        assert seen == ["Tea", "Alice", "Bob", "one", "two", ""]


async def test_whoever_leaves_is_gone_and_so_is_what_it_had() -> None:
    async with several(make_world(), "alice", "bob") as (alice, bob):
        info = await meet([alice, bob], ["Alice", "Bob"])
        await bob.leave(info.session)
        assert (await wait_for(alice, info.session, 4))[-1].kind == "left"
        assert [person.left for person in await alice.people(info.session)] == [False, True]
        assert await bob.sessions() == []
        with pytest.raises(NotFoundError):
            await bob.send(info.session, "still here?")
        again = await bob.join(await alice.invite(info.session), "Bobby")
        assert (again.people, again.name) == (2, "Bobby")


async def test_a_full_session_can_be_read_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async with several(make_world(), "alice", "bob") as (alice, bob):
        info = await meet([alice, bob], ["Alice", "Bob"])
        monkeypatch.setattr(history, "MAX_EVENTS", 3)
        with pytest.raises(RefusedError, match="full"):
            await alice.send(info.session, "one more")
        assert len(await alice.read(info.session)) == 3
        await alice.leave(info.session)
        assert await alice.sessions() == []


async def test_a_wrong_secret_is_refused_and_leaves_nothing() -> None:
    async with several(make_world(), "alice", "bob") as (alice, bob):
        info = await alice.create("Tea", "Alice")
        right = Invite.parse(await alice.invite(info.session))
        wrong = Invite(right.created, bytes(32), right.node, right.place, right.record)
        with pytest.raises(RefusedError, match="not valid"):
            await bob.join(str(wrong), "Bob")
        assert await bob.sessions() == []
        assert (await bob.join(str(right), "Bob")).people == 2


async def test_joining_twice_is_refused() -> None:
    async with several(make_world(), "alice", "bob") as (alice, bob):
        info = await meet([alice, bob], ["Alice", "Bob"])
        for chat in (alice, bob):
            with pytest.raises(RefusedError, match="already"):
                await chat.join(await alice.invite(info.session), "Bob")


@virtual_time
async def test_an_inviter_who_is_away_is_told_as_such() -> None:
    world = make_world()
    async with several(world, "alice", "bob") as (alice, bob):
        info = await alice.create("Tea", "Alice")
        invite = await alice.invite(info.session)
        world.network.take_down(world.number("alice"))
        with pytest.raises(UnreachableError, match="nobody who has this session"):
            await bob.join(invite, "Bob")
        assert await bob.sessions() == []


@asynccontextmanager
async def on_two_networks() -> AsyncIterator[dict[str, Chat]]:
    """A directory on both networks, and others on one or both, with what they chat with."""
    world = make_world()
    tor, i2p = world.further_network("onion3"), world.further_network("garlic32")
    lives = {"hub": (tor, i2p), "onion": (tor,), "garlic": (i2p,), "dual": (tor, i2p)}
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        chats: dict[str, Chat] = {}
        for name, where in lives.items():
            join = nodes[0].record if nodes else None
            options = NodeOptions(directory=join is None, join=join)
            transports = [network.transport(number=world.number(name)) for network in where]
            database = await stack.enter_async_context(world.database(CHAT_SCHEMA))
            both = running(world, name, database, options, transports)
            node, chats[name] = await stack.enter_async_context(both)
            nodes.append(node)
        with anyio.fail_after(60):
            for node in nodes:
                while len(node.peers()) < len(lives) - 1 or node.status.state != "ready":
                    await node.wait_changed()
        yield chats


async def test_a_session_on_another_network_is_joined_by_an_invite_from_one_who_is_on_both() -> None:
    async with on_two_networks() as chats:
        info = await chats["garlic"].create("Tea", "Garlic")
        invite = await chats["garlic"].invite(info.session)
        with pytest.raises(RefusedError, match="on a network that this node does not use: start it with"):
            await chats["onion"].join(invite, "Onion")
        assert await chats["onion"].sessions() == []
        await chats["dual"].join(invite, "Dual")
        joined = await chats["onion"].join(await chats["dual"].invite(info.session), "Onion")
        assert joined.people == 3


def break_down(chat: Chat, network: str, patch: pytest.MonkeyPatch) -> None:
    """Let every dial of a node over a network fail for a reason on its own side."""
    for transport in chat._node._presence._layer.transports:
        if transport.name == network:

            async def connect(_: NodeLocator, *, isolation: bytes = b"") -> Connection:  # noqa: ARG001 - a transport's signature
                raise TransportUnavailableError(f"{network} is not ready: its router hangs")

            patch.setattr(transport, "connect", connect)


async def test_who_has_a_session_is_asked_over_the_network_that_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with on_two_networks() as chats:
        info = await chats["onion"].create("Tea", "Onion")
        await chats["hub"].join(await chats["onion"].invite(info.session), "Hub")
        await chats["garlic"].join(await chats["hub"].invite(info.session), "Garlic")
        invite = await chats["garlic"].invite(info.session)
        break_down(chats["dual"], "garlic32", monkeypatch)
        joined = await chats["dual"].join(invite, "Dual")
        assert joined.people in {3, 4}  # who was asked may not have heard of Garlic yet


async def test_what_does_not_work_on_this_side_is_told_to_whoever_cannot_join(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with on_two_networks() as chats:
        info = await chats["garlic"].create("Tea", "Garlic")
        invite = await chats["garlic"].invite(info.session)
        break_down(chats["dual"], "garlic32", monkeypatch)
        with pytest.raises(TransportUnavailableError, match="garlic32 is not ready: its router hangs"):
            await chats["dual"].join(invite, "Dual")
        assert await chats["dual"].sessions() == []


async def test_nobody_else_is_asked_for_a_session_while_no_network_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with on_two_networks() as chats:
        info = await chats["garlic"].create("Tea", "Garlic")
        invite = await chats["garlic"].invite(info.session)
        node = chats["dual"]._node
        for name in ("garlic32", "onion3"):
            break_down(chats["dual"], name, monkeypatch)
        for transport in node._presence._layer.transports:
            transport._report(TransportStatus("starting", "its router hangs"))
        asked: list[object] = []
        monkeypatch.setattr(node, "find_unit", asked.append)
        with pytest.raises(TransportUnavailableError, match="on no network at the moment"):
            await chats["dual"].join(invite, "Dual")
        assert asked == []
        assert await chats["dual"].sessions() == []


async def test_a_wrong_secret_counts_more_than_another_network() -> None:
    async with on_two_networks() as chats:
        info = await chats["garlic"].create("Tea", "Garlic")
        await chats["dual"].join(await chats["garlic"].invite(info.session), "Dual")
        right = Invite.parse(await chats["dual"].invite(info.session))
        wrong = Invite(right.created, bytes(32), right.node, right.place, right.record)
        with pytest.raises(RefusedError, match="not valid"):
            await chats["onion"].join(str(wrong), "Onion")


async def test_names_that_fit_nothing_or_several() -> None:
    async with several(make_world(), "alice") as (alice,):
        one, other = await alice.create("Tea", "Alice"), await alice.create("Tea", "Alice")
        assert one.session != other.session
        with pytest.raises(MalformedError, match="several"):
            await alice.send("Tea", "hi")
        for text in ("Coffee", "", one.session[:3]):
            with pytest.raises(NotFoundError):
                await alice.send(text, "hi")
        await alice.send(one.session[:12], "hi")


@pytest.mark.parametrize("text", ["", "x" * 40_000])
async def test_what_cannot_be_said_is_malformed(text: str) -> None:
    async with several(make_world(), "alice") as (alice,):
        info = await alice.create("Tea", "Alice")
        with pytest.raises(MalformedError):
            await alice.send(info.session, text)
        with pytest.raises(MalformedError):
            await alice.create("two\nlines", "Alice")
        assert len(await alice.read(info.session)) == 2


async def test_history_survives_a_restart() -> None:
    world = make_world()
    async with world.database(CHAT_SCHEMA) as database:
        async with running(world, "alice", database) as (_, alice):
            info = await alice.create("Tea", "Alice")
            await alice.send(info.session, "before")
            log = await alice.read(info.session)
        async with running(world, "alice", database) as (_, alice):
            assert await alice.read(info.session) == log
            await alice.send(info.session, "after")
            assert [entry.text for entry in await alice.read(info.session, 2)] == ["before", "after"]
            assert (await alice.sessions())[0].messages == 4


async def test_whoever_was_away_gets_what_it_missed_from_the_others() -> None:
    world = make_world()
    async with several(world, "alice", "bob") as (alice, bob), world.database(CHAT_SCHEMA) as database:
        async with running(world, "carol", database) as (carol_node, carol):
            await introduce([carol_node, alice._node, bob._node])
            info = await meet([alice, bob, carol], ["Alice", "Bob", "Carol"])
        for number in range(30):
            await alice.send(info.session, f"number {number}")
        await wait_for(bob, info.session, 34)
        world.network.take_down(world.number("alice"))  # who said it is gone
        async with running(world, "carol", database) as (_, carol):
            log = await wait_for(carol, info.session, 34)
            assert log == await bob.read(info.session, 100)


@virtual_time
async def test_who_pretends_to_know_nobody_does_not_have_its_texts_carried_by_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"number {number}" for number in range(6)]
    async with several(make_world(), *names) as chats:
        info = await meet(chats, names)
        await anyio.sleep(300)  # until all is quiet
        carried: list[str] = []
        push = Push.__call__

        async def count(self: Push, node: NodeIdentifier, kind: str, body: bytes = b"") -> bytes:
            carried.append(kind)
            return await push(self, node, kind, body)

        monkeypatch.setattr(Push, "__call__", count)
        mallory = chats[0]
        session = mallory._sessions[next(iter(mallory._sessions))]
        joined = (await session.people())[session.author].position
        event = Event.sign(
            session._author,
            session=session.public,
            clock=joined[0] + 1,
            parents=[joined[1]],
            at=0,
            content=Text(text="x" * 30_000),
        )
        async with anyio.create_task_group() as group:
            for other in await mallory._others(session):
                group.start_soon(mallory._sync.push, session, other.locator, [event.encoded])
        for chat in chats[1:]:
            await wait_for(chat, info.session, 2 + len(chats))
        assert carried.count("chat.events") == len(chats) - 1


@asynccontextmanager
async def registered(world: World, *names: str) -> AsyncIterator[dict[str, Chat]]:
    """Nodes that know only the directory, and have registered there."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(world.database(CHAT_SCHEMA))
        directory, _ = await stack.enter_async_context(
            running(world, "directory", database, NodeOptions(directory=True))
        )
        options = NodeOptions(join=directory.record)
        chats: dict[str, Chat] = {}
        for name in names:
            database = await stack.enter_async_context(world.database(CHAT_SCHEMA))
            node, chats[name] = await stack.enter_async_context(running(world, name, database, options))
            with anyio.fail_after(100):
                while node.status.state != "ready":
                    await node.wait_changed()
        yield chats


@virtual_time
async def test_the_directory_lets_a_stranger_join_when_the_inviter_is_away() -> None:
    world = make_world()
    async with registered(world, "alice", "bob", "carol") as chats:
        info = await meet([chats["alice"], chats["bob"]], ["Alice", "Bob"])
        invite = await chats["bob"].invite(info.session)
        world.network.take_down(world.number("bob"))
        assert (await chats["carol"].join(invite, "Carol")).people == 3
        assert (await wait_for(chats["alice"], info.session, 4))[-1].sender == "Carol"


@virtual_time
async def test_participants_go_on_talking_when_the_directory_is_gone() -> None:
    world = make_world()
    async with registered(world, "alice", "bob") as chats:
        info = await meet([chats["alice"], chats["bob"]], ["Alice", "Bob"])
        world.network.take_down(world.number("directory"))
        world.network.take_down(world.number("alice"))  # ends her channels
        await anyio.sleep(3600)
        world.network.bring_up(world.number("alice"))
        await chats["alice"].send(info.session, "still there?")
        assert (await wait_for(chats["bob"], info.session, 4))[-1].text == "still there?"
        await chats["bob"].send(info.session, "yes")
        assert (await wait_for(chats["alice"], info.session, 5))[-1].text == "yes"


async def test_what_was_cut_short_is_cleared_away_at_the_next_start() -> None:
    world = make_world()
    async with world.database(CHAT_SCHEMA) as database:
        store = ChatStore(database)
        async with running(world, "alice", database) as (_, alice):
            info = await alice.create("Tea", "Alice")
            session = next(iter(alice._sessions.values()))
            # Killed while joining: there is a session, and nobody of this node in it.
            key = SigningSecret(b"s" * 32)
            root = Event.sign(
                key, session=key.public, clock=1, parents=[], at=0, content=Created(title="Milk")
            )
            await store.create(SessionRow(key.public, bytes(32), bytes(32)), [root])
            # Killed while leaving: it was said, and not yet done.
            await session.say(Left(), 0)
        async with running(world, "alice", database) as (_, alice):
            assert await alice.sessions() == []
            with pytest.raises(NotFoundError):
                await alice.read(info.session)
        assert await store.sessions() == []
