"""What one peer can do to a node: break its own channel, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest

from overlay.channel.driver import Channel
from overlay.channel.opening import call
from overlay.channel.streams import Exchange
from overlay.connection import Connection
from overlay.errors import (
    ClosedError,
    OverlayError,
    ProtocolViolationError,
    StorageError,
    UnreachableError,
    VerificationError,
)
from overlay.identity import NodeIdentifier
from overlay.locators import LocatorRecord
from overlay.peer import accept
from overlay.peer.accept import Delivery, Reply
from overlay.peer.links import Lane
from overlay.peer.messages import MAX_BODY_BYTES, Request
from overlay.peer.node import Node
from overlay.testing.nodes import World
from overlay.testing.simulation import Latency
from overlay.wire.codec import encode

VIRTUAL = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)  # minutes of virtual time


async def echo(delivery: Delivery) -> bytes:
    return delivery.body


@asynccontextmanager
async def bob_and_alice() -> AsyncIterator[tuple[World, Node, Node]]:
    """Bob, who echoes, and Alice, who knows where he is."""
    world = World(9, latency=Latency(0.001))
    async with (
        world.database() as one,
        world.database() as two,
        world.node("bob", one) as bob,
        world.node("alice", two) as alice,
    ):
        bob.accept.register("echo", echo)
        await alice.locators.learn(bob.record.encoded)
        yield world, bob, alice


@asynccontextmanager
async def mallory(
    world: World, bob: Node, *, hello: bytes = b""
) -> AsyncIterator[tuple[Connection, Channel]]:
    """A channel to Bob from somebody who runs no node of this library, and the connection under it."""
    async with world.network.transport() as transport, anyio.create_task_group() as group:
        locator = bob.record.locators[0]
        channel = await call(
            partial(transport.connect_with, locator),
            locator,
            transport.properties,
            secret=world.secret("mallory"),
            responder=bob.public,
            hello=hello,
            entropy=world.entropy,
        )
        group.start_soon(channel.run)
        yield channel._connection, channel
        group.cancel_scope.cancel()


async def read_to_end(connection: Connection) -> None:
    while True:
        await connection.receive()


async def ended(channel: Channel) -> None:
    with anyio.fail_after(5):
        await channel.wait_closed()


async def standing(node: Node, other: NodeIdentifier) -> float:
    """The score of `other` at `node`, once it is worse than unknown."""
    with anyio.fail_after(5):
        while (score := node.reputation.score(other, node.clock())) >= 0:
            await anyio.lowlevel.checkpoint()
    return score


@pytest.mark.parametrize(
    "first",
    [b"", b"\xff\xff", bytes(65_536), encode(Request(kind="")), encode(Request(kind="x" * 65))],
    ids=["empty", "garbage", "zeros", "no kind", "long kind"],
)
async def test_what_is_no_request_ends_its_exchange_and_nothing_else(first: bytes) -> None:
    async with bob_and_alice() as (world, bob, alice), mallory(world, bob) as (_, channel):
        async with await channel.open() as exchange:
            await exchange.send(first)
            with anyio.fail_after(5), pytest.raises((ClosedError, anyio.EndOfStream)):
                await exchange.receive()
        async with await channel.open() as exchange:
            await exchange.send(encode(Request(kind="echo", body=b"still")))
            with anyio.fail_after(5):
                assert b"still" in await exchange.receive()
        assert await alice.pull(bob.identifier, "echo", b"here") == b"here"


async def test_a_channel_that_breaks_the_protocol_is_closed_and_remembered() -> None:
    async with bob_and_alice() as (world, bob, alice), mallory(world, bob) as (connection, channel):
        await connection.send(bytes(2048))
        await ended(channel)
        assert await standing(bob, world.secret("mallory").identifier) < 0
        assert await alice.pull(bob.identifier, "echo", b"here") == b"here"


async def test_a_violation_in_the_middle_of_a_transfer_ends_only_that() -> None:
    async with bob_and_alice() as (world, bob, alice), mallory(world, bob) as (connection, channel):

        async def endless() -> AsyncGenerator[bytes, None]:
            while True:
                yield bytes(30_000)

        async def stream(_: Delivery) -> Reply:
            return Reply(parts=endless())

        bob.accept.register("stream", stream)
        exchange = await channel.open()
        await exchange.send(encode(Request(kind="stream")))
        await exchange.receive()
        await connection.send(bytes(2048))
        await ended(channel)
        assert await alice.pull(bob.identifier, "echo", b"here") == b"here"


async def test_an_answer_that_cannot_be_sent_ends_only_its_exchange() -> None:
    async with bob_and_alice() as (_, bob, alice):

        async def too_long(_: Delivery) -> bytes:
            return bytes(MAX_BODY_BYTES + 2048)

        async def torn() -> AsyncGenerator[bytes, None]:
            yield b"one"
            raise StorageError("the database is damaged")

        async def damaged(_: Delivery) -> Reply:
            return Reply(parts=torn())

        async def collect(parts: AsyncIterator[bytes]) -> list[bytes]:
            return [part async for part in parts]

        bob.accept.register("too long", too_long)
        bob.accept.register("damaged", damaged)
        with pytest.raises(UnreachableError):
            await alice.pull(bob.identifier, "too long")
        with pytest.raises(UnreachableError):
            await alice.pull.parts(bob.identifier, "damaged", b"", collect)
        assert await alice.pull(bob.identifier, "echo", b"here") == b"here"


async def test_who_shows_the_record_of_another_is_cut_off_and_blamed() -> None:
    async with bob_and_alice() as (world, bob, alice):
        async with mallory(world, bob, hello=alice.record.encoded) as (_, channel):
            await ended(channel)
        liar = world.secret("mallory").identifier
        assert await standing(bob, liar) < 0
        assert not bob.channels.connected(liar)
        assert bob.reputation.score(alice.identifier, bob.clock()) == 0
        assert await alice.pull(bob.identifier, "echo", b"here") == b"here"


@pytest.mark.parametrize("claim", ["nonsense", "forged", "expired"])
async def test_who_shows_a_record_that_does_not_hold_is_cut_off_and_blamed(claim: str) -> None:
    async with bob_and_alice() as (world, bob, _):
        secret = world.secret("mallory")
        record = LocatorRecord.sign(secret, [], number=1, now=world.clock() - 10 * 365 * 86_400).encoded
        if claim == "forged":
            record = LocatorRecord.sign(secret, [], number=1, now=world.clock()).encoded
            record = record[:-1] + bytes([record[-1] ^ 1])
        async with mallory(world, bob, hello=b"nonsense" if claim == "nonsense" else record) as (_, channel):
            await ended(channel)
        assert await standing(bob, secret.identifier) < 0
        assert bob.locators.known(secret.identifier) is None


async def test_a_disk_that_is_full_here_is_not_blamed_on_whoever_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bob_and_alice() as (_, bob, alice):

        async def full(_: object) -> None:
            raise StorageError("the disk is full")

        monkeypatch.setattr(bob.locators._database, "write", full)
        assert await alice.pull(bob.identifier, "echo", b"here") == b"here"
        assert bob.reputation.score(alice.identifier, bob.clock()) == 0
        assert bob.channels.connected(alice.identifier)
        assert bob.locators.known(alice.identifier) == alice.record


@VIRTUAL
@pytest.mark.parametrize("silent_after", [0, 1, 40])
async def test_a_handshake_that_stalls_is_given_up_in_time(silent_after: int) -> None:
    async with bob_and_alice() as (world, bob, alice), world.network.transport() as transport:
        connection = await transport.connect(bob.record.locators[0])
        await connection.send(bytes([0, 1][:silent_after]) + bytes(max(0, silent_after - 2)))
        began = anyio.current_time()
        assert await alice.pull(bob.identifier, "echo", b"here") == b"here"
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)), anyio.fail_after(600):
            await read_to_end(connection)
        assert anyio.current_time() - began <= bob._options.limits.handshake_timeout + 1
        await connection.aclose()


@VIRTUAL
async def test_a_request_that_never_comes_is_given_up() -> None:
    async with bob_and_alice() as (world, bob, _), mallory(world, bob) as (_, channel):
        exchange = await channel.open()
        began = anyio.current_time()
        with pytest.raises((ClosedError, anyio.EndOfStream)), anyio.fail_after(600):
            await exchange.receive()
        assert anyio.current_time() - began <= accept.REQUEST_TIMEOUT + 1


@VIRTUAL
async def test_parts_that_stop_coming_are_given_up() -> None:
    async with bob_and_alice() as (world, bob, _), mallory(world, bob) as (_, channel):
        outcome: list[OverlayError] = []
        done = anyio.Event()

        async def take(delivery: Delivery) -> None:
            try:
                assert [part async for part in delivery.parts()]
            except ClosedError as error:
                outcome.append(error)
                raise
            finally:
                done.set()

        bob.accept.register("take", take)
        async with await channel.open() as exchange:
            await exchange.send(encode(Request(kind="take")))
            await exchange.send(b"the only part")
            with anyio.fail_after(accept.PART_TIMEOUT + 10):
                await done.wait()
        assert len(outcome) == 1


@VIRTUAL
async def test_something_else_at_an_old_address_does_not_hide_the_new_one() -> None:
    async with bob_and_alice() as (world, bob, alice), world.network.transport(number=77) as stale:
        listener = await stale.listen()

        async def answer_nonsense() -> None:
            while True:
                connection = await listener.accept()
                await connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(2048))

        old = LocatorRecord.sign(
            world.secret("bob"), listener.locators, number=bob.record.number + 1, now=world.clock()
        )
        new = LocatorRecord.sign(
            world.secret("bob"), bob.record.locators, number=old.number + 1, now=world.clock()
        )
        await alice.locators.learn(old.encoded)
        async with anyio.create_task_group() as group:
            group.start_soon(answer_nonsense)
            with pytest.raises((VerificationError, ProtocolViolationError, UnreachableError)):
                await alice.push(bob.identifier, "echo")

            async def model(_: NodeIdentifier) -> bytes:
                return new.encoded

            alice.locators.resolvers.append(model)
            assert await alice.pull(bob.identifier, "echo", b"found") == b"found"
            group.cancel_scope.cancel()


async def test_an_answer_that_is_none_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bob_and_alice() as (world, bob, alice), world.database() as database:
        async with world.node("liar", database) as liar:

            async def garbage(exchange: Exchange, _: NodeIdentifier | None) -> None:
                await exchange.receive()
                await exchange.send(b"\xff")
                await exchange.finish()

            monkeypatch.setattr(liar.accept, "handle", garbage)
            await alice.locators.learn(liar.record.encoded)
            for lane in (Lane.INTERACTIVE, Lane.ANONYMOUS):
                with pytest.raises(ProtocolViolationError):
                    await alice.pull(liar.identifier, "echo", lane=lane)
        assert await alice.pull(bob.identifier, "echo", b"here") == b"here"
