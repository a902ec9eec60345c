"""Each conformance check fails on a transport that breaks its promise; the ones here do so on purpose."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint
from trio.testing import MockClock

from overlay.connection import Connection, Listener, Properties, StreamConnection
from overlay.errors import TransportUnavailableError, UnreachableError
from overlay.locators import NodeLocator, memory_locator
from overlay.testing import conformance
from overlay.testing.conformance import CHECKS, Check
from overlay.testing.pair import TransportPair
from overlay.transports.memory import MEMORY_PROPERTIES, MemoryNetwork, MemoryTransport


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Virtual time only: many of these transports hang, and a check has to notice."""
    return "trio", {"clock": MockClock(autojump_threshold=0)}


class BrokenListener(Listener):
    """A listener to break: by itself it does what the one inside does."""

    def __init__(self, transport: BrokenTransport, inside: Listener) -> None:
        self.transport = transport
        self.inside = inside
        self.accepted: list[Connection] = []

    @property
    def locators(self) -> tuple[NodeLocator, ...]:
        return tuple(self.inside.locators)

    async def accept(self) -> Connection:
        self.accepted.append(self.transport.wrap(await self.inside.accept()))
        return self.accepted[-1]

    async def aclose(self) -> None:
        await self.inside.aclose()


class BrokenTransport(MemoryTransport):
    """A transport to break: by itself it works."""

    connection: type[StreamConnection] = StreamConnection
    listener: type[BrokenListener] = BrokenListener

    def wrap(self, connection: Connection) -> Connection:
        return self.connection(connection, locator=connection.locator, properties=connection.properties)

    async def connect(self, locator: NodeLocator, *, isolation: bytes = b"") -> Connection:
        return self.wrap(await super().connect(locator, isolation=isolation))

    async def listen(self) -> Listener:
        return self.listener(self, await super().listen())


class IgnoresLimit(StreamConnection):
    async def receive(self, max_bytes: int = 65536) -> bytes:  # noqa: ARG002 - that is what is wrong with it
        return await super().receive(65536)


class Corrupts(StreamConnection):
    async def send(self, item: bytes) -> None:
        await super().send(item if len(item) < 100 else item[:-1] + b"\xff")


class Swaps(StreamConnection):
    async def send(self, item: bytes) -> None:
        half = len(item) // 2
        await super().send(item if len(item) < 100 else item[half:] + item[:half])


class SwapsSmall(StreamConnection):
    async def send(self, item: bytes) -> None:
        await super().send(item[::-1] if len(item) == 7 else item)


class SendsZeros(StreamConnection):
    async def send(self, item: bytes) -> None:
        await super().send(item if len(item) != 100 else bytes(100))


class Truncates(StreamConnection):
    async def send(self, item: bytes) -> None:
        await super().send(item[:1_000_000])


class HoldsBack(StreamConnection):
    kept = b""

    async def send(self, item: bytes) -> None:
        if len(item) == 7:
            item, self.kept = self.kept, item
        await super().send(item)


class NeverWaits(StreamConnection):
    async def send(self, item: bytes) -> None:
        if len(item) < 60000:
            await super().send(item)
        await checkpoint()


class WrongLocator(StreamConnection):
    @property
    def locator(self) -> NodeLocator:
        return memory_locator(1234)


class ShowsSender(StreamConnection):
    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {SocketAttribute.remote_address: lambda: ("192.0.2.1", 1234)}


class OtherProperties(StreamConnection):
    @property
    def properties(self) -> Properties:
        return replace(super().properties, pads=True)


class NeverCloses(StreamConnection):
    async def aclose(self) -> None:
        await checkpoint()


class ClosesUncancelled(StreamConnection):
    async def aclose(self) -> None:
        await checkpoint()
        await super().aclose()


class ForgetsOnClose(StreamConnection):
    kept = b""

    async def send(self, item: bytes) -> None:
        if len(item) == 5000:
            self.kept = item
        else:
            await super().send(item)


class EndsWhenClosedHere(StreamConnection):
    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            return await super().receive(max_bytes)
        except anyio.ClosedResourceError:
            raise anyio.EndOfStream from None


class ReturnsWhenClosedHere(StreamConnection):
    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            return await super().receive(max_bytes)
        except anyio.ClosedResourceError:
            return b""


class SwallowsBroken(StreamConnection):
    async def send(self, item: bytes) -> None:
        with suppress(anyio.BrokenResourceError):
            await super().send(item)


class SwallowsClosed(StreamConnection):
    async def send(self, item: bytes) -> None:
        with suppress(anyio.ClosedResourceError):
            await super().send(item)


class SpeaksAfterEnd(StreamConnection):
    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            return await super().receive(max_bytes)
        except anyio.EndOfStream:
            return b"ghost"


class IgnoresEof(StreamConnection):
    async def send_eof(self) -> None:
        await checkpoint()


class ClosesOnEof(StreamConnection):
    async def send_eof(self) -> None:
        await self.aclose()


class LosesWhenCancelled(StreamConnection):
    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await super().receive(max_bytes)
        if max_bytes == 150:
            await anyio.sleep(1e-5)
        return data


class CarriesAll(BrokenTransport):
    def carries(self, locator: NodeLocator) -> bool:  # noqa: ARG002 - that is what is wrong with it
        return True


class CarriesNone(BrokenTransport):
    def carries(self, locator: NodeLocator) -> bool:  # noqa: ARG002 - that is what is wrong with it
        return False


class DialsAnybody(BrokenTransport):
    async def connect(self, locator: NodeLocator, *, isolation: bytes = b"") -> Connection:
        served = memory_locator(2) if locator == memory_locator(99) else locator
        return await super().connect(served, isolation=isolation)


class RaisesForeignErrors(BrokenTransport):
    async def connect(self, locator: NodeLocator, *, isolation: bytes = b"") -> Connection:
        try:
            return await super().connect(locator, isolation=isolation)
        except UnreachableError as error:
            raise ConnectionRefusedError("nobody there") from error


class DialsForever(BrokenTransport):
    async def connect(self, locator: NodeLocator, *, isolation: bytes = b"") -> Connection:
        if locator == memory_locator(99):
            await anyio.sleep_forever()
        return await super().connect(locator, isolation=isolation)


class BreaksOnFailure(BrokenTransport):
    broken = False

    async def connect(self, locator: NodeLocator, *, isolation: bytes = b"") -> Connection:
        self.broken |= locator == memory_locator(99)
        return await super().connect(memory_locator(99) if self.broken else locator, isolation=isolation)


class DialsFew(BrokenTransport):
    dials = 0

    async def connect(self, locator: NodeLocator, *, isolation: bytes = b"") -> Connection:
        self.dials += 1
        if self.dials > 15:
            raise UnreachableError("no more than fifteen dials")
        return await super().connect(locator, isolation=isolation)


class LeaksDials(BrokenTransport):
    async def connect(self, locator: NodeLocator, *, isolation: bytes = b"") -> Connection:
        connection = await super().connect(locator, isolation=isolation)
        for _ in range(3):
            await checkpoint()
        return connection


class LeaksDescriptors(BrokenTransport):
    async def connect(self, locator: NodeLocator, *, isolation: bytes = b"") -> Connection:
        descriptor = os.open("/dev/null", os.O_RDONLY)
        connection = await super().connect(locator, isolation=isolation)
        os.close(descriptor)
        return connection


class ForgetsFirst(BrokenTransport):
    async def connect_with(
        self,
        locator: NodeLocator,
        first: bytes,  # noqa: ARG002 - that is what is wrong with it
        *,
        isolation: bytes = b"",
    ) -> Connection:
        return await self.connect(locator, isolation=isolation)


class BeginsTwice(BrokenTransport):
    async def connect_with(self, locator: NodeLocator, first: bytes, *, isolation: bytes = b"") -> Connection:
        return await super().connect_with(locator, 2 * first, isolation=isolation)


class BeginsWithAnybody(BrokenTransport):
    async def connect_with(self, locator: NodeLocator, first: bytes, *, isolation: bytes = b"") -> Connection:
        served = memory_locator(2) if locator == memory_locator(99) else locator
        return await super().connect_with(served, first, isolation=isolation)


class IpLocators(BrokenListener):
    @property
    def locators(self) -> tuple[NodeLocator, ...]:
        return (NodeLocator.tcp("192.0.2.1", 80),)


class NoLocators(BrokenListener):
    @property
    def locators(self) -> tuple[NodeLocator, ...]:
        return ()


class LosesArrivals(BrokenListener):
    async def accept(self) -> Connection:
        connection = await super().accept()
        await anyio.sleep(0.02)
        return connection


class HangsWhenClosed(BrokenListener):
    async def accept(self) -> Connection:
        try:
            return await super().accept()
        except anyio.ClosedResourceError:
            await anyio.sleep_forever()
            raise


class ReturnsWhenClosed(BrokenListener):
    async def accept(self) -> Connection:
        try:
            return await super().accept()
        except anyio.ClosedResourceError:
            return self.accepted[0]


class ClosesAccepted(BrokenListener):
    async def aclose(self) -> None:
        await super().aclose()
        for connection in self.accepted:
            await connection.aclose()


class ListensTwice(BrokenTransport):
    opened: Listener | None = None

    async def listen(self) -> Listener:
        self.opened = self.opened or await super().listen()
        return self.opened


class ListensOnce(BrokenTransport):
    opened = False

    async def listen(self) -> Listener:
        if self.opened:
            raise TransportUnavailableError("once is enough")
        self.opened = True
        return await super().listen()


class FirstListenerDies(BrokenTransport):
    opened: Listener | None = None

    async def listen(self) -> Listener:
        try:
            self.opened = await super().listen()
        except TransportUnavailableError:
            assert self.opened is not None
            await self.opened.aclose()
            raise
        return self.opened


@dataclass(frozen=True)
class Mutant:
    """A broken transport, the check that has to notice, and what it has to say."""

    check: Check
    broken: type[BrokenTransport | StreamConnection | BrokenListener]
    says: str
    properties: Properties = MEMORY_PROPERTIES
    impostor: NodeLocator | None = None


def pretending(**changes: Any) -> Properties:  # noqa: ANN401 - as `replace` takes them
    return replace(MEMORY_PROPERTIES, **changes)


MUTANTS = (
    Mutant(conformance.check_exchange, IgnoresLimit, "1 to 10 bytes"),
    Mutant(conformance.check_exchange, Corrupts, "what arrives is what was sent"),
    Mutant(conformance.check_locators, NoLocators, "a listener has a locator"),
    Mutant(conformance.check_locators, CarriesAll, "does not carry /garlic32/"),
    Mutant(conformance.check_locators, CarriesNone, "carries locators of its own kind"),
    Mutant(conformance.check_locators, WrongLocator, "the locator that was dialled"),
    Mutant(conformance.check_properties, ShowsSender, "no address", pretending(hides_sender=True)),
    Mutant(conformance.check_properties, IpLocators, "no locator is", pretending(hides_receiver=True)),
    Mutant(conformance.check_properties, OtherProperties, "has the transport's properties"),
    Mutant(conformance.check_properties, StreamConnection, "byte streams", pretending(synchronous=False)),
    Mutant(conformance.check_properties, StreamConnection, "takes time", pretending(round_trip=0.0)),
    Mutant(conformance.check_properties, StreamConnection, "longer than", pretending(dial_timeout=1e-4)),
    Mutant(
        conformance.check_properties,
        StreamConnection,
        "needs an impostor",
        pretending(authenticates_receiver=True),
    ),
    Mutant(
        conformance.check_properties,
        StreamConnection,
        "another key",
        pretending(authenticates_receiver=True),
        memory_locator(2),
    ),
    Mutant(conformance.check_nobody, DialsAnybody, "nobody serves"),
    Mutant(conformance.check_nobody, RaisesForeignErrors, "nobody there"),
    Mutant(conformance.check_nobody, DialsForever, "gives up within"),
    Mutant(conformance.check_nobody, BreaksOnFailure, "still works"),
    Mutant(conformance.check_first_bytes, ForgetsFirst, "carries the first bytes"),
    Mutant(conformance.check_first_bytes, BeginsTwice, "arrives once"),
    Mutant(conformance.check_nobody, BeginsWithAnybody, "nobody is reached"),
    Mutant(conformance.check_close, NeverCloses, "a close is seen"),
    Mutant(conformance.check_close, ForgetsOnClose, "sent before a close arrives"),
    Mutant(conformance.check_close, SpeaksAfterEnd, "nothing arrives after"),
    Mutant(conformance.check_close, ReturnsWhenClosedHere, "raises ClosedResourceError when used"),
    Mutant(conformance.check_close, SwallowsClosed, "raises ClosedResourceError when used"),
    Mutant(conformance.check_close, SwallowsBroken, "raises BrokenResourceError"),
    Mutant(conformance.check_half_close, IgnoresEof, "send_eof is seen"),
    Mutant(conformance.check_half_close, ClosesOnEof, "BrokenResourceError"),
    Mutant(conformance.check_half_close, SwallowsClosed, "nothing can be sent after send_eof"),
    Mutant(conformance.check_large_writes, Truncates, "large writes both ways"),
    Mutant(conformance.check_large_writes, Corrupts, "arrive whole"),
    Mutant(conformance.check_backpressure, NeverWaits, "made to wait"),
    Mutant(conformance.check_backpressure, Swaps, "in order"),
    Mutant(conformance.check_small_writes, SwapsSmall, "in the order"),
    Mutant(conformance.check_small_writes, HoldsBack, "are carried"),
    Mutant(conformance.check_many_at_once, SendsZeros, "not mixed up"),
    Mutant(conformance.check_many_at_once, DialsFew, "fifteen dials"),
    Mutant(conformance.check_cancelled_connect, LeaksDials, "connections have not ended, 0 descriptors"),
    Mutant(conformance.check_cancelled_connect, LeaksDescriptors, "descriptors are left"),
    Mutant(conformance.check_cancelled_accept, LosesArrivals, "accepted later"),
    Mutant(conformance.check_cancelled_receive, LosesWhenCancelled, "received later"),
    Mutant(conformance.check_cancelled_send, NeverWaits, "made to wait"),
    Mutant(conformance.check_cancelled_send, NeverCloses, "after a cancelled send ends"),
    Mutant(conformance.check_cancelled_send, Swaps, "its beginning"),
    Mutant(conformance.check_cancelled_close, ClosesUncancelled, "a receive ends"),
    Mutant(conformance.check_cancelled_close, ReturnsWhenClosedHere, "a receive raises ClosedResourceError"),
    Mutant(conformance.check_listen_twice, ListensTwice, "a second listener is refused"),
    Mutant(conformance.check_listen_twice, FirstListenerDies, "ClosedResourceError"),
    Mutant(conformance.check_listener_restarts, HangsWhenClosed, "accept ends"),
    Mutant(conformance.check_listener_restarts, ReturnsWhenClosed, "accept raises ClosedResourceError"),
    Mutant(conformance.check_listener_restarts, ClosesAccepted, "BrokenResourceError"),
    Mutant(conformance.check_listener_restarts, ListensOnce, "still works"),
)


async def run(mutant: Mutant) -> None:
    class Transport(mutant.broken if issubclass(mutant.broken, BrokenTransport) else BrokenTransport):  # type: ignore[misc]
        if issubclass(mutant.broken, StreamConnection):
            connection = mutant.broken
        if issubclass(mutant.broken, BrokenListener):
            listener = mutant.broken

    network = MemoryNetwork()
    async with (
        Transport(network, properties=mutant.properties) as caller,
        Transport(network, properties=mutant.properties) as receiver,
        TransportPair(caller, receiver, nobody=memory_locator(99), impostor=mutant.impostor) as pair,
    ):
        await mutant.check(pair)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.check.__name__}-{m.broken.__name__}")
async def test_broken_transport_fails(mutant: Mutant) -> None:
    assert mutant.says in await failure_of(mutant)


async def failure_of(mutant: Mutant) -> str:
    try:
        await run(mutant)
    except Exception as error:  # noqa: BLE001 - whichever it is, the test looks at what it says
        return f"{type(error).__name__}: {error}"
    return "nothing"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_unbroken_transport_passes(check: Check) -> None:
    await run(Mutant(check, BrokenTransport, ""))


async def test_transport_that_cannot_half_close_passes_where_it_says_so() -> None:
    class Transport(BrokenTransport):
        connection = ClosesOnEof

    network = MemoryNetwork()
    honest = replace(MEMORY_PROPERTIES, half_closes=False)
    async with (
        Transport(network, properties=honest) as caller,
        Transport(network, properties=honest) as receiver,
        TransportPair(caller, receiver, nobody=memory_locator(99)) as pair,
    ):
        await conformance.check_half_close(pair)


def test_every_check_can_fail() -> None:
    checks = {value for name, value in vars(conformance).items() if name.startswith("check_")}
    assert checks == set(CHECKS) == {mutant.check for mutant in MUTANTS}
