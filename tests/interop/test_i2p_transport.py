"""The I2P transport on a real, private I2P network."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from overlay.connection import Connection, Listener, TransportStatus
from overlay.errors import TransportUnavailableError, UnreachableError
from overlay.locators import NodeLocator
from overlay.testing.i2p import PrivateI2pNetwork
from overlay.testing.pair import read_exactly, read_to_end
from overlay.transports.i2p import session
from overlay.transports.i2p.silence import SILENT_STREAMS
from overlay.transports.i2p.streams import AcceptedConnection
from overlay.transports.i2p.transport import I2pTransport

MakeTransport = Callable[[str, int], I2pTransport]

CALLER, RECEIVER = 2, 3
"""The routers of this file: others may use the same, but no test elsewhere kills these."""

BURST = 20
"""Callers at once. With the clock hastened for somebody's session, a router keeps them for 0.3 s only."""
ANSWER = 2.0
"""Seconds within which an answer comes on this network; a retransmission is the exception."""

DIALS = 10


@pytest.fixture(scope="module")
async def caller(i2p_transport: MakeTransport) -> AsyncIterator[I2pTransport]:
    async with i2p_transport("caller", CALLER) as transport:
        yield transport


@pytest.fixture(scope="module")
async def receiver(i2p_transport: MakeTransport) -> AsyncIterator[I2pTransport]:
    async with i2p_transport("receiver", RECEIVER) as transport:
        yield transport


@pytest.fixture(scope="module")
async def listener(receiver: I2pTransport) -> AsyncIterator[Listener]:
    async with await receiver.listen() as listener:
        yield listener


async def answer_all(listener: Listener, callers: list[str]) -> None:
    """Send everybody back what they send, and take down who they are."""

    async def answer(accepted: Connection) -> None:
        async with accepted:
            assert isinstance(accepted, AcceptedConnection)
            callers.append(accepted.caller.host)
            try:
                async for piece in accepted:
                    await accepted.send(piece)
            except anyio.BrokenResourceError:  # who called is gone
                return

    async with anyio.create_task_group() as tasks:
        while True:
            tasks.start_soon(answer, await listener.accept())


async def ask(transport: I2pTransport, locator: NodeLocator, isolation: bytes = b"") -> bool:
    """Dial once and see whether an answer comes."""
    question = os.urandom(20)
    async with await transport.connect(locator, isolation=isolation) as dialled:
        with anyio.move_on_after(ANSWER):
            await dialled.send(question)
            return await read_exactly(dialled, len(question)) == question
    return False


async def ask_patiently(transport: I2pTransport, listener: Listener, isolation: bytes = b"") -> str:
    """Dial until an answer comes, and return the name that the receiver saw of who called at last."""
    callers: list[str] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answer_all, listener, callers)
        for _ in range(DIALS):
            with suppress(UnreachableError):  # its lease set is on its way
                if await ask(transport, listener.locators[0], isolation):
                    break
        else:
            pytest.fail(f"no answer in {DIALS} dials")
        tasks.cancel_scope.cancel()
    return callers[-1]


async def test_both_can_call(caller: I2pTransport, receiver: I2pTransport, listener: Listener) -> None:
    assert await ask_patiently(caller, listener) != caller.facts["destination"]
    async with await caller.listen() as other:
        assert other.locators[0].host == caller.facts["destination"]
        assert await ask_patiently(receiver, other) != receiver.facts["destination"]


async def test_who_was_started_again_is_answered_by_who_knew_it(
    receiver: I2pTransport, listener: Listener, i2p_transport: MakeTransport
) -> None:
    """From its own destination it would not be: answers go to tunnels that are gone, for over a minute."""
    for _ in range(2):
        async with i2p_transport("again", CALLER) as again, await again.listen() as its_listener:
            await ask_patiently(again, listener)
            await ask_patiently(receiver, its_listener)


async def test_facts_are_true(
    receiver: I2pTransport, listener: Listener, i2p_network: PrivateI2pNetwork
) -> None:
    assert receiver.facts == {
        "router": i2p_network.sam_addresses[RECEIVER],
        "sam": "3.1",
        "session": "ready",
        "tunnels": "1 hop, 5 each way",
        "destination": listener.locators[0].host,
    }


async def test_a_burst_of_callers_is_neither_refused_nor_mixed_up(
    caller: I2pTransport, listener: Listener
) -> None:
    await ask_patiently(caller, listener)

    async def call(number: int) -> None:
        said = bytes([number]) * 1000
        async with await caller.connect(listener.locators[0]) as dialled:
            await dialled.send(said)
            assert await read_exactly(dialled, len(said)) == said

    async with anyio.create_task_group() as serving:
        serving.start_soon(answer_all, listener, [])
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for number in range(BURST):
                    tasks.start_soon(call, number)
        serving.cancel_scope.cancel()


async def test_tokens_have_addresses_of_their_own(caller: I2pTransport, listener: Listener) -> None:
    seen = [await ask_patiently(caller, listener, token) for token in (b"one", b"two", b"one", b"", b"")]
    assert seen[0] == seen[2]
    assert seen[3] == seen[4]
    assert len({*seen, caller.facts["destination"]}) == 4


async def test_cancelled_dials_leave_no_socket(caller: I2pTransport, listener: Listener) -> None:
    await ask_patiently(caller, listener)
    before = descriptors()
    for pause in (0, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01):
        with anyio.move_on_after(pause):
            await (await caller.connect(listener.locators[0])).aclose()
    await ask_patiently(caller, listener)
    with anyio.fail_after(10):
        while descriptors() > before:  # noqa: ASYNC110 - nobody tells of a closed one
            await anyio.sleep(0.05)


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 - names only


async def test_own_destination_is_reached(receiver: I2pTransport, listener: Listener) -> None:
    assert await ask_patiently(receiver, listener) == receiver.facts["destination"]


async def test_one_key_on_one_router_once(
    receiver: I2pTransport,
    caller: I2pTransport,
    listener: Listener,
    i2p_transport: MakeTransport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "LINGERS", 1)
    twin = i2p_transport("receiver", RECEIVER)
    with pytest.raises(TransportUnavailableError, match="in use on this router already"):
        await twin.__aenter__()
    assert receiver.status.state == "ready"
    await ask_patiently(caller, listener)


def test_address_survives_a_restart_also_on_trio(i2p_transport: MakeTransport) -> None:
    seen: list[str] = []

    async def run(index: int) -> None:
        async with (
            i2p_transport(f"restarted-caller-{index}", CALLER) as asking,
            i2p_transport("restarted", RECEIVER) as transport,
            await transport.listen() as listener,
        ):
            seen.append(listener.locators[0].host)
            await ask_patiently(asking, listener)
            # When a session is made at once with an old destination, the router takes that away after 5 s.
            await anyio.sleep(5.5)
            await ask_patiently(asking, listener)

    for index, backend in enumerate(("asyncio", "trio")):
        with start_blocking_portal(backend) as portal:
            portal.call(run, index)
    assert len(set(seen)) == 1


async def test_killed_router_comes_back_at_the_same_address(
    receiver: I2pTransport, listener: Listener, i2p_network: PrivateI2pNetwork, i2p_transport: MakeTransport
) -> None:
    """The caller's router holds an old lease set afterwards: only another session of its reaches the peer."""
    locators, details = tuple(listener.locators), list[str]()
    gone, back = anyio.Event(), anyio.Event()

    def observe(status: TransportStatus) -> None:
        details.append(status.detail)
        (back if status.state == "ready" else gone).set()

    async with i2p_transport("asking", CALLER) as asking:
        usual = await ask_patiently(asking, listener)
        receiver.observe(observe)
        await i2p_network.kill_router(RECEIVER)
        await gone.wait()
        assert details[0] == "the I2P router ended, or ended the session; attaching to it again (attempt 1)"
        assert receiver.facts["session"] == "none"
        await i2p_network.start_router(RECEIVER)
        await back.wait()
        assert tuple(listener.locators) == locators
        assert await ask_patiently(asking, listener) != usual


async def test_a_stale_peer_is_dialled_through_another_session(
    i2p_network: PrivateI2pNetwork, i2p_transport: MakeTransport
) -> None:
    async with i2p_transport("fresh", CALLER) as fresh:
        back = anyio.Event()
        async with i2p_transport("stale", RECEIVER) as stale, await stale.listen() as stale_listener:
            await ask_patiently(fresh, stale_listener)
            stale.observe(lambda status: back.set() if status.state == "ready" else None)
            await i2p_network.kill_router(RECEIVER)
            await i2p_network.start_router(RECEIVER)
            await back.wait()
            answers: list[bool] = []
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(answer_all, stale_listener, [])
                while not (answers and answers[-1]) and len(answers) < DIALS:
                    answers.append(await ask(fresh, stale_listener.locators[0]))
                tasks.cancel_scope.cancel()
        assert answers[:SILENT_STREAMS] == [False] * SILENT_STREAMS
        assert answers[-1]


async def test_dial_waits_for_the_router_to_come_back(
    caller: I2pTransport, listener: Listener, i2p_network: PrivateI2pNetwork
) -> None:
    gone = anyio.Event()
    caller.observe(lambda status: gone.set() if status.state == "starting" else None)
    await i2p_network.kill_router(CALLER)
    await gone.wait()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(i2p_network.start_router, CALLER)
        await ask_patiently(caller, listener)


async def test_router_killed_under_a_connection(
    i2p_transport: MakeTransport, listener: Listener, i2p_network: PrivateI2pNetwork
) -> None:
    async with i2p_transport("killed", CALLER) as transport:
        await ask_patiently(transport, listener)
        async with await transport.connect(listener.locators[0]) as dialled:
            await i2p_network.kill_router(CALLER)
            with anyio.fail_after(10):
                assert await read_to_end(dialled) == b""
                with pytest.raises(anyio.BrokenResourceError):
                    await send_for_ever(dialled)
            await i2p_network.start_router(CALLER)


async def send_for_ever(connection: Connection) -> None:
    while True:
        await connection.send(bytes(65536))
