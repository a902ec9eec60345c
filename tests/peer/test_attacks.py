"""What somebody who knows the protocol well tries: to stop a node, to know it, to crowd others out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from overlay.channel.driver import Channel
from overlay.channel.opening import call, respond
from overlay.channel.streams import Exchange
from overlay.connection import Connection
from overlay.errors import (
    ClosedError,
    ProtocolViolationError,
    RefusedError,
    StorageError,
    TransportUnavailableError,
    UnreachableError,
)
from overlay.identity import NodeIdentifier, NodePublic
from overlay.peer import accept, channels
from overlay.peer.accept import Delivery, Reply
from overlay.peer.forward import _INFO, _SUITE, FORWARD_KIND, MAX_FORWARDED_BYTES, _Envelope, _Sealed
from overlay.peer.links import Lane, Link
from overlay.peer.messages import Answer, Request
from overlay.peer.node import Node
from overlay.peer.places import STILL_SECONDS
from overlay.peer.requests import converse
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Latency
from overlay.wire.codec import encode

VIRTUAL = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)  # minutes of virtual time


async def echo(delivery: Delivery) -> bytes:
    return delivery.body


@asynccontextmanager
async def bob_and_alice() -> AsyncIterator[tuple[World, Node, Node]]:
    world = World(11, latency=Latency(0.001))
    async with AsyncExitStack() as stack:
        bob, alice = [
            await stack.enter_async_context(
                world.node(name, await stack.enter_async_context(world.database()))
            )
            for name in ("bob", "alice")
        ]
        for node in (bob, alice):
            node.accept.register("echo", echo, anonymous=True)
        await introduce([bob, alice])
        yield world, bob, alice


@asynccontextmanager
async def stranger(
    world: World, target: Node, name: str | None = None
) -> AsyncIterator[tuple[Connection, Channel]]:
    """A channel from somebody who runs no node; None for one who stays anonymous."""
    async with world.network.transport() as transport, anyio.create_task_group() as group:
        locator = target.record.locators[0]
        channel = await call(
            partial(transport.connect_with, locator),
            locator,
            transport.properties,
            secret=world.secret(name) if name else None,
            responder=target.public,
            entropy=world.entropy,
        )
        group.start_soon(channel.run)
        yield channel._connection, channel
        group.cancel_scope.cancel()


def sealed_to(target: NodePublic, kind: str, body: bytes) -> bytes:
    public = X25519PublicKey.from_public_bytes(target.static)
    sealed = _SUITE.encrypt(encode(_Sealed(kind=kind, body=body)), public, info=_INFO)
    return encode(_Envelope(route=(target.identifier.value,), sealed=sealed))


def nested(target: NodePublic) -> bytes:
    """As many requests to forward, each sealed within the next, as one request holds."""
    kind, body = "echo", b""
    while len(body) < MAX_FORWARDED_BYTES - 200:
        kind, body = FORWARD_KIND, sealed_to(target, kind, body)
    return body


async def test_a_nest_of_forwarded_requests_is_refused() -> None:
    async with bob_and_alice() as (world, bob, alice), stranger(world, bob) as (_, channel):
        async with await channel.open() as exchange:
            with pytest.raises(RefusedError):
                await converse(exchange, Request(kind=FORWARD_KIND, body=nested(bob.public)), None)
        assert await alice.pull(bob.identifier, "echo", b"here") == b"here"


async def test_nobody_asks_back_over_the_channel_of_an_anonymous_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bob_and_alice() as (_, bob, alice):
        anonymous: list[Channel] = []
        serve = bob.channels._serve

        async def spy(link: Link, *arguments: object) -> None:
            anonymous.append(link.channel)
            await serve(link, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(bob.channels, "_serve", spy)
        assert await alice.pull(bob.identifier, "echo", b"?", lane=Lane.ANONYMOUS) == b"?"
        # Only Alice could open this, so an answer would show that it is she who asked.
        probe = Request(kind=FORWARD_KIND, body=sealed_to(alice.public, "echo", b"are you Alice?"))
        with anyio.fail_after(5), pytest.raises(ClosedError):
            async with await anonymous[0].open() as exchange:
                await converse(exchange, probe, None)
        # Nor would it show later, from how he is treated.
        assert alice.reputation.score(bob.identifier, alice.clock()) == 0
        assert await alice.pull(bob.identifier, "echo", b"!", lane=Lane.ANONYMOUS) == b"!"


async def test_a_violation_while_parts_are_sent_is_one_error() -> None:
    async with bob_and_alice() as (_, bob, alice):

        async def break_off(_: Delivery) -> None:
            for (link,) in alice.channels._links._links.values():
                alice_end = link.channel._connection
                await anyio.sleep(0.1)
                monkey = bob_ends[alice_end.locator]
                await monkey.send(bytes(2048))
            await anyio.sleep_forever()

        bob_ends: dict[object, Connection] = {}

        async def keep(connection: Connection, **options: object) -> Channel:
            bob_ends[connection.locator] = connection
            return await respond(connection, **options)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(channels, "respond", keep)
            patch.setitem(bob.accept._receivers, "chunks.store", accept._Registration(break_off, False))
            with anyio.fail_after(30), pytest.raises((ProtocolViolationError, UnreachableError)):
                await alice.chunks.store(bob.identifier, [bytes(32_768)] * 64)


@pytest.mark.parametrize("error", [StorageError, TransportUnavailableError])
def test_what_the_disk_or_the_proxy_said_is_not_told(error: type[StorageError]) -> None:
    answer = Answer.of_error(error("the disk is full (/home/alice/.local/share/overlay/node.db)"))
    assert answer.code == error.code
    assert "alice" not in answer.text


async def test_a_crowd_of_new_identities_does_not_keep_an_old_friend_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channels, "MAX_INCOMING", 4)
    async with bob_and_alice() as (world, bob, alice), AsyncExitStack() as stack:
        bob.reputation.note(alice.identifier, "answered", bob.clock())
        for number in range(4):
            await stack.enter_async_context(stranger(world, bob, f"crowd {number}" if number % 2 else None))
        assert await alice.pull(bob.identifier, "echo", b"in") == b"in"
        for number in range(8):
            await stack.enter_async_context(stranger(world, bob, f"more {number}" if number % 2 else None))
        assert bob.channels.connected(alice.identifier)
        assert await alice.pull(bob.identifier, "echo", b"still") == b"still"


async def test_one_identity_takes_no_place_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "MAX_INCOMING", 8)
    async with bob_and_alice() as (world, bob, alice), AsyncExitStack() as stack:
        assert await alice.pull(bob.identifier, "echo", b"in") == b"in"
        for _ in range(20):
            bob.reputation.note(world.secret("mallory").identifier, "answered", bob.clock())
            await stack.enter_async_context(stranger(world, bob, "mallory"))
        assert bob.channels.connected(alice.identifier)


async def test_dialled_channels_are_bounded_and_the_oldest_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channels, "MAX_DIALLED", 2)
    async with bob_and_alice() as (world, bob, alice):
        for lane in (Lane.INTERACTIVE, Lane.BULK, Lane.ANONYMOUS, Lane.INTERACTIVE):
            assert await alice.pull(bob.identifier, "echo", b"x", lane=lane) == b"x"
        with anyio.fail_after(5):
            while world.network.memory.open_connections > 2:
                await anyio.lowlevel.checkpoint()


async def test_a_listener_without_descriptors_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "LISTEN_PAUSE", 0.01)
    async with bob_and_alice() as (world, bob, _), world.network.transport(number=99) as transport:
        listener = await transport.listen()
        take = listener.accept
        failures = iter([TransportUnavailableError("too many open files")])

        async def exhausted() -> Connection:
            for failure in failures:
                raise failure
            return await take()

        monkeypatch.setattr(listener, "accept", exhausted)
        async with anyio.create_task_group() as group:
            group.start_soon(bob.channels.listen, listener, "memory")
            locator = listener.locators[0]
            channel = await call(
                partial(transport.connect_with, locator),
                locator,
                transport.properties,
                secret=None,
                responder=bob.public,
                entropy=world.entropy,
            )
            await channel.aclose()
            group.cancel_scope.cancel()


async def large_parts() -> AsyncGenerator[bytes, None]:
    """More than a queue holds."""
    for _ in range(16):
        yield bytes(32_768)


async def large(_: Delivery) -> Reply:
    return Reply(parts=large_parts())


async def ask_and_read_nothing(channel: Channel, times: int) -> None:
    for _ in range(times):
        exchange = await channel.open()
        await exchange.send(encode(Request(kind="large")))
        await exchange.finish()
    await anyio.sleep(1)


async def size(parts: AsyncIterator[bytes]) -> int:
    return sum([len(part) async for part in parts])


@VIRTUAL
@pytest.mark.parametrize(("places", "seconds"), [(16, 1), (8, STILL_SECONDS + 1)], ids=["free", "full"])
async def test_who_asks_for_much_and_reads_nothing_keeps_others_out_for_a_moment_at_most(
    monkeypatch: pytest.MonkeyPatch, places: int, seconds: float
) -> None:
    monkeypatch.setattr(accept, "MAX_STREAMS", places)
    async with bob_and_alice() as (world, bob, alice), stranger(world, bob) as (_, channel):
        bob.accept.register("large", large, anonymous=True)
        await ask_and_read_nothing(channel, 30)
        assert len(bob.accept._streams._held) == accept.MAX_STREAMS_OF_CHANNEL
        with anyio.fail_after(seconds):
            for _ in range(4):
                assert await alice.pull.parts(bob.identifier, "large", b"", size) == 16 * 32_768


@VIRTUAL
async def test_answers_that_take_turns_queue_nothing_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "MAX_STREAMS", accept.MAX_STREAMS_OF_CHANNEL)
    async with bob_and_alice() as (world, bob, alice), stranger(world, bob) as (_, channel):
        all_there = anyio.Event()
        exchanges: list[Exchange] = []
        handle = bob.accept.handle

        async def wait_for_all(_: Delivery) -> Reply:
            async def parts() -> AsyncGenerator[bytes, None]:
                await all_there.wait()
                async with aclosing(large_parts()) as found:
                    async for part in found:
                        yield part

            return Reply(parts=parts())

        async def watch(exchange: Exchange, sender: NodeIdentifier | None) -> None:
            exchanges.append(exchange)
            await handle(exchange, sender)

        bob.accept.register("large", wait_for_all, anonymous=True)
        monkeypatch.setattr(bob.accept, "handle", watch)
        await ask_and_read_nothing(channel, 30)
        all_there.set()
        await anyio.sleep(1)
        queued = [each for each in exchanges if each._shared.machine.has_queued(each._number)]
        assert (len(exchanges), len(queued)) == (30, accept.MAX_STREAMS_OF_CHANNEL)
        with anyio.fail_after(STILL_SECONDS):
            assert await alice.pull.parts(bob.identifier, "large", b"", size) == 16 * 32_768


@VIRTUAL
async def test_who_takes_much_and_takes_it_leaves_places_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "MAX_STREAMS", accept.MAX_STREAMS_OF_CHANNEL)
    async with bob_and_alice() as (world, bob, alice), stranger(world, bob) as (_, channel):

        async def endless(_: Delivery) -> Reply:
            async def parts() -> AsyncGenerator[bytes, None]:
                while True:
                    yield bytes(32_768)

            return Reply(parts=parts())

        async def read_for_ever() -> None:
            async with await channel.open() as exchange:
                await exchange.send(encode(Request(kind="endless")))
                await exchange.finish()
                while await exchange.receive():
                    pass

        bob.accept.register("endless", endless, anonymous=True)
        bob.accept.register("large", large, anonymous=True)
        async with anyio.create_task_group() as tasks:
            for _ in range(accept.MAX_STREAMS_OF_CHANNEL):
                tasks.start_soon(read_for_ever)
            await anyio.sleep(1)
            assert len(bob.accept._streams._held) == accept.MAX_STREAMS
            with anyio.fail_after(STILL_SECONDS):
                assert await alice.pull.parts(bob.identifier, "large", b"", size) == 16 * 32_768
            tasks.cancel_scope.cancel()


@VIRTUAL
async def test_answers_that_wait_come_when_those_before_them_were_read() -> None:
    async with bob_and_alice() as (_, bob, alice):
        bob.accept.register("large", large, anonymous=True)
        sizes: list[int] = []

        async def ask() -> None:
            sizes.append(await alice.pull.parts(bob.identifier, "large", b"", size))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for _ in range(31):
                    tasks.start_soon(ask)
        assert sizes == [16 * 32_768] * 31
        assert not bob.accept._streams._held


@VIRTUAL
async def test_who_reads_nothing_holds_an_answer_for_a_while_only() -> None:
    async with bob_and_alice() as (world, bob, _), stranger(world, bob) as (_, channel):
        ended = anyio.Event()

        async def without_end(_: Delivery) -> Reply:
            async def parts() -> AsyncGenerator[bytes, None]:
                try:
                    while True:
                        yield bytes(65_536)
                finally:
                    ended.set()

            return Reply(parts=parts())

        bob.accept.register("all", without_end, anonymous=True)
        async with await channel.open() as exchange:
            await exchange.send(encode(Request(kind="all")))
            with anyio.fail_after(accept.PART_TIMEOUT + 10):
                await ended.wait()


async def test_late_answers_of_one_node_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "MAX_LATE_OF_NODE", 2)
    async with bob_and_alice() as (world, bob, alice), stranger(world, bob, "mallory") as (_, channel):
        begun = 0

        async def think(_: Delivery) -> None:
            nonlocal begun
            begun += 1
            await anyio.sleep_forever()

        bob.accept.register("think", think)
        refused = 0
        for number in range(5):
            request = Request(kind="think", correlation=bytes([number]) * 16)
            async with await channel.open() as exchange:
                try:
                    await converse(exchange, request, None)
                except RefusedError:
                    refused += 1
        assert (begun, refused) == (2, 3)
        alice.accept.register("done", echo)
        bob.accept.register("done", echo)
        assert await alice.pull.later(bob.identifier, "done", b"x", timeout=5) == b"x"


async def test_who_resets_request_after_request_is_cut_off() -> None:
    async with bob_and_alice() as (world, bob, alice), stranger(world, bob) as (_, channel):
        running = most = 0

        async def work(_: Delivery) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                await anyio.sleep(1)
            finally:
                running -= 1

        bob.accept.register("work", work, anonymous=True)

        async def ask_and_reset() -> None:
            while True:
                async with await channel.open() as exchange:
                    await exchange.send(encode(Request(kind="work")))
                    await exchange.finish()

        with anyio.fail_after(20), pytest.raises(ClosedError):
            await ask_and_reset()
        assert most <= channels.MAX_SERVED
        assert await alice.pull(bob.identifier, "echo", b"here") == b"here"
