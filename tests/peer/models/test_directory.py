"""The central-directory model: registration, the list, news, units, and a directory that lies or is gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from overlay.database import Database
from overlay.errors import NotFoundError, RefusedError, UnreachableError
from overlay.identity import SigningSecret
from overlay.locators import LocatorRecord
from overlay.peer.accept import Delivery, Receiver, Reply
from overlay.peer.announcement import Announcement
from overlay.peer.models.directory import client, server
from overlay.peer.models.directory.messages import FIND_NODE, FIND_UNIT, LIST, NEW_NODE, REGISTER
from overlay.peer.node import Node, NodeOptions, NodeStatus
from overlay.testing.nodes import World
from overlay.testing.simulation import Latency
from overlay.units.identifiers import UnitIdentifier


@asynccontextmanager
async def directory(world: World, database: Database | None = None) -> AsyncIterator[Node]:
    async with world.database() as own:
        options = NodeOptions(directory=True)
        async with world.node("directory", database or own, options=options) as node:
            yield node


@asynccontextmanager
async def member(world: World, name: str, hub: Node) -> AsyncIterator[Node]:
    async with (
        world.database() as database,
        world.node(name, database, options=NodeOptions(join=hub.record)) as node,
    ):
        await status_is(node, "ready")
        yield node


async def status_is(node: Node, state: str) -> NodeStatus:
    with anyio.fail_after(3600):
        while node.status.state != state:
            await node.wait_changed()
    return node.status


async def knows(node: Node, other: Node) -> None:
    with anyio.fail_after(3600):
        while node.locators.known(other.identifier) is None:
            await node.wait_changed()


def world() -> World:
    return World(5, latency=Latency(0.001))


async def test_registration_brings_confirmation_and_the_list_and_the_others_learn_of_it() -> None:
    place = world()
    async with directory(place) as hub, member(place, "alice", hub) as alice:
        assert "the only node" in alice.status.detail
        async with member(place, "bob", hub) as bob:
            assert bob.locators.known(alice.identifier) == alice.record
            await knows(alice, bob)
            assert alice.locators.known(bob.identifier) == bob.record


async def test_nodes_that_only_share_a_directory_find_each_other() -> None:
    place = world()
    async with (
        directory(place) as hub,
        member(place, "alice", hub) as alice,
        member(place, "bob", hub) as bob,
    ):
        alice.locators._records.pop(bob.identifier, None)
        assert (await alice.locators.resolve(bob.identifier)) == bob.record


async def test_units_are_told_to_every_node_and_found_by_later_ones() -> None:
    place = world()
    async with directory(place) as hub, member(place, "alice", hub) as alice:
        async with member(place, "bob", hub) as bob:
            secret = SigningSecret(place.entropy(32))
            unit = UnitIdentifier.of_key(secret.public)
            await alice.announce(secret, alice.seal_place(b"sessions/1"))
            with anyio.fail_after(3600):
                while unit not in (bob._client.units if bob._client else {}):
                    await bob.wait_changed()
        async with member(place, "carol", hub) as carol:
            (found,) = await carol.find_unit(unit)
            assert found.locator.node == alice.identifier
            assert alice.open_place(found.locator.place) == b"sessions/1"
            assert await carol.find_unit(UnitIdentifier(bytes(32))) == []


async def test_a_node_registers_and_announces_only_itself() -> None:
    place = world()
    async with (
        directory(place) as hub,
        member(place, "alice", hub) as alice,
        member(place, "bob", hub) as bob,
    ):
        with pytest.raises(RefusedError):
            await alice.push(hub.identifier, REGISTER, bob.record.encoded)
        secret = SigningSecret(place.entropy(32))
        false = Announcement.sign(secret, bob.seal_place(b"x"), now=place.clock())
        with pytest.raises(RefusedError):
            await alice.push(hub.identifier, "directory.announce", false.encoded)


async def test_news_from_anybody_but_the_directory_are_refused() -> None:
    place = world()
    async with (
        directory(place) as hub,
        member(place, "alice", hub) as alice,
        member(place, "bob", hub) as bob,
    ):
        with pytest.raises(RefusedError):
            await bob.push(alice.identifier, NEW_NODE, bob.record.encoded)


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)  # minutes of virtual time
async def test_a_gone_directory_is_said_retried_and_found_again() -> None:
    place = world()
    async with place.database() as kept, directory(place, kept) as hub, place.database() as database:
        options = NodeOptions(join=hub.record)
        async with place.node("alice", database, options=options) as alice:
            await status_is(alice, "ready")
            place.network.take_down(place.number("directory"))
            status = await status_is(alice, "no-directory")
            assert "trying again in" in status.detail
            place.network.bring_up(place.number("directory"))
            await status_is(alice, "ready")


async def test_a_restarted_directory_still_knows_everybody() -> None:
    place = world()
    async with place.database() as kept:
        async with directory(place, kept) as hub, member(place, "alice", hub) as alice:
            record = alice.record
        async with directory(place, kept) as hub, member(place, "bob", hub) as bob:
            assert bob.locators.known(record.identifier) == record


@pytest.mark.parametrize("hidden", [False, True])
async def test_of_itself_the_directory_is_believed_what_it_told_last_but_not_by_who_hides(
    *, hidden: bool
) -> None:
    place = world()
    async with directory(place) as hub, member(place, "alice", hub) as alice:
        assert alice._client is not None
        alice._client._hidden = hidden
        old = hub.record
        new = LocatorRecord.sign(
            place.secret("directory"), old.locators, number=old.number + 1, now=place.clock()
        )
        await alice.locators.learn(new.encoded)
        with alice.locators.lend([old]):  # as a link says that was made before
            assert await alice.locators.resolve(old.identifier, anonymous=True) == old
            for ask in (alice.locators.refresh, alice.locators.resolve):
                assert await ask(old.identifier, anonymous=True) == (old if hidden else new)


async def test_what_nobody_registered_is_not_found() -> None:
    place = world()
    async with directory(place) as hub, member(place, "alice", hub) as alice:
        with pytest.raises(NotFoundError):
            await alice.locators.resolve(place.secret("nobody").identifier)


async def test_a_node_alone_is_ready_and_finds_nothing() -> None:
    place = world()
    async with place.database() as database, place.node("alice", database) as alice:
        assert alice.status.state == "ready"
        assert await alice.find_unit(UnitIdentifier(bytes(32))) == []


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)  # minutes of virtual time
async def test_announcing_while_the_directory_is_gone_fails_and_is_made_up_for() -> None:
    place = world()
    async with directory(place) as hub, member(place, "alice", hub) as alice:
        secret = SigningSecret(place.entropy(32))
        place.network.take_down(place.number("directory"))
        await status_is(alice, "no-directory")
        with pytest.raises(UnreachableError):
            await alice.announce(secret, alice.seal_place(b"x"))
        place.network.bring_up(place.number("directory"))
        await status_is(alice, "ready")
        assert len(await alice.find_unit(UnitIdentifier.of_key(secret.public))) == 1


async def test_whoever_looks_somebody_up_is_not_shown_to_the_directory() -> None:
    here = world()
    async with directory(here) as hub, member(here, "alice", hub) as alice:
        senders: list[object] = []
        for kind in (FIND_NODE, FIND_UNIT):
            receiver = hub.accept._receivers.pop(kind).receiver

            async def spy(delivery: Delivery, receiver: Receiver = receiver) -> Reply | bytes | None:
                senders.append(delivery.sender)
                return await receiver(delivery)

            hub.accept.register(kind, spy, anonymous=True)
        with pytest.raises(NotFoundError):
            await alice.push(here.secret("nobody").identifier, "note")
        assert await alice.find_unit(UnitIdentifier.of_key(bytes(32))) == []
        assert senders == [None, None]


async def test_who_registers_over_and_over_has_one_place_among_the_news(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = world()
    async with directory(here) as hub, member(here, "alice", hub) as alice, member(here, "bob", hub) as bob:
        assert hub._directory is not None

        async def nobody_listens(*_: object) -> None:
            await anyio.sleep_forever()

        monkeypatch.setattr(hub._directory, "_tell_all", nobody_listens)
        for node in (bob, *[alice] * 20):
            await node.push(hub.identifier, REGISTER, node.locators.renew().encoded)
        told = [subject for _, subject in hub._directory._news.values()]
        assert told.count(alice.identifier) <= 1
        assert bob.identifier in told or len(told) == 1  # the first may be on its way already


async def test_a_directory_whose_list_has_no_end_is_heard_for_a_while_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (client, server):
        monkeypatch.setattr(module, "PAGE", 1)
    monkeypatch.setattr(client, "MAX_RECORDS", 2)
    here = world()
    async with directory(here) as hub, AsyncExitStack() as stack:
        asked: list[bytes] = []
        receiver = hub.accept._receivers.pop(LIST).receiver

        async def count(delivery: Delivery) -> Reply | bytes | None:
            asked.append(delivery.body)
            return await receiver(delivery)

        hub.accept.register(LIST, count)
        for name in ("a", "b", "c", "d", "e"):
            await stack.enter_async_context(member(here, name, hub))
        asked.clear()
        await stack.enter_async_context(member(here, "f", hub))
        assert len([body for body in asked if b"nodes" in body]) == 2
