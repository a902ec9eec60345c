"""Proof that the routers of the private I2P network carry bytes: an open SAM port says nothing about that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress

import anyio

from overlay.errors import TransportUnavailableError
from overlay.transports.i2p import protocol
from overlay.transports.i2p.sam import SamSocket, open_sam
from overlay.transports.i2p.settings import I2pTimeouts, TunnelOptions

SESSION_TIMEOUT = 30.0
"""True seconds for the first sessions of a network; at the accelerated clock they take about 1 s."""

CARRY_TIMEOUT = 30.0
"""True seconds for all first bytes; a first try fails now and then, because the LeaseSet is on its way."""

REST = 0.1
"""True seconds between the end of the streams and that of their sessions.

i2pd 2.45 damages its memory when both ends of a stream and their sessions are closed at once: of 37 networks
that began so, 3 lost a router soon after; of 62 that closed one after the other, none.
"""

_REPLY_TIMEOUT = 10.0
_RETRY = 0.2
_PROOF = b"ready"
_SESSION = "proof"
_TIMEOUTS = I2pTimeouts()


async def prove(ports: Sequence[int]) -> None:
    """Have each router exchange bytes with the next, both ways, over sessions that are then thrown away.

    Args:
        ports: SAM ports on 127.0.0.1, of two routers or more.

    Raises:
        TransportUnavailableError: a router did not manage it in time; the message names the step.
    """
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(_sam(port)) for port in ports]
        with _bounded("making the first sessions", SESSION_TIMEOUT):
            await _create(sessions)
        with _bounded("carrying the first bytes", CARRY_TIMEOUT):
            for number, session in enumerate(sessions):
                await _carry(ports[number - 1], ports[number], await _name(session))
        await anyio.sleep(REST)


@contextmanager
def _bounded(step: str, limit: float) -> Iterator[None]:
    try:
        with anyio.fail_after(limit):
            yield
    except TimeoutError as error:
        raise TransportUnavailableError(
            f"the private I2P network did not get past {step} within {limit:.0f} s"
        ) from error


@asynccontextmanager
async def _sam(port: int) -> AsyncIterator[SamSocket]:
    sam = await open_sam(("127.0.0.1", port), _TIMEOUTS)
    async with sam:
        yield sam


async def _create(sessions: Sequence[SamSocket]) -> None:
    # All are asked for first, since all together take as long as one.
    for session in sessions:
        tunnels = TunnelOptions(length=1).options()
        await session.send(protocol.session_create(_SESSION, "STREAM", "TRANSIENT", tunnels))
    for session in sessions:
        _require(await session.read_reply())


async def _name(session: SamSocket) -> str:
    reply = await session.request(protocol.naming_lookup("ME"), _REPLY_TIMEOUT)
    return _require(reply).fields["VALUE"]


async def _carry(dialer: int, acceptor: int, name: str) -> None:
    async with _sam(acceptor) as accepted:
        _require(await accepted.request(protocol.stream_accept(_SESSION), _REPLY_TIMEOUT))
        while not await _dial(dialer, name, accepted):  # noqa: ASYNC110 - nothing tells when it will work
            await anyio.sleep(_RETRY)
        with suppress(TransportUnavailableError):  # the router closes it when the dialer's end has come
            await accepted.read_line()


async def _dial(dialer: int, name: str, accepted: SamSocket) -> bool:
    async with _sam(dialer) as dialed:
        if not (await dialed.request(protocol.stream_connect(_SESSION, name), _REPLY_TIMEOUT)).ok:
            return False
        await accepted.read_line()  # the dialer's destination
        for one, other in ((dialed, accepted), (accepted, dialed)):
            await one.send(_PROOF)
            await other.read_exactly(len(_PROOF))
    return True


def _require(reply: protocol.Reply) -> protocol.Reply:
    """Pass on a reply that is OK.

    Raises:
        TransportUnavailableError: it is not.
    """
    if not reply.ok:
        raise TransportUnavailableError(
            f"a router of the private I2P network said: {protocol.failure(reply)}"
        )
    return reply
