"""The waist: what the peer layer knows of connections, and all that a transport has to offer.

A `Transport` dials `NodeLocator`s and listens on its own. It declares `Properties` instead of being asked
for its type: policy reads what a connection hides, never which network it is. `ConnectionLayer` holds a
node's transports and enforces the one rule that must never be forgotten: a node that hides where it is
dials nothing that would show it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from anyio import BrokenResourceError, ClosedResourceError, aclose_forcefully
from anyio.abc import ByteStream

from overlay.errors import RefusedError, TransportUnavailableError, UnreachableError
from overlay.locators import NodeLocator


@dataclass(frozen=True, slots=True)
class Properties:
    """What a transport gives to whoever uses it; each is a promise that its tests check.

    Attributes:
        hides_sender: the receiver does not learn where the caller is.
        hides_receiver: the locator does not show where the receiver is.
        encrypts: an observer of the network does not see what is carried.
        authenticates_receiver: whoever answers holds the key that the locator names.
        reorders: messages may arrive in another order than they were sent in.
        pads: lengths on the network are multiples of a fixed cell.
        synchronous: a byte stream both ways; otherwise one-way messages whose answer comes another way.
        half_closes: the way back stays open after `send_eof`; otherwise `send_eof` ends both directions.
        round_trip: seconds that a small request and its answer usually take.
        dial_timeout: seconds after which a dial counts as failed.
        isolation_delay: seconds that a new isolation token costs beside the dial itself. Where it is much,
            connections that show who calls anyway do without a token.
    """

    hides_sender: bool
    hides_receiver: bool
    encrypts: bool
    authenticates_receiver: bool
    reorders: bool
    pads: bool
    synchronous: bool
    half_closes: bool
    round_trip: float
    dial_timeout: float
    isolation_delay: float = 0.0


@dataclass(frozen=True, slots=True)
class TransportStatus:
    """Where a transport stands, for people: `detail` is one sentence, `progress` goes from 0 to 100."""

    state: Literal["stopped", "starting", "ready", "failed"]
    detail: str = ""
    progress: int = 0


class Connection(ByteStream):
    """A byte stream between two nodes. Contract and errors are those of `anyio.abc.ByteStream`.

    Half-close: after `send_eof` the other side reads to `anyio.EndOfStream`, and can still send where the
    properties say so.
    After a cancelled `send` some, all or none of the bytes may have been sent, so the connection is of no
    more use; a cancelled `receive` loses nothing.
    """

    @property
    @abstractmethod
    def locator(self) -> NodeLocator:
        """The locator that was dialled: the peer's on the caller's side, the node's own on the other."""

    @property
    @abstractmethod
    def properties(self) -> Properties:
        """What this connection gives."""


class StreamConnection(Connection):
    """A `Connection` over any anyio byte stream: what most transports hand out."""

    def __init__(self, stream: ByteStream, *, locator: NodeLocator, properties: Properties) -> None:
        self._stream = stream
        self._locator = locator
        self._properties = properties
        self._finished = False

    @property
    def locator(self) -> NodeLocator:
        """The locator that was dialled."""
        return self._locator

    @property
    def properties(self) -> Properties:
        """What the transport gives."""
        return self._properties

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive 1 to `max_bytes` bytes."""
        return await self._stream.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        """Send all of `item`, waiting while the other side does not read.

        Raises:
            anyio.ClosedResourceError: after `send_eof` or `aclose`.
            anyio.BrokenResourceError: the other side is gone.
        """
        if self._finished:  # the event loops' own errors differ here
            raise ClosedResourceError
        await self._stream.send(item)

    async def send_eof(self) -> None:
        """Say that nothing more comes from this side; a second time it does nothing."""
        self._finished = True
        with suppress(OSError):  # the other side is gone already, which the next `receive` says
            await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close both directions; cancelled or not, the connection is closed afterwards."""
        await self._stream.aclose()


class Listener(ABC):
    """Where a transport takes incoming connections."""

    @property
    @abstractmethod
    def locators(self) -> Sequence[NodeLocator]:
        """The locators that lead here; they do not change while the listener is open."""

    @abstractmethod
    async def accept(self) -> Connection:
        """Wait for the next incoming connection; a cancelled wait loses none.

        Raises:
            anyio.ClosedResourceError: the listener was closed.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Stop listening. Connections that were accepted live on."""

    async def __aenter__(self) -> Self:
        """Listen for the length of a block."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        await self.aclose()


class Carrier(ABC):
    """What all ways of carrying something have in common. An async context manager that starts and stops it.

    Entering waits until it is ready, and raises `TransportUnavailableError` when it cannot become so;
    meanwhile and afterwards `status` says where it stands and observers are told of each change. Leaving
    ends every process and task that it started; afterwards it may be entered again.
    """

    def __init__(self) -> None:
        self._status = TransportStatus("stopped")
        self._observers: list[Callable[[TransportStatus], None]] = []

    @property
    @abstractmethod
    def name(self) -> str:
        """The word for it on the command line: `tor`, `i2p`, `tcp`, `memory`."""

    @property
    @abstractmethod
    def properties(self) -> Properties:
        """What it gives."""

    @abstractmethod
    def carries(self, locator: NodeLocator) -> bool:
        """Tell whether `locator` is of a kind that this carrier can reach."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What there is to know beside the status, for people: each fact with its name; no secrets."""
        return {}

    @property
    def status(self) -> TransportStatus:
        """Where it stands now."""
        return self._status

    def observe(self, observer: Callable[[TransportStatus], None]) -> None:
        """Have `observer` called, in the event loop's thread, with each new status."""
        self._observers.append(observer)

    def _report(self, status: TransportStatus) -> None:
        self._status = status
        for observer in self._observers:
            observer(status)

    async def __aenter__(self) -> Self:
        """Start. The default suits those that need no process or session of their own."""
        self._report(TransportStatus("ready", progress=100))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Stop."""
        self._report(TransportStatus("stopped"))
        return None


class Transport(Carrier):
    """One way of carrying connections: byte streams both ways."""

    @abstractmethod
    async def connect(self, locator: NodeLocator, *, isolation: bytes = b"") -> Connection:
        """Dial.

        Args:
            locator: where to; `carries` it.
            isolation: connections with different tokens must not be linkable by the network, nor by those
                whom they reach: they share no circuit and no address. Without a token the receiver may see
                an address that this transport listens on. Transports that hide nothing ignore it.

        Returns:
            the open connection, which the caller closes.

        Raises:
            UnreachableError: nobody answered, the locator is not served, or `dial_timeout` passed.
            TransportUnavailableError: the transport itself does not work at the moment.
            Cancelled, it leaves no socket behind.
        """

    async def connect_with(self, locator: NodeLocator, first: bytes, *, isolation: bytes = b"") -> Connection:
        """Dial as `connect` does, with bytes that the connection begins with.

        They are sent as early as the network takes them: where that is before it says that the connection is
        open, the receiver's answer is here a round trip sooner. By default they are sent after it.

        Args:
            locator: see `connect`.
            isolation: see `connect`.
            first: so few that no network waits for room, such as the first message of a handshake. A dial
                that fails may have sent them or not.

        Returns:
            the open connection, with `first` sent.

        Raises:
            UnreachableError: see `connect`; or the connection ended at once.
            TransportUnavailableError: see `connect`.
            Cancelled, it leaves no socket behind.
        """
        connection = await self.connect(locator, isolation=isolation)
        try:
            if first:
                await connection.send(first)
        except BaseException as error:  # cancelled too: nobody else knows of the connection
            await aclose_forcefully(connection)
            if isinstance(error, BrokenResourceError | ClosedResourceError):
                raise UnreachableError("the connection ended as soon as it was open") from error
            raise
        return connection

    @abstractmethod
    async def listen(self) -> Listener:
        """Open this transport's listener, at most one at a time.

        Raises:
            TransportUnavailableError: the address is taken, or the service could not be published.
        """


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message that came by a `MessageTransport`.

    Attributes:
        body: what was sent.
        sender: where an answer may be sent to, proved by the network; None where it came without.
    """

    body: bytes
    sender: NodeLocator | None


class MessageTransport(Carrier):
    """An asynchronous connection: messages one way, of which any may be lost, doubled or overtaken.

    An answer comes another way, or to `Parcel.sender`. Its properties say `synchronous=False`.
    """

    @property
    @abstractmethod
    def locator(self) -> NodeLocator:
        """Where messages to this side are sent; it does not change while it is entered."""

    @property
    @abstractmethod
    def max_bytes(self) -> int:
        """Bytes of the longest message."""

    @abstractmethod
    async def send(self, locator: NodeLocator, body: bytes) -> None:
        """Hand a message to the network; when this returns, nothing is known of its arrival.

        Raises:
            MalformedError: longer than `max_bytes`.
            UnreachableError: the network does not know the locator.
            TransportUnavailableError: the transport itself does not work at the moment.
        """

    @abstractmethod
    async def receive(self) -> Parcel:
        """Wait for the next message; a cancelled wait loses none.

        Raises:
            TransportUnavailableError: the transport was stopped.
        """


class ConnectionLayer:
    """A node's transports behind one `connect`.

    Args:
        transports: started by the caller, in order of preference.
        anonymous: the node hides where it is: it dials only over transports that hide the sender, and
            publishes only locators that hide the receiver.
    """

    def __init__(self, transports: Sequence[Transport], *, anonymous: bool) -> None:
        self.transports = tuple(transports)
        self.anonymous = anonymous

    def can_dial(self, locator: NodeLocator) -> bool:
        """Tell whether one of the transports carries `locator` and policy lets it be dialled."""
        return self.dials(locator) is not None

    def dials(self, locator: NodeLocator) -> Properties | None:
        """What dialling `locator` would give; None where nothing carries it, or policy forbids it."""
        carrier = self.carrier(locator)
        return None if carrier is None else carrier.properties

    def carrier(self, locator: NodeLocator) -> Transport | None:
        """The transport that `connect` dials `locator` over; None where none may."""
        for transport in self.transports:
            if transport.carries(locator) and self._allowed(transport):
                return transport
        return None

    def may_publish(self, transport: Transport) -> bool:
        """Tell whether the locators of `transport` go into this node's record."""
        return transport.properties.hides_receiver or not self.anonymous

    async def connect(
        self, locator: NodeLocator, *, isolation: bytes = b"", first: bytes = b""
    ) -> Connection:
        """Dial `locator` over the first transport that carries it; see `Transport.connect_with`.

        Raises:
            TransportUnavailableError: no transport of this node carries such locators.
            RefusedError: dialling it would show where this node is.
            UnreachableError: see `Transport.connect`.
        """
        carriers = [transport for transport in self.transports if transport.carries(locator)]
        if not carriers:
            raise TransportUnavailableError(f"no transport of this node carries {locator.protocol} addresses")
        for transport in carriers:
            if self._allowed(transport):
                return await transport.connect_with(locator, first, isolation=isolation)
        raise RefusedError(
            f"a {locator.protocol} address is not dialled, because that would show where this node is"
        )

    def _allowed(self, transport: Transport) -> bool:
        return transport.properties.hides_sender or not self.anonymous
