from __future__ import annotations

import os
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest

from overlay.connection import TransportStatus
from overlay.errors import (
    MalformedError,
    OverlayError,
    TransportUnavailableError,
    UnreachableError,
    VerificationError,
)
from overlay.locators import NodeLocator
from overlay.testing.conformance import CHECKS, Check, check_nobody, check_properties
from overlay.testing.pair import TransportPair, read_exactly, read_to_end
from overlay.transports import supervision
from overlay.transports.i2p import dial, hearing, isolation, watch
from overlay.transports.i2p import transport as module
from overlay.transports.i2p.router import RouterHandle
from overlay.transports.i2p.settings import AttachedRouter, I2pTimeouts, TunnelOptions
from overlay.transports.i2p.silence import SILENT_STREAMS
from overlay.transports.i2p.streams import AcceptedConnection
from overlay.transports.i2p.transport import I2P_PROPERTIES, I2pTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from overlay.connection import Connection
    from overlay.transports.i2p.destination import PrivateDestination
    from tests.transports.i2p.conftest import FakeConnection, FakeRouter

PEER = NodeLocator("garlic32", b"\7" * 32)
OTHER = NodeLocator("garlic32", b"\1" * 32)
LOCAL = I2pTimeouts(dial=5.0, create=5.0, reply=5.0, linger=0.0, round_trip=0.01)
QUICK = I2pTimeouts(dial=0.2, create=5.0, reply=0.2, linger=0.0, round_trip=0.01)
HELLO, CREATE, CONNECT, ACCEPT = "HELLO VERSION", "SESSION CREATE", "STREAM CONNECT", "STREAM ACCEPT"


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_BACKOFF", 0.01)


@pytest.fixture
def key_path(tmp_path: Path) -> Path:
    return tmp_path / "i2p.key"


def transport_on(router: FakeRouter, key_path: Path, timeouts: I2pTimeouts = LOCAL) -> I2pTransport:
    host, port = router.address
    return I2pTransport(
        AttachedRouter(f"{host}:{port}"), key_path=key_path, tunnels=TunnelOptions(1, 5), timeouts=timeouts
    )


def own_session(router: FakeRouter) -> str:
    """The name of the session with the node's own key."""
    created = [line for line in router.commands if line.startswith(CREATE) and "=TRANSIENT" not in line]
    return created[-1].partition(" ID=")[2].split()[0]


def transients(router: FakeRouter) -> list[str]:
    """The names of the sessions with keys that nobody keeps; the first is that of dials without a token."""
    created = [line for line in router.commands if line.startswith(CREATE) and "=TRANSIENT" in line]
    return [line.partition(" ID=")[2].split()[0] for line in created]


async def all_closed(router: FakeRouter) -> None:
    await router.until(lambda: all(connection.closed for connection in router.connections))


async def dialled(router: FakeRouter, transport: I2pTransport) -> tuple[Connection, FakeConnection]:
    connection = await transport.connect(PEER)
    return connection, router.open("connect")[-1]


async def test_properties_follow_from_the_timeouts(fake_router: FakeRouter, key_path: Path) -> None:
    transport = transport_on(fake_router, key_path)
    assert transport.name == "i2p"
    assert transport.properties.dial_timeout == LOCAL.dial
    assert transport.properties.round_trip == LOCAL.round_trip
    assert (I2P_PROPERTIES.round_trip, I2P_PROPERTIES.dial_timeout) == (4.0, 90.0)
    assert I2P_PROPERTIES.isolation_delay == 20.0
    assert transport.carries(PEER)
    assert not transport.carries(NodeLocator("garlic32", bytes(35)))  # an encrypted lease set
    assert not transport.carries(NodeLocator("onion3", bytes(32), 80))


async def test_status_and_facts_from_start_to_stop(fake_router: FakeRouter, key_path: Path) -> None:
    transport = transport_on(fake_router, key_path)
    seen: list[TransportStatus] = []
    transport.observe(seen.append)
    assert transport.facts == {"session": "none", "tunnels": "1 hop, 5 each way"}
    async with transport:
        made = fake_router.sessions[own_session(fake_router)]
        assert transport.facts == {
            "router": f"127.0.0.1:{fake_router.address[1]}",
            "sam": "3.1",
            "session": "ready",
            "tunnels": "1 hop, 5 each way",
            "destination": made.public.locator.host,
        }
    assert [(status.state, status.progress) for status in seen[-3:]] == [
        ("starting", 40),
        ("ready", 100),
        ("stopped", 0),
    ]
    await all_closed(fake_router)


async def test_router_is_a_fact_while_it_builds_tunnels(fake_router: FakeRouter, key_path: Path) -> None:
    fake_router.always(CREATE, fake_router.stall())
    transport = transport_on(fake_router, key_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(transport.__aenter__)
        await fake_router.seen(CREATE)
        assert transport.status.detail == "building tunnels, which takes 20 s and more"
        assert transport.facts["router"] == f"127.0.0.1:{fake_router.address[1]}"
        assert (transport.facts["sam"], transport.facts["session"]) == ("3.1", "none")
        tasks.cancel_scope.cancel()
    assert "router" not in transport.facts


def router_of_our_own(router: FakeRouter, *, launched: bool = True) -> Callable[..., object]:
    @asynccontextmanager
    async def found(*_: object) -> AsyncIterator[RouterHandle]:
        yield RouterHandle(router.address, "3.1", launched)

    return found


@pytest.mark.parametrize(("launched", "limit", "words"), [(False, 0, "20 s and more"), (True, 1, "minutes")])
async def test_router_without_tunnels(
    fake_router: FakeRouter,
    key_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    launched: bool,
    limit: int,
    words: str,
) -> None:
    monkeypatch.setattr(module, "open_router", router_of_our_own(fake_router, launched=launched))
    monkeypatch.setattr(module, "FIRST_TUNNELS", 0.6)
    fake_router.always(CREATE, fake_router.stall())
    transport = transport_on(fake_router, key_path, I2pTimeouts(create=0.1, linger=0.0))
    details: list[str] = []
    transport.observe(lambda status: details.append(status.detail))
    with pytest.raises(TransportUnavailableError, match=f"no tunnels yet within {limit} s.*some minutes"):
        await transport.__aenter__()
    assert details[-2].startswith("building tunnels, which ")
    assert words in details[-2]
    await all_closed(fake_router)


def later(fake_router: FakeRouter, made: PrivateDestination) -> Awaitable[None]:
    """Make the session that dials come from, which was kept waiting."""
    waiting = [each for each in fake_router.connections if not each.closed and not each.kind]
    return waiting[-1].send(f"SESSION STATUS RESULT=OK DESTINATION={made.base64}\n".encode())


async def test_ready_when_there_is_a_session_to_dial_from(
    fake_router: FakeRouter, key_path: Path, make_destination: Callable[[int], PrivateDestination]
) -> None:
    fake_router.always(f"{CREATE} TRANSIENT", fake_router.stall())
    transport = transport_on(fake_router, key_path)
    before: list[str] = []

    async def make_later() -> None:
        await fake_router.until(lambda: fake_router.sessions and transients(fake_router))
        await anyio.wait_all_tasks_blocked()
        before.append(transport.status.state)
        await later(fake_router, make_destination(9))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(make_later)
        async with transport:
            assert before == ["starting"]
            assert "error" not in transport.facts


async def test_ready_without_a_session_to_dial_from_says_so_until_there_is_one(
    fake_router: FakeRouter, key_path: Path
) -> None:
    refusal = fake_router.reply('SESSION STATUS RESULT=I2P_ERROR MESSAGE="too many"')
    fake_router.script(f"{CREATE} TRANSIENT", refusal)
    async with transport_on(fake_router, key_path) as transport:
        assert transport.status.state == "ready"
        assert transport.facts["error"].startswith("no session to dial from: the I2P router reports an error")
        async with await transport.connect(PEER):
            assert "error" not in transport.facts


async def test_own_session_that_is_lost_while_that_to_dial_from_is_made(
    fake_router: FakeRouter, key_path: Path
) -> None:
    fake_router.always(f"{CREATE} TRANSIENT", fake_router.stall())
    transport = transport_on(fake_router, key_path)

    async def enter() -> None:
        with anyio.fail_after(5), pytest.raises(TransportUnavailableError, match="ended the session"):
            await transport.__aenter__()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(enter)
        await fake_router.until(lambda: fake_router.sessions)
        while transport.facts["session"] != "ready":
            await anyio.wait_all_tasks_blocked()
        await fake_router.lose(own_session(fake_router))
    await all_closed(fake_router)


async def test_patience_of_the_start_is_not_that_of_later_sessions(
    fake_router: FakeRouter, key_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "open_router", router_of_our_own(fake_router))
    timeouts = replace(LOCAL, create=0.1, dial=0.3)
    monkeypatch.setattr(module, "FIRST_TUNNELS", 60.0)
    fake_router.always(CREATE, fake_router.stall())
    transport = transport_on(fake_router, key_path, timeouts)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(transport.__aenter__)
        await fake_router.seen(CREATE, 2)
        await anyio.sleep(3 * timeouts.create)
        assert transport.status.state == "starting"
        assert all(not each.closed for each in fake_router.connections[-2:])
        tasks.cancel_scope.cancel()
    fake_router.usually(CREATE)
    async with transport:
        fake_router.always(CREATE, fake_router.stall())
        with pytest.raises(TransportUnavailableError, match="no tunnels yet within 0 s"):
            await transport.connect(PEER, isolation=b"one")


async def test_tokens_leave_room_for_dials_without_one(fake_router: FakeRouter, key_path: Path) -> None:
    async with transport_on(fake_router, key_path) as transport, AsyncExitStack() as stack:
        for number in range(isolation.MAX_ISOLATED):
            token = bytes([number + 1])
            await stack.enter_async_context(await transport.connect(PEER, isolation=token))
        await fake_router.lose(transients(fake_router)[0])
        async with await transport.connect(PEER):
            assert transport.status.state == "ready"


async def test_destination_survives_a_restart(fake_router: FakeRouter, key_path: Path) -> None:
    transport = transport_on(fake_router, key_path)
    locators: list[NodeLocator] = []
    for _ in range(2):
        async with transport, await transport.listen() as listener:
            locators += listener.locators
        await fake_router.until(lambda: not fake_router.sessions)
    async with transport_on(fake_router, key_path) as another, await another.listen() as listener:
        locators += listener.locators
    assert len(set(locators)) == 1
    assert len(await fake_router.seen("DEST GENERATE")) == 1


async def test_no_router(key_path: Path) -> None:
    transport = I2pTransport(AttachedRouter("127.0.0.1:1"), key_path=key_path, timeouts=LOCAL)
    with pytest.raises(TransportUnavailableError, match=r"no I2P router answers at 127\.0\.0\.1:1") as failed:
        await transport.__aenter__()
    assert transport.status == TransportStatus("failed", str(failed.value))
    with pytest.raises(TransportUnavailableError, match="not started"):
        await transport.connect(PEER)


@pytest.mark.parametrize(
    ("topic", "line", "kind"),
    [
        ("HELLO VERSION", "HELLO REPLY RESULT=NOVERSION", TransportUnavailableError),
        ("HELLO VERSION", "220 ready", TransportUnavailableError),
        (CREATE, "SESSION STATUS RESULT=DUPLICATED_DEST", TransportUnavailableError),
        (CREATE, "SESSION STATUS RESULT=DUPLICATED_ID", TransportUnavailableError),
        (CREATE, 'SESSION STATUS RESULT=I2P_ERROR MESSAGE="no"', TransportUnavailableError),
        (CREATE, "SESSION STATUS RESULT=INVALID_KEY", MalformedError),
    ],
)
async def test_first_failure_is_the_callers(
    fake_router: FakeRouter, key_path: Path, topic: str, line: str, kind: type[OverlayError]
) -> None:
    fake_router.always(topic, fake_router.reply(line))
    transport = transport_on(fake_router, key_path)
    with pytest.raises(kind):
        await transport.__aenter__()
    assert transport.status.state == "failed"
    assert fake_router.sessions == {}
    await all_closed(fake_router)


@pytest.mark.parametrize(("content", "kind"), [(b"no key", MalformedError), (None, VerificationError)])
async def test_bad_key_file_is_said_and_kept(
    fake_router: FakeRouter,
    key_path: Path,
    make_destination: Callable[[int], PrivateDestination],
    content: bytes | None,
    kind: type[OverlayError],
) -> None:
    written = content or make_destination(1).data[:-1] + b"?"
    await anyio.Path(key_path).write_bytes(written)
    with pytest.raises(kind, match="damaged"):
        await transport_on(fake_router, key_path).__aenter__()
    assert await anyio.Path(key_path).read_bytes() == written


@pytest.mark.parametrize("topic", ["HELLO VERSION", "DEST GENERATE", CREATE])
async def test_cancelled_start_leaves_nothing(fake_router: FakeRouter, key_path: Path, topic: str) -> None:
    fake_router.always(topic, fake_router.stall())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(transport_on(fake_router, key_path).__aenter__)
        await fake_router.seen(topic)
        tasks.cancel_scope.cancel()
    await all_closed(fake_router)


async def test_bytes_both_ways(fake_router: FakeRouter, key_path: Path) -> None:
    async with transport_on(fake_router, key_path) as transport:
        connection, far = await dialled(fake_router, transport)
        async with connection:
            assert connection.locator == PEER
            assert connection.properties == transport.properties
            assert (far.name, far.identifier) == (PEER.host, transients(fake_router)[0])
            await connection.send(b"question")
            assert await far.receive_exactly(8) == b"question"
            await far.send(b"answer")
            assert await read_exactly(connection, 6) == b"answer"
        await far.ended()
    await all_closed(fake_router)


@pytest.mark.parametrize(
    "line",
    [
        "STREAM STATUS RESULT=CANT_REACH_PEER",
        "STREAM STATUS RESULT=PEER_NOT_FOUND",
        "STREAM STATUS RESULT=TIMEOUT",
        "STREAM STATUS RESULT=INVALID_KEY",
        "STREAM STATUS RESULT=KEY_NOT_FOUND",
        'STREAM STATUS RESULT=I2P_ERROR MESSAGE="try again"',
        "STREAM STATUS RESULT=NEVER_HEARD_OF",
        "STREAM STATUS",
        "garbage",
    ],
)
async def test_refused_dial_is_repeated(fake_router: FakeRouter, key_path: Path, line: str) -> None:
    async with transport_on(fake_router, key_path) as transport:
        fake_router.script(CONNECT, *[fake_router.reply(line, close=True)] * 3)
        async with await transport.connect(PEER):
            assert len(await fake_router.seen(CONNECT)) == 4
        assert len(transients(fake_router)) == 1


async def test_dial_that_is_refused_for_good_is_not(fake_router: FakeRouter, key_path: Path) -> None:
    async with transport_on(fake_router, key_path) as transport:
        fake_router.always(CONNECT, fake_router.reply("STREAM STATUS RESULT=NOVERSION"))
        with pytest.raises(TransportUnavailableError, match="update it"):
            await transport.connect(PEER)
        assert len(await fake_router.seen(CONNECT)) == 1


@pytest.mark.parametrize(
    ("result", "kind", "words"),
    [
        ("CANT_REACH_PEER", UnreachableError, "cannot be reached"),
        ("I2P_ERROR", TransportUnavailableError, "reports an error"),
    ],
)
async def test_what_was_in_the_way_is_said_at_the_end(
    fake_router: FakeRouter, key_path: Path, result: str, kind: type[OverlayError], words: str
) -> None:
    async with transport_on(fake_router, key_path, QUICK) as transport:
        fake_router.always(CONNECT, fake_router.reply(f"STREAM STATUS RESULT={result}", close=True))
        began = anyio.current_time()
        with pytest.raises(kind, match=words):
            await transport.connect(PEER)
        assert anyio.current_time() - began >= QUICK.dial


async def test_peer_that_never_answers(fake_router: FakeRouter, key_path: Path) -> None:
    async with transport_on(fake_router, key_path, QUICK) as transport:
        fake_router.always(CONNECT, fake_router.stall())
        with pytest.raises(UnreachableError, match="did not find the destination in time"):
            await transport.connect(PEER)
    await all_closed(fake_router)


async def test_dial_reply_cut_at_any_byte(fake_router: FakeRouter, key_path: Path) -> None:
    line = "STREAM STATUS RESULT=OK"
    async with transport_on(fake_router, key_path) as transport:
        for at in range(len(line) + 1):
            fake_router.script(CONNECT, fake_router.cut(line, at))
            async with await transport.connect(PEER):
                pass


@pytest.mark.parametrize("topic", ["HELLO VERSION", CONNECT])
async def test_cancelled_dial_leaves_nothing(fake_router: FakeRouter, key_path: Path, topic: str) -> None:
    async with transport_on(fake_router, key_path) as transport:
        before = len(fake_router.commands)
        fake_router.script(topic, fake_router.stall())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(transport.connect, PEER)
            await fake_router.until(lambda: any(map(topic.__eq__, _topics(fake_router, before))))
            tasks.cancel_scope.cancel()
        await fake_router.connections[-1].ended()
        async with await transport.connect(PEER):
            pass


def _topics(router: FakeRouter, since: int) -> list[str]:
    return [" ".join(line.split()[:2]) for line in router.commands[since:]]


async def test_forgotten_session_is_made_again_and_dialled_from(
    fake_router: FakeRouter, key_path: Path
) -> None:
    async with transport_on(fake_router, key_path) as transport:
        fake_router.script(CONNECT, fake_router.reply("STREAM STATUS RESULT=INVALID_ID", close=True))
        async with await transport.connect(PEER):
            assert fake_router.open("connect")[-1].identifier == transients(fake_router)[1]
            assert len(fake_router.open("session")) == 2
        assert transport.status.state == "ready"


async def test_node_that_was_started_again_dials_from_a_new_destination(
    fake_router: FakeRouter, key_path: Path
) -> None:
    used = []
    for _ in range(2):
        async with transport_on(fake_router, key_path) as transport, await transport.connect(PEER):
            name = fake_router.open("connect")[-1].identifier
            used.append(fake_router.sessions[name].public)
    assert used[0] != used[1]


async def test_own_session_is_made_again_under_the_same_name(fake_router: FakeRouter, key_path: Path) -> None:
    async with transport_on(fake_router, key_path) as transport:
        first, back = own_session(fake_router), status_event(transport, "ready")
        await fake_router.lose(first)
        await back.wait()
        assert own_session(fake_router) == first  # one key, one session, one name


async def test_router_killed_during_a_dial(fake_router: FakeRouter, key_path: Path) -> None:
    async with transport_on(fake_router, key_path) as transport:
        fake_router.script(CONNECT, fake_router.stall())
        got = []

        async def call() -> None:
            got.append(await transport.connect(PEER))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await fake_router.seen(CONNECT)
            await fake_router.kill()
            await fake_router.start()
        async with got[0]:
            assert transport.status.state == "ready"


async def test_dial_without_a_router_says_so(fake_router: FakeRouter, key_path: Path) -> None:
    async with transport_on(fake_router, key_path, QUICK) as transport:
        gone = status_event(transport, "starting")
        await fake_router.kill()
        await gone.wait()
        with pytest.raises(TransportUnavailableError, match=r"I2P is not ready: .*attaching to it again"):
            await transport.connect(PEER)
        with pytest.raises(TransportUnavailableError, match="not ready"):
            await transport.listen()
        assert "router" not in transport.facts
        assert transport.facts["session"] == "none"
        assert transport.facts["error"]


def status_event(transport: I2pTransport, state: str) -> anyio.Event:
    reached = anyio.Event()
    transport.observe(lambda status: reached.set() if status.state == state else None)
    return reached


async def test_router_that_comes_back(
    fake_router: FakeRouter, key_path: Path, make_destination: Callable[[int], PrivateDestination]
) -> None:
    async with transport_on(fake_router, key_path) as transport, await transport.listen() as listener:
        details: list[str] = []
        transport.observe(lambda status: details.append(status.detail))
        locators, back = tuple(listener.locators), status_event(transport, "ready")
        await fake_router.kill()
        await fake_router.start()
        await back.wait()
        assert details[0] == ("the I2P router ended, or ended the session; attaching to it again (attempt 1)")
        assert tuple(listener.locators) == locators
        await fake_router.call(own_session(fake_router), make_destination(3).public, b"hello")
        async with await listener.accept() as accepted:
            assert await read_exactly(accepted, 5) == b"hello"
    await all_closed(fake_router)


async def test_router_that_hangs_is_given_up_until_it_answers(
    fake_router: FakeRouter,
    key_path: Path,
    make_destination: Callable[[int], PrivateDestination],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "GREETING_INTERVAL", 0.05)
    timeouts = I2pTimeouts(dial=5.0, hello=0.5, create=5.0, reply=5.0, linger=0.0, round_trip=0.01)
    async with (
        transport_on(fake_router, key_path, timeouts) as transport,
        await transport.listen() as listener,
    ):
        errors: list[str] = []
        transport.observe(lambda _: errors.append(transport.facts["error"]))
        details: list[str] = []
        transport.observe(lambda status: details.append(status.detail))
        gone, back = status_event(transport, "starting"), status_event(transport, "ready")
        fake_router.always(HELLO, fake_router.stall())
        with anyio.fail_after(10):
            await gone.wait()
        assert details[0] == "the I2P router does not answer any more; attaching to it again (attempt 1)"
        assert errors[0] == "the I2P router does not answer any more"
        await fake_router.until(lambda: not fake_router.sessions)
        fake_router.usually(HELLO)
        with anyio.fail_after(10):
            await back.wait()
        await fake_router.call(own_session(fake_router), make_destination(3).public, b"hello")
        async with await listener.accept() as accepted:
            assert await read_exactly(accepted, 5) == b"hello"
    await all_closed(fake_router)


@pytest.mark.parametrize("topic", [CREATE, f"{CREATE} TRANSIENT"])
async def test_router_that_hangs_while_it_makes_sessions_is_noticed(
    fake_router: FakeRouter, key_path: Path, monkeypatch: pytest.MonkeyPatch, topic: str
) -> None:
    monkeypatch.setattr(watch, "GREETING_INTERVAL", 0.02)
    transport = transport_on(fake_router, key_path, replace(LOCAL, hello=0.1, create=60.0))
    fake_router.always(topic, fake_router.stall())

    async def enter() -> None:
        with anyio.fail_after(5), pytest.raises(TransportUnavailableError, match="does not answer any more"):
            await transport.__aenter__()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(enter)
        await fake_router.seen(CREATE, 2)
        fake_router.always(HELLO, fake_router.stall())
    await all_closed(fake_router)


async def test_streams_end_when_a_router_is_given_up_that_closes_nothing(
    fake_router: FakeRouter,
    key_path: Path,
    make_destination: Callable[[int], PrivateDestination],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def keep_streams(_: str) -> None:
        """What a stopped router does about them."""

    monkeypatch.setattr(watch, "GREETING_INTERVAL", 0.02)
    monkeypatch.setattr(fake_router, "_end_session", keep_streams)
    timeouts = replace(LOCAL, hello=0.1)
    async with (
        transport_on(fake_router, key_path, timeouts) as transport,
        await transport.listen() as listener,
    ):
        connection, _ = await dialled(fake_router, transport)
        await fake_router.call(own_session(fake_router), make_destination(3).public)
        async with connection, await listener.accept() as accepted:
            fake_router.always(HELLO, fake_router.stall())
            with anyio.fail_after(5):
                for each in (connection, accepted):
                    assert await read_to_end(each) == b""
                    with pytest.raises(anyio.BrokenResourceError):
                        await send_for_ever(each)


async def test_router_that_brings_something_is_kept_though_it_is_slow_to_greet(
    fake_router: FakeRouter, key_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "GREETING_INTERVAL", 0.02)
    async with transport_on(fake_router, key_path, replace(LOCAL, hello=0.1)) as transport:
        connection, far = await dialled(fake_router, transport)
        async with connection:
            before = len(await fake_router.seen(HELLO))
            fake_router.always(HELLO, fake_router.stall())
            while len(await fake_router.seen(HELLO)) < before + 2 * watch.MISSES:
                await far.send(b"alive")
                assert await connection.receive()
            assert transport.status.state == "ready"


async def test_dial_that_meets_an_odd_greeting_does_not_blame_the_peer(
    fake_router: FakeRouter, key_path: Path
) -> None:
    async with transport_on(fake_router, key_path, QUICK) as transport:
        fake_router.always(HELLO, fake_router.reply("HELLO REPLY RESULT=CANT_REACH_PEER"))
        with pytest.raises(TransportUnavailableError, match="refuses a greeting, CANT_REACH_PEER"):
            await transport.connect(PEER)
        fake_router.usually(HELLO)
        async with await transport.connect(PEER):
            assert transport.status.state == "ready"


async def test_odd_greetings_end_neither_the_transport_nor_its_listener(
    fake_router: FakeRouter,
    key_path: Path,
    make_destination: Callable[[int], PrivateDestination],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "GREETING_INTERVAL", 0.01)
    async with transport_on(fake_router, key_path) as transport:
        odd = fake_router.reply("HELLO REPLY RESULT=CANT_REACH_PEER")
        before = len(await fake_router.seen(HELLO))
        fake_router.script(HELLO, odd, odd, odd)
        async with await transport.listen() as listener:
            await fake_router.seen(HELLO, before + 5)
            await fake_router.call(own_session(fake_router), make_destination(3).public)
            await (await listener.accept()).aclose()
            assert transport.status.state == "ready"


async def test_router_that_answers_greetings_otherwise_is_kept(
    fake_router: FakeRouter, key_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "GREETING_INTERVAL", 0.01)
    async with transport_on(fake_router, key_path) as transport:
        before = len(await fake_router.seen(HELLO))
        fake_router.script(HELLO, fake_router.hang_up(), fake_router.hang_up())
        await fake_router.seen(HELLO, before + 5)
        assert (transport.status.state, "error" in transport.facts) == ("ready", False)
        # Each greeting has a socket of its own, which is closed before the next.
        assert len([each for each in fake_router.connections if not each.closed]) <= 3


async def test_left_while_the_router_is_greeted(
    fake_router: FakeRouter, key_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "GREETING_INTERVAL", 0.05)
    async with transport_on(fake_router, key_path):
        before = len(await fake_router.seen(HELLO))
        fake_router.always(HELLO, fake_router.stall())
        await fake_router.seen(HELLO, before + 1)
    await all_closed(fake_router)


async def test_session_that_is_refused_later_is_tried_again(fake_router: FakeRouter, key_path: Path) -> None:
    async with transport_on(fake_router, key_path) as transport:
        again, back = status_event(transport, "starting"), status_event(transport, "ready")
        fake_router.always(CREATE, fake_router.hang_up())
        await fake_router.lose(own_session(fake_router))
        await again.wait()
        await fake_router.until(lambda: "closed the connection" in transport.facts["error"])
        fake_router.usually(CREATE)
        await back.wait()


async def test_router_killed_under_connections(
    fake_router: FakeRouter, key_path: Path, make_destination: Callable[[int], PrivateDestination]
) -> None:
    async with transport_on(fake_router, key_path) as transport, await transport.listen() as listener:
        connection, _ = await dialled(fake_router, transport)
        await fake_router.call(own_session(fake_router), make_destination(3).public)
        async with connection, await listener.accept() as accepted:
            await fake_router.kill()
            for each in (connection, accepted):
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await each.receive()
                with pytest.raises(anyio.BrokenResourceError):
                    await send_for_ever(each)


async def send_for_ever(connection: Connection) -> None:
    while True:
        await connection.send(bytes(65536))


async def test_tokens_have_sessions_of_their_own(fake_router: FakeRouter, key_path: Path) -> None:
    async with transport_on(fake_router, key_path) as transport:
        used = []
        for token in (b"", b"one", b"two", b"one", b""):
            async with await transport.connect(PEER, isolation=token):
                used.append(fake_router.open("connect")[-1].identifier)
        assert used[0] == used[4] == transients(fake_router)[0]
        assert used[1] == used[3]
        assert len(set(used)) == 3


async def test_session_of_a_token_that_is_not_made_in_time(fake_router: FakeRouter, key_path: Path) -> None:
    async with transport_on(fake_router, key_path, QUICK) as transport:
        fake_router.always(CREATE, fake_router.stall())
        with pytest.raises(TransportUnavailableError, match="did not make a session for this dial"):
            await transport.connect(PEER, isolation=b"one")


async def test_forgotten_session_of_a_token_is_made_again(fake_router: FakeRouter, key_path: Path) -> None:
    async with transport_on(fake_router, key_path) as transport:
        async with await transport.connect(PEER, isolation=b"one"):
            first = fake_router.open("connect")[-1].identifier
        fake_router.script(CONNECT, fake_router.reply("STREAM STATUS RESULT=INVALID_ID", close=True))
        async with await transport.connect(PEER, isolation=b"one"):
            assert fake_router.open("connect")[-1].identifier != first
        assert transport.status.state == "ready"


async def silent_dial(
    router: FakeRouter, transport: I2pTransport, isolation: bytes = b"", peer: NodeLocator = PEER
) -> str:
    """Dial, get no answer, see the router close the stream, and return the session that was used."""
    async with await transport.connect(peer, isolation=isolation) as connection:
        far = router.open("connect")[-1]
        await far.aclose()
        assert await read_to_end(connection) == b""
    return far.identifier


async def test_silent_peer_is_dialled_from_another_session(fake_router: FakeRouter, key_path: Path) -> None:
    async with transport_on(fake_router, key_path) as transport:
        used = [await silent_dial(fake_router, transport) for _ in range(SILENT_STREAMS)]
        usual = transients(fake_router)[0]
        assert used == [usual] * SILENT_STREAMS
        other = await silent_dial(fake_router, transport)
        assert other != usual
        async with await transport.connect(OTHER):
            assert fake_router.open("connect")[-1].identifier == usual


async def test_silence_on_a_token_leads_to_its_second_session(
    fake_router: FakeRouter, key_path: Path
) -> None:
    async with transport_on(fake_router, key_path) as transport:
        used = [await silent_dial(fake_router, transport, b"one") for _ in range(SILENT_STREAMS + 1)]
        assert used[0] == used[1] != used[2]
        assert own_session(fake_router) not in used


async def test_streams_that_ended_with_the_router_do_not_count(
    fake_router: FakeRouter, key_path: Path
) -> None:
    async with transport_on(fake_router, key_path) as transport:
        connections = [await transport.connect(PEER) for _ in range(SILENT_STREAMS)]
        back = status_event(transport, "ready")
        await fake_router.kill()
        await fake_router.start()
        await back.wait()
        for connection in connections:
            await read_to_end(connection)
            await connection.aclose()
        async with await transport.connect(PEER):
            assert fake_router.open("connect")[-1].identifier == transients(fake_router)[-1]


async def test_an_answer_clears_a_peer_of_silence(fake_router: FakeRouter, key_path: Path) -> None:
    async with transport_on(fake_router, key_path) as transport:
        for _ in range(2):
            await silent_dial(fake_router, transport)
            connection, far = await dialled(fake_router, transport)
            async with connection:
                await far.send(b"!")
                assert await connection.receive() == b"!"
                assert far.identifier == transients(fake_router)[0]


async def test_a_stream_that_is_closed_here_late_was_silent(
    fake_router: FakeRouter, key_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "ANSWER_ROUND_TRIPS", 0)
    async with transport_on(fake_router, key_path) as transport:
        for _ in range(SILENT_STREAMS):
            await (await transport.connect(PEER)).aclose()
        async with await transport.connect(PEER):
            assert fake_router.open("connect")[-1].identifier != transients(fake_router)[0]


async def test_a_stream_that_is_closed_here_soon_proves_nothing(
    fake_router: FakeRouter, key_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "ANSWER_ROUND_TRIPS", 10_000)
    async with transport_on(fake_router, key_path) as transport:
        for _ in range(SILENT_STREAMS):
            await (await transport.connect(PEER)).aclose()
        async with await transport.connect(PEER):
            assert fake_router.open("connect")[-1].identifier == transients(fake_router)[0]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count a node as deaf as soon as one dial to each of two peers was in vain, and ask all the time."""
    monkeypatch.setattr(watch, "GREETING_INTERVAL", 0.01)
    monkeypatch.setattr(hearing, "DEAF_SECONDS", 0.0)


async def refused_dial(router: FakeRouter, transport: I2pTransport, *, peer: NodeLocator) -> None:
    """Dial, be told that the peer cannot be reached, and dial again with success."""
    router.script(CONNECT, router.reply("STREAM STATUS RESULT=CANT_REACH_PEER", close=True))
    async with await transport.connect(peer):
        pass


async def greeted(router: FakeRouter) -> None:
    """Wait until it was certainly asked whether the node is deaf."""
    before = len([line for line in router.commands if line.startswith(HELLO)])
    await router.seen(HELLO, before + 3)


def own_sessions(router: FakeRouter) -> int:
    """How often the session with the node's own key was made."""
    return len([line for line in router.commands if line.startswith(CREATE) and "=TRANSIENT" not in line])


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("in_vain", [silent_dial, refused_dial])
async def test_node_that_hears_nobody_makes_its_sessions_anew_once(
    fake_router: FakeRouter,
    key_path: Path,
    make_destination: Callable[[int], PrivateDestination],
    in_vain: Callable[..., Awaitable[object]],
) -> None:
    async with transport_on(fake_router, key_path) as transport, await transport.listen() as listener:
        details: list[str] = []
        transport.observe(lambda status: details.append(status.detail))
        before, back = own_sessions(fake_router), status_event(transport, "ready")
        await in_vain(fake_router, transport, peer=PEER)
        await greeted(fake_router)
        assert not details
        await in_vain(fake_router, transport, peer=OTHER)
        with anyio.fail_after(10):
            await back.wait()
        assert details[0].startswith("the I2P router has brought nothing from anybody for two minutes")
        assert transport.facts["error"].startswith("the I2P router has brought nothing")
        assert own_sessions(fake_router) > before
        details.clear()
        for peer in (PEER, OTHER):
            await in_vain(fake_router, transport, peer=peer)
        await greeted(fake_router)
        assert not details
        await fake_router.call(own_session(fake_router), make_destination(3).public, b"hello")
        async with await listener.accept() as accepted:
            assert await read_exactly(accepted, 5) == b"hello"
    await all_closed(fake_router)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("heard", ["a caller", "what a caller sends", "what a peer sends"])
async def test_node_that_hears_anybody_keeps_its_sessions(
    fake_router: FakeRouter,
    key_path: Path,
    make_destination: Callable[[int], PrivateDestination],
    heard: str,
) -> None:
    caller = make_destination(3).public
    async with transport_on(fake_router, key_path) as transport, await transport.listen() as listener:
        before = own_sessions(fake_router)
        calling = await fake_router.call(own_session(fake_router), caller)
        connection, far = await dialled(fake_router, transport)
        async with connection, await listener.accept() as accepted:
            await far.send(b"!")
            assert await connection.receive() == b"!"
            await silent_dial(fake_router, transport)
            match heard:
                case "a caller":
                    await fake_router.call(own_session(fake_router), caller)
                    await (await listener.accept()).aclose()
                case "what a caller sends":
                    await calling.send(b"!")
                    assert await accepted.receive() == b"!"
                case "what a peer sends":
                    await far.send(b"!")
                    assert await connection.receive() == b"!"
            await silent_dial(fake_router, transport, peer=OTHER)
            await greeted(fake_router)
            assert transport.status.state == "ready"
            assert own_sessions(fake_router) == before


@pytest.mark.usefixtures("impatient")
async def test_what_a_node_says_to_itself_is_not_heard(fake_router: FakeRouter, key_path: Path) -> None:
    async with transport_on(fake_router, key_path) as transport, await transport.listen() as listener:
        back = status_event(transport, "ready")
        await silent_dial(fake_router, transport)
        near = await transport.connect(listener.locators[0])
        async with near, await listener.accept() as far:
            for sender, receiver in ((near, far), (far, near)):
                await sender.send(b"!")
                assert await receiver.receive() == b"!"
            await silent_dial(fake_router, transport, peer=OTHER)
            with anyio.fail_after(10):
                await back.wait()


async def test_own_destination_is_reached_without_the_router(fake_router: FakeRouter, key_path: Path) -> None:
    async with transport_on(fake_router, key_path) as transport:
        own = NodeLocator("garlic32", bytes(32))
        async with await transport.listen() as listener:
            (own,) = listener.locators
            near = await transport.connect(own, isolation=b"token")
            async with near, await listener.accept() as far:
                assert isinstance(far, AcceptedConnection)
                assert far.caller == far.locator == near.locator == own
                for sender, receiver in ((near, far), (far, near)):
                    await sender.send(b"hello")
                    assert await read_exactly(receiver, 5) == b"hello"
                await near.send_eof()
                with pytest.raises(anyio.EndOfStream):
                    await far.receive()
                await near.aclose()
                with pytest.raises(anyio.BrokenResourceError):
                    await send_for_ever(far)
        with pytest.raises(UnreachableError, match="does not listen"):
            await transport.connect(own)
        assert len([line for line in fake_router.commands if line.startswith(CONNECT)]) == 0


@pytest.mark.parametrize(
    "check",
    # Without properties and nobody, which are about destinations of others.
    [check for check in CHECKS if check not in {check_properties, check_nobody}],
    ids=lambda check: check.__name__,
)
async def test_connections_with_oneself_conform(
    fake_router: FakeRouter, key_path: Path, check: Check
) -> None:
    timeouts = I2pTimeouts(dial=5.0, linger=0.0, round_trip=0.02)
    foreign = NodeLocator("onion3", bytes(32), 80)
    async with (
        transport_on(fake_router, key_path, timeouts) as transport,
        TransportPair(transport, transport, nobody=PEER, foreign=foreign) as pair,
    ):
        await pair.listening()
        await fake_router.until(fake_router.waiting)  # so that no descriptor comes later
        await check(pair)


async def test_one_listener_at_a_time(fake_router: FakeRouter, key_path: Path) -> None:
    async with transport_on(fake_router, key_path) as transport:
        async with await transport.listen():
            with pytest.raises(TransportUnavailableError, match="listens on I2P already"):
                await transport.listen()
        async with await transport.listen():
            assert len(fake_router.waiting()) == 1


async def test_router_that_takes_no_callers(fake_router: FakeRouter, key_path: Path) -> None:
    async with transport_on(fake_router, key_path, QUICK) as transport:
        fake_router.always(ACCEPT, fake_router.stall())
        with pytest.raises(TransportUnavailableError, match="takes no callers"):
            await transport.listen()
        with anyio.move_on_after(0.05) as scope:
            await transport.listen()
        assert scope.cancelled_caught
        fake_router.always(ACCEPT, fake_router.reply("STREAM STATUS RESULT=OK"))
        async with await transport.listen():
            pass
    await all_closed(fake_router)


async def test_nothing_is_left_open_in_this_process(fake_router: FakeRouter, key_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208 - names only
    async with transport_on(fake_router, key_path) as transport, await transport.listen() as listener:
        for token in (b"", b"one", b"two"):
            await (await transport.connect(PEER, isolation=token)).aclose()
        near = await transport.connect(listener.locators[0])
        async with near, await listener.accept():
            pass
        turned_away = await transport.connect(listener.locators[0])
    assert await read_to_end(turned_away) == b""
    await turned_away.aclose()
    await all_closed(fake_router)
    with anyio.fail_after(5):
        while len(os.listdir("/dev/fd")) > before:  # noqa: ASYNC110, PTH208 - nobody tells of a closed one
            await anyio.sleep(0.01)


@pytest.mark.parametrize("listens", [False, True])
async def test_left_by_cancellation(fake_router: FakeRouter, key_path: Path, *, listens: bool) -> None:
    transport = transport_on(fake_router, key_path)
    with anyio.CancelScope() as scope:
        async with transport:
            if listens:
                await transport.listen()
            scope.cancel()
            await anyio.sleep_forever()
    assert transport.status.state == "stopped"
    await all_closed(fake_router)
    async with transport, await transport.listen():
        pass


async def test_cancelled_while_it_is_entered(fake_router: FakeRouter, key_path: Path) -> None:
    fake_router.always(CREATE, fake_router.stall())
    transport = transport_on(fake_router, key_path)
    with anyio.move_on_after(0.1):
        async with transport:
            pytest.fail("there is no session")
    assert transport.status.state == "stopped"
