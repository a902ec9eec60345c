"""The pool of channels: when they are shared, when not, and what a bad peer can do to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import anyio
import pytest

from overlay.connection import Connection
from overlay.errors import ClosedError, TransportUnavailableError, UnreachableError
from overlay.identity import NodeIdentifier
from overlay.locators import LocatorRecord, NodeLocator
from overlay.peer import channels
from overlay.peer.accept import Delivery, Reply
from overlay.peer.links import Lane
from overlay.peer.node import Node
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Faults, Latency

VIRTUAL = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)  # minutes of virtual time


def quiet_world(seed: int = 6) -> World:
    return World(seed, latency=Latency(0.001))


async def nothing(_: Delivery) -> None:
    pass


async def test_requests_at_the_same_time_share_one_dial() -> None:
    world = quiet_world()
    async with (
        world.database() as one,
        world.database() as two,
        world.node("alice", one) as alice,
        world.node("bob", two) as bob,
    ):
        bob.accept.register("note", nothing)
        await introduce([alice, bob])
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(alice.push, bob.identifier, "note")
        assert world.network.memory.open_connections == 1


async def test_bulk_has_a_connection_of_its_own() -> None:
    world = quiet_world()
    async with (
        world.database() as one,
        world.database() as two,
        world.node("alice", one) as alice,
        world.node("bob", two) as bob,
    ):
        bob.accept.register("note", nothing)
        await introduce([alice, bob])
        for lane in (Lane.INTERACTIVE, Lane.BULK, Lane.INTERACTIVE, Lane.BULK):
            await alice.push(bob.identifier, "note", lane=lane)
        assert world.network.memory.open_connections == 2


async def test_a_kept_channel_that_died_is_replaced_without_the_caller_noticing() -> None:
    world = quiet_world()
    async with (
        world.database() as one,
        world.database() as two,
        world.node("alice", one) as alice,
        world.node("bob", two) as bob,
    ):
        bob.accept.register("note", nothing)
        await introduce([alice, bob])
        await alice.push(bob.identifier, "note")
        world.network.memory.sever(lambda _caller, _called: True)
        await alice.push(bob.identifier, "note")


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)  # minutes of virtual time
async def test_dials_that_fail_at_random_are_tried_again() -> None:
    world = World(8, latency=Latency(0.01), faults=Faults(refusal=0.4))
    async with (
        world.database() as one,
        world.database() as two,
        world.node("alice", one) as alice,
        world.node("bob", two) as bob,
    ):
        bob.accept.register("note", nothing)
        await introduce([alice, bob])
        reached = 0
        for _ in range(20):
            world.network.memory.sever(lambda _caller, _called: True)
            try:
                await alice.push(bob.identifier, "note")
            except UnreachableError:
                continue
            reached += 1
        assert reached >= 16  # a dial has three tries: 94 % succeed


async def test_a_contact_is_told_on_both_sides_with_the_proven_identifier() -> None:
    world = quiet_world()
    async with (
        world.database() as one,
        world.database() as two,
        world.node("alice", one) as alice,
        world.node("bob", two) as bob,
    ):
        met: dict[NodeIdentifier, NodeIdentifier] = {}
        both = anyio.Event()

        def contact(me: NodeIdentifier) -> channels.Contact:
            async def told(node: NodeIdentifier) -> None:
                met[me] = node
                if len(met) == 2:
                    both.set()

            return told

        alice.channels.contacts.append(contact(alice.identifier))
        bob.channels.contacts.append(contact(bob.identifier))
        bob.accept.register("note", nothing)
        await alice.locators.learn(bob.record.encoded)
        await alice.push(bob.identifier, "note")
        with anyio.fail_after(10):
            await both.wait()
        assert met == {alice.identifier: bob.identifier, bob.identifier: alice.identifier}
        # The handshake brought alice's own record, so bob can call back.
        assert bob.locators.known(alice.identifier) == alice.record


async def test_a_flood_of_silent_connections_does_not_keep_others_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channels, "MAX_HANDSHAKES", 4)
    world = quiet_world()
    async with AsyncExitStack() as stack:
        bob = await stack.enter_async_context(
            world.node("bob", await stack.enter_async_context(world.database()))
        )
        alice = await stack.enter_async_context(
            world.node("alice", await stack.enter_async_context(world.database()))
        )
        bob.accept.register("note", nothing)
        await introduce([alice, bob])
        flood = await stack.enter_async_context(world.network.transport())
        silent = [await flood.connect(bob.record.locators[0]) for _ in range(20)]
        await alice.push(bob.identifier, "note")
        ended = 0

        async def read(connection: Connection) -> None:
            nonlocal ended
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await connection.receive()
            ended += 1

        async with anyio.create_task_group() as group:
            for connection in silent:
                group.start_soon(read, connection)
            with anyio.fail_after(5):
                while ended < 16:
                    await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
            assert 16 <= ended <= 17  # one more if Alice's connection came when there was no room
            group.cancel_scope.cancel()
        for connection in silent:
            await connection.aclose()


@VIRTUAL
async def test_an_honest_caller_gets_in_while_a_flood_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "MAX_HANDSHAKES", 8)
    world = World(6, latency=Latency(median=1.0, sigma=0.0))
    async with AsyncExitStack() as stack:
        bob, alice = [
            await stack.enter_async_context(
                world.node(name, await stack.enter_async_context(world.database()))
            )
            for name in ("bob", "alice")
        ]
        bob.accept.register("note", nothing)
        await introduce([alice, bob])
        network = await stack.enter_async_context(world.network.transport())
        flood = await stack.enter_async_context(anyio.create_task_group())

        async def stall() -> None:
            connection = await network.connect(bob.record.locators[0])
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await connection.receive()
            await connection.aclose()

        async def go_on() -> None:
            while True:  # by the time that Alice has answered, ten more have come
                flood.start_soon(stall)
                await anyio.sleep(0.2)

        flood.start_soon(go_on)
        await anyio.sleep(10)
        tries = 0
        while not alice.channels.connected(bob.identifier):
            tries += 1
            assert tries <= 12
            with suppress(UnreachableError):
                await alice.push(bob.identifier, "note")
        flood.cancel_scope.cancel()


@pytest.mark.parametrize("away", [False, True])
async def test_where_one_transport_does_not_work_the_next_address_is_tried(
    monkeypatch: pytest.MonkeyPatch,
    away: bool,  # noqa: FBT001 - a case of the test
) -> None:
    world = quiet_world()
    async with AsyncExitStack() as stack:
        bob, alice = [
            await stack.enter_async_context(
                world.node(name, await stack.enter_async_context(world.database()))
            )
            for name in ("bob", "alice")
        ]
        bob.accept.register("note", nothing)
        (address,) = bob.record.locators
        broken = NodeLocator("memory", (99).to_bytes(8), address.port)
        record = LocatorRecord.sign(
            world.secret("bob"), [broken, address], number=bob.record.number + 1, now=world.clock()
        )
        await alice.locators.learn(record.encoded)
        connect = alice.channels._dialler._layer.connect

        async def without_proxy(
            locator: NodeLocator, *, isolation: bytes = b"", first: bytes = b""
        ) -> Connection:
            if locator == broken:
                raise TransportUnavailableError("the proxy does not run")
            if away:
                raise UnreachableError("nobody is there")
            return await connect(locator, isolation=isolation, first=first)

        monkeypatch.setattr(alice.channels._dialler._layer, "connect", without_proxy)
        if away:
            with pytest.raises(TransportUnavailableError):
                await alice.push(bob.identifier, "note")
            assert alice.reputation.score(bob.identifier, alice.clock()) == 0
        else:
            await alice.push(bob.identifier, "note")


async def test_a_node_that_stopped_takes_no_requests() -> None:
    world = quiet_world()
    async with world.database() as database:
        async with world.node("alice", database) as alice:
            pass
        with pytest.raises(ClosedError):
            await alice.channels.channel(world.secret("bob").identifier, Lane.INTERACTIVE)


@VIRTUAL
async def test_who_called_again_after_a_silent_end_is_answered_over_the_new_connection() -> None:
    world = quiet_world()
    async with world.database() as one, world.database() as two, world.node("bob", two) as bob:
        bob.accept.register("note", nothing)
        async with world.node("alice", one) as alice:
            alice.accept.register("note", nothing)
            await introduce([alice, bob])
            await bob.push(alice.identifier, "note")
            world.network.silence()  # as when a machine loses its power: nobody learns of the end
        assert bob.channels.connected(alice.identifier)
        world.network.heal()
        async with world.node("alice", one) as again:
            again.accept.register("note", nothing)
            await again.push(bob.identifier, "note")
            with anyio.fail_after(5):
                await bob.push(again.identifier, "note")


async def test_a_circuit_is_anonymous_shared_with_nothing_and_ends_with_its_block() -> None:
    world = quiet_world()
    async with (
        world.database() as one,
        world.database() as two,
        world.node("alice", one) as alice,
        world.node("bob", two) as bob,
    ):
        senders: list[NodeIdentifier | None] = []

        async def note(delivery: Delivery) -> Reply:
            senders.append(delivery.sender)
            return Reply(body=b"noted")

        bob.accept.register("note", note, anonymous=True)
        await introduce([alice, bob])

        async def consume(parts: AsyncIterator[bytes]) -> list[bytes]:
            return [part async for part in parts]

        async with (
            alice.channels.circuit(bob.identifier) as first,
            alice.channels.circuit(bob.identifier) as second,
        ):
            assert first is not second
            for channel in (first, second):
                assert await alice.pull.parts_over(channel, "note", b"", consume) == []
            await alice.pull(bob.identifier, "note", lane=Lane.ANONYMOUS)
            assert world.network.memory.open_connections == 3
        assert first.closed
        assert second.closed
        with pytest.raises(UnreachableError, match="ended before"):
            await alice.pull.parts_over(first, "note", b"", consume)
        assert senders == [None] * 3


async def test_a_circuit_to_a_node_that_is_gone_says_so() -> None:
    world = quiet_world()
    async with world.database() as one, world.database() as two, world.node("alice", one) as alice:
        async with world.node("bob", two) as bob:
            await introduce([alice, bob])
        with pytest.raises(UnreachableError):
            async with alice.channels.circuit(bob.identifier):
                pytest.fail("it is gone")
    with pytest.raises(ClosedError):
        async with alice.channels.circuit(bob.identifier):
            pytest.fail("it does not run")


@VIRTUAL
@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.5])
async def test_a_node_that_ends_while_a_circuit_is_dialled_says_so_and_leaves_nothing_open(
    seconds: float,
) -> None:
    world = World(8, latency=Latency(0.2))
    async with world.database() as one, world.database() as two, world.node("bob", two) as bob:
        async with anyio.create_task_group() as outer:

            async def use(alice: Node) -> None:
                with pytest.raises(ClosedError, match="does not run any more"):
                    async with alice.channels.circuit(bob.identifier):
                        pass

            async with world.node("alice", one) as alice:
                await introduce([alice, bob])
                outer.start_soon(use, alice)
                await anyio.sleep(seconds)
        await anyio.sleep(1)  # the way of the end
        assert world.network.memory.open_connections == 0
