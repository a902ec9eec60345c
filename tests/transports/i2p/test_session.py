from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import anyio
import pytest

from overlay.errors import MalformedError, TransportUnavailableError, UnreachableError
from overlay.locators import NodeLocator
from overlay.transports.i2p import session as module
from overlay.transports.i2p.protocol import Retry
from overlay.transports.i2p.sam import open_sam
from overlay.transports.i2p.session import SamRefusal, SessionMaker
from overlay.transports.i2p.settings import I2pTimeouts, TunnelOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import ByteStream

    from overlay.transports.i2p.destination import PrivateDestination
    from overlay.transports.i2p.sam import SamSocket
    from tests.transports.i2p.conftest import FakeRouter

PEER = NodeLocator("garlic32", bytes(32))
LOCAL = I2pTimeouts(linger=0.0)
GRANTED = "SESSION STATUS RESULT=OK DESTINATION="
OPTIONS = (
    "inbound.length=1 outbound.length=1 inbound.quantity=2 outbound.quantity=2"
    " i2cp.leaseSetEncType=4 i2p.streaming.answerPings=false"
)


def maker_on(
    router: FakeRouter, timeouts: I2pTimeouts = LOCAL, entropy: Callable[[int], bytes] = os.urandom
) -> SessionMaker:
    return SessionMaker(router.address, TunnelOptions(1, 2), timeouts, entropy)


@pytest.fixture
def key(make_destination: Callable[[int], PrivateDestination]) -> PrivateDestination:
    return make_destination(1)


async def test_own_session_has_the_key_and_the_tunnels(
    fake_router: FakeRouter, key: PrivateDestination
) -> None:
    async with maker_on(fake_router).own(key) as session:
        assert session.destination == key.public
        (name,) = fake_router.sessions
        assert fake_router.commands[-1] == (
            f"SESSION CREATE STYLE=STREAM ID={name} DESTINATION={key.base64} {OPTIONS}"
        )
    await fake_router.until(lambda: not fake_router.sessions)


async def test_the_name_of_an_own_session_follows_from_the_secret_key_alone(
    fake_router: FakeRouter, make_destination: Callable[[int], PrivateDestination]
) -> None:
    names = []
    for number in (1, 2, 1):
        key = make_destination(number)
        async with maker_on(fake_router).own(key):
            names += list(fake_router.sessions)
        await fake_router.until(lambda: not fake_router.sessions)
        # Whoever knows the name may take this node's callers, so nothing that is public gives it.
        public = hashlib.blake2b(key.public.data, digest_size=12, person=b"overlay/sam").hexdigest()
        assert names[-1] != public
        assert names[-1] not in key.public.locator.host
    assert names[0] == names[2] != names[1]


async def test_transient_sessions_have_names_and_destinations_of_their_own(fake_router: FakeRouter) -> None:
    maker = maker_on(fake_router)
    async with maker.transient() as first, maker.transient() as second:
        assert first.destination != second.destination
        assert len(fake_router.sessions) == 2
        created = await fake_router.seen("SESSION CREATE")
        assert all("DESTINATION=TRANSIENT SIGNATURE_TYPE=7 " in line for line in created)


async def test_transient_session_takes_another_name_when_one_is_taken(fake_router: FakeRouter) -> None:
    names = iter([bytes(12), bytes(12), b"\1" * 12])
    maker = maker_on(fake_router, entropy=lambda _: next(names))
    async with maker.transient(), maker.transient():
        assert list(fake_router.sessions) == ["00" * 12, "01" * 12]


async def test_router_that_calls_every_name_taken(fake_router: FakeRouter) -> None:
    fake_router.always("SESSION CREATE", fake_router.reply("SESSION STATUS RESULT=DUPLICATED_ID", close=True))
    with anyio.fail_after(5), pytest.raises(TransportUnavailableError, match="already has a session"):
        async with maker_on(fake_router).transient():
            pytest.fail("there is no session")


async def test_own_session_waits_until_the_router_forgets_an_earlier_one(
    fake_router: FakeRouter, key: PrivateDestination
) -> None:
    taken = fake_router.reply("SESSION STATUS RESULT=DUPLICATED_ID", close=True)
    fake_router.script("SESSION CREATE", taken, taken)
    async with maker_on(fake_router, I2pTimeouts(linger=0.2)).own(key):
        assert len(fake_router.sessions) == 1


async def test_own_destination_in_use_is_said(fake_router: FakeRouter, key: PrivateDestination) -> None:
    maker = maker_on(fake_router)
    async with maker.own(key):
        with pytest.raises(TransportUnavailableError, match="in use on this router already"):
            async with maker.own(key):
                pytest.fail("one key, one session")
        assert len(fake_router.sessions) == 1
    await fake_router.until(lambda: all(each.closed for each in fake_router.connections))


async def test_destination_in_use_under_another_name_is_said(
    fake_router: FakeRouter, key: PrivateDestination
) -> None:
    fake_router.script("SESSION CREATE", fake_router.reply("SESSION STATUS RESULT=DUPLICATED_DEST"))
    with pytest.raises(TransportUnavailableError, match="already in use on this router"):
        async with maker_on(fake_router).own(key):
            pytest.fail("refused")
    assert len(await fake_router.seen("SESSION CREATE")) == 1


async def test_session_that_is_there_at_once_is_made_again(
    fake_router: FakeRouter, key: PrivateDestination
) -> None:
    timeouts = I2pTimeouts(linger=0.05)
    async with maker_on(fake_router, timeouts).own(key):
        first, *_ = [each for each in fake_router.connections if each.kind == "session"]
        assert first.closed
        assert len(await fake_router.seen("SESSION CREATE")) >= 2
        assert len(fake_router.open("session")) == 1


async def test_refused_key_is_said(fake_router: FakeRouter, key: PrivateDestination) -> None:
    fake_router.script("SESSION CREATE", fake_router.reply("SESSION STATUS RESULT=INVALID_KEY"))
    with pytest.raises(MalformedError, match="does not accept this node's own key"):
        async with maker_on(fake_router).own(key):
            pytest.fail("refused")
    await fake_router.connections[-1].ended()


async def test_another_destination_than_asked_for_is_refused(
    fake_router: FakeRouter,
    key: PrivateDestination,
    make_destination: Callable[[int], PrivateDestination],
) -> None:
    fake_router.script("SESSION CREATE", fake_router.reply(GRANTED + make_destination(2).base64))
    with pytest.raises(TransportUnavailableError, match="another destination"):
        async with maker_on(fake_router).own(key):
            pytest.fail("not this node's")
    await fake_router.connections[-1].ended()


@pytest.mark.parametrize("destination", ["", "AAAA", "x" * 908])
async def test_session_without_a_destination_is_refused(fake_router: FakeRouter, destination: str) -> None:
    fake_router.script("SESSION CREATE", fake_router.reply(GRANTED + destination))
    with pytest.raises(TransportUnavailableError, match="did not say with which destination"):
        async with maker_on(fake_router).transient():
            pytest.fail("whose?")
    await fake_router.connections[-1].ended()


async def test_session_reply_cut_at_any_byte(fake_router: FakeRouter, key: PrivateDestination) -> None:
    line = GRANTED + key.base64
    for at in (0, 1, 14, 22, 37, 38, 500, len(line) - 1, len(line)):
        fake_router.script("SESSION CREATE", fake_router.cut(line, at))
        with pytest.raises(TransportUnavailableError, match="closed the connection"):
            async with maker_on(fake_router).own(key):
                pytest.fail("cut")
        await fake_router.connections[-1].ended()


@pytest.mark.parametrize("result", ["INVALID_KEY", "CANT_REACH_PEER", "I2P_ERROR"])
async def test_refused_transient_session_is_neither_a_peers_fault_nor_that_of_our_key(
    fake_router: FakeRouter, result: str
) -> None:
    fake_router.script("SESSION CREATE", fake_router.reply(f"SESSION STATUS RESULT={result}"))
    with pytest.raises(TransportUnavailableError, match="I2P router re") as refused:
        async with maker_on(fake_router).transient():
            pytest.fail("refused")
    assert "own key" not in str(refused.value)


async def test_refused_own_session_is_not_a_peers_fault(
    fake_router: FakeRouter, key: PrivateDestination
) -> None:
    fake_router.script("SESSION CREATE", fake_router.reply("SESSION STATUS RESULT=CANT_REACH_PEER"))
    with pytest.raises(TransportUnavailableError, match="refuses to make a session, with CANT_REACH_PEER"):
        async with maker_on(fake_router).own(key):
            pytest.fail("refused")


async def test_slow_greeting_does_not_make_an_old_destination_a_new_one(
    fake_router: FakeRouter, key: PrivateDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def open_slowly(address: tuple[str, int], timeouts: I2pTimeouts) -> SamSocket:
        await anyio.sleep(0.06)
        return await open_sam(address, timeouts)

    monkeypatch.setattr(module, "open_sam", open_slowly)
    monkeypatch.setattr(module, "AT_ONCE", 0.05)
    async with maker_on(fake_router, I2pTimeouts(linger=0.05)).own(key):
        assert len(await fake_router.seen("SESSION CREATE")) >= 2


async def test_session_that_is_there_in_time_is_kept(
    fake_router: FakeRouter, key: PrivateDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 0.0)
    async with maker_on(fake_router, I2pTimeouts()).own(key):
        assert len(await fake_router.seen("SESSION CREATE")) == 1


async def test_session_that_takes_too_long(fake_router: FakeRouter, key: PrivateDestination) -> None:
    fake_router.script("SESSION CREATE", fake_router.stall())
    with pytest.raises(TransportUnavailableError, match="has built no tunnels yet within 0 s, being new"):
        async with maker_on(fake_router, I2pTimeouts(create=0.1, linger=0.0)).own(key):
            pytest.fail("late")
    await fake_router.connections[-1].ended()


async def test_router_that_hangs_is_not_said_to_have_no_tunnels(
    fake_router: FakeRouter, key: PrivateDestination
) -> None:
    fake_router.script("HELLO VERSION", fake_router.stall())
    with pytest.raises(TransportUnavailableError, match="does not answer as an I2P router's SAM bridge does"):
        async with maker_on(fake_router, I2pTimeouts(hello=0.1, create=0.0)).own(key):
            pytest.fail("late")
    await fake_router.connections[-1].ended()


async def test_cancelled_creation_leaves_no_socket(fake_router: FakeRouter, key: PrivateDestination) -> None:
    fake_router.script("SESSION CREATE", fake_router.stall())
    async with anyio.create_task_group() as tasks:

        async def make() -> None:
            async with maker_on(fake_router).own(key):
                pytest.fail("never granted")

        tasks.start_soon(make)
        await fake_router.seen("SESSION CREATE")
        tasks.cancel_scope.cancel()
    await fake_router.connections[-1].ended()


async def test_watch_ends_when_the_router_does(fake_router: FakeRouter, key: PrivateDestination) -> None:
    async with maker_on(fake_router).own(key) as session, anyio.create_task_group() as tasks:
        tasks.start_soon(session.watch)
        await anyio.wait_all_tasks_blocked()
        assert not session.lost.is_set()
        await fake_router.kill()
        with anyio.fail_after(10):
            await session.lost.wait()


async def test_a_complaint_on_the_session_socket_ends_the_session(
    fake_router: FakeRouter, key: PrivateDestination
) -> None:
    async with maker_on(fake_router).own(key) as session:
        (socket,) = fake_router.open("session")
        await socket.send(b'SESSION STATUS RESULT=I2P_ERROR MESSAGE="Socket already in use"\n')
        with anyio.fail_after(10):
            await session.watch()
        assert session.lost.is_set()


async def test_session_that_is_given_up_is_lost(fake_router: FakeRouter, key: PrivateDestination) -> None:
    async with maker_on(fake_router).own(key) as session, anyio.create_task_group() as tasks:
        tasks.start_soon(session.watch)
        await anyio.wait_all_tasks_blocked()
        await session.give_up()
        with anyio.fail_after(10):
            await session.lost.wait()
        assert await session.watch() == "the I2P router ended, or ended the session"


async def test_streams_end_with_their_session_though_the_router_closes_none(
    fake_router: FakeRouter, key: PrivateDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_router, "_end_session", keep_streams)
    async with anyio.create_task_group() as tasks:
        async with maker_on(fake_router).own(key) as session:
            stream = await session.connect(PEER)
            waiting = await session.accept()
            (far,) = fake_router.open("connect")
            await far.send(b"last words")
            tasks.start_soon(fail, waiting.wait_begun)
            fake_router.script("STREAM CONNECT", fake_router.stall())
            tasks.start_soon(fail, session.connect, PEER)
            await fake_router.seen("STREAM CONNECT", 2)
        with anyio.fail_after(5):
            assert await stream.receive() == b"last words"
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
            with pytest.raises(anyio.BrokenResourceError):
                await send_for_ever(stream)
            tasks.start_soon(fail, session.connect, PEER)
    await stream.aclose()
    await waiting.aclose()
    await fake_router.until(lambda: all(each.closed for each in fake_router.connections))


async def keep_streams(_: str) -> None:
    """What a router that is stopped does about the streams of a session that was closed."""


async def fail(call: Callable[..., Awaitable[object]], *args: object) -> None:
    with anyio.fail_after(5), pytest.raises(TransportUnavailableError):
        await call(*args)


async def test_sending_to_a_router_that_reads_nothing_ends_with_the_session(
    fake_router: FakeRouter, key: PrivateDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_router, "_end_session", keep_streams)

    async def send() -> None:
        with anyio.fail_after(5), pytest.raises(anyio.BrokenResourceError):
            await send_for_ever(stream)

    async with anyio.create_task_group() as tasks, maker_on(fake_router).own(key) as session:
        stream = await session.connect(PEER)
        fake_router.reads_late = 1000.0
        tasks.start_soon(send)
        await anyio.wait_all_tasks_blocked()
    await stream.aclose()


async def test_stream_carries_bytes_both_ways(fake_router: FakeRouter, key: PrivateDestination) -> None:
    async with maker_on(fake_router).own(key) as session:
        async with await session.connect(PEER) as stream:
            (far,) = fake_router.open("connect")
            assert far.name == PEER.host
            await stream.send(b"question")
            assert await far.receive_exactly(8) == b"question"
            await far.send(b"answer")
            assert await stream.receive() == b"answer"
        await far.ended()


async def test_payload_next_to_the_status_is_not_lost(
    fake_router: FakeRouter, key: PrivateDestination
) -> None:
    async with maker_on(fake_router).own(key) as session:
        fake_router.script("STREAM CONNECT", fake_router.reply("STREAM STATUS RESULT=OK\nanswer"))
        async with await session.connect(PEER) as stream:
            assert await stream.receive(7) == b"answer\n"


@pytest.mark.parametrize(
    ("result", "error", "rule"),
    [
        ("CANT_REACH_PEER", UnreachableError, Retry.SAME),
        ("PEER_NOT_FOUND", UnreachableError, Retry.SAME),
        ("TIMEOUT", UnreachableError, Retry.SAME),
        ("INVALID_KEY", UnreachableError, Retry.SAME),
        ("KEY_NOT_FOUND", UnreachableError, Retry.SAME),
        ("INVALID_ID", TransportUnavailableError, Retry.NEW_SESSION),
        ("I2P_ERROR", TransportUnavailableError, Retry.SAME),
        ("SOMETHING_NEW", TransportUnavailableError, Retry.SAME),
    ],
)
async def test_refused_dial(
    fake_router: FakeRouter, key: PrivateDestination, result: str, error: type[Exception], rule: Retry
) -> None:
    async with maker_on(fake_router).own(key) as session:
        fake_router.script("STREAM CONNECT", fake_router.reply(f"STREAM STATUS RESULT={result}"))
        with pytest.raises(SamRefusal, match=result) as refused:
            await session.connect(PEER)
        assert type(refused.value.error) is error
        assert refused.value.rule is rule
        await fake_router.connections[-1].ended()


async def test_dial_reply_cut_at_any_byte(fake_router: FakeRouter, key: PrivateDestination) -> None:
    line = "STREAM STATUS RESULT=OK"
    async with maker_on(fake_router).own(key) as session:
        for at in range(len(line) + 1):
            fake_router.script("STREAM CONNECT", fake_router.cut(line, at))
            with pytest.raises(TransportUnavailableError, match="closed the connection"):
                await session.connect(PEER)
            await fake_router.connections[-1].ended()


@pytest.mark.parametrize("topic", ["HELLO VERSION", "STREAM CONNECT", "STREAM ACCEPT"])
async def test_cancelled_request_leaves_no_socket(
    fake_router: FakeRouter, key: PrivateDestination, topic: str
) -> None:
    async with maker_on(fake_router).own(key) as session:
        fake_router.script(topic, fake_router.stall())
        before = len(await fake_router.seen(topic, 0))
        async with anyio.create_task_group() as tasks:
            if topic == "STREAM ACCEPT":
                tasks.start_soon(session.accept)
            else:
                tasks.start_soon(session.connect, PEER)
            await fake_router.seen(topic, before + 1)
            tasks.cancel_scope.cancel()
        await fake_router.connections[-1].ended()


async def test_router_killed_during_a_dial(fake_router: FakeRouter, key: PrivateDestination) -> None:
    fake_router.script("STREAM CONNECT", fake_router.stall())

    async def dial() -> None:
        with pytest.raises(TransportUnavailableError, match="closed the connection"):
            await session.connect(PEER)

    async with maker_on(fake_router).own(key) as session, anyio.create_task_group() as tasks:
        tasks.start_soon(dial)
        await fake_router.seen("STREAM CONNECT")
        await fake_router.kill()


async def test_router_killed_under_a_stream(fake_router: FakeRouter, key: PrivateDestination) -> None:
    async with maker_on(fake_router).own(key) as session, await session.connect(PEER) as stream:
        await fake_router.kill()
        with anyio.fail_after(10):
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await stream.receive()
            with pytest.raises(anyio.BrokenResourceError):
                await send_for_ever(stream)


async def send_for_ever(stream: ByteStream) -> None:
    while True:
        await stream.send(bytes(65536))


async def test_accept_gives_the_caller_and_what_it_sends(
    fake_router: FakeRouter,
    key: PrivateDestination,
    make_destination: Callable[[int], PrivateDestination],
) -> None:
    caller = make_destination(3).public
    async with maker_on(fake_router).own(key) as session:
        waiting = await session.accept()
        (identifier,) = fake_router.sessions
        await fake_router.call(identifier, caller, b"early")
        await waiting.wait_begun()
        assert await waiting.read_line() == caller.base64.encode()
        async with waiting.stream() as stream:
            assert await stream.receive() == b"early"
