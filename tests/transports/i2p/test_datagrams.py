from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from overlay.connection import Parcel
from overlay.errors import (
    MalformedError,
    OverlayError,
    TransportUnavailableError,
    UnreachableError,
    VerificationError,
)
from overlay.locators import NodeLocator, memory_locator
from overlay.transports import supervision
from overlay.transports.i2p import datagrams as module
from overlay.transports.i2p import watch
from overlay.transports.i2p.datagram_session import MAX_MESSAGE_BYTES
from overlay.transports.i2p.datagrams import I2pDatagrams
from overlay.transports.i2p.settings import AttachedRouter, I2pTimeouts, TunnelOptions

if TYPE_CHECKING:
    from overlay.transports.i2p.destination import Destination, PrivateDestination
    from tests.transports.i2p.conftest import FakeRouter

    MakeDestination = Callable[[int], PrivateDestination]

TIMEOUTS = I2pTimeouts(dial=10, linger=0, round_trip=0)
RECEIVED = "DATAGRAM RECEIVED"


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_BACKOFF", 0.01)


@pytest.fixture
def make(fake_router: FakeRouter, tmp_path: Path) -> Callable[[I2pTimeouts], I2pDatagrams]:
    def make(timeouts: I2pTimeouts = TIMEOUTS) -> I2pDatagrams:
        host, port = fake_router.address
        return I2pDatagrams(
            AttachedRouter(f"{host}:{port}"),
            key_path=tmp_path / "messages.key",
            tunnels=TunnelOptions(length=1),
            timeouts=timeouts,
        )

    return make


@pytest.fixture
def messages(make: Callable[[], I2pDatagrams]) -> I2pDatagrams:
    return make()


async def until(condition: Callable[[], object]) -> None:
    """What the tasks of the transport have done can only be looked at again and again."""
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - there is no event
            await anyio.sleep(0.005)


def session_of(router: FakeRouter) -> str:
    (identifier,) = router.sessions
    return identifier


async def meet(router: FakeRouter, messages: I2pDatagrams, private: PrivateDestination) -> Destination:
    """Have a peer say something, after which it is not new any more."""
    await router.deliver(session_of(router), private.public, b"good morning")
    await messages.receive()
    return private.public


async def test_a_session_of_its_own(
    fake_router: FakeRouter, messages: I2pDatagrams, make: Callable[[], I2pDatagrams]
) -> None:
    with pytest.raises(TransportUnavailableError, match="not started"):
        _ = messages.locator
    async with messages:
        assert messages.status.state == "ready"
        assert fake_router.sessions[session_of(fake_router)].public.locator == messages.locator
        command = fake_router.commands[-1]
        assert command.startswith("SESSION CREATE STYLE=DATAGRAM ID=overlay-")
        assert "inbound.length=1 outbound.length=1" in command
        host, port = fake_router.address
        assert messages.facts == {
            "router": f"{host}:{port}",
            "session": "open",
            "tunnels": "1 hop, 5 each way",
            "destination": messages.locator.host,
        }
    await fake_router.until(lambda: not fake_router.sessions)
    again = make()
    async with again:
        assert again.locator == messages.locator
    assert not messages.properties.synchronous
    assert messages.max_bytes == MAX_MESSAGE_BYTES


async def test_what_may_be_left_of_an_old_session_is_not_used(
    fake_router: FakeRouter, messages: I2pDatagrams
) -> None:
    async with messages:  # the router has tunnels at once
        assert len(await fake_router.seen("SESSION CREATE")) == 2
        assert len(fake_router.sessions) == 1


async def test_sending_looks_a_destination_up_once(
    fake_router: FakeRouter, messages: I2pDatagrams, make_destination: MakeDestination
) -> None:
    peer = make_destination(1).public
    fake_router.names[peer.locator.host] = peer
    bodies = [b"first", bytes(MAX_MESSAGE_BYTES), b"\nDATAGRAM SEND x\n"]
    async with messages:
        for body in bodies:
            await messages.send(peer.locator, body)
        await fake_router.until(lambda: len(fake_router.datagrams) == 4)
        # The first one twice, because i2pd drops the first to a peer that is new to it.
        assert fake_router.datagrams == [(peer, body) for body in (bodies[0], *bodies)]
        assert fake_router.commands.count(f"NAMING LOOKUP NAME={peer.locator.host}") == 1
    await fake_router.until(lambda: all(each.closed for each in fake_router.connections))


async def test_answering_needs_no_lookup(
    fake_router: FakeRouter, messages: I2pDatagrams, make_destination: MakeDestination
) -> None:
    peer = make_destination(1).public
    async with messages:
        await fake_router.deliver(session_of(fake_router), peer, b"a question\n?")
        parcel = await messages.receive()
        assert parcel == Parcel(b"a question\n?", peer.locator)
        assert parcel.sender
        await messages.send(parcel.sender, b"an answer")
        await fake_router.until(lambda: fake_router.datagrams)
        assert fake_router.datagrams == [(peer, b"an answer")]
        assert not any(line.startswith("NAMING") for line in fake_router.commands)


@pytest.mark.parametrize("late", [0.001, 0.01])
async def test_router_that_forgets_what_comes_together(
    fake_router: FakeRouter, messages: I2pDatagrams, make_destination: MakeDestination, late: float
) -> None:
    async with messages:
        peer = await meet(fake_router, messages, make_destination(1))
        fake_router.reads_late = late
        for number in range(20):
            await messages.send(peer.locator, b"%d" % number)
        await fake_router.until(lambda: len(fake_router.datagrams) >= 20)
        assert [body for _, body in fake_router.datagrams] == [b"%d" % number for number in range(20)]


async def test_many_send_at_once(
    fake_router: FakeRouter, messages: I2pDatagrams, make_destination: MakeDestination
) -> None:
    async with messages:
        peer = await meet(fake_router, messages, make_destination(1))
        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(messages.send, peer.locator, b"%d" % number)
        await fake_router.until(lambda: len(fake_router.datagrams) == 10)
        assert sorted(body for _, body in fake_router.datagrams) == [b"%d" % number for number in range(10)]


async def test_a_peer_is_new_again_after_a_while(
    fake_router: FakeRouter,
    messages: I2pDatagrams,
    make_destination: MakeDestination,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with messages:
        peer = await meet(fake_router, messages, make_destination(1))
        await messages.send(peer.locator, b"one")
        monkeypatch.setattr(module, "ACQUAINTANCE", 0.0)
        await messages.send(peer.locator, b"two")
        await fake_router.until(lambda: len(fake_router.datagrams) == 3)
        assert [body for _, body in fake_router.datagrams] == [b"one", b"two", b"two"]


async def test_cancelled_receive_loses_nothing(
    fake_router: FakeRouter, messages: I2pDatagrams, make_destination: MakeDestination
) -> None:
    async with messages:
        with anyio.move_on_after(0.02) as scope:
            await messages.receive()
        assert scope.cancelled_caught
        await fake_router.deliver(session_of(fake_router), make_destination(1).public, b"late")
        assert (await messages.receive()).body == b"late"


async def test_oldest_is_dropped_when_nobody_receives(
    fake_router: FakeRouter,
    make: Callable[[], I2pDatagrams],
    make_destination: MakeDestination,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    messages = make()
    async with messages:
        identifier = session_of(fake_router)
        for number in range(5):
            await fake_router.deliver(identifier, make_destination(1).public, b"%d" % number)
        await until(lambda: messages._waiting and messages._waiting[-1].body == b"4")
        assert [(await messages.receive()).body for _ in range(3)] == [b"2", b"3", b"4"]


async def test_oldest_destination_is_forgotten(
    fake_router: FakeRouter,
    messages: I2pDatagrams,
    make_destination: MakeDestination,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_KNOWN", 2)
    peers = [make_destination(number).public for number in (1, 2, 3)]
    fake_router.names.update({peer.locator.host: peer for peer in peers})
    async with messages:
        for number in (0, 1, 0, 2, 0, 1):
            await messages.send(peers[number].locator, b"x")
        looked_up = [line.partition("=")[2] for line in fake_router.commands if ".b32.i2p" in line]
        assert looked_up == [peers[number].locator.host for number in (0, 1, 2, 1)]


@pytest.mark.parametrize("body", [b"", bytes(MAX_MESSAGE_BYTES + 1)])
async def test_length_that_cannot_be_sent(messages: I2pDatagrams, body: bytes) -> None:
    with pytest.raises(MalformedError, match=f"1 to {MAX_MESSAGE_BYTES} bytes"):
        await messages.send(NodeLocator("garlic32", bytes(32)), body)


@pytest.mark.parametrize("locator", [memory_locator(1), NodeLocator("garlic32", bytes(35))])
async def test_locators_that_it_does_not_carry(messages: I2pDatagrams, locator: NodeLocator) -> None:
    assert not messages.carries(locator)
    with pytest.raises(UnreachableError):
        await messages.send(locator, b"x")


async def test_destination_that_nobody_publishes(messages: I2pDatagrams) -> None:
    async with messages:
        with pytest.raises(UnreachableError, match="nobody publishes it"):
            await messages.send(NodeLocator("garlic32", bytes(32)), b"x")


@pytest.mark.parametrize(("value", "error"), [(None, VerificationError), ("AAAA", TransportUnavailableError)])
async def test_router_that_answers_with_another_destination(
    fake_router: FakeRouter,
    messages: I2pDatagrams,
    make_destination: MakeDestination,
    value: str | None,
    error: type[OverlayError],
) -> None:
    value = value or make_destination(2).public.base64
    fake_router.always("NAMING LOOKUP", fake_router.reply(f"NAMING REPLY RESULT=OK NAME=x VALUE={value}"))
    async with messages:
        with pytest.raises(error):
            await messages.send(make_destination(1).public.locator, b"x")
    assert not fake_router.datagrams


async def test_lost_session_comes_back_with_the_same_destination(
    fake_router: FakeRouter, messages: I2pDatagrams, make_destination: MakeDestination
) -> None:
    peer = make_destination(1).public
    fake_router.names[peer.locator.host] = peer
    states: list[str] = []
    async with messages:
        locator, old = messages.locator, session_of(fake_router)
        messages.observe(lambda status: states.append(status.state))
        await fake_router.lose(old)
        await fake_router.until(lambda: fake_router.sessions and old not in fake_router.sessions)
        await messages.send(peer.locator, b"x")  # waits
        await fake_router.until(lambda: fake_router.datagrams)
        assert messages.locator == locator
        assert "closed the connection" in messages.facts["error"]
    assert states[0] == "starting"
    assert states[-2:] == ["ready", "stopped"]


async def test_router_that_hangs_is_given_up_until_it_answers(
    fake_router: FakeRouter, make: Callable[[I2pTimeouts], I2pDatagrams], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "GREETING_INTERVAL", 0.02)
    messages = make(replace(TIMEOUTS, hello=0.1))
    async with messages:
        gone, back = anyio.Event(), anyio.Event()
        messages.observe(lambda status: (back if status.state == "ready" else gone).set())
        fake_router.always("HELLO VERSION", fake_router.stall())
        with anyio.fail_after(5):
            await gone.wait()
        assert messages.facts["error"] == "the I2P router does not answer any more"
        fake_router.usually("HELLO VERSION")
        with anyio.fail_after(5):
            await back.wait()


async def test_router_that_brings_messages_is_kept(
    fake_router: FakeRouter,
    make: Callable[[I2pTimeouts], I2pDatagrams],
    make_destination: MakeDestination,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "GREETING_INTERVAL", 0.02)
    messages, sender = make(replace(TIMEOUTS, hello=0.1)), make_destination(2).public
    async with messages:
        before = len(await fake_router.seen("HELLO VERSION"))
        fake_router.always("HELLO VERSION", fake_router.stall())
        while len(await fake_router.seen("HELLO VERSION")) < before + 4:
            await fake_router.deliver(session_of(fake_router), sender, b"!")
            await messages.receive()
        assert messages.status.state == "ready"


async def test_router_that_is_restarted(
    fake_router: FakeRouter, messages: I2pDatagrams, make_destination: MakeDestination
) -> None:
    async with messages:
        await fake_router.kill()
        await fake_router.start()
        await until(lambda: fake_router.sessions and messages.status.state == "ready")
        await fake_router.deliver(session_of(fake_router), make_destination(1).public, b"after")
        assert (await messages.receive()).body == b"after"


@pytest.mark.parametrize("size", ["32769", "-1", "", "999999999999", "1e3", "0x10"])
async def test_router_that_announces_an_absurd_size(
    fake_router: FakeRouter, messages: I2pDatagrams, make_destination: MakeDestination, size: str
) -> None:
    async with messages:
        (session,) = fake_router.open("session")
        sender = make_destination(1).public.base64
        await session.send(f"DATAGRAM RECEIVED DESTINATION={sender} SIZE={size}\n".encode())
        await session.ended()
        await until(lambda: messages.facts.get("error"))
        assert "announced a datagram of a size that there is not" in messages.facts["error"]


async def test_datagram_of_an_unknown_kind_of_sender_is_left_out(
    fake_router: FakeRouter, messages: I2pDatagrams, make_destination: MakeDestination
) -> None:
    async with messages:
        (session,) = fake_router.open("session")
        await session.send(b"DATAGRAM RECEIVED DESTINATION=AAAA SIZE=3\nbadRAW RECEIVED\n")
        await fake_router.deliver(session_of(fake_router), make_destination(1).public, b"good")
        assert (await messages.receive()).body == b"good"


async def test_router_that_takes_no_more(
    fake_router: FakeRouter, make: Callable[[I2pTimeouts], I2pDatagrams], make_destination: MakeDestination
) -> None:
    messages = make(I2pTimeouts(dial=10, linger=0, round_trip=0, reply=0.1))
    async with messages:
        peer = await meet(fake_router, messages, make_destination(1))
        fake_router.always("NAMING LOOKUP", fake_router.stall())
        await messages.send(peer.locator, b"one")
        with pytest.raises(TransportUnavailableError, match="took no message"):
            await messages.send(peer.locator, b"two")
        await until(lambda: messages.facts.get("error"))
        fake_router.always("NAMING LOOKUP", fake_router.reply("NAMING REPLY RESULT=OK NAME=ME"))
        await messages.send(peer.locator, b"three")  # on a new session
        await fake_router.until(lambda: fake_router.datagrams[-1][1] == b"three")


async def test_stopped_while_somebody_waits(messages: I2pDatagrams) -> None:
    failures: list[str] = []

    async def receive() -> None:
        try:
            await messages.receive()
        except TransportUnavailableError as error:
            failures.append(str(error))

    async with anyio.create_task_group() as group, messages:
        group.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
    assert len(failures) == 1
    with pytest.raises(TransportUnavailableError):
        await messages.receive()
    with pytest.raises(TransportUnavailableError):
        await messages.send(NodeLocator("garlic32", bytes(32)), b"x")


async def test_no_router_and_then_one(fake_router: FakeRouter, messages: I2pDatagrams) -> None:
    await fake_router.kill()
    with pytest.raises(TransportUnavailableError, match="no I2P router answers"):
        await messages.__aenter__()
    assert messages.status.detail.startswith("no I2P router answers")
    await fake_router.start()
    async with messages:
        assert messages.status.state == "ready"


async def test_damaged_key(messages: I2pDatagrams, tmp_path: Path) -> None:
    (tmp_path / "messages.key").write_bytes(b"precious")
    with pytest.raises(MalformedError, match="restore it from a copy"):
        await messages.__aenter__()
    assert messages.status.state == "failed"


async def test_refused_session_leaves_nothing_open(fake_router: FakeRouter, messages: I2pDatagrams) -> None:
    fake_router.script("SESSION CREATE", fake_router.reply("SESSION STATUS RESULT=DUPLICATED_DEST"))
    with pytest.raises(TransportUnavailableError, match="already in use"):
        await messages.__aenter__()
    await fake_router.until(lambda: all(each.closed for each in fake_router.connections))


async def test_cancelled_start_leaves_nothing_open(fake_router: FakeRouter, messages: I2pDatagrams) -> None:
    fake_router.script("SESSION CREATE", fake_router.stall())
    async with anyio.create_task_group() as group:
        group.start_soon(messages.__aenter__)
        await fake_router.seen("SESSION CREATE")
        group.cancel_scope.cancel()
    await fake_router.until(lambda: all(each.closed for each in fake_router.connections))


async def test_cancelled_send_leaves_the_session_in_order(
    fake_router: FakeRouter, messages: I2pDatagrams, make_destination: MakeDestination
) -> None:
    peer = make_destination(1).public
    fake_router.names[peer.locator.host] = peer
    async with messages:
        fake_router.reads_late = 0.02
        for number in range(6):
            with anyio.move_on_after(0.01 * number):
                await messages.send(peer.locator, b"x" * 3000)
        fake_router.reads_late = 0.001
        await messages.send(peer.locator, b"last")
        await fake_router.until(lambda: fake_router.datagrams and fake_router.datagrams[-1][1] == b"last")
        assert {body for _, body in fake_router.datagrams} <= {b"x" * 3000, b"last"}
        assert len(await fake_router.seen("SESSION CREATE")) == 2
