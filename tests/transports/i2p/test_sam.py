from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import anyio
import pytest

from overlay.errors import TransportUnavailableError, UnreachableError
from overlay.transports.i2p import protocol
from overlay.transports.i2p.sam import SamSocket, open_sam
from overlay.transports.i2p.settings import I2pTimeouts

if TYPE_CHECKING:
    from collections.abc import Callable

    from overlay.transports.i2p.destination import PrivateDestination
    from tests.transports.i2p.conftest import FakeRouter

HELLO = "HELLO VERSION"
GREETING = "HELLO REPLY RESULT=OK VERSION=3.1"
QUICK = I2pTimeouts(hello=0.2, reply=0.2)
PATIENT = I2pTimeouts()


async def open_session(router: FakeRouter, identifier: str = "one") -> SamSocket:
    sam = await open_sam(router.address, PATIENT)
    command = protocol.session_create(identifier, "STREAM", protocol.TRANSIENT, ())
    assert (await sam.request(command, 10)).ok
    return sam


async def refused(router: FakeRouter, timeouts: I2pTimeouts = PATIENT) -> str:
    """Fail to connect, and leave nothing open."""
    with pytest.raises(TransportUnavailableError) as failed:
        await open_sam(router.address, timeouts)
    await router.connections[-1].ended()
    return str(failed.value)


async def test_greets_in_one_piece_and_sends_at_once(fake_router: FakeRouter) -> None:
    sam = await open_sam(fake_router.address, PATIENT)
    assert fake_router.commands == ["HELLO VERSION MIN=3.1 MAX=3.1"]
    assert sam.version == "3.1"
    raw = sam._stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - not Django
    assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    await sam.aclose()
    await fake_router.connections[0].ended()


async def test_no_router() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
    with pytest.raises(TransportUnavailableError) as failed:
        await open_sam(address, PATIENT)
    assert str(failed.value) == (
        f"no I2P router answers at 127.0.0.1:{address[1]}: start i2pd (or Java I2P with its SAM bridge on),"
        " or give --sam HOST:PORT"
    )


async def test_something_else_listens(fake_router: FakeRouter) -> None:
    fake_router.script(HELLO, fake_router.reply("HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r"))
    assert "is no SAM bridge" in await refused(fake_router)


async def test_binary_answer(fake_router: FakeRouter) -> None:
    fake_router.script(HELLO, fake_router.flood(b"\x16\x03\x01\x00\n"))
    assert "is no SAM bridge" in await refused(fake_router)


async def test_flood_without_a_newline_is_cut_short(fake_router: FakeRouter) -> None:
    fake_router.script(HELLO, fake_router.flood())
    assert "is no SAM bridge" in await refused(fake_router)


async def test_silence(fake_router: FakeRouter) -> None:
    fake_router.script(HELLO, fake_router.stall())
    assert "does not answer as an I2P router's SAM bridge does" in await refused(fake_router, QUICK)


async def test_closed_at_once(fake_router: FakeRouter) -> None:
    fake_router.script(HELLO, fake_router.hang_up())
    assert "closed the connection without an answer" in await refused(fake_router)


@pytest.mark.parametrize("at", range(1, len(GREETING) + 1))
async def test_greeting_cut_at_any_byte(fake_router: FakeRouter, at: int) -> None:
    fake_router.script(HELLO, fake_router.cut(GREETING, at))
    assert "closed the connection in the middle of a line" in await refused(fake_router)


@pytest.mark.parametrize("answer", ["RESULT=NOVERSION", "RESULT=OK VERSION=3.0", "RESULT=OK"])
async def test_old_router(fake_router: FakeRouter, answer: str) -> None:
    fake_router.script(HELLO, fake_router.reply(f"HELLO REPLY {answer}"))
    where = f"127.0.0.1:{fake_router.address[1]}"
    assert await refused(fake_router) == f"the I2P router at {where} does not speak SAM 3.1: update it"


@pytest.mark.parametrize(
    "result",
    ["CANT_REACH_PEER", "PEER_NOT_FOUND", "TIMEOUT", "INVALID_KEY", "INVALID_ID", "I2P_ERROR", "NEW"],
)
async def test_refused_greeting_is_the_routers_fault_whatever_it_says(
    fake_router: FakeRouter, result: str
) -> None:
    fake_router.script(HELLO, fake_router.reply(f"HELLO REPLY RESULT={result}"))
    said = await refused(fake_router)
    assert f"refuses a greeting, {result}:" in said
    assert str(fake_router.address[1]) in said


async def test_refused_greeting_is_shown_within_bounds(fake_router: FakeRouter) -> None:
    fake_router.script(HELLO, fake_router.reply(f'HELLO REPLY RESULT=NEW MESSAGE="{"busy " * 500}"'))
    assert 200 < len(await refused(fake_router)) < 300


async def test_cancelled_greeting_leaves_nothing_open(fake_router: FakeRouter) -> None:
    fake_router.script(HELLO, fake_router.stall())
    async with anyio.create_task_group() as group:
        group.start_soon(open_sam, fake_router.address, PATIENT)
        await fake_router.seen(HELLO)
        group.cancel_scope.cancel()
    await fake_router.connections[0].ended()


async def test_refusal_is_a_reply_and_its_error_says_whose_fault_it_is(fake_router: FakeRouter) -> None:
    fake_router.script("STREAM CONNECT", fake_router.reply("STREAM STATUS RESULT=CANT_REACH_PEER"))
    sam = await open_sam(fake_router.address, PATIENT)
    answer = await sam.request(protocol.stream_connect("one", "a" * 52 + ".b32.i2p"), 10)
    assert isinstance(protocol.failure(answer), UnreachableError)
    await sam.aclose()


STATUS = "SESSION STATUS RESULT=OK DESTINATION=AAAA"


@pytest.mark.parametrize("at", range(len(STATUS) + 1))
async def test_reply_cut_at_any_byte(fake_router: FakeRouter, at: int) -> None:
    fake_router.script("DEST GENERATE", fake_router.cut(STATUS, at))
    sam = await open_sam(fake_router.address, PATIENT)
    with pytest.raises(TransportUnavailableError, match="closed the connection"):
        await sam.request(protocol.dest_generate(), 10)
    await sam.aclose()


async def test_reply_that_floods(fake_router: FakeRouter) -> None:
    fake_router.script("DEST GENERATE", fake_router.flood())
    sam = await open_sam(fake_router.address, PATIENT)
    with pytest.raises(TransportUnavailableError, match="is no SAM bridge"):
        await sam.request(protocol.dest_generate(), 10)
    assert len(sam._lines) < 2 * protocol.MAX_REPLY_BYTES
    await sam.aclose()


async def test_request_without_answer(fake_router: FakeRouter) -> None:
    fake_router.script("DEST GENERATE", fake_router.stall())
    sam = await open_sam(fake_router.address, PATIENT)
    with pytest.raises(TransportUnavailableError, match="did not answer within 0 s"):
        await sam.request(protocol.dest_generate(), 0.1)
    await sam.aclose()


async def test_request_to_a_router_that_is_gone(fake_router: FakeRouter) -> None:
    sam = await open_sam(fake_router.address, PATIENT)
    await fake_router.kill()
    with pytest.raises(TransportUnavailableError, match="closed the connection"):
        await sam.request(protocol.dest_generate(), 10)
    await sam.aclose()


async def test_cancelled_read_loses_nothing(fake_router: FakeRouter) -> None:
    sam = await open_session(fake_router)
    (session,) = fake_router.open("session")
    await session.send(b"PING ")
    with anyio.move_on_after(0.05) as scope:
        await sam.read_line()
    assert scope.cancelled_caught
    await session.send(b"PONG\n")
    assert await sam.read_line() == b"PING PONG"
    await sam.aclose()


async def test_stream_begins_with_what_was_read_too_far(fake_router: FakeRouter) -> None:
    control = await open_session(fake_router)
    fake_router.script("STREAM CONNECT", fake_router.reply("STREAM STATUS RESULT=OK\nfirst bytes"))
    sam = await open_sam(fake_router.address, PATIENT)
    assert (await sam.request(protocol.stream_connect("one", "peer.i2p"), 10)).ok
    stream = sam.stream()
    assert await stream.receive(5) == b"first"
    assert await stream.receive() == b" bytes\n"
    await stream.aclose()
    await fake_router.connections[-1].ended()
    await control.aclose()


async def test_stream_both_ways(
    fake_router: FakeRouter, make_destination: Callable[[int], PrivateDestination]
) -> None:
    control = await open_session(fake_router)
    sam = await open_sam(fake_router.address, PATIENT)
    assert (await sam.request(protocol.stream_accept("one"), 10)).ok
    caller = make_destination(7).public
    far = await fake_router.call("one", caller, b"hello")
    assert protocol.parse_peer(await sam.read_line()) == caller
    stream = sam.stream()
    assert await stream.receive() == b"hello"
    await stream.send(b"welcome")
    assert await far.receive_exactly(7) == b"welcome"
    await stream.send_eof()
    await far.ended()
    await stream.aclose()
    await control.aclose()


async def test_end_of_the_session_ends_its_streams(fake_router: FakeRouter) -> None:
    control = await open_session(fake_router)
    sam = await open_sam(fake_router.address, PATIENT)
    assert (await sam.request(protocol.stream_accept("one"), 10)).ok
    await control.aclose()
    with pytest.raises(TransportUnavailableError):
        await sam.read_line()
    await sam.aclose()


async def test_bytes_after_a_line_can_be_counted(fake_router: FakeRouter) -> None:
    sam = await open_session(fake_router)
    (session,) = fake_router.open("session")
    await session.send(b"DATAGRAM RECEIVED SIZE=4\nab")
    assert (await sam.read_reply()).fields["SIZE"] == "4"
    await session.send(b"\n\nNEXT LINE\n")
    assert await sam.read_exactly(4) == b"ab\n\n"
    assert await sam.read_line() == b"NEXT LINE"
    await sam.aclose()
