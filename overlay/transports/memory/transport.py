"""The in-memory transport: what `overlay.connection` asks for, over a `MemoryNetwork`."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from anyio.lowlevel import checkpoint

from overlay.connection import Connection, Listener, Properties, StreamConnection, Transport
from overlay.errors import TransportUnavailableError, UnreachableError
from overlay.locators import NodeLocator
from overlay.transports.memory.network import Backlog, MemoryNetwork

MEMORY_PROPERTIES = Properties(
    hides_sender=False,
    hides_receiver=False,
    encrypts=False,
    authenticates_receiver=False,
    reorders=False,
    pads=False,
    synchronous=True,
    half_closes=True,
    round_trip=0.001,
    dial_timeout=10.0,
)
"""What connections inside one process give: nothing is hidden, and nobody is in between."""


class MemoryTransport(Transport):
    """Connects nodes of one process.

    Args:
        network: where the transports meet.
        properties: what to declare; a test can pretend that the network hides its nodes, to see policy at
            work: `dataclasses.replace(MEMORY_PROPERTIES, hides_sender=True)`.
        number: the address, which a node that is started again brings along; a new one by default.
    """

    def __init__(
        self, network: MemoryNetwork, *, properties: Properties = MEMORY_PROPERTIES, number: int | None = None
    ) -> None:
        super().__init__()
        self.number = network.new_number() if number is None else number
        self._network = network
        self._properties = properties
        self._locator = network.locator(self.number)
        self._backlog: Backlog | None = None

    @property
    def name(self) -> str:
        """The protocol of its network: `memory`, unless that was given another."""
        return self._network.protocol

    @property
    def properties(self) -> Properties:
        """What was declared."""
        return self._properties

    def carries(self, locator: NodeLocator) -> bool:
        """Tell whether `locator` is one of this network's kind."""
        return locator.protocol == self._network.protocol

    async def connect(self, locator: NodeLocator, *, isolation: bytes = b"") -> Connection:  # noqa: ARG002 - there are no circuits
        """Dial another transport of the same network; see `Transport.connect`.

        Raises:
            UnreachableError: nobody listens there, or the network's conditions do not let the dial through.
        """
        self._require_started()
        if not self.carries(locator):
            raise UnreachableError(f"{locator} is not an address of this in-memory network")
        stream = await self._network.dial(
            self.number, int.from_bytes(locator.address, "big"), timeout=self._properties.dial_timeout
        )
        return StreamConnection(stream, locator=locator, properties=self._properties)

    async def listen(self) -> Listener:
        """Take connections in at this transport's number; see `Transport.listen`."""
        self._require_started()
        self._backlog = self._network.listen(self.number)
        return MemoryListener(self._backlog, self._locator, self._properties)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Stop, and stop listening."""
        if self._backlog is not None:
            self._backlog.close()
        return await super().__aexit__(exc_type, exc, traceback)

    def _require_started(self) -> None:
        if self.status.state != "ready":
            raise TransportUnavailableError("the in-memory transport is not started: enter it first")


class MemoryListener(Listener):
    """Where one in-memory transport takes connections in."""

    def __init__(self, backlog: Backlog, locator: NodeLocator, properties: Properties) -> None:
        self._backlog = backlog
        self._locator = locator
        self._properties = properties

    @property
    def locators(self) -> Sequence[NodeLocator]:
        """The one locator of this transport."""
        return (self._locator,)

    async def accept(self) -> Connection:
        """Wait for the next connection; see `Listener.accept`."""
        stream = await self._backlog.accept()
        return StreamConnection(stream, locator=self._locator, properties=self._properties)

    async def aclose(self) -> None:
        """Stop listening; connections that nobody accepted are reset."""
        self._backlog.close()
        await checkpoint()
