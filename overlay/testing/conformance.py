"""What every transport promises, as checks to run on it: the contract of `overlay.connection`, made to fail.

Each check is an async function that takes a `TransportPair` and raises `AssertionError`, with the promise
that was broken, or whatever the transport raised where it should not have. They need no test framework:

    @pytest.mark.parametrize("check", CHECKS)
    async def test_conformance(check, pair):
        await check(pair)

The checks share a listener and dial little, so they also run on networks where a dial takes a second.
All limits of time follow from the transport's own properties; under virtual time they cost nothing.

Not checked, because the two ends cannot see it: that what is carried is encrypted or padded, and that
isolated connections share no circuit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import wraps
from itertools import cycle
from typing import NoReturn

import anyio
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint

from overlay.connection import Connection
from overlay.errors import OverlayError, TransportUnavailableError, UnreachableError
from overlay.locators import NodeLocator
from overlay.testing.pair import (
    SocketWatch,
    TransportPair,
    pattern,
    read_exactly,
    read_to_end,
    send_pieces,
)

Check = Callable[[TransportPair], Awaitable[None]]

CONNECTIONS_AT_ONCE = 20
LARGE_BYTES = 2 * 1024 * 1024
"""One write in each direction; more than the buffers of any transport hold."""
UNREAD_BYTES = 32 * 1024 * 1024
"""What a sender may get rid of while nobody reads. Linux buffers up to 10 MiB for a loopback connection."""
_PIECE = 65536


def _check(check: Check) -> Check:
    """Raise one failure instead of a group of them, which says the same with less around it."""

    @wraps(check)
    async def run(pair: TransportPair) -> None:
        try:
            await check(pair)
        except ExceptionGroup as group:
            raise _main_failure(group) from group

    return run


def _main_failure(group: ExceptionGroup[Exception]) -> Exception:
    broken = group.subgroup(AssertionError) or group
    first = broken.exceptions[0]
    return _main_failure(first) if isinstance(first, ExceptionGroup) else first


def _fail(promise: str) -> NoReturn:
    """Say which promise was broken.

    Raises:
        AssertionError: always.
    """
    raise AssertionError(promise)


def _require(kept: object, promise: str) -> None:
    if not kept:
        _fail(promise)


@_check
async def check_exchange(pair: TransportPair) -> None:
    """Bytes go both ways, unchanged, and `receive` keeps to its limit."""
    async with pair.connected() as (dialled, accepted):
        for sender, receiver in ((dialled, accepted), (accepted, dialled)):
            with pair.within("a small message arrives"):
                await sender.send(pattern(0, 1000))
                first = await receiver.receive(10)
                _require(1 <= len(first) <= 10, "receive(10) gives 1 to 10 bytes")
                rest = await read_exactly(receiver, 1000 - len(first))
            _require(first + rest == pattern(0, 1000), "what arrives is what was sent")


@_check
async def check_locators(pair: TransportPair) -> None:
    """Both sides know the connection by the locator that was dialled; foreign ones are not carried."""
    listener = await pair.listening()
    locators = tuple(listener.locators)
    _require(locators, "a listener has a locator")
    for locator in (*locators, pair.nobody):
        _require(pair.caller.carries(locator), f"a transport carries locators of its own kind: {locator}")
    _require(not pair.caller.carries(pair.foreign), f"a transport does not carry {pair.foreign}")
    async with pair.connected() as (dialled, accepted):
        _require(dialled.locator == locators[0], "the caller's side has the locator that was dialled")
        _require(accepted.locator in locators, "the receiver's side has one of the listener's own locators")
    _require(tuple(listener.locators) == locators, "locators do not change while the listener is open")


@_check
async def check_properties(pair: TransportPair) -> None:
    """What the transport says of itself is true, as far as the two ends can see it."""
    properties = pair.caller.properties
    listener = await pair.listening()
    _require(properties == pair.receiver.properties, "both transports of a kind declare the same properties")
    _require(properties.synchronous, "a transport that gives byte streams calls itself synchronous")
    _require(properties.round_trip > 0, "a round trip takes time")
    _require(properties.dial_timeout > properties.round_trip, "a dial may take longer than a round trip")
    shown = [locator for locator in listener.locators if locator.protocol in {"ip4", "ip6"}]
    _require(not (properties.hides_receiver and shown), "hides_receiver: no locator is an IP address")
    async with pair.connected() as (dialled, accepted):
        _require(dialled.properties == properties, "the caller's side has the transport's properties")
        _require(accepted.properties == properties, "the receiver's side has the transport's properties")
        known = SocketAttribute.remote_address in accepted.extra_attributes
        _require(not (properties.hides_sender and known), "hides_sender: the receiver gets no address")
    if properties.authenticates_receiver:
        _require(pair.impostor is not None, "authenticates_receiver: the pair needs an impostor to dial")
    if pair.impostor is not None:
        await _dial_in_vain(pair, pair.impostor, "a receiver with another key is not connected to")


@_check
async def check_nobody(pair: TransportPair) -> None:
    """A locator that nobody serves is unreachable, within the declared time, and harms nothing."""
    await pair.listening()
    await _dial_in_vain(pair, pair.nobody, "a locator that nobody serves is not connected to")
    await _dial_in_vain(pair, pair.nobody, "nobody is reached by first bytes either", first=b"hello")
    await _assert_usable(pair)


async def _dial_in_vain(
    pair: TransportPair, locator: NodeLocator, promise: str, *, first: bytes | None = None
) -> None:
    with pair.within("a dial gives up within dial_timeout"):
        try:
            if first is None:
                connection = await pair.caller.connect(locator)
            else:
                connection = await pair.caller.connect_with(locator, first)
        except UnreachableError as error:
            _require(str(error), "an error says what is wrong")
            return
    await connection.aclose()
    _fail(promise)


@_check
async def check_first_bytes(pair: TransportPair) -> None:
    """What a dial begins with arrives once and before all else, and can be answered."""
    async with pair.connected(begun=True) as (dialled, accepted):
        await dialled.send(pattern(0, 100))
        await accepted.send(pattern(7, 100))
        with pair.within("what follows the first bytes arrives"):
            _require(
                await read_exactly(accepted, 100) == pattern(0, 100),
                "what a dial begins with arrives once, before what is sent then",
            )
            _require(await read_exactly(dialled, 100) == pattern(7, 100), "it can be answered")


@_check
async def check_close(pair: TransportPair) -> None:
    """What was sent before a close arrives, then the end, again and again; the closed end says so."""
    for caller_closes in (True, False):
        async with pair.connected() as ends:
            closing, reading = ends if caller_closes else ends[::-1]
            await closing.send(pattern(0, 5000))
            await closing.aclose()
            await closing.aclose()
            await _assert_ends(pair, reading, pattern(0, 5000), "a close")
            await _assert_closed(closing)
            await _assert_breaks(pair, reading)


async def _assert_ends(pair: TransportPair, reading: Connection, expected: bytes, cause: str) -> None:
    with pair.within(f"{cause} is seen by the other side"):
        _require(
            await read_exactly(reading, len(expected)) == expected, f"what was sent before {cause} arrives"
        )
        for _ in range(2):
            try:
                more = await reading.receive()
            except anyio.EndOfStream:
                continue
            _fail(f"nothing arrives after {cause}, but {len(more)} bytes did")


async def _assert_closed(connection: Connection) -> None:
    for use in (connection.receive, lambda: connection.send(b"more")):
        try:
            await use()
        except anyio.ClosedResourceError:
            continue
        _fail("a connection that was closed here raises ClosedResourceError when used")


async def _assert_breaks(pair: TransportPair, connection: Connection) -> None:
    with pair.within("sending to a side that has closed raises BrokenResourceError, soon if not at once"):
        try:
            while True:
                await connection.send(bytes(_PIECE))
                await anyio.sleep(pair.moment / 8)
        except anyio.BrokenResourceError:
            return


@_check
async def check_half_close(pair: TransportPair) -> None:
    """After `send_eof` the other side reads to the end, and the way back is still open."""
    for caller_first in (True, False):
        async with pair.connected() as ends:
            first, second = ends if caller_first else ends[::-1]
            await first.send(pattern(0, 5000))
            await first.send_eof()
            await _assert_ends(pair, second, pattern(0, 5000), "send_eof")
            try:
                await first.send(b"more")
            except anyio.ClosedResourceError:
                pass
            else:
                _fail("nothing can be sent after send_eof")
            if pair.receiver.properties.half_closes:
                await second.send(pattern(7, 5000))
                await second.send_eof()
                await _assert_ends(pair, first, pattern(7, 5000), "the second send_eof")


@_check
async def check_large_writes(pair: TransportPair) -> None:
    """One write of 2 MiB in each direction at the same time arrives whole, though all buffers fill up."""
    received: list[bytes] = []

    async def read(connection: Connection) -> None:
        received.append(await read_exactly(connection, LARGE_BYTES))

    async with pair.connected() as ends:
        with pair.within("large writes both ways at once are carried", 10 * pair.patience):
            async with anyio.create_task_group() as tasks:
                for connection in ends:
                    tasks.start_soon(connection.send, pattern(0, LARGE_BYTES))
                    tasks.start_soon(read, connection)
    _require(received == [pattern(0, LARGE_BYTES)] * 2, "large writes arrive whole")


@_check
async def check_backpressure(pair: TransportPair) -> None:
    """A sender waits while the other side does not read, and nothing is lost when it reads at last."""
    sent = 0
    reading = False

    async def send(connection: Connection) -> None:
        nonlocal sent
        while not reading:
            _require(sent < UNREAD_BYTES, "a sender is made to wait while nobody reads")
            await connection.send(pattern(sent, _PIECE))
            sent += _PIECE
        await connection.send_eof()

    async with pair.connected() as (dialled, accepted), anyio.create_task_group() as tasks:
        tasks.start_soon(send, dialled)
        before = -1
        while before != sent:
            before = sent
            await anyio.sleep(2 * pair.moment)
        reading = True
        with pair.within("a slow reader gets everything", 10 * pair.patience):
            arrived = await read_to_end(accepted)
    _require(arrived == pattern(0, sent), "a slow reader gets what was sent, in order")


@_check
async def check_small_writes(pair: TransportPair) -> None:
    """A thousand writes of a few bytes arrive in order."""
    async with pair.connected() as (dialled, accepted), anyio.create_task_group() as tasks:
        tasks.start_soon(send_pieces, dialled, 7, 1000)
        with pair.within("many small writes are carried"):
            arrived = await read_exactly(accepted, 7000)
    _require(arrived == pattern(0, 7000), "many small writes arrive in the order in which they were made")


@_check
async def check_many_at_once(pair: TransportPair) -> None:
    """Twenty connections, each with an isolation token of its own, are dialled and used at the same time."""
    listener = await pair.listening()

    async def call(number: int) -> None:
        token = bytes([number])
        async with await pair.caller.connect(listener.locators[0], isolation=token) as connection:
            await connection.send(token * 100)
            _require(await read_exactly(connection, 100) == token * 100, "connections are not mixed up")

    async def answer(connection: Connection) -> None:
        async with connection:
            await connection.send(await read_exactly(connection, 100))
            await read_to_end(connection)  # the other side closes when it has read the answer

    with pair.within("many connections are dialled and answered at once"):
        async with anyio.create_task_group() as tasks:
            for number in range(CONNECTIONS_AT_ONCE):
                tasks.start_soon(call, number)
            for _ in range(CONNECTIONS_AT_ONCE):
                tasks.start_soon(answer, await listener.accept())


@_check
async def check_cancelled_connect(pair: TransportPair) -> None:
    """A dial that is cancelled, at whatever point, leaves nothing open."""
    locator = (await pair.listening()).locators[0]
    watch = SocketWatch(pair)

    async def dial() -> None:
        connection = await pair.caller.connect(locator)
        await connection.aclose()

    for turns in (*range(6), 8, 13):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dial)
            for _ in range(turns):
                await checkpoint()
            tasks.cancel_scope.cancel()
    for part in (0.1, 0.5):
        with anyio.move_on_after(part * pair.caller.properties.round_trip):
            await dial()
    await watch.settle()
    await _assert_usable(pair)


def _pauses(pair: TransportPair) -> Iterator[float]:
    """Give times after which to cancel, from at once to well after all has arrived, again and again."""
    return cycle(part * pair.caller.properties.round_trip for part in (0, 0.001, 0.01, 0.1, 10))


@_check
async def check_cancelled_accept(pair: TransportPair) -> None:
    """An `accept` that is cancelled loses no connection, not even one that arrives at that moment."""
    listener = await pair.listening()
    accepted: list[Connection] = []

    async def dial() -> None:
        async with await pair.caller.connect(listener.locators[0]) as connection:
            await read_to_end(connection)

    pauses = _pauses(pair)
    with pair.within("a connection that arrives while accept is cancelled is accepted later"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dial)
            while not accepted:
                with anyio.move_on_after(next(pauses)):
                    accepted.append(await listener.accept())
            await accepted[0].aclose()
    await _assert_usable(pair)


@_check
async def check_cancelled_receive(pair: TransportPair) -> None:
    """A `receive` that is cancelled, also while bytes arrive, loses none of them."""
    pauses = _pauses(pair)
    arrived = bytearray()
    async with pair.connected() as (dialled, accepted), anyio.create_task_group() as tasks:
        tasks.start_soon(send_pieces, dialled, 100, 200)
        with pair.within("bytes that arrive while receive is cancelled are received later"):
            while len(arrived) < 20_000:
                with anyio.move_on_after(next(pauses)):
                    arrived += await accepted.receive(150)
    _require(arrived == pattern(0, 20_000), "a cancelled receive loses nothing")


@_check
async def check_cancelled_send(pair: TransportPair) -> None:
    """After a `send` that was cancelled the connection can be closed, and all else works."""
    await pair.listening()
    watch = SocketWatch(pair)
    async with pair.connected() as (dialled, accepted):
        with anyio.move_on_after(2 * pair.moment):
            await dialled.send(pattern(0, UNREAD_BYTES))
            _fail("a sender is made to wait while nobody reads")
        await dialled.aclose()
        with pair.within("a connection that is closed after a cancelled send ends", 10 * pair.patience):
            arrived = await read_to_end(accepted)
        _require(pattern(0, len(arrived)) == arrived, "what arrives of a cancelled send is its beginning")
    await watch.settle()
    await _assert_usable(pair)


@_check
async def check_cancelled_close(pair: TransportPair) -> None:
    """Cancelled or not, `aclose` closes; and it wakes a task that receives on this side."""
    woken: list[bool] = []

    async def receive(connection: Connection) -> None:
        try:
            await connection.receive()
        except anyio.ClosedResourceError:
            woken.append(True)

    async with pair.connected() as (dialled, accepted):
        with pair.within("a receive ends when the connection is closed on the same side"):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive, dialled)
                await anyio.wait_all_tasks_blocked()
                await anyio.aclose_forcefully(dialled)
        _require(woken, "a receive raises ClosedResourceError when the connection is closed on the same side")
        await _assert_ends(pair, accepted, b"", "a cancelled close")


@_check
async def check_listen_twice(pair: TransportPair) -> None:
    """A second listener is refused while the first is open, which goes on working."""
    await pair.listening()
    try:
        second = await pair.receiver.listen()
    except TransportUnavailableError:
        await _assert_usable(pair)
        return
    await second.aclose()
    _fail("a second listener is refused while the first is open")


@_check
async def check_listener_restarts(pair: TransportPair) -> None:
    """Closing the listener ends `accept` and no connection; a new listener works like the old one."""
    listener = await pair.listening()
    ended: list[bool] = []

    async def accept() -> None:
        try:
            await listener.accept()
        except anyio.ClosedResourceError:
            ended.append(True)

    async with pair.connected() as (dialled, accepted):
        with pair.within("accept ends when the listener is closed"):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(accept)
                await anyio.wait_all_tasks_blocked()
                await pair.stop_listening()
            await accept()
        _require(len(ended) == 2, "accept raises ClosedResourceError when the listener is closed, and after")
        await listener.aclose()
        with pair.within("connections outlive the listener that accepted them"):
            await dialled.send(b"still here")
            _require(await read_exactly(accepted, 10) == b"still here", "connections outlive the listener")
    await _assert_usable(pair)


async def _assert_usable(pair: TransportPair) -> None:
    try:
        async with pair.connected() as (dialled, accepted):
            with pair.within("the transport still works"):
                await accepted.send(b"still here")
                _require(await read_exactly(dialled, 10) == b"still here", "the transport still works")
    except* OverlayError as errors:
        _fail(f"the transport still works, but a new dial fails: {_main_failure(errors)}")


CHECKS: tuple[Check, ...] = (
    check_exchange,
    check_locators,
    check_properties,
    check_nobody,
    check_first_bytes,
    check_close,
    check_half_close,
    check_large_writes,
    check_backpressure,
    check_small_writes,
    check_many_at_once,
    check_cancelled_connect,
    check_cancelled_accept,
    check_cancelled_receive,
    check_cancelled_send,
    check_cancelled_close,
    check_listen_twice,
    check_listener_restarts,
)
"""All of them, the simplest first, so that the first failure tells the most."""
