"""The blocks push, accept, pull, reply and forward, on whole nodes of a simulated network."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from overlay.errors import ClosedError, NotFoundError, RefusedError, UnreachableError, VerificationError
from overlay.peer.accept import Delivery, Reply
from overlay.peer.links import Lane
from overlay.peer.node import Node, NodeOptions
from overlay.peer.requests import CHANNEL_TRIES
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Latency


@asynccontextmanager
async def nodes(
    *names: str, world: World | None = None, options: NodeOptions | None = None
) -> AsyncIterator[Sequence[Node]]:
    world = world or World(1, latency=Latency(0.001))
    async with AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(
                world.node(name, await stack.enter_async_context(world.database()), options=options)
            )
            for name in names
        ]
        await introduce(found)
        yield found


async def echo(delivery: Delivery) -> bytes:
    return b"echo " + delivery.body


async def test_a_push_reaches_the_receiver_of_its_kind_with_its_proven_sender() -> None:
    async with nodes("alice", "bob") as (alice, bob):
        seen: list[Delivery] = []

        async def receive(delivery: Delivery) -> None:
            seen.append(delivery)

        bob.accept.register("note", receive)
        assert await alice.push(bob.identifier, "note", b"hello") == b""
        assert [(d.sender, d.kind, d.body) for d in seen] == [(alice.identifier, "note", b"hello")]


async def test_a_pull_brings_the_answer_back_and_both_directions_share_one_channel() -> None:
    world = World(1, latency=Latency(0.001))
    async with nodes("alice", "bob", world=world) as (alice, bob):
        alice.accept.register("echo", echo)
        bob.accept.register("echo", echo)
        assert await alice.pull(bob.identifier, "echo", b"1") == b"echo 1"
        assert await bob.pull(alice.identifier, "echo", b"2") == b"echo 2"
        assert world.network.memory.open_connections == 1


async def test_unknown_kinds_are_refused() -> None:
    async with nodes("alice", "bob") as (alice, bob):
        with pytest.raises(NotFoundError):
            await alice.pull(bob.identifier, "nonsense")


async def test_an_error_of_the_receiver_is_told() -> None:
    async with nodes("alice", "bob") as (alice, bob):

        async def refuse(_: Delivery) -> None:
            raise RefusedError("not today")

        bob.accept.register("ask", refuse)
        with pytest.raises(RefusedError, match="not today"):
            await alice.push(bob.identifier, "ask")


async def test_anonymous_requests_show_no_sender_and_reach_only_kinds_that_allow_it() -> None:
    async with nodes("alice", "bob") as (alice, bob):
        senders: list[object] = []

        async def receive(delivery: Delivery) -> None:
            senders.append(delivery.sender)

        bob.accept.register("open", receive, anonymous=True)
        bob.accept.register("members", receive)
        await alice.pull(bob.identifier, "open", lane=Lane.ANONYMOUS)
        with pytest.raises(RefusedError):
            await alice.pull(bob.identifier, "members", lane=Lane.ANONYMOUS)
        assert senders == [None]
        assert not bob.channels.connected(alice.identifier)


async def test_parts_travel_both_ways() -> None:
    async with nodes("alice", "bob") as (alice, bob):

        async def numbers() -> AsyncGenerator[bytes, None]:
            for number in range(50):
                yield bytes([number]) * 30_000

        async def total(delivery: Delivery) -> bytes:
            return str(sum([len(part) async for part in delivery.parts()])).encode()

        async def stream(_: Delivery) -> Reply:
            return Reply(parts=numbers())

        bob.accept.register("total", total)
        bob.accept.register("stream", stream)
        answer = await alice.push(bob.identifier, "total", parts=numbers, lane=Lane.BULK)
        assert answer == b"1500000"

        async def collect(parts: AsyncIterator[bytes]) -> list[bytes]:
            return [part async for part in parts]

        expected = [bytes([number]) * 30_000 for number in range(50)]
        assert await alice.pull.parts(bob.identifier, "stream", b"", collect) == expected


async def test_parts_are_sent_again_from_the_first_when_a_channel_has_died() -> None:
    world = World(1, latency=Latency(0.001))
    async with nodes("alice", "bob", world=world) as (alice, bob):
        taken: list[int] = []
        tries = 0

        async def take(delivery: Delivery) -> None:
            taken.append(len([part async for part in delivery.parts()]))

        async def cut_off_once() -> AsyncGenerator[bytes, None]:
            nonlocal tries
            tries += 1
            yield b"first"
            if tries == 1:
                world.network.memory.sever(lambda _caller, _called: True)
            yield b"second"

        bob.accept.register("take", take)
        await alice.push(bob.identifier, "take")
        await alice.push(bob.identifier, "take", parts=cut_off_once)
        assert (taken, tries) == ([0, 2], 2)


async def test_a_request_is_not_tried_without_end_on_channels_that_die() -> None:
    world = World(1, latency=Latency(0.001))
    async with nodes("alice", "bob", world=world) as (alice, bob):
        tries = 0

        async def cut_off() -> AsyncGenerator[bytes, None]:
            nonlocal tries
            tries += 1
            world.network.memory.sever(lambda _caller, _called: True)
            yield b"first"

        async def take(delivery: Delivery) -> None:
            async for _ in delivery.parts():
                pass

        bob.accept.register("take", take)
        with pytest.raises(UnreachableError, match="ended before"):
            await alice.push(bob.identifier, "take", parts=cut_off)
        assert tries == CHANNEL_TRIES
        assert await alice.push(bob.identifier, "take") == b""


async def test_an_exchange_that_the_peer_ends_is_not_repeated_on_the_same_channel() -> None:
    async with nodes("alice", "bob") as (alice, bob):
        taken: list[bytes] = []

        async def give_up(delivery: Delivery) -> None:
            taken.append(delivery.body)
            raise ClosedError("enough")

        bob.accept.register("take", give_up)
        for _ in range(2):
            with pytest.raises(UnreachableError, match="ended before"):
                await alice.push(bob.identifier, "take", b"once")
        assert taken == [b"once"] * 2


async def test_a_refusal_ends_a_push_whose_parts_have_no_end() -> None:
    async with nodes("alice", "bob") as (alice, bob):

        async def refuse(_: Delivery) -> None:
            raise RefusedError("too much")

        async def endless() -> AsyncGenerator[bytes, None]:
            while True:
                yield bytes(60_000)

        bob.accept.register("take", refuse)
        with pytest.raises(RefusedError, match="too much"):
            await alice.push(bob.identifier, "take", parts=endless)
        bob.accept.register("echo", echo)
        assert await alice.pull(bob.identifier, "echo", b"still") == b"echo still"


async def test_an_answer_comes_later_over_another_connection() -> None:
    async with nodes("alice", "bob") as (alice, bob):
        go_on = anyio.Event()

        async def slow(delivery: Delivery) -> bytes:
            await go_on.wait()
            return b"late " + delivery.body

        bob.accept.register("slow", slow)
        async with anyio.create_task_group() as group:
            group.start_soon(_set_soon, go_on)
            assert await alice.pull.later(bob.identifier, "slow", b"x", timeout=30) == b"late x"


async def _set_soon(event: anyio.Event) -> None:
    await anyio.lowlevel.checkpoint()
    event.set()


async def test_a_late_answer_of_the_wrong_node_or_after_its_time_is_refused() -> None:
    async with nodes("alice", "bob", "mallory") as (alice, bob, mallory):
        correlations: list[bytes] = []

        async def remember(delivery: Delivery) -> bytes:
            await mallory_answers(delivery)
            return b"right"

        async def mallory_answers(_: Delivery) -> None:
            from overlay.peer.messages import Answer  # noqa: PLC0415 - used by this one test

            (correlation,) = alice.pull._waiting
            correlations.append(correlation)
            with pytest.raises(NotFoundError):
                await mallory.reply(alice.identifier, correlation, Answer(body=b"wrong"))

        bob.accept.register("ask", remember)
        assert await alice.pull.later(bob.identifier, "ask", b"", timeout=30) == b"right"
        from overlay.peer.messages import Answer  # noqa: PLC0415

        with pytest.raises(NotFoundError):
            await bob.reply(alice.identifier, correlations[0], Answer(body=b"again"))


async def test_forwarding_hides_the_sender_from_the_target_and_the_content_from_the_relay() -> None:
    options = NodeOptions(relays=True)
    async with nodes("alice", "relay", "second", "bob", options=options) as (alice, relay, second, bob):
        seen: list[Delivery] = []

        async def receive(delivery: Delivery) -> bytes:
            seen.append(delivery)
            return b"got " + delivery.body

        bob.accept.register("letter", receive, anonymous=True)
        via = [relay.identifier, second.identifier]
        assert await alice.forward.bidirectional(via, bob.public, "letter", b"a") == b"got a"
        await alice.forward.simple(via[:1], bob.public, "letter", b"b")
        assert not bob.channels.connected(alice.identifier)
        assert await alice.forward.bidirectional([], bob.public, "letter", b"c") == b"got c"
        assert [(d.sender, d.body) for d in seen] == [(None, b"a"), (None, b"b"), (None, b"c")]


async def test_a_node_that_does_not_relay_refuses_and_members_only_kinds_stay_closed() -> None:
    async with nodes("alice", "relay", "bob") as (alice, relay, bob):
        bob.accept.register("members", echo)
        bob.accept.register("everybody", echo, anonymous=True)
        with pytest.raises(RefusedError, match="does not forward"):
            await alice.forward.simple([relay.identifier], bob.public, "everybody", b"")
        with pytest.raises(RefusedError):
            await alice.forward.bidirectional([], bob.public, "members", b"")


async def test_a_request_that_a_relay_plays_again_is_not_answered_in_the_same_key_stream() -> None:
    async with nodes("alice", "relay", "bob") as (alice, relay, bob):
        caught: list[bytes] = []

        async def twice(delivery: Delivery) -> bytes:
            caught.extend([await relay.pull(bob.identifier, "forward", delivery.body) for _ in range(2)])
            return caught[0]

        relay.accept._receivers.pop("forward")
        relay.accept.register("forward", twice, anonymous=True)
        bob.accept.register("letter", echo, anonymous=True)
        await alice.forward.bidirectional([relay.identifier], bob.public, "letter", bytes(100))
        assert caught[0][:12] != caught[1][:12]
        assert caught[0][12:] != caught[1][12:]


@pytest.mark.parametrize("size", [0, 11, 40])
async def test_a_relay_that_makes_up_the_answer_is_found_out(size: int) -> None:
    async with nodes("alice", "relay", "bob") as (alice, relay, bob):

        async def lie(_: Delivery) -> bytes:
            return bytes(size)

        relay.accept._receivers.pop("forward")
        relay.accept.register("forward", lie)
        with pytest.raises(VerificationError):
            await alice.forward.bidirectional([relay.identifier], bob.public, "letter", b"")


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)  # minutes of virtual time
async def test_nobody_at_the_address_is_unreachable_and_an_unknown_node_not_found() -> None:
    world = World(3, latency=Latency(0.001))
    async with nodes("alice", world=world) as (alice,):
        async with nodes("bob", world=world) as (bob,):
            record = bob.record.encoded
        await alice.locators.learn(record)
        with pytest.raises(UnreachableError):
            await alice.push(bob.identifier, "note")
        with pytest.raises(NotFoundError):
            await alice.push(world.secret("carol").identifier, "note")


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)  # seconds of virtual time
async def test_another_node_at_a_known_address_is_not_taken_for_it() -> None:
    world = World(3, latency=Latency(0.001))
    async with nodes("alice", world=world) as (alice,):
        async with nodes("bob", world=world) as (bob,):
            await alice.locators.learn(bob.record.encoded)
        world._numbers["mallory"] = world.number("bob")
        async with nodes("mallory", world=world):
            with pytest.raises((VerificationError, UnreachableError)):
                await alice.push(bob.identifier, "note")


async def test_an_anonymous_node_dials_nothing_that_shows_it() -> None:
    world = World(4, latency=Latency(0.001))
    async with (
        nodes("bob", world=world) as (bob,),
        world.database() as database,
        world.node("alice", database, anonymous=True) as alice,
    ):
        await alice.locators.learn(bob.record.encoded)
        assert alice.record.locators == ()
        with pytest.raises(RefusedError):
            await alice.push(bob.identifier, "note")
        assert world.network.memory.open_connections == 0
