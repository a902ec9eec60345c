"""`Channel`: the driver of a `ChannelMachine` over a real connection.

All that is decided here is when to read, write and wait; what the bytes mean is decided in `machine.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import anyio
from anyio import BrokenResourceError, CancelScope, ClosedResourceError, EndOfStream
from anyio.lowlevel import checkpoint

from overlay.channel.frames import CloseCode
from overlay.channel.handshake import Established
from overlay.channel.machine import (
    ChannelClosed,
    ChannelLimits,
    ChannelMachine,
    CreditAvailable,
    Event,
    ExchangeOpened,
    ExchangeReset,
    MessageReceived,
    PeerFinished,
)
from overlay.channel.streams import Exchange, Shared, Signal, fresh
from overlay.connection import Connection
from overlay.errors import ClosedError, OverlayError, ProtocolViolationError

_READ_BYTES = 262_144
"""Asked of the connection at a time: four of the largest records, which is what event loops read at once."""

MAX_UNACCEPTED = 128
"""Exchanges that may wait to be accepted: four times as many as a peer may have alive. The machine forgets
those that the peer ended again; here they wait with what they brought, so their number is bounded too."""

CONNECTION_ERRORS = (EndOfStream, BrokenResourceError, ClosedResourceError)
"""How a connection says that it has ended."""


class Channel:
    """A verified, encrypted connection to a peer, on which many exchanges run at once.

    Made by `call` and `respond` of `opening.py`. Nothing moves until `run` runs.

    Attributes:
        peer: the peer's verified keys; None where the caller stayed anonymous.
        hello: what the peer said in its handshake.
    """

    def __init__(
        self, connection: Connection, established: Established, *, initiator: bool, limits: ChannelLimits
    ) -> None:
        self.peer = established.peer
        self.hello = established.hello
        self._connection = connection
        self._limits = limits
        self._machine = ChannelMachine(
            established, initiator=initiator, limits=limits, now=anyio.current_time()
        )
        self._shared = Shared(self._machine)
        self._arrived: dict[int, Exchange] = {}
        self._error: OverlayError | None = None
        self._scope: CancelScope | None = None
        self._gone = anyio.Event()
        self._arrival = Signal()
        self._rearm = Signal()
        self._armed = math.inf

    @property
    def closed(self) -> bool:
        """Whether the channel has ended: no exchange can be opened or sent on."""
        return self._error is not None

    @property
    def error(self) -> OverlayError | None:
        """Why the channel ended: a `ProtocolViolationError` if the peer broke the protocol; None before."""
        return self._error

    @property
    def lost(self) -> bool:
        """Whether its connection ended, or the peer fell silent, before either side had said goodbye."""
        return self._machine.lost

    @property
    def quiet(self) -> bool:
        """Whether the peer was asked for a sign of life and has not given one yet."""
        return self._machine.quiet

    async def wait_closed(self) -> None:
        """Wait until the channel has ended and its connection is closed."""
        await self._gone.wait()

    async def run(self) -> None:
        """Read, write and keep the channel alive until it ends, for whatever reason.

        To be run once. Afterwards, also after cancellation, the connection is closed and whoever waits on
        an exchange has got an error: `ProtocolViolationError` if the peer broke the protocol, else
        `ClosedError`.
        """
        try:
            if not self._gone.is_set():
                async with anyio.create_task_group() as tasks:
                    self._scope = tasks.cancel_scope
                    self._set_deadline()
                    tasks.start_soon(self._read, tasks.cancel_scope)
                    tasks.start_soon(self._write)
                    tasks.start_soon(self._keep_time)
        finally:
            await self._dispose()

    async def open(self, *, bulk: bool = False) -> Exchange:
        """Begin an exchange, waiting while as many are open as the peer takes.

        Args:
            bulk: its messages give way to those of exchanges that are not.

        Returns:
            the exchange, to be closed by the caller.

        Raises:
            ClosedError: the channel has ended.
            ProtocolViolationError: it ended because the peer broke the protocol.
        """
        await checkpoint()
        while self._error is None and not self._machine.can_open:
            await self._shared.places.wait()
        self._check()
        number = self._machine.open(bulk=bulk)
        self._shared.outgoing.notify()
        return Exchange(self._shared, number, bulk=bulk)

    async def accept(self) -> Exchange:
        """Wait for an exchange that the peer begins; a cancelled wait loses none.

        Returns:
            the exchange, to be closed by the caller. Those that came before the channel ended are still
            given out, with what arrived on them.

        Raises:
            ClosedError: the channel has ended.
            ProtocolViolationError: it ended because the peer broke the protocol.
        """
        await checkpoint()
        while not self._arrived:
            self._check()
            await self._arrival.wait()
        return self._arrived.pop(next(iter(self._arrived)))

    def close(self) -> None:
        """Begin to end the channel: `run` sends what is queued and may be sent, and says goodbye.

        It takes `run` at most `goodbye_timeout` seconds. Whoever uses the channel meets its end at once.
        """
        self._machine.close()
        self._end(ClosedError("this side closed the channel"))

    async def aclose(self) -> None:
        """End the channel as `close` does, and wait until its connection is closed.

        Cancelled, it closes at once.
        """
        self.close()
        if self._scope is None:
            await self._dispose()
            return
        try:
            await self._gone.wait()
        finally:
            self._scope.cancel()

    # The three tasks of `run`

    async def _read(self, scope: CancelScope) -> None:
        while not self._machine.peer_gone:
            try:
                data = await self._connection.receive(_READ_BYTES)
            except CONNECTION_ERRORS:
                self._handle(self._machine.receive_eof())
            else:
                self._handle(self._machine.receive_data(data, anyio.current_time()))
        scope.cancel()

    async def _write(self) -> None:
        """Write until there is nothing left to say; after a goodbye, `_read` waits for the peer's end."""
        while True:
            data = self._machine.data_to_send(anyio.current_time())
            if self._machine.roomy:
                for number in self._machine.roomy:
                    self._shared.wake(number)
                self._shared.places.notify()
                self._rearm_if_earlier()  # idle now, perhaps: nothing else here brings a timer forward
            if data:
                try:
                    await self._connection.send(data)
                except CONNECTION_ERRORS:
                    return  # what the peer sent before may still be read; then `_read` meets the end
            elif self._machine.closed:
                return
            else:
                await self._shared.outgoing.wait()

    async def _keep_time(self) -> None:
        while True:
            self._armed = self._machine.next_timer()
            with CancelScope(deadline=self._armed):
                await self._rearm.wait()
            self._handle(self._machine.handle_timer(anyio.current_time()))

    # What the machine says

    def _handle(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case MessageReceived(number, message):  # first, since nearly all of them are
                    self._shared.inboxes[number].put(message)
                case ExchangeOpened() if len(self._arrived) >= MAX_UNACCEPTED:
                    self._machine.close(CloseCode.VIOLATION)
                    self._end(
                        ProtocolViolationError("the peer opens exchanges faster than they are accepted")
                    )
                    return
                case ExchangeOpened(number, bulk):
                    self._arrived[number] = Exchange(self._shared, number, bulk=bulk)
                    self._arrival.notify()
                case PeerFinished(number):
                    self._shared.inboxes[number].complete_now()
                    self._shared.settle(number)
                case ExchangeReset(number):
                    self._drop(number)
                case CreditAvailable(number):
                    self._shared.wake(number)
                case ChannelClosed(error):
                    self._end(error)
        self._shared.places.notify()
        if self._machine.wants_to_send:  # messages alone, which are most of what comes, ask for no answer
            self._shared.outgoing.notify()
        self._rearm_if_earlier()

    def _drop(self, number: int) -> None:
        """Let go of an exchange that the peer reset; nobody needs to hear of one that said nothing whole."""
        inbox = self._shared.inboxes.pop(number, None)
        if inbox is None:
            return
        inbox.fail(ClosedError("the peer ended this exchange"), discard=True)
        self._shared.wake(number)
        if not inbox.complete:
            self._arrived.pop(number, None)

    def _rearm_if_earlier(self) -> None:
        if self._machine.next_timer() < self._armed:
            self._rearm.notify()

    def _check(self) -> None:
        if self._error is not None:
            raise fresh(self._error)

    def _end(self, error: OverlayError) -> None:
        if self._error is not None:
            return
        self._error = error
        for inbox in self._shared.inboxes.values():
            inbox.fail(error, discard=False)
        self._arrival.notify()
        self._shared.outgoing.notify()
        self._shared.wake_all()
        self._set_deadline()

    def _set_deadline(self) -> None:
        """Once the channel has ended, `run` has a moment for the goodbye, or none where none is possible."""
        if self._scope is not None and self._error is not None:
            self._scope.deadline = anyio.current_time() + self._limits.goodbye_timeout
            if self._machine.closed:
                self._scope.cancel()

    async def _dispose(self) -> None:
        self._end(ClosedError("the channel was closed"))
        try:
            await anyio.aclose_forcefully(self._connection)
        finally:
            self._machine.close()
            self._machine.receive_eof()  # what is still queued will not be sent: nobody has to wait for it
            self._shared.wake_all()
            self._gone.set()
