"""A directory that is asked too much, and one that keeps none of the rules."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import anyio
import apsw
import pytest

from overlay.database import Database
from overlay.errors import NotFoundError, RefusedError
from overlay.identity import SigningSecret
from overlay.locators import LocatorRecord
from overlay.peer.accept import Delivery
from overlay.peer.announcement import Announcement
from overlay.peer.models.directory import client, server
from overlay.peer.models.directory.messages import (
    ANNOUNCE,
    FIND_NODE,
    FIND_UNIT,
    LIST,
    NEW_UNIT,
    PAGE,
    REGISTER,
    Find,
    ListRequest,
    NodePage,
    UnitPage,
)
from overlay.peer.node import Node, NodeOptions
from overlay.testing.nodes import World
from overlay.testing.simulation import Latency
from overlay.units.identifiers import UnitIdentifier
from overlay.wire.codec import decode, encode


def world() -> World:
    return World(5, latency=Latency(0.001))


@asynccontextmanager
async def directory(place: World, database: Database | None = None) -> AsyncIterator[Node]:
    async with place.database() as own:
        options = NodeOptions(directory=True)
        async with place.node("directory", database or own, options=options) as node:
            yield node


@asynccontextmanager
async def member(place: World, name: str, hub: Node) -> AsyncIterator[Node]:
    async with (
        place.database() as database,
        place.node(name, database, options=NodeOptions(join=hub.record)) as node,
    ):
        with anyio.fail_after(3600):
            while node.status.state != "ready":
                await node.wait_changed()
        yield node


def announcement(place: World, secret: SigningSecret, node: Node, *, later: float = 0) -> Announcement:
    return Announcement.sign(secret, node.seal_place(b"x"), now=place.clock() + later)


async def test_a_full_directory_refuses_strangers_and_renews_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_NODES", 1)
    place = world()
    async with directory(place) as hub, member(place, "alice", hub) as alice:
        async with place.database() as database, place.node("bob", database) as bob:
            await bob.locators.learn(hub.record.encoded)
            with pytest.raises(RefusedError, match="full"):
                await bob.push(hub.identifier, REGISTER, bob.record.encoded)
        await alice.push(hub.identifier, REGISTER, alice.locators.renew().encoded)


async def test_units_of_one_node_are_bounded_and_its_own_are_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_UNITS_PER_NODE", 2)
    place = world()
    async with (
        directory(place) as hub,
        member(place, "alice", hub) as alice,
        member(place, "bob", hub) as bob,
    ):
        secrets = [SigningSecret(place.entropy(32)) for _ in range(3)]
        for secret in secrets[:2]:
            await alice.push(hub.identifier, ANNOUNCE, announcement(place, secret, alice).encoded)
        with pytest.raises(RefusedError, match="at most"):
            await alice.push(hub.identifier, ANNOUNCE, announcement(place, secrets[2], alice).encoded)
        await bob.push(hub.identifier, ANNOUNCE, announcement(place, secrets[2], bob).encoded)
        await alice.push(hub.identifier, ANNOUNCE, announcement(place, secrets[0], alice, later=5).encoded)


async def test_an_older_announcement_does_not_come_back() -> None:
    place = world()
    async with (
        directory(place) as hub,
        member(place, "alice", hub) as alice,
        member(place, "bob", hub) as bob,
    ):
        secret = SigningSecret(place.entropy(32))
        old = announcement(place, secret, alice)
        new = announcement(place, secret, bob, later=5)
        await bob.push(hub.identifier, ANNOUNCE, new.encoded)
        await alice.push(hub.identifier, ANNOUNCE, old.encoded)  # a replay
        found = await alice.pull(hub.identifier, FIND_UNIT, encode(Find(identifier=new.unit.value)))
        assert found == new.encoded
        (seen,) = await alice.find_unit(new.unit)
        assert seen.locator.node == bob.identifier


def insert(connection: apsw.Connection, rows: Sequence[tuple[bytes, int, int, bytes]]) -> None:
    connection.executemany("INSERT INTO directory_nodes VALUES (?, ?, ?, ?)", rows)


async def test_a_long_list_comes_in_pages() -> None:
    place = world()
    rows: list[tuple[bytes, int, int, bytes]] = []
    async with (
        place.database() as database,
        directory(place, database) as hub,
        member(place, "alice", hub) as alice,
    ):
        for number in range(2 * PAGE + 3):
            secret = SigningSecret(place.entropy(32))
            if number < PAGE:
                await alice.push(hub.identifier, ANNOUNCE, announcement(place, secret, alice).encoded)
            stranger = place.secret(f"stranger {number}")
            record = LocatorRecord.sign(stranger, hub.record.locators, number=1, now=place.clock())
            rows.append((record.identifier.value, 1, record.expires, record.encoded))
        await database.write(partial(insert, rows=rows))
        async with member(place, "bob", hub) as bob:
            assert len(bob.peers()) == 2 * PAGE + 3 + 2
            assert bob._client is not None
            assert len(bob._client.units) == PAGE


@asynccontextmanager
async def liar(
    place: World, nodes: Sequence[bytes], units: Sequence[bytes]
) -> AsyncIterator[tuple[Node, list[str]]]:
    """A directory that answers every request for a list, and for a node, with the same."""
    asked: list[str] = []
    async with directory(place) as hub:

        async def answer(delivery: Delivery) -> bytes:
            request = decode(ListRequest, delivery.body, limit=256)
            asked.append(request.what)
            nodes_page, units_page = NodePage(records=tuple(nodes)), UnitPage(announcements=tuple(units))
            return encode(nodes_page if request.what == "nodes" else units_page)

        async def found(_: Delivery) -> bytes:
            return nodes[0]

        for kind, receiver in ((LIST, answer), (FIND_NODE, found)):
            hub.accept._receivers.pop(kind)
            hub.accept.register(kind, receiver, anonymous=True)
        yield hub, asked


def records(place: World, count: int) -> list[bytes]:
    return [
        LocatorRecord.sign(place.secret(f"node {number}"), [], number=1, now=place.clock()).encoded
        for number in range(count)
    ]


async def test_a_list_without_an_end_is_left() -> None:
    place = world()
    full = records(place, PAGE)
    async with liar(place, full, []) as (hub, asked), member(place, "alice", hub) as alice:
        assert asked == ["nodes", "nodes", "units"]
        assert len(alice.peers()) == PAGE + 1


async def test_forged_entries_are_as_if_they_were_not_listed() -> None:
    place = world()
    good, *others = records(place, 3)
    forged = [each[:-1] + bytes([each[-1] ^ 1]) for each in others]
    async with place.database() as database, place.node("holder", database) as holder:
        unit = announcement(place, SigningSecret(place.entropy(32)), holder).encoded
    page = [forged[0], b"nonsense", good, forged[1]]
    units = [b"", unit[:-1] + bytes([unit[-1] ^ 1]), unit]
    async with liar(place, page, units) as (hub, _), member(place, "alice", hub) as alice:
        known = {peer.identifier for peer in alice.peers()}
        assert known == {place.secret("node 0").identifier, hub.identifier}
        assert alice._client is not None
        assert [each.encoded for each in alice._client.units.values()] == [unit]


async def test_another_record_than_the_one_asked_for_is_no_answer() -> None:
    place = world()
    async with liar(place, records(place, 1), []) as (hub, _), member(place, "alice", hub) as alice:
        with pytest.raises(NotFoundError):
            await alice.locators.resolve(place.secret("somebody else").identifier)


async def test_what_is_heard_of_units_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_UNITS", 3)
    place = world()
    async with directory(place) as hub, member(place, "alice", hub) as alice:
        secrets = [SigningSecret(place.entropy(32)) for _ in range(5)]
        for secret in secrets:
            await hub.push(alice.identifier, NEW_UNIT, announcement(place, secret, hub).encoded)
        assert alice._client is not None
        assert list(alice._client.units) == [UnitIdentifier.of_key(secret.public) for secret in secrets[2:]]
