"""The waist: which transport is dialled, which never is, and streams as connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import anyio
import pytest
from anyio.abc import ByteStream
from hypothesis import given
from hypothesis import strategies as st

from overlay.connection import (
    Connection,
    ConnectionLayer,
    Listener,
    Properties,
    StreamConnection,
    Transport,
    TransportStatus,
)
from overlay.errors import RefusedError, TransportUnavailableError, UnreachableError
from overlay.locators import NodeLocator, memory_locator
from overlay.transports.memory import MEMORY_PROPERTIES, MemoryNetwork, MemoryTransport

HIDING = replace(MEMORY_PROPERTIES, hides_sender=True, hides_receiver=True)
REVEALING = MEMORY_PROPERTIES


class RecordingTransport(Transport):
    """Carries memory locators, and notes what it is asked to dial instead of dialling it."""

    def __init__(self, properties: Properties, *, carried: bool = True) -> None:
        super().__init__()
        self.dialled: list[tuple[NodeLocator, bytes]] = []
        self._properties = properties
        self._carried = carried

    @property
    def name(self) -> str:
        return "recording"

    @property
    def properties(self) -> Properties:
        return self._properties

    def carries(self, locator: NodeLocator) -> bool:  # noqa: ARG002
        return self._carried

    async def connect(self, locator: NodeLocator, *, isolation: bytes = b"") -> Connection:
        self.dialled.append((locator, isolation))
        raise UnreachableError("noted")

    async def listen(self) -> Listener:
        raise NotImplementedError


SOMEWHERE = memory_locator(7)


async def dial(transports: Sequence[Transport], *, anonymous: bool) -> None:
    with pytest.raises(UnreachableError, match="noted"):
        await ConnectionLayer(transports, anonymous=anonymous).connect(SOMEWHERE, isolation=b"token")


async def test_first_transport_that_carries_the_locator_is_dialled() -> None:
    other, first, second = (
        RecordingTransport(REVEALING, carried=False),
        RecordingTransport(REVEALING),
        RecordingTransport(HIDING),
    )
    await dial([other, first, second], anonymous=False)
    assert (other.dialled, first.dialled, second.dialled) == ([], [(SOMEWHERE, b"token")], [])


async def test_anonymous_node_passes_over_a_preferred_transport_that_would_reveal_it() -> None:
    revealing, hiding = RecordingTransport(REVEALING), RecordingTransport(HIDING)
    await dial([revealing, hiding], anonymous=True)
    assert (revealing.dialled, hiding.dialled) == ([], [(SOMEWHERE, b"token")])


async def test_anonymous_node_refuses_what_only_a_revealing_transport_carries() -> None:
    revealing, hiding = RecordingTransport(REVEALING), RecordingTransport(HIDING, carried=False)
    layer = ConnectionLayer([revealing, hiding], anonymous=True)
    with pytest.raises(RefusedError, match="would show where this node is"):
        await layer.connect(SOMEWHERE)
    assert revealing.dialled == hiding.dialled == []
    assert not layer.can_dial(SOMEWHERE)


async def test_failed_dial_is_not_tried_over_another_transport() -> None:
    """What the first one tried may have been seen; a second try over another network would link the two."""
    first, second = RecordingTransport(HIDING), RecordingTransport(HIDING)
    await dial([first, second], anonymous=True)
    assert second.dialled == []


@pytest.mark.parametrize("anonymous", [True, False])
async def test_locator_that_nothing_carries_is_unavailable(anonymous: bool) -> None:  # noqa: FBT001
    layer = ConnectionLayer([RecordingTransport(HIDING, carried=False)], anonymous=anonymous)
    with pytest.raises(TransportUnavailableError, match="carries memory addresses"):
        await layer.connect(SOMEWHERE)
    assert not layer.can_dial(SOMEWHERE)


transports = st.lists(
    st.builds(RecordingTransport, st.sampled_from([HIDING, REVEALING]), carried=st.booleans()), max_size=5
)


@given(transports, st.booleans())
def test_policy_holds_for_any_transports(found: list[RecordingTransport], anonymous: bool) -> None:  # noqa: FBT001
    layer = ConnectionLayer(found, anonymous=anonymous)

    async def connect() -> None:
        with pytest.raises((UnreachableError, RefusedError, TransportUnavailableError)):
            await layer.connect(SOMEWHERE)

    anyio.run(connect)
    dialled = [transport for transport in found if transport.dialled]
    assert len(dialled) == layer.can_dial(SOMEWHERE)
    assert all(transport.properties.hides_sender or not anonymous for transport in dialled)


@pytest.mark.parametrize(
    ("properties", "anonymous", "published"),
    [(HIDING, True, True), (REVEALING, True, False), (HIDING, False, True), (REVEALING, False, True)],
)
def test_anonymous_node_publishes_only_what_hides_it(
    properties: Properties,
    anonymous: bool,  # noqa: FBT001
    published: bool,  # noqa: FBT001
) -> None:
    transport = RecordingTransport(properties)
    assert ConnectionLayer([transport], anonymous=anonymous).may_publish(transport) == published


async def test_observers_are_told_of_each_status() -> None:
    transport = RecordingTransport(HIDING)
    seen: list[TransportStatus] = []
    transport.observe(seen.append)
    assert transport.status.state == "stopped"
    async with transport:
        assert transport.status == TransportStatus("ready", progress=100)
    assert [status.state for status in seen] == ["ready", "stopped"]


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Connection, Connection]]:
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        caller = await stack.enter_async_context(MemoryTransport(network))
        receiver = await stack.enter_async_context(MemoryTransport(network))
        listener = await receiver.listen()
        dialled = await stack.enter_async_context(await caller.connect(listener.locators[0]))
        yield dialled, await stack.enter_async_context(await listener.accept())


async def test_stream_connection_carries_bytes_and_says_what_it_is(
    ends: tuple[Connection, Connection],
) -> None:
    connection = StreamConnection(ends[0], locator=SOMEWHERE, properties=HIDING)
    await connection.send(b"hello")
    assert await ends[1].receive() == b"hello"
    assert (connection.locator, connection.properties) == (SOMEWHERE, HIDING)


async def test_stream_connection_sends_nothing_after_its_end(ends: tuple[Connection, Connection]) -> None:
    connection = StreamConnection(Lenient(ends[0]), locator=SOMEWHERE, properties=HIDING)
    await connection.send_eof()
    with pytest.raises(anyio.ClosedResourceError):
        await connection.send(b"more")
    with pytest.raises(anyio.EndOfStream):
        await ends[1].receive()


async def test_stream_connection_can_be_ended_when_the_other_side_is_gone(
    ends: tuple[Connection, Connection],
) -> None:
    connection = StreamConnection(Disconnected(ends[0]), locator=SOMEWHERE, properties=HIDING)
    await connection.send_eof()


class Ending(MemoryTransport):
    """Gives connections whose other side is gone at once, or that take nothing."""

    def __init__(self, network: MemoryNetwork, stream: Callable[[ByteStream], ByteStream]) -> None:
        super().__init__(network)
        self.stream = stream
        self.given: list[Connection] = []

    async def connect(self, locator: NodeLocator, *, isolation: bytes = b"") -> Connection:
        inside = self.stream(await super().connect(locator, isolation=isolation))
        self.given.append(StreamConnection(inside, locator=locator, properties=self.properties))
        return self.given[-1]


@asynccontextmanager
async def dialling(
    stream: Callable[[ByteStream], ByteStream],
) -> AsyncIterator[tuple[Ending, NodeLocator]]:
    network = MemoryNetwork()
    async with (
        Ending(network, stream) as caller,
        MemoryTransport(network) as receiver,
        await receiver.listen() as listener,
    ):
        yield caller, listener.locators[0]


async def test_a_connection_that_ends_before_its_first_bytes_is_unreachable_and_closed() -> None:
    async with dialling(Gone) as (caller, locator):
        with pytest.raises(UnreachableError, match="as soon as it was open"):
            await caller.connect_with(locator, b"hello")
        with pytest.raises(anyio.ClosedResourceError):
            await caller.given[0].receive()


async def test_a_dial_that_is_cancelled_at_its_first_bytes_leaves_nothing_open() -> None:
    async with dialling(Stuck) as (caller, locator):
        with anyio.move_on_after(0.01) as scope:
            await caller.connect_with(locator, b"hello")
        assert scope.cancelled_caught
        with pytest.raises(anyio.ClosedResourceError):
            await caller.given[0].receive()


async def test_the_layer_has_the_transport_begin_with_the_first_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transport, begun = RecordingTransport(HIDING), []

    async def connect_with(locator: NodeLocator, first: bytes, *, isolation: bytes = b"") -> Connection:
        begun.append((locator, first, isolation))
        raise UnreachableError("noted")

    monkeypatch.setattr(transport, "connect_with", connect_with)
    with pytest.raises(UnreachableError, match="noted"):
        await ConnectionLayer([transport], anonymous=True).connect(SOMEWHERE, isolation=b"a", first=b"hello")
    assert begun == [(SOMEWHERE, b"hello", b"a")]


class Lenient(ByteStream):
    """Lets everything be sent at any time, as the streams of some event loops do."""

    def __init__(self, inside: ByteStream) -> None:
        self.inside = inside

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self.inside.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        """Forget it."""

    async def send_eof(self) -> None:
        await self.inside.send_eof()

    async def aclose(self) -> None:
        await self.inside.aclose()


class Disconnected(Lenient):
    """Fails to shut down, as trio's streams do after a reset."""

    async def send_eof(self) -> None:
        raise OSError(107, "Transport endpoint is not connected")


class Gone(Lenient):
    """Its other side is gone."""

    async def send(self, item: bytes) -> None:  # noqa: ARG002 - it goes nowhere
        raise anyio.BrokenResourceError


class Stuck(Lenient):
    """Takes nothing."""

    async def send(self, item: bytes) -> None:  # noqa: ARG002 - it goes nowhere
        await anyio.sleep_forever()
