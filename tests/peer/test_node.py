"""A node as a whole: whom it chooses, what its ticket leads to, what it tells of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from overlay.errors import MalformedError, NotFoundError, StorageError
from overlay.locators import LocatorRecord, NodeLocator
from overlay.peer import node as node_module
from overlay.peer.node import Node, NodeOptions
from overlay.peer.ticket import Ticket, check_ticket
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Latency

VIRTUAL = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)  # hours of virtual time


@asynccontextmanager
async def nodes(*names: str, world: World | None = None) -> AsyncIterator[Sequence[Node]]:
    world = world or World(3, latency=Latency(0.001))
    async with AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(
                world.node(name, await stack.enter_async_context(world.database()))
            )
            for name in names
        ]
        await introduce(found)
        yield found


async def test_whoever_is_asked_for_is_chosen_once_and_never_oneself() -> None:
    async with nodes("alice", "bob", "carol", "dave") as (alice, bob, carol, dave):
        others = {bob.identifier, carol.identifier, dave.identifier}
        assert set(alice.choose(10)) == others
        assert len(alice.choose(10)) == 3
        assert alice.choose(0) == []
        assert set(alice.choose(10, without={bob.identifier})) == others - {bob.identifier}


async def test_chance_decides_among_equals_and_merit_among_others() -> None:
    async with nodes("alice", "bob", "carol", "dave") as (alice, bob, carol, dave):
        drawn = Counter(alice.choose(1)[0] for _ in range(300))
        assert min(drawn[each.identifier] for each in (bob, carol, dave)) > 50
        alice.reputation.note(dave.identifier, "unreachable", alice.clock())
        assert all(dave.identifier not in alice.choose(2) for _ in range(30))
        for _ in range(2):
            alice.reputation.note(carol.identifier, "violation", alice.clock())
        assert alice.choose(3) == [bob.identifier, dave.identifier]


async def test_nodes_without_an_address_that_can_be_dialled_are_not_chosen() -> None:
    world = World(3)
    async with nodes("alice", world=world) as (alice,):
        for name, locators in (("nowhere", []), ("elsewhere", [NodeLocator.tcp("192.0.2.1", 9)])):
            record = LocatorRecord.sign(world.secret(name), locators, number=1, now=world.clock())
            await alice.locators.learn(record.encoded)
        assert len(alice.peers()) == 2
        assert alice.choose(2) == []


@VIRTUAL
async def test_nodes_that_have_expired_are_neither_listed_nor_chosen() -> None:
    world = World(3, latency=Latency(0.001))
    async with nodes("alice", "bob", world=world) as (alice, bob):
        await anyio.sleep(bob.record.expires - world.clock() + 1)
        assert alice.locators.known(bob.identifier) is not None
        assert (alice.choose(1), alice.peers()) == ([], [])


async def test_the_ticket_of_a_directory_leads_to_itself() -> None:
    world = World(3)
    async with world.database() as database:
        async with world.node("hub", database, options=NodeOptions(directory=True)) as hub:
            ticket = check_ticket(str(hub.ticket()))
            assert ticket.directory == hub.record
            assert len(ticket.records) == 1
        with pytest.raises(NotFoundError):
            hub.ticket()  # it listens no more


@VIRTUAL
async def test_the_ticket_of_a_member_leads_to_its_directory() -> None:
    world = World(3, latency=Latency(0.001))
    async with (
        world.database() as one,
        world.database() as two,
        world.database() as three,
        world.node("hub", one, options=NodeOptions(directory=True)) as hub,
        world.node("alice", two, options=NodeOptions(join=hub.record)) as alice,
    ):
        ticket = check_ticket(str(alice.ticket()))
        assert [record.identifier for record in ticket.records] == [alice.identifier, hub.identifier]
        assert ticket.directory.identifier == hub.identifier
        async with world.node("bob", three, options=NodeOptions(join=ticket.directory)) as bob:
            with anyio.fail_after(60):
                while bob.status.state != "ready":
                    await bob.wait_changed()


async def test_the_ticket_of_a_node_alone_leads_to_no_directory() -> None:
    async with nodes("alice") as (alice,):
        ticket = Ticket.parse(str(alice.ticket()))
        assert ticket.records == (alice.record,)
        with pytest.raises(MalformedError):
            check_ticket(str(ticket))


async def test_peers_tell_who_is_connected() -> None:
    async with nodes("alice", "bob", "carol") as (alice, bob, carol):

        async def nothing(_: object) -> None:
            pass

        carol.accept.register("note", nothing)
        await alice.push(carol.identifier, "note")
        first, second = alice.peers()
        assert (first.identifier, first.connected) == (carol.identifier, True)
        assert (second.identifier, second.connected) == (bob.identifier, False)
        assert first.score > second.score == 0


async def test_a_node_that_ended_says_so() -> None:
    async with nodes("alice") as (alice,):
        assert alice.status.state == "ready"
        assert alice.status.locators == alice.record.locators
        assert alice.status.locators
    assert (alice.status.state, alice.status.locators) == ("starting", ())


@VIRTUAL
async def test_upkeep_removes_what_expired_saves_reputations_and_outlives_a_full_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(3, latency=Latency(0.001))
    async with world.database() as database, world.node("alice", database) as alice:
        await alice.storage.put([bytes(1024)], now=world.clock())
        deed = world.secret("bob").identifier
        alice.reputation.note(deed, "violation", world.clock())

        async def full(_: object) -> None:
            raise StorageError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(database, "write", full)
            await anyio.sleep(3 * node_module.UPKEEP_INTERVAL)
        assert alice.status.state == "ready"
        await anyio.sleep(alice.storage._retention + node_module.UPKEEP_INTERVAL)
        assert (await alice.storage.usage()).chunks == 0
        rows = await database.read(lambda db: db.execute("SELECT node FROM reputation").fetchall())
        assert rows == [(deed.value,)]


async def test_reputations_are_saved_when_a_node_ends() -> None:
    world = World(3)
    liar = world.secret("liar").identifier
    async with world.database() as database:
        async with world.node("alice", database) as alice:
            for _ in range(2):
                alice.reputation.note(liar, "violation", world.clock())
        async with world.node("alice", database) as again:
            assert not again.reputation.trusted(liar, world.clock())
