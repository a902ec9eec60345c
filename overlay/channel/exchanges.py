"""One exchange's two directions: queues, credit and how they end. Pure.

Rules: docs/spec/channel.md, section 5. Credit is counted in *cost*: a message costs its bytes and
`MESSAGE_COST`, so that a flood of empty messages is bounded like one of long ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from overlay.channel.frames import (
    HEADER_BYTES,
    MAX_CREDIT,
    Frame,
    FrameType,
    ResetCode,
    credit_frame,
    finish_frame,
    open_frame,
    reset_frame,
)
from overlay.errors import ProtocolViolationError

MAX_MESSAGE_BYTES = 65_536
"""The longest message: a chunk of 32 KiB with its envelope fits twice."""

MESSAGE_COST = 64
"""What a message costs beyond its bytes: about what keeping a short one takes beyond them."""

INITIAL_WINDOW = 139_264
"""Cost that each side may send on a new exchange before it is given more: an answer with four chunks of 32
KiB, the least that is asked for at once. A few bytes less, and each of them would take a round trip more."""

_MAX_COST = MAX_MESSAGE_BYTES + MESSAGE_COST


class Outgoing:
    """What this side sends on an exchange."""

    def __init__(self) -> None:
        self.credit = INITIAL_WINDOW
        self.queued = 0
        self._messages: deque[bytes] = deque()
        self._sent = 0  # bytes of the first message that are in frames already

    def __bool__(self) -> bool:
        """Whether messages wait here."""
        return bool(self._messages)

    @property
    def sendable(self) -> bool:
        """Whether a message waits here of which the credit lets a frame be made now."""
        if not self._messages:
            return False
        return self.credit > (0 if self._sent else MESSAGE_COST - (not self._messages[0]))

    def push(self, message: bytes) -> None:
        """Queue a whole message."""
        self._messages.append(message)
        self.queued += len(message) + MESSAGE_COST

    def clear(self) -> None:
        """Drop all that waits."""
        self._messages.clear()
        self.queued = self._sent = 0

    def allow(self, amount: int) -> None:
        """Take credit that the peer gave.

        Raises:
            ProtocolViolationError: none at all, or more than `MAX_CREDIT` together.
        """
        self.credit += amount
        if not amount or self.credit > MAX_CREDIT:
            raise ProtocolViolationError(f"the peer gave a credit of {amount} bytes, which is out of bounds")

    def take(self, exchange: int, room: int) -> Frame | None:
        """Make the next frame with the bytes of a message.

        Args:
            exchange: its number.
            room: the most bytes that the frame may take.

        Returns:
            the frame, or None where messages, credit or room are missing.
        """
        if not self._messages:
            return None
        message, start = self._messages[0], self._sent
        charge = 0 if start else MESSAGE_COST
        left = len(message) - start
        size = min(left, self.credit - charge, room - HEADER_BYTES)
        if size < min(left, 1):
            return None
        self.credit -= size + charge
        self.queued -= size + charge
        if size < left:
            self._sent += size
            return Frame(FrameType.PART, exchange, memoryview(message)[start : start + size])
        self._messages.popleft()
        self._sent = 0
        return Frame(FrameType.DATA, exchange, memoryview(message)[start:] if start else message)


class Incoming:
    """What the peer sends on an exchange.

    Args:
        max_window: the window stops growing here.
    """

    def __init__(self, max_window: int) -> None:
        self.window = INITIAL_WINDOW
        self._max_window = max_window
        self._allowance = INITIAL_WINDOW
        self._owed = 0
        self._consumed = 0  # since the window last grew
        self._partial: bytearray | None = None

    @property
    def inside_message(self) -> bool:
        """Whether parts of a message came, and its end did not."""
        return self._partial is not None

    def take(self, frame: Frame) -> bytes | None:
        """Take a PART or DATA frame.

        Returns:
            the message that it completes, or None.

        Raises:
            ProtocolViolationError: beyond the credit, a message that is too long, or an empty frame that
                is no whole message.
        """
        kind, _, body = frame
        partial, size = self._partial, len(body)
        self._allowance -= size if partial is not None else size + MESSAGE_COST
        if self._allowance < 0:
            raise ProtocolViolationError("the peer sent more than its credit allows")
        whole = partial is None and kind is FrameType.DATA
        length = size if partial is None else size + len(partial)
        if length > MAX_MESSAGE_BYTES or not (size or whole):
            raise ProtocolViolationError("a message is longer than messages may be, or has an empty part")
        # Parts are copied, never kept as views: a view of one byte would keep the whole record it is in.
        if kind is FrameType.DATA:
            self._partial = None
            return bytes(body) if partial is None else b"".join((partial, body))
        if partial is None:
            self._partial = bytearray(body)
        else:
            partial += body
        return None

    def consumed(self, size: int, budget: int) -> int:
        """Note that the application took a message, so that its cost is given back as credit.

        The window doubles each time that the application has taken as much as it holds.

        Args:
            size: the message's bytes.
            budget: the most by which the window may grow.

        Returns:
            by how much it grew.
        """
        self._owed += size + MESSAGE_COST
        self._consumed += size + MESSAGE_COST
        if self._consumed < self.window:
            return 0
        growth = max(0, min(self.window, self._max_window - self.window, budget))
        self._consumed = 0
        self._owed += growth
        self.window += growth
        return growth

    @property
    def grant_due(self) -> bool:
        """Whether enough is owed to be worth a record, which costs both sides as much as a chunk of 32 KiB.

        Half a window; but what is kept back never keeps a longest message waiting.
        """
        return self._owed > min(self.window // 2, self.window - _MAX_COST)

    def grant(self) -> int:
        """Give the credit that is owed."""
        amount, self._owed = self._owed, 0
        self._allowance += amount
        return amount


class ExchangeState:
    """Both directions of one exchange, and which frames it still has to send.

    Args:
        number: its number on the wire.
        bulk: whether it gives way to others.
        ours: whether this side opened it.
        max_window: see `Incoming`.
    """

    def __init__(self, number: int, *, bulk: bool, ours: bool, max_window: int) -> None:
        self.number = number
        self.bulk = bulk
        self.ours = ours
        self.outgoing = Outgoing()
        self.incoming = Incoming(max_window)
        self.finishing = False  # the application finished; FINISH follows the last message
        self.discarding = False  # the application reset it; what comes is thrown away
        self.sent_end = False
        self.received_finish = False
        self.received_reset = False
        self._open_due = ours
        self._reset_due: ResetCode | None = None

    @property
    def over(self) -> bool:
        """Whether both sides have said all, and know it of each other."""
        return self.sent_end and (self.received_finish or self.received_reset)

    @property
    def pending(self) -> bool:
        """Whether `take_data` has a frame to give."""
        if self.outgoing.sendable:
            return True
        ending = self._reset_due is not None or (self.finishing and not self.sent_end)
        return ending and not self.outgoing

    def reset(self, code: ResetCode) -> None:
        """End both directions. What was queued before a finish is still sent."""
        self.discarding = True
        self._reset_due = code
        if not self.finishing:
            self.outgoing.clear()

    def take_reset(self) -> None:
        """Note the peer's reset: it reads nothing more, and answers are due if this side has not ended."""
        self.received_reset = True
        self.outgoing.clear()
        self.finishing = self.sent_end
        self._reset_due = None if self.sent_end else ResetCode.ANSWER

    def take_control(self) -> Iterator[Frame]:
        """Give the frames that overtake messages."""
        if self._open_due:
            self._open_due = False
            yield open_frame(self.number, bulk=self.bulk)
        ended = self.received_finish or self.received_reset
        if self.incoming.grant_due and not ended and not self.discarding:
            yield credit_frame(self.number, self.incoming.grant())

    def take_data(self, room: int) -> Iterator[Frame]:
        """Give the frames of messages, and of the end after the last, that fit `room` bytes."""
        outgoing = self.outgoing
        while room >= HEADER_BYTES and (frame := outgoing.take(self.number, room)) is not None:
            room -= HEADER_BYTES + len(frame.body)
            yield frame
        if not outgoing:
            yield from self._take_endings(room)

    def _take_endings(self, room: int) -> Iterator[Frame]:
        if self.finishing and not self.sent_end:
            frame = finish_frame(self.number)
            if frame.size > room:
                return
            room -= frame.size
            self.sent_end = True
            yield frame
        if self._reset_due is not None:
            frame = reset_frame(self.number, self._reset_due)
            if frame.size > room:
                return
            self.sent_end = True
            self._reset_due = None
            yield frame
