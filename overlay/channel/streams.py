"""`Exchange`: the application's end of a pair of message streams within a channel."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import anyio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from overlay.channel.exchanges import MAX_MESSAGE_BYTES
from overlay.channel.machine import ChannelMachine
from overlay.errors import ClosedError, MalformedError, OverlayError


class Signal:
    """Wakes all who wait; each looks for itself whether what it waits for is there."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def notify(self) -> None:
        """Wake who waits now."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Wait for the next `notify`; nothing may be awaited between looking and waiting."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()


class Inbox:
    """What arrived on one exchange and was not received yet, and how the exchange ended."""

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.complete = False  # the peer finished: `messages` is the rest of what it said
        self.finished = False  # this side finished
        self.error: OverlayError | None = None
        self.readable = Signal()

    def put(self, message: bytes) -> None:
        """Add a message."""
        self.messages.append(message)
        self.readable.notify()

    def complete_now(self) -> None:
        """Note that the peer sends no more."""
        self.complete = True
        self.readable.notify()

    def fail(self, error: OverlayError, *, discard: bool) -> None:
        """End the exchange for whoever waits; the first reason counts."""
        self.error = self.error or error
        if discard and not self.complete:
            self.messages.clear()
        self.readable.notify()

    def check(self) -> None:
        """Raise the error that ended the exchange, if one did."""
        if self.error is not None:
            error = fresh(self.error)
            raise error


@dataclass(slots=True)
class Shared:
    """What a channel and its exchanges share.

    Attributes:
        machine: the channel's engine.
        outgoing: something may have become sendable.
        places: a place for another exchange may have become free.
        inboxes: those of the exchanges for which the machine may still report something.
        senders: who waits to send, or for what was sent, by exchange. One signal for all of them would wake
            two dozen transfers for every record, to find that it was not theirs.
    """

    machine: ChannelMachine
    outgoing: Signal = field(default_factory=Signal)
    places: Signal = field(default_factory=Signal)
    inboxes: dict[int, Inbox] = field(default_factory=dict)
    senders: dict[int, anyio.Event] = field(default_factory=dict)

    async def wait_progress(self, number: int) -> None:
        """Wait until an exchange may have room, may have sent all, or may have ended."""
        await self.senders.setdefault(number, anyio.Event()).wait()

    def wake(self, number: int) -> None:
        """Wake who waits for the progress of an exchange; each looks for itself."""
        if (event := self.senders.pop(number, None)) is not None:
            event.set()

    def wake_all(self) -> None:
        """Wake all who wait to send, or for a place."""
        for number in list(self.senders):
            self.wake(number)
        self.places.notify()

    def settle(self, number: int) -> None:
        """Let go of an exchange on which both sides have said all."""
        inbox = self.inboxes.get(number)
        if inbox is not None and inbox.complete and inbox.finished:
            del self.inboxes[number]


class Exchange:
    """A pair of message streams within a channel. An async context manager, which closes it.

    Made by `Channel.open` and `Channel.accept`. Where an error says that the channel has ended, it is a
    `ProtocolViolationError` if that was because the peer broke the protocol, else a `ClosedError`.

    Attributes:
        bulk: whether its messages give way to those of other exchanges.
    """

    def __init__(self, shared: Shared, number: int, *, bulk: bool) -> None:
        self.bulk = bulk
        self._shared = shared
        self._number = number
        self._inbox = shared.inboxes[number] = Inbox()

    async def send(self, message: bytes) -> None:
        """Queue a message, waiting for the peer's credit and while much is queued already.

        Cancelled while it waits, nothing of the message is sent; once it returns, all of it is, as long as
        channel and exchange live.

        Args:
            message: at most `MAX_MESSAGE_BYTES`; may be empty.

        Raises:
            MalformedError: the message is too long.
            ClosedError: the exchange was finished or closed on this side, reset by the peer, or the
                channel has ended.
        """
        if len(message) > MAX_MESSAGE_BYTES:
            raise MalformedError(f"a message of {len(message)} bytes is longer than {MAX_MESSAGE_BYTES}")
        if self._has_room():
            await checkpoint_if_cancelled()
        else:
            await self._shared.wait_progress(self._number)  # a checkpoint itself
            while not self._has_room():
                await self._shared.wait_progress(self._number)
        self._queue(message)

    @property
    def channel(self) -> int:
        """A number that all exchanges of one channel have, and while it lives those of no other."""
        return id(self._shared)

    @property
    def has_room(self) -> bool:
        """Whether `send` would queue a message at once.

        Raises:
            ClosedError: as for `send`.
        """
        return self._has_room()

    async def wait_for_room(self) -> None:
        """Wait until `has_room`, which may be over again as soon as anything else is awaited.

        Raises:
            ClosedError: as for `send`.
        """
        await checkpoint_if_cancelled()
        while not self._has_room():
            await self._shared.wait_progress(self._number)

    async def wait_until_sent(self) -> None:
        """Wait until nothing is queued here: all is with the connection, or the exchange has ended."""
        await checkpoint_if_cancelled()
        while self._inbox.error is None and self._shared.machine.has_queued(self._number):
            await self._shared.wait_progress(self._number)

    def send_nowait(self, message: bytes) -> bool:
        """Queue a message if there is room for it; tells whether there was.

        Raises:
            MalformedError, ClosedError: as for `send`.
        """
        if not self._has_room():
            return False
        self._queue(message)
        return True

    async def receive(self) -> bytes:
        """Wait for the next message; a cancelled wait loses none.

        Returns:
            the message.

        Raises:
            anyio.EndOfStream: the peer finished, and every message was received.
            ClosedError: the exchange was closed on this side, reset by the peer, or the channel ended
                before the peer finished; messages that came before the channel ended are received first.
        """
        inbox = self._inbox
        await checkpoint_if_cancelled()
        while (message := self.receive_nowait()) is None:
            if inbox.complete:
                raise anyio.EndOfStream
            inbox.check()
            await inbox.readable.wait()
        return message

    def receive_nowait(self) -> bytes | None:
        """Take the next message if there is one here; None says nothing of what may still come."""
        if not self._inbox.messages:
            return None
        message = self._inbox.messages.popleft()
        if self._shared.machine.consumed(self._number, len(message)):
            self._shared.outgoing.notify()
        return message

    async def finish(self) -> None:
        """Tell the peer that no message follows; does nothing where that is settled already."""
        self._inbox.finished = True
        self._shared.machine.finish(self._number)
        self._shared.outgoing.notify()
        self._shared.wake(self._number)
        self._shared.settle(self._number)
        await checkpoint()

    async def aclose(self) -> None:
        """End both directions; a reset unless both sides have finished. Closing twice does nothing.

        What was sent before a `finish` still reaches the peer; what was sent without one may not.
        """
        inbox = self._inbox
        inbox.fail(ClosedError("this side closed the exchange"), discard=False)
        if self._shared.inboxes.pop(self._number, None) is not None:
            inbox.complete = False
            inbox.messages.clear()
            self._shared.machine.reset(self._number)
            self._shared.outgoing.notify()
        self._shared.wake(self._number)
        await checkpoint()

    def _queue(self, message: bytes) -> None:
        self._shared.machine.send(self._number, message)
        self._shared.outgoing.notify()

    def _has_room(self) -> bool:
        self._inbox.check()
        return self._shared.machine.has_room(self._number)

    async def __aenter__(self) -> Self:
        """Use the exchange for the length of a block."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        await self.aclose()


def fresh(error: OverlayError) -> OverlayError:
    """Copy an error that several tasks will raise, so that they do not share a traceback."""
    return type(error)(*error.args)
