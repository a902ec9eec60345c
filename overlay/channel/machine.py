"""A channel after its handshake: bytes in, events out, and the bytes to send. Pure.

`ChannelMachine` knows records, frames, exchanges, heartbeats and how a channel ends; it has no clock and
does no I/O. Its memory is bounded whatever the peer does: exchanges by `MAX_REMOTE_EXCHANGES`, what they
hold by windows, and answers (PONG, CREDIT, RESET) are flags that are turned into frames when bytes are
asked for, never a queue. Rules: docs/spec/channel.md.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from overlay.channel.exchanges import INITIAL_WINDOW, MAX_MESSAGE_BYTES, ExchangeState
from overlay.channel.frames import (
    BULK_FLAG,
    HEADER_BYTES,
    CloseCode,
    Frame,
    FrameType,
    ResetCode,
    close_frame,
    parse_frames,
)
from overlay.channel.handshake import Established
from overlay.channel.records import BLOCK_ROOM, RecordReader, RecordSealer
from overlay.errors import ClosedError, MalformedError, OverlayError, ProtocolViolationError

MAX_REMOTE_EXCHANGES = 32
"""Exchanges that each side may have open at a time; part of the protocol, so neither side has to ask."""

DEAD_AFTER_INTERVALS = 3
"""Silent heartbeat intervals after which the peer counts as gone: two lost answers are bad luck."""

_BULK_TURN = 8
"""Every eighth filling of a record begins with bulk exchanges, so interactive ones cannot starve them."""


@dataclass(frozen=True, slots=True)
class ChannelLimits:
    """How long and how much a channel waits and holds. The defaults suit Tor and cost TCP nothing.

    Attributes:
        handshake_timeout: seconds for the whole handshake. It takes one round trip and a half: a few
            seconds over an onion service, ten times as much on a circuit that is about to be replaced.
        heartbeat_interval: seconds of silence after which the peer is asked whether it is there; after
            `DEAD_AFTER_INTERVALS` of them it is gone. Short enough for middleboxes, rare enough for Tor.
        idle_timeout: seconds without an exchange after which the channel is closed; `math.inf` for never.
            Opening an onion circuit costs seconds, so a channel is kept for its next use.
        goodbye_timeout: seconds that closing may take.
        max_window: bytes to which an exchange's window may grow: 2 MiB/s at a round trip of one second.
        channel_window: bytes to which all windows of a channel together may grow.
        send_queue: bytes of messages that wait on an exchange before senders wait.
    """

    handshake_timeout: float = 60.0
    heartbeat_interval: float = 30.0
    idle_timeout: float = 600.0
    goodbye_timeout: float = 3.0
    max_window: int = 2 * 1024 * 1024
    channel_window: int = 16 * 1024 * 1024
    send_queue: int = 128 * 1024


DEFAULT_LIMITS = ChannelLimits()


@dataclass(frozen=True, slots=True)
class ExchangeOpened:
    """The peer began an exchange."""

    exchange: int
    bulk: bool


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A whole message arrived; `ChannelMachine.consumed` is due once the application has taken it."""

    exchange: int
    message: bytes


@dataclass(frozen=True, slots=True)
class PeerFinished:
    """The peer sends no further message on this exchange."""

    exchange: int


@dataclass(frozen=True, slots=True)
class ExchangeReset:
    """The peer reads nothing more on this exchange and, unless it had finished, has not said all."""

    exchange: int
    code: int


@dataclass(frozen=True, slots=True)
class CreditAvailable:
    """The peer lets more be sent on this exchange."""

    exchange: int


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """The channel carries nothing more; the last event. `error` says why, for whoever waits."""

    error: OverlayError


Event = ExchangeOpened | MessageReceived | PeerFinished | ExchangeReset | CreditAvailable | ChannelClosed


class ChannelMachine:
    """One end of a channel.

    Args:
        established: what the handshake gave.
        initiator: whether this side called.
        limits: windows and intervals.
        now: the current time, in seconds of any clock that only goes forward.
    """

    def __init__(
        self, established: Established, *, initiator: bool, limits: ChannelLimits, now: float
    ) -> None:
        self.limits = limits
        self._sealer = RecordSealer(established.sending)
        self._reader = RecordReader(established.receiving)
        self._exchanges: dict[int, ExchangeState] = {}
        self._turns: tuple[deque[ExchangeState], deque[ExchangeState]] = (deque(), deque())
        self._turns_without_bulk = 0
        self._urgent: dict[int, ExchangeState] = {}  # those that may have an OPEN or a CREDIT to send
        self._next_local = 1 if initiator else 2
        self._next_remote = 2 if initiator else 1
        self._budget = limits.channel_window - 2 * MAX_REMOTE_EXCHANGES * INITIAL_WINDOW
        self._heard = now
        self._idle_since = now
        self._pings_sent = self._pings_answered = self._silent_intervals = 0
        self._ping_due = False
        self._pong_due: bytes | None = None
        self._ending: CloseCode | None = None
        self.roomy: list[int] = []  # the exchanges of which the last bytes to send left half a queue free
        self.closed = False  # nothing more is sent
        self.peer_gone = False  # nothing more comes
        self.lost = False  # the connection ended, or the peer fell silent, before either side had said CLOSE

    # The application's side

    @property
    def can_open(self) -> bool:
        """Whether the peer takes another exchange now."""
        return sum(exchange.ours for exchange in self._exchanges.values()) < MAX_REMOTE_EXCHANGES

    def open(self, *, bulk: bool = False) -> int:
        """Begin an exchange.

        Args:
            bulk: it gives way to others.

        Returns:
            its number.

        Raises:
            ClosedError: the channel has ended, or `can_open` is false.
        """
        if self._ending is not None or not self.can_open:
            raise ClosedError(
                "the channel takes no further exchange: wait for one to end, or open a new channel"
            )
        number = self._next_local
        self._next_local += 2
        self._add(number, bulk=bulk, ours=True)
        return number

    def has_room(self, exchange: int) -> bool:
        """Tell whether a message is worth queueing: credit is there and less than `send_queue` waits."""
        outgoing = self._live(exchange).outgoing
        return outgoing.queued < min(outgoing.credit, self.limits.send_queue)

    def has_queued(self, exchange: int) -> bool:
        """Tell whether messages wait here that may still be sent."""
        state = self._exchanges.get(exchange)
        return state is not None and bool(state.outgoing)

    def send(self, exchange: int, message: bytes) -> None:
        """Queue a whole message; callers who keep memory bounded ask `has_room` first.

        Args:
            exchange: where.
            message: at most `MAX_MESSAGE_BYTES`.

        Raises:
            MalformedError: the message is too long.
            ClosedError: this side has finished or reset the exchange, or it or the channel has ended.
        """
        if len(message) > MAX_MESSAGE_BYTES:
            raise MalformedError(f"a message of {len(message)} bytes is longer than {MAX_MESSAGE_BYTES}")
        self._live(exchange).outgoing.push(message)

    def finish(self, exchange: int) -> None:
        """Send no further message; does nothing where that is settled already."""
        state = self._exchanges.get(exchange)
        # After a reset the end is settled: a FINISH could come in the middle of a message that was cut off.
        if state is not None and not (state.discarding or state.received_reset):
            state.finishing = True

    def reset(self, exchange: int, code: ResetCode = ResetCode.CANCELLED) -> None:
        """Read nothing more, and send nothing but what was queued before a finish; no-op when over."""
        if exchange in self._exchanges and not self._exchanges[exchange].received_reset:
            self._exchanges[exchange].reset(code)

    def consumed(self, exchange: int, size: int) -> bool:
        """Note that the application took a message of `size` bytes; tell whether credit is to be sent now."""
        state = self._exchanges.get(exchange)
        if state is None:
            return False
        self._budget -= state.incoming.consumed(size, self._budget)
        if not state.incoming.grant_due:
            return False
        self._urgent[exchange] = state
        return True

    def close(self, code: CloseCode = CloseCode.GOODBYE) -> None:
        """End the channel: send what may be sent, then CLOSE; whatever still comes is dropped."""
        if self._ending is None:
            self._ending = code

    def _live(self, exchange: int) -> ExchangeState:
        state = self._exchanges.get(exchange)
        if self._ending is not None or state is None or state.finishing or state.discarding:
            raise ClosedError("nothing more can be sent on this exchange")
        if state.received_reset:
            raise ClosedError("the peer ended this exchange")
        return state

    # The connection's side: sending

    @property
    def wants_to_send(self) -> bool:
        """Whether `data_to_send` is worth a call: it has something to give, or the channel has ended."""
        if self._urgent or self._pong_due is not None or self._ping_due or self._ending is not None:
            return True
        return any(state.pending for state in self._exchanges.values())

    def data_to_send(self, now: float) -> bytes:
        """Give the next bytes for the connection.

        At most about one of the largest records at a time, so that what becomes urgent meanwhile goes next.

        Args:
            now: the current time.

        Returns:
            the bytes, empty when there is nothing to send until the next call of another method.
        """
        if self.closed:
            return b""
        self.roomy = []
        frames = [] if self._ending is CloseCode.VIOLATION else self._gather(now)
        if not frames and self._ending is not None:
            frames.append(close_frame(self._ending))
            self._forget(ClosedError("this side closed the channel"))
        return self._sealer.seal(frames)

    def _gather(self, now: float) -> list[Frame]:
        frames, room = self._control(), BLOCK_ROOM
        for frame in frames:
            room -= frame.size
        for exchange in self._in_turn():
            for frame in exchange.take_data(room):
                room -= HEADER_BYTES + len(frame.body)
                frames.append(frame)
            # Half of it, not any room: whoever waits then queues several messages for one wait.
            if exchange.outgoing.queued <= self.limits.send_queue // 2:
                self.roomy.append(exchange.number)
            if exchange.over:
                self._remove(exchange, now)
        return frames

    def _control(self) -> list[Frame]:
        frames: list[Frame] = []
        if self._pong_due is not None:
            frames.append(Frame(FrameType.PONG, 0, self._pong_due))
            self._pong_due = None
        if self._ping_due:
            self._ping_due = False
            self._pings_sent += 1
            frames.append(Frame(FrameType.PING, 0, self._pings_sent.to_bytes(8, "big")))
        if self._urgent:
            for exchange in self._urgent.values():
                frames += exchange.take_control()
            self._urgent.clear()
        return frames

    def _in_turn(self) -> list[ExchangeState]:
        """Who has something to send, in the order of this turn: round robin in each class."""
        interactive, bulk = [[state for state in turns if state.pending] for turns in self._turns]
        for turns in self._turns:
            turns.rotate(-1)
        self._turns_without_bulk = self._turns_without_bulk + 1 if interactive and bulk else 0
        if self._turns_without_bulk < _BULK_TURN:
            return interactive + bulk
        self._turns_without_bulk = 0
        return bulk + interactive

    # The connection's side: receiving

    def receive_data(self, data: bytes, now: float) -> list[Event]:
        """Take bytes from the connection, cut in any way.

        Args:
            data: the next bytes.
            now: the current time.

        Returns:
            what happened, in order. After a violation of the protocol the last event is `ChannelClosed`
            with a `ProtocolViolationError`, and the bytes to send are a CLOSE.
        """
        events: list[Event] = []
        if self._ending is CloseCode.VIOLATION or self.peer_gone:
            return events
        try:
            for plaintext in self._reader.receive(data):
                self._heard, self._silent_intervals = now, 0
                for frame in parse_frames(plaintext):
                    if frame.type is FrameType.CLOSE:
                        return events + self._receive_close(frame.number)
                    if self._ending is None and (event := self._receive_frame(frame, now)) is not None:
                        events.append(event)
        except ProtocolViolationError as error:
            events += self._end(CloseCode.VIOLATION, error)
        return events

    def receive_eof(self) -> list[Event]:
        """Take the end of the connection, which without a CLOSE before it is never a clean one."""
        self.peer_gone = True
        self.lost = self.lost or self._ending is None
        return self._forget(ClosedError("the connection to the peer was lost"))

    def _receive_frame(self, frame: Frame, now: float) -> Event | None:
        if frame.exchange and frame.type is not FrameType.OPEN:  # nearly all of them
            return self._receive_on_exchange(frame, now)
        match frame.type:
            case FrameType.PING:
                self._pong_due = bytes(frame.body)
            case FrameType.PONG:
                self._receive_pong(frame.number)
            case FrameType.OPEN:
                return self._receive_open(frame)
        return None

    def _receive_pong(self, number: int) -> None:
        if not self._pings_answered < number <= self._pings_sent:
            raise ProtocolViolationError("the peer answered a heartbeat that it was not asked")
        self._pings_answered = number

    def _receive_close(self, code: int) -> list[Event]:
        self.peer_gone = True
        if code == CloseCode.VIOLATION:
            return self._forget(ClosedError("the peer closed the channel: it says the protocol was broken"))
        return self._forget(ClosedError("the peer closed the channel"))

    def _receive_open(self, frame: Frame) -> ExchangeOpened:
        if frame.exchange != self._next_remote:
            raise ProtocolViolationError("the peer opened an exchange out of turn")
        if sum(not exchange.ours for exchange in self._exchanges.values()) >= MAX_REMOTE_EXCHANGES:
            raise ProtocolViolationError(f"the peer opened more than {MAX_REMOTE_EXCHANGES} exchanges")
        if frame.number & ~BULK_FLAG:
            raise ProtocolViolationError("the peer opened an exchange of an unknown kind")
        self._next_remote += 2
        bulk = frame.number == BULK_FLAG
        self._add(frame.exchange, bulk=bulk, ours=False)
        return ExchangeOpened(frame.exchange, bulk)

    def _receive_on_exchange(self, frame: Frame, now: float) -> Event | None:
        exchange = self._exchanges.get(frame.exchange)
        if exchange is None:
            self._check_late(frame)
            return None
        if frame.type is FrameType.RESET:
            return self._receive_reset(exchange, frame.number, now)
        if exchange.received_reset:
            raise ProtocolViolationError("the peer sent more on an exchange that it had reset")
        if frame.type is FrameType.CREDIT:
            exchange.outgoing.allow(frame.number)
            return CreditAvailable(frame.exchange)
        if exchange.received_finish:
            raise ProtocolViolationError("the peer sent more on an exchange that it had finished")
        if frame.type is FrameType.FINISH:
            return self._receive_finish(exchange, now)
        message = exchange.incoming.take(frame)
        if message is None or exchange.discarding:
            return None
        return MessageReceived(frame.exchange, message)

    def _check_late(self, frame: Frame) -> None:
        """Let pass what may have crossed the end of its exchange on the way.

        Raises:
            ProtocolViolationError: anything else, or an exchange that never was.
        """
        ours = frame.exchange % 2 == self._next_local % 2
        known = frame.exchange < (self._next_local if ours else self._next_remote)
        if not known or frame.type not in {FrameType.CREDIT, FrameType.RESET}:
            raise ProtocolViolationError("the peer sent on an exchange that is not open")

    def _receive_finish(self, exchange: ExchangeState, now: float) -> PeerFinished | None:
        if exchange.incoming.inside_message:
            raise ProtocolViolationError("the peer finished an exchange within a message")
        exchange.received_finish = True
        if exchange.over:
            self._remove(exchange, now)
        return None if exchange.discarding else PeerFinished(exchange.number)

    def _receive_reset(self, exchange: ExchangeState, code: int, now: float) -> ExchangeReset | None:
        told = exchange.discarding or exchange.received_reset
        exchange.take_reset()
        if exchange.over:
            self._remove(exchange, now)
        return None if told else ExchangeReset(exchange.number, code)

    # Time

    @property
    def quiet(self) -> bool:
        """Whether a heartbeat is due or was asked for, and nothing was heard since."""
        return self._silent_intervals > 0

    def next_timer(self) -> float:
        """When `handle_timer` is due; `math.inf` for never."""
        if self._ending is not None:
            return math.inf
        heartbeat = self._heard + self.limits.heartbeat_interval * (self._silent_intervals + 1)
        return min(heartbeat, self._idle_at())

    def handle_timer(self, now: float) -> list[Event]:
        """Do what is due at `now`: ask whether the peer is there, or end the channel.

        Args:
            now: the current time.

        Returns:
            `ChannelClosed` if the channel ended, else nothing.
        """
        if self._ending is not None or now < self.next_timer():
            return []
        if now >= self._idle_at():
            return self._end(CloseCode.IDLE, ClosedError("the channel was closed because nobody used it"))
        # One more at least, since the heartbeat is due: rounding may make the quotient one too small.
        elapsed = int((now - self._heard) // self.limits.heartbeat_interval)
        self._silent_intervals = max(self._silent_intervals + 1, elapsed)
        if self._silent_intervals < DEAD_AFTER_INTERVALS:
            self._ping_due = True
            return []
        self.lost = True
        return self._forget(ClosedError("the peer has been silent for too long"))

    def _idle_at(self) -> float:
        return math.inf if self._exchanges else self._idle_since + self.limits.idle_timeout

    # Bookkeeping

    def _add(self, number: int, *, bulk: bool, ours: bool) -> None:
        exchange = ExchangeState(number, bulk=bulk, ours=ours, max_window=self.limits.max_window)
        self._exchanges[number] = self._urgent[number] = exchange
        self._turns[bulk].append(exchange)

    def _remove(self, exchange: ExchangeState, now: float) -> None:
        del self._exchanges[exchange.number]
        self._urgent.pop(exchange.number, None)
        self._turns[exchange.bulk].remove(exchange)
        self._budget += exchange.incoming.window - INITIAL_WINDOW
        self._idle_since = now

    def _end(self, code: CloseCode, error: OverlayError) -> list[Event]:
        """Begin to close, for a reason that the application is told unless it had closed itself."""
        told = self._ending is not None
        self._ending = code
        return [] if told else [ChannelClosed(error)]

    def _forget(self, error: OverlayError) -> list[Event]:
        """Keep nothing: no byte is sent any more."""
        self.closed = True
        self._exchanges.clear()
        self._urgent.clear()
        for turns in self._turns:
            turns.clear()
        return self._end(self._ending or CloseCode.GOODBYE, error)
