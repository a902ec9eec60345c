"""How channels are made: who is there, what is refused, and that nothing stays open when it fails."""

from __future__ import annotations

import os

import anyio
import pytest

from overlay.channel.driver import Channel
from overlay.channel.handshake import MAX_HELLO_BYTES, initiate_script
from overlay.channel.machine import DEFAULT_LIMITS
from overlay.channel.opening import call, respond
from overlay.connection import Connection
from overlay.errors import (
    MalformedError,
    OverlayError,
    ProtocolViolationError,
    UnreachableError,
    VerificationError,
)
from overlay.identity import NodePublic, NodeSecret
from tests.channel.conftest import ALICE, BOB, call_over, connection, pipes, shake, virtual_time

EVE = NodeSecret.from_bytes(bytes(range(128, 192)))


async def test_both_sides_learn_who_is_there() -> None:
    one, two = await shake(pipes())
    assert (one.peer, one.hello) == (BOB.public, b"bob")
    assert (two.peer, two.hello) == (ALICE.public, b"alice")
    await one.aclose()
    await two.aclose()


async def test_an_anonymous_caller_stays_so_and_is_served() -> None:
    ends = pipes()
    one, two = await shake(ends, secret=None)
    assert one.peer == BOB.public
    assert (two.peer, two.hello) == (None, b"")
    await one.aclose()
    await two.aclose()
    assert ends.one.closed
    assert ends.two.closed


async def failing(
    initiator: Connection, responder: Connection, expected: NodePublic = BOB.public
) -> list[object]:
    """Let a handshake fail, and give the errors of both sides."""
    errors: list[object] = [None, None]

    async def begin() -> None:
        try:
            await call_over(initiator, responder=expected)
        except OverlayError as error:
            errors[0] = type(error)

    async def answer() -> None:
        try:
            await respond(responder, secret=BOB, entropy=os.urandom)
        except OverlayError as error:
            errors[1] = type(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(begin)
        tasks.start_soon(answer)
    return errors


async def test_another_node_than_the_one_called_is_refused() -> None:
    ends = pipes()
    errors = await failing(connection(ends.one), connection(ends.two), EVE.public)
    assert errors == [VerificationError, UnreachableError]
    assert ends.one.closed
    assert ends.two.closed


async def test_a_connection_that_leads_elsewhere_than_was_dialled_is_refused() -> None:
    ends = pipes()
    errors = await failing(connection(ends.one, number=1), connection(ends.two, number=2))
    assert errors[0] is VerificationError
    assert ends.one.closed


async def test_the_locator_does_not_count_where_the_transport_proves_none() -> None:
    ends = pipes()
    one, two = (connection(pipe, number=n, authenticates=False) for n, pipe in enumerate(ends))
    assert await failing(one, two) == [None, None]
    for pipe in ends:
        await pipe.aclose()


async def test_an_end_within_the_handshake_is_unreachable() -> None:
    ends = pipes()
    place = connection(ends.one)

    async def connect(_: bytes) -> Connection:
        await ends.two.aclose()
        return place

    with pytest.raises(UnreachableError):
        await call(
            connect, place.locator, place.properties, secret=ALICE, responder=BOB.public, entropy=os.urandom
        )
    assert ends.one.closed


async def test_a_caller_that_is_gone_before_it_is_answered_is_unreachable() -> None:
    ends = pipes()
    script = initiate_script(secret=ALICE, responder=BOB.public, hello=b"", place=b"", entropy=os.urandom)
    await ends.one.send(next(script).send)
    await ends.one.aclose()
    with pytest.raises(UnreachableError):
        await respond(connection(ends.two), secret=BOB, entropy=os.urandom)
    assert ends.two.closed


async def test_a_call_begins_with_the_dial_and_needs_one_answer() -> None:
    ends = pipes()
    begun: list[bytes] = []
    place = connection(ends.one)
    channels: list[Channel] = []

    async def connect(first: bytes) -> Connection:
        begun.append(first)
        await ends.one.send(first)
        channels.append(await respond(connection(ends.two), secret=BOB, hello=b"bob", entropy=os.urandom))
        return place  # the answer is here before the caller has said anything more

    channel = await call(
        connect, place.locator, place.properties, secret=None, responder=BOB.public, entropy=os.urandom
    )
    assert (channel.hello, len(begun)) == (b"bob", 1)
    assert channels[0].peer is None
    for each in (channel, *channels):
        await each.aclose()


async def test_a_call_whose_dial_fails_says_so() -> None:
    async def connect(_: bytes) -> Connection:
        raise UnreachableError("nobody is there")

    ends = pipes()
    place = connection(ends.one)
    with pytest.raises(UnreachableError, match="nobody is there"):
        await call(
            connect, place.locator, place.properties, secret=None, responder=BOB.public, entropy=os.urandom
        )
    for pipe in ends:
        await pipe.aclose()


async def test_a_call_to_somebody_else_closes_the_connection() -> None:
    ends = pipes()

    async def answer() -> None:
        with pytest.raises(OverlayError):
            await respond(connection(ends.two), secret=BOB, entropy=os.urandom)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answer)
        with pytest.raises(OverlayError):
            await call_over(connection(ends.one), secret=None, responder=ALICE.public)
    assert ends.one.closed


async def test_other_protocols_are_refused() -> None:
    ends = pipes()
    await ends.one.send(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(ProtocolViolationError):
        await respond(connection(ends.two), secret=BOB, entropy=os.urandom)
    assert ends.two.closed
    await ends.one.aclose()


async def test_a_wrong_hello_closes_the_connection_too() -> None:
    ends = pipes()
    with pytest.raises(MalformedError):
        await respond(connection(ends.two), secret=BOB, hello=bytes(MAX_HELLO_BYTES + 1), entropy=os.urandom)
    assert ends.two.closed
    await ends.one.aclose()


async def test_a_wrong_hello_is_not_even_dialled() -> None:
    async def connect(_: bytes) -> Connection:
        pytest.fail("it was dialled")

    ends = pipes()
    place = connection(ends.one)
    with pytest.raises(MalformedError):
        await call(
            connect,
            place.locator,
            place.properties,
            secret=None,
            responder=BOB.public,
            hello=b"me",
            entropy=os.urandom,
        )
    for pipe in ends:
        await pipe.aclose()


@virtual_time
@pytest.mark.parametrize("part", [b"", b"\1", b"\1\1", b"\1\1" + bytes(31)])
async def test_a_handshake_that_stalls_ends(part: bytes) -> None:
    ends = pipes()
    if part:
        await ends.one.send(part)
    began = anyio.current_time()
    with pytest.raises(UnreachableError):
        await respond(connection(ends.two), secret=BOB, entropy=os.urandom)
    assert anyio.current_time() - began == pytest.approx(DEFAULT_LIMITS.handshake_timeout)
    assert ends.two.closed
    await ends.one.aclose()


@pytest.mark.parametrize(
    ("side", "phase"),
    [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)],  # the first of the caller's is the dial's
)
async def test_a_handshake_can_be_cancelled_in_any_phase(side: int, phase: int) -> None:
    ends = pipes()
    ends[side].hang_at = phase
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(failing, connection(ends.one), connection(ends.two))
        await anyio.wait_all_tasks_blocked()
        assert not ends[side].closed
        tasks.cancel_scope.cancel()
    assert ends[side].closed
    for pipe in ends:
        await pipe.aclose()
