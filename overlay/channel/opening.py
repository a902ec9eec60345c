"""Making a channel: `call` dials and is the caller, `respond` answers on a connection that was accepted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from overlay.channel.driver import CONNECTION_ERRORS, Channel
from overlay.channel.handshake import Established, Script, Step, initiate_script, respond_script
from overlay.channel.machine import DEFAULT_LIMITS, ChannelLimits
from overlay.connection import Connection, Properties
from overlay.errors import UnreachableError
from overlay.identity import Entropy, NodePublic, NodeSecret
from overlay.locators import NodeLocator

Connect = Callable[[bytes], Awaitable[Connection]]
"""Dials, and has the connection begin with these bytes; see `overlay.connection.Transport.connect_with`."""


async def call(
    connect: Connect,
    locator: NodeLocator,
    properties: Properties,
    *,
    secret: NodeSecret | None,
    responder: NodePublic,
    hello: bytes = b"",
    entropy: Entropy,
    limits: ChannelLimits = DEFAULT_LIMITS,
) -> Channel:
    """Make a channel to `responder` over a connection that is dialled for it.

    The handshake begins with the dial, so that over some networks it is through a round trip sooner.

    Args:
        connect: dials. The connection belongs to the channel from here on, and is closed when the handshake
            fails or is cancelled.
        locator: what it dials.
        properties: those of the connection.
        secret: who calls; None for a caller that stays anonymous.
        responder: the node that must answer.
        hello: told to the responder once it has shown who it is; at most `MAX_HELLO_BYTES`, and empty for
            an anonymous caller.
        entropy: where the ephemeral key comes from.
        limits: timeouts and windows.

    Returns:
        the channel; start its `run` in a task group.

    Raises:
        OverlayError: what `connect` raises.
        UnreachableError: no answer in time, or the connection ended.
        VerificationError: another node answered, or the connection leads elsewhere than was dialled.
        ProtocolViolationError: the answer is no handshake.
        MalformedError: the hello is too long, or given for an anonymous caller; nothing was dialled.
    """
    place = _place(locator, properties)
    script = initiate_script(secret=secret, responder=responder, hello=hello, place=place, entropy=entropy)
    said = next(script)
    connection = await connect(said.send)
    established = await _shake_hands(connection, script, limits, Step(b"", said.need))
    return Channel(connection, established, initiator=True, limits=limits)


async def respond(
    connection: Connection,
    *,
    secret: NodeSecret,
    hello: bytes = b"",
    entropy: Entropy,
    limits: ChannelLimits = DEFAULT_LIMITS,
) -> Channel:
    """Make a channel over a connection that a listener accepted, with whoever calls.

    Args:
        connection: open, nothing read or sent yet. It belongs to the channel from here on, and is closed
            when the handshake fails or is cancelled.
        secret: who answers.
        hello: told to the caller; at most `MAX_HELLO_BYTES`.
        entropy: where the ephemeral key comes from.
        limits: timeouts and windows.

    Returns:
        the channel; start its `run` in a task group.

    Raises:
        UnreachableError: the caller stalled, or the connection ended.
        VerificationError: the caller means another node or locator, or does not hold its keys.
        ProtocolViolationError: what came is no handshake, or one of another version.
        MalformedError: the hello is too long.
    """
    place = _place(connection.locator, connection.properties)
    script = respond_script(secret=secret, hello=hello, place=place, entropy=entropy)
    established = await _shake_hands(connection, script, limits)
    return Channel(connection, established, initiator=False, limits=limits)


@asynccontextmanager
async def _closed_on_failure(connection: Connection) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:  # failed or cancelled: no channel came of it that would close the connection
        await anyio.aclose_forcefully(connection)
        raise


async def _shake_hands(
    connection: Connection, script: Script, limits: ChannelLimits, step: Step | None = None
) -> Established:
    async with _closed_on_failure(connection):
        try:
            with anyio.fail_after(limits.handshake_timeout):
                return await _perform(connection, script, step or next(script))
        except TimeoutError as error:
            seconds = f"{limits.handshake_timeout:g}"
            raise UnreachableError(f"the peer did not shake hands within {seconds} seconds") from error
        except CONNECTION_ERRORS as error:
            raise UnreachableError("the connection ended before the peer had shaken hands") from error


async def _perform(connection: Connection, script: Script, step: Step) -> Established:
    while True:
        if step.send:
            await connection.send(step.send)
        try:
            step = script.send(await _receive_exactly(connection, step.need))
        except StopIteration as end:
            established: Established = end.value
            return established


async def _receive_exactly(connection: Connection, size: int) -> bytes:
    """Read `size` bytes and none of what follows them, which is for the channel."""
    data = b""
    while len(data) < size:
        data += await connection.receive(size - len(data))
    return data


def _place(locator: NodeLocator, properties: Properties) -> bytes:
    """What both sides must agree that was dialled, so that a handshake cannot be relayed to another place."""
    return locator.to_bytes() if properties.authenticates_receiver else b""
