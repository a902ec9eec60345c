from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.channel.exchanges import INITIAL_WINDOW, MAX_MESSAGE_BYTES, MESSAGE_COST
from overlay.channel.frames import (
    CloseCode,
    Frame,
    FrameType,
    ResetCode,
    close_frame,
    credit_frame,
    finish_frame,
    open_frame,
    parse_frames,
    reset_frame,
)
from overlay.channel.handshake import Established
from overlay.channel.machine import (
    DEFAULT_LIMITS,
    MAX_REMOTE_EXCHANGES,
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
from overlay.channel.noise import CipherState
from overlay.channel.records import BLOCK_BYTES, RecordReader, RecordSealer
from overlay.errors import ClosedError, MalformedError, ProtocolViolationError

KEYS = bytes(32), bytes([1]) * 32


def established(sending: int) -> Established:
    return Established(None, b"", CipherState(KEYS[sending]), CipherState(KEYS[1 - sending]))


class Pair(NamedTuple):
    """Two machines that hear each other at once."""

    one: ChannelMachine
    two: ChannelMachine

    def settle(self, now: float = 0, chunk: int = 1 << 20) -> tuple[list[Event], list[Event]]:
        """Carry bytes both ways, in chunks, until there are none; give the events of each."""
        events: tuple[list[Event], list[Event]] = ([], [])
        moved = True
        while moved:
            moved = False
            for sender, receiver, index in ((self.one, self.two, 1), (self.two, self.one, 0)):
                wire = sender.data_to_send(now)
                moved = moved or bool(wire)
                for start in range(0, len(wire), chunk):
                    events[index].extend(receiver.receive_data(wire[start : start + chunk], now))
        return events


def pair(limits: ChannelLimits = DEFAULT_LIMITS) -> Pair:
    return Pair(
        ChannelMachine(established(0), initiator=True, limits=limits, now=0),
        ChannelMachine(established(1), initiator=False, limits=limits, now=0),
    )


class Scripted:
    """A responder's machine, and a peer that says what a test wants and writes down what it hears."""

    def __init__(self, limits: ChannelLimits = DEFAULT_LIMITS) -> None:
        self.machine = ChannelMachine(established(1), initiator=False, limits=limits, now=0)
        self._sealer = RecordSealer(CipherState(KEYS[0]))
        self._reader = RecordReader(CipherState(KEYS[1]))

    def say(self, *frames: Frame, now: float = 0) -> list[Event]:
        return self.machine.receive_data(self._sealer.seal(frames), now)

    def hear(self, now: float = 0) -> list[tuple[FrameType, int, int]]:
        heard = []
        while wire := self.machine.data_to_send(now):
            for plaintext in self._reader.receive(wire):
                heard += [(frame.type, frame.exchange, len(frame.body)) for frame in parse_frames(plaintext)]
        return heard

    def refuses(self, *frames: Frame) -> None:
        events = self.say(*frames)
        assert isinstance(events[-1], ChannelClosed)
        assert isinstance(events[-1].error, ProtocolViolationError)
        assert self.hear() == [(FrameType.CLOSE, 0, 2)]
        assert self.machine.closed
        assert self.machine.next_timer() == math.inf


def data(exchange: int, body: bytes = b"x") -> Frame:
    return Frame(FrameType.DATA, exchange, body)


def part(exchange: int, body: bytes = b"x") -> Frame:
    return Frame(FrameType.PART, exchange, body)


def opening(exchange: int = 1) -> Frame:
    return open_frame(exchange, bulk=False)


def ping(number: int = 1) -> Frame:
    return Frame(FrameType.PING, 0, number.to_bytes(8, "big"))


def pong(number: int = 1) -> Frame:
    return Frame(FrameType.PONG, 0, number.to_bytes(8, "big"))


def messages(events: Iterable[Event]) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = defaultdict(list)
    for event in events:
        if isinstance(event, MessageReceived):
            found[event.exchange].append(event.message)
    return found


# What the driver asks before it wakes anybody


def test_a_message_alone_asks_for_no_answer() -> None:
    scripted = Scripted()
    scripted.say(opening())
    scripted.hear()
    scripted.say(data(1))
    assert not scripted.machine.wants_to_send
    scripted.say(ping())
    assert scripted.machine.wants_to_send
    scripted.hear()
    assert not scripted.machine.wants_to_send


@pytest.mark.parametrize("what", ["message", "finish", "reset", "close", "violation"])
def test_whatever_is_to_be_sent_is_wanted(what: str) -> None:
    scripted = Scripted()
    scripted.say(opening())
    scripted.hear()
    match what:
        case "message":
            scripted.machine.send(1, b"x")
        case "finish":
            scripted.machine.finish(1)
        case "reset":
            scripted.say(reset_frame(1, ResetCode.CANCELLED))
        case "close":
            scripted.machine.close()
        case "violation":
            scripted.say(opening(5))
    assert scripted.machine.wants_to_send
    assert scripted.hear()


def test_credit_wakes_what_waits_for_it() -> None:
    scripted = Scripted()
    scripted.say(opening())
    for _ in range(3):
        scripted.machine.send(1, bytes(MAX_MESSAGE_BYTES))
    scripted.hear()
    assert not scripted.machine.wants_to_send
    scripted.say(credit_frame(1, 1_000))
    assert scripted.machine.wants_to_send


def test_room_is_made_when_half_a_queue_is_free() -> None:
    one = pair().one
    number = one.open(bulk=True)
    while one.has_room(number):
        one.send(number, bytes(MAX_MESSAGE_BYTES))
    assert one.data_to_send(0)
    assert one.roomy == []
    assert one.data_to_send(0)
    assert one.roomy == [number]


@pytest.mark.parametrize("whose", ["peer's", "own"])
def test_a_finish_after_a_reset_says_nothing_more(whose: str) -> None:
    """Else it comes in the middle of the message that the reset cut off, which ends the channel."""
    both = pair()
    number = both.one.open()
    for _ in range(3):
        both.one.send(number, bytes(60_000))
    both.settle()
    if whose == "own":
        both.one.reset(number)
    else:
        both.two.reset(number)
        both.one.receive_data(both.two.data_to_send(0), 0)
    both.one.finish(number)
    assert not [event for event in both.settle()[1] if isinstance(event, ChannelClosed)]
    assert not both.one._exchanges
    assert not both.two._exchanges


# An exchange's life


def test_a_request_and_its_answer() -> None:
    both = pair()
    number = both.one.open(bulk=True)
    both.one.send(number, b"question")
    both.one.finish(number)
    assert both.settle()[1] == [
        ExchangeOpened(number, bulk=True),
        MessageReceived(number, b"question"),
        PeerFinished(number),
    ]
    both.two.send(number, b"answer")
    both.two.finish(number)
    assert both.settle()[0] == [MessageReceived(number, b"answer"), PeerFinished(number)]
    for machine in both:
        with pytest.raises(ClosedError):
            machine.send(number, b"late")


def test_both_sides_open_exchanges_with_numbers_of_their_own() -> None:
    both = pair()
    assert [both.one.open(), both.two.open(), both.one.open(), both.two.open()] == [1, 2, 3, 4]
    events = both.settle()
    assert [event.exchange for event in events[0] if isinstance(event, ExchangeOpened)] == [2, 4]
    assert [event.exchange for event in events[1] if isinstance(event, ExchangeOpened)] == [1, 3]


@pytest.mark.parametrize("size", [0, 1, 65_510, 65_511, 65_512, MAX_MESSAGE_BYTES])
def test_messages_of_any_size_arrive_whole(size: int) -> None:
    both = pair()
    number = both.one.open()
    both.one.send(number, bytes(size))
    assert messages(both.settle()[1]) == {number: [bytes(size)]}


def test_a_longer_message_is_the_callers_mistake() -> None:
    both = pair()
    number = both.one.open()
    with pytest.raises(MalformedError):
        both.one.send(number, bytes(MAX_MESSAGE_BYTES + 1))


def test_a_reset_ends_both_directions_on_both_sides() -> None:
    both = pair()
    number = both.one.open()
    both.settle()
    both.one.send(number, b"dropped with the reset")
    both.one.reset(number)
    both.two.send(number, b"crossing")
    events = both.settle()
    assert events == ([], [ExchangeReset(number, ResetCode.CANCELLED)])
    for machine in both:
        with pytest.raises(ClosedError):
            machine.send(number, b"late")
    assert both.two.open() == 2


def test_a_reset_after_a_finish_lets_what_was_sent_arrive() -> None:
    both = pair()
    number = both.one.open()
    both.one.send(number, b"all of it")
    both.one.finish(number)
    both.one.reset(number)
    assert both.settle()[1] == [
        ExchangeOpened(number, bulk=False),
        MessageReceived(number, b"all of it"),
        PeerFinished(number),
        ExchangeReset(number, ResetCode.CANCELLED),
    ]


def test_an_exchange_that_was_reset_before_it_was_announced_leaves_the_numbers_in_order() -> None:
    both = pair()
    both.one.reset(both.one.open())
    second = both.one.open()
    both.one.send(second, b"x")
    assert messages(both.settle()[1]) == {second: [b"x"]}


def test_places_for_exchanges_come_back() -> None:
    both = pair()
    for _ in range(3):
        numbers = [both.one.open() for _ in range(MAX_REMOTE_EXCHANGES)]
        assert not both.one.can_open
        with pytest.raises(ClosedError):
            both.one.open()
        both.settle()
        for number in numbers[::2]:
            both.one.finish(number)
            both.two.finish(number)
        for number in numbers[1::2]:
            both.two.reset(number)
        events = both.settle()
        assert not any(isinstance(event, ChannelClosed) for event in events[0] + events[1])
        assert both.one.can_open


# Interleaving and chunking

Sends = list[tuple[int, bytes]]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.one_of(st.binary(max_size=50), st.integers(0, MAX_MESSAGE_BYTES).map(bytes))
        ),
        max_size=20,
    ),
    st.integers(100, 70_000),
    st.integers(1, 5),
)
def test_any_interleaving_arrives_whole_and_in_order(sends: Sends, chunk: int, every: int) -> None:
    both = pair()
    exchanges = [both.one.open(bulk=index % 2 == 1) for index in range(4)]
    wanted: dict[int, list[bytes]] = defaultdict(list)
    found: dict[int, list[bytes]] = defaultdict(list)

    def settle() -> None:
        while new := messages(both.settle(chunk=chunk)[1]):
            for number, some in new.items():
                found[number] += some
                for message in some:
                    both.two.consumed(number, len(message))

    for index, (which, message) in enumerate(sends):
        both.one.send(exchanges[which], message)
        wanted[exchanges[which]].append(message)
        if index % every == 0:
            settle()
    settle()
    assert found == wanted


def test_byte_by_byte_gives_the_same_events_as_whole() -> None:
    def talk(chunk: int) -> tuple[list[Event], list[Event]]:
        both = pair()
        number = both.one.open()
        both.one.send(number, b"x" * 5_000)
        both.one.finish(number)
        both.two.send(both.two.open(), b"y")
        return both.settle(chunk=chunk)

    assert talk(1) == talk(1 << 20)


def test_an_interactive_message_overtakes_bulk() -> None:
    both = pair()
    bulk, chat = both.one.open(bulk=True), both.one.open()
    for _ in range(2):
        both.one.send(bulk, bytes(60_000))
    first = both.two.receive_data(both.one.data_to_send(0), 0)
    both.one.send(chat, b"now")
    second = both.two.receive_data(both.one.data_to_send(0), 0)
    assert messages(first) == {bulk: [bytes(60_000)]}
    assert next(iter(messages(second))) == chat


def test_bulk_is_not_starved() -> None:
    limits = ChannelLimits(send_queue=1 << 30)
    both = pair(limits)
    bulk, chat = both.one.open(bulk=True), both.one.open()
    both.one.send(bulk, b"at last")
    for turn in range(20):
        both.one.send(chat, bytes(MAX_MESSAGE_BYTES))
        found = messages(both.two.receive_data(both.one.data_to_send(0), 0))
        for message in found[chat]:
            both.two.consumed(chat, len(message))
        both.one.receive_data(both.two.data_to_send(0), 0)
        if bulk in found:
            assert turn <= 8
            return
    pytest.fail("bulk never had its turn")


def test_exchanges_of_a_class_take_turns() -> None:
    both = pair()
    numbers = [both.one.open() for _ in range(3)]
    for number in numbers * 2:
        both.one.send(number, bytes(60_000))
    order: list[int] = []
    while wire := both.one.data_to_send(0):
        order += [
            event.exchange for event in both.two.receive_data(wire, 0) if isinstance(event, MessageReceived)
        ]
    assert sorted(order[:3]) == sorted(order[3:]) == numbers


# Credit


def test_a_sender_stops_where_its_credit_ends() -> None:
    both = pair()
    number = both.one.open()
    while both.one.has_room(number):
        both.one.send(number, bytes(10_000))
    received = messages(both.settle()[1])[number]
    assert sum(len(message) + MESSAGE_COST for message in received) <= INITIAL_WINDOW
    assert not both.one.has_room(number)
    for message in received:
        both.two.consumed(number, len(message))
    assert CreditAvailable(number) in both.settle()[0]
    assert both.one.has_room(number)


@pytest.mark.parametrize("size", [0, 1, 30_000, MAX_MESSAGE_BYTES])
def test_a_stream_never_stalls_while_the_receiver_takes_messages(size: int) -> None:
    both = pair()
    number = both.one.open()
    for _ in range(200):
        both.one.send(number, bytes(size))
        for message in messages(both.settle()[1])[number]:
            both.two.consumed(number, len(message))
    received = 0
    while found := messages(both.settle()[1])[number]:
        received += len(found)
        for message in found:
            both.two.consumed(number, len(message))
    assert both.one._exchanges[number].outgoing.queued == 0


def test_credit_for_chunks_is_gathered_as_long_as_a_longest_message_can_be_sent() -> None:
    both = pair()
    number = both.one.open()
    credit = []
    for _ in range(12):  # window: 4 chunks and an answer before them, after 5 chunks twice that
        both.one.send(number, bytes(32_768))
        found = messages(both.settle()[1])[number]
        credit.append([both.two.consumed(number, len(message)) for message in found])
        both.settle()
        assert both.one._exchanges[number].outgoing.credit >= MAX_MESSAGE_BYTES + MESSAGE_COST
    due = [number for number, told in enumerate(credit, start=1) if told == [True]]
    assert due == [3, 5, 10]


def test_windows_grow_while_the_receiver_keeps_up_and_no_further_than_they_may() -> None:
    limits = ChannelLimits(max_window=512 * 1024, channel_window=64 * INITIAL_WINDOW + 640 * 1024)
    both = pair(limits)
    numbers = [both.one.open() for _ in range(2)]
    for _ in range(100):
        for number in numbers:
            both.one.send(number, bytes(MAX_MESSAGE_BYTES))
        for number, found in messages(both.settle()[1]).items():
            for message in found:
                both.two.consumed(number, len(message))
    windows = [both.two._exchanges[number].incoming.window for number in numbers]
    assert max(windows) == limits.max_window
    assert sum(windows) - 2 * INITIAL_WINDOW == 640 * 1024
    for number in numbers:
        both.one.reset(number)
    both.settle()
    assert both.two._budget == 640 * 1024


def test_more_than_the_credit_is_refused() -> None:
    peer = Scripted()
    body = bytes(INITIAL_WINDOW // 4 - MESSAGE_COST)
    peer.say(opening(), *[data(1, body)] * 4)
    peer.refuses(data(1, b""))


def test_a_flood_of_empty_messages_is_bounded_like_any_other() -> None:
    peer = Scripted()
    allowed = INITIAL_WINDOW // MESSAGE_COST
    assert len(messages(peer.say(opening(), *[data(1, b"")] * allowed))[1]) == allowed
    peer.refuses(data(1, b""))


# What must be refused


@pytest.mark.parametrize(
    "frames",
    [
        [opening(2)],
        [opening(3)],
        [opening(1), opening(1)],
        [opening(1), finish_frame(1), opening(1)],
        [Frame(FrameType.OPEN, 1, b"\x02")],
        [data(1)],
        [data(2)],
        [credit_frame(1, 5)],
        [reset_frame(1, ResetCode.CANCELLED)],
        [reset_frame(2, ResetCode.CANCELLED)],
        [opening(), finish_frame(1), data(1)],
        [opening(), finish_frame(1), finish_frame(1)],
        [opening(), reset_frame(1, ResetCode.CANCELLED), data(1)],
        [opening(), reset_frame(1, ResetCode.CANCELLED), credit_frame(1, 1)],
        [opening(), part(1), finish_frame(1)],
        [opening(), part(1, b"")],
        [opening(), part(1), data(1, b"")],
        [opening(), part(1, bytes(60_000)), data(1, bytes(5_537))],
        [opening(), credit_frame(1, 0)],
        [opening(), credit_frame(1, 2**31 - 1)],
        [pong(1)],
        [opening(2 * number + 1) for number in range(MAX_REMOTE_EXCHANGES + 1)],
    ],
)
def test_frames_out_of_order_end_the_channel(frames: list[Frame]) -> None:
    Scripted().refuses(*frames)


def test_frames_on_an_exchange_that_is_over_end_the_channel() -> None:
    peer = Scripted()
    peer.say(opening(), finish_frame(1))
    peer.machine.finish(1)
    peer.hear()
    assert peer.say(credit_frame(1, 1), reset_frame(1, ResetCode.ANSWER)) == []
    peer.refuses(data(1))


def test_changed_bytes_end_the_channel_and_nothing_follows() -> None:
    both = pair()
    both.one.send(both.one.open(), b"x")
    wire = bytearray(both.one.data_to_send(0))
    wire[100] ^= 1
    (event,) = both.two.receive_data(bytes(wire), 0)
    assert isinstance(event, ChannelClosed)
    assert both.two.receive_data(bytes(wire), 0) == []
    (event,) = both.one.receive_data(both.two.data_to_send(0), 0)
    assert isinstance(event, ChannelClosed)
    assert isinstance(event.error, ClosedError)


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_any_plaintext_gives_events_or_a_violation(plaintexts: list[bytes]) -> None:
    peer = Scripted()
    cipher = CipherState(KEYS[0])
    for plaintext in plaintexts:
        wire = (1022).to_bytes(2, "big") + cipher.encrypt(plaintext.ljust(1006, b"\0"))
        peer.machine.receive_data(wire, 0)
    peer.hear()


NUMBERS = st.integers(0, 4)
ANY_FRAME = st.one_of(
    st.builds(open_frame, NUMBERS, bulk=st.booleans()),
    st.builds(credit_frame, NUMBERS, st.integers(0, 2**31)),
    st.builds(finish_frame, NUMBERS),
    st.builds(reset_frame, NUMBERS, st.sampled_from(ResetCode)),
    st.builds(data, NUMBERS, st.binary(max_size=3)),
    st.builds(part, NUMBERS, st.binary(max_size=3)),
    st.builds(ping, st.integers(0, 3)),
    st.builds(pong, st.integers(0, 3)),
    st.just(close_frame(CloseCode.GOODBYE)),
)


@given(st.lists(ANY_FRAME, max_size=30), st.integers(1, 8))
def test_any_order_of_frames_gives_events_or_a_violation(frames: list[Frame], every: int) -> None:
    peer = Scripted()
    peer.machine.open()
    closed = False
    for index, frame in enumerate([opening(), *frames]):
        for event in peer.say(frame):
            assert not closed
            closed = isinstance(event, ChannelClosed)
            if isinstance(event, MessageReceived):
                peer.machine.consumed(event.exchange, len(event.message))
            if isinstance(event, PeerFinished) and index % every == 0:
                peer.machine.finish(event.exchange)
            if isinstance(event, ExchangeOpened) and index % every == 1:
                peer.machine.reset(event.exchange)
        if index % every == 0:
            peer.hear()


# Floods


def test_a_flood_of_heartbeats_is_answered_once() -> None:
    peer = Scripted()
    for number in range(1_000):
        peer.say(ping(number))
    assert peer.hear() == [(FrameType.PONG, 0, 8)]


def test_a_peer_that_opens_and_resets_without_reading_fills_nothing() -> None:
    peer = Scripted()
    peer.say(opening(1), reset_frame(1, ResetCode.CANCELLED))
    for number in range(3, 2 * MAX_REMOTE_EXCHANGES, 2):
        peer.say(opening(number), reset_frame(number, ResetCode.CANCELLED))
    peer.refuses(opening(2 * MAX_REMOTE_EXCHANGES + 1))


def test_credit_for_a_peer_that_does_not_read_is_one_frame() -> None:
    peer = Scripted()
    peer.say(opening())
    for _ in range(30):
        for message in messages(peer.say(data(1, bytes(4_000))))[1]:
            peer.machine.consumed(1, len(message))
    assert peer.hear() == [(FrameType.CREDIT, 1, 4)]


def test_output_comes_in_pieces_of_one_large_record() -> None:
    both = pair(ChannelLimits(send_queue=1 << 30))
    for _ in range(4):
        number = both.one.open()
        for _ in range(2):
            both.one.send(number, bytes(60_000))
    while wire := both.one.data_to_send(0):
        assert len(wire) <= BLOCK_BYTES + 1024


# Endings and time


def test_a_goodbye_comes_after_what_was_queued() -> None:
    both = pair()
    number = both.one.open()
    both.one.send(number, b"last words")
    both.one.close()
    with pytest.raises(ClosedError):
        both.one.open()
    with pytest.raises(ClosedError):
        both.one.send(number, b"too late")
    events = both.settle()[1]
    assert messages(events) == {number: [b"last words"]}
    assert isinstance(events[-1], ChannelClosed)
    assert isinstance(events[-1].error, ClosedError)
    assert both.one.closed
    assert both.two.closed


def test_an_end_without_a_goodbye_is_told() -> None:
    both = pair()
    both.one.open()
    (event,) = both.one.receive_eof()
    assert isinstance(event, ChannelClosed)
    assert isinstance(event.error, ClosedError)
    assert both.one.lost
    assert both.one.receive_eof() == []
    assert both.one.data_to_send(0) == b""


def test_an_end_that_either_side_said_is_no_loss() -> None:
    both = pair()
    both.one.close()
    both.settle()
    for machine in both:
        machine.receive_eof()
        assert not machine.lost


def test_silence_is_asked_about_and_then_ends_the_channel() -> None:
    both = pair()
    both.one.open()
    both.one.data_to_send(0)
    for interval in (1, 2):
        now = both.one.next_timer()
        assert now == interval * DEFAULT_LIMITS.heartbeat_interval
        assert both.one.handle_timer(now) == []
        assert both.one.quiet
        assert both.one.data_to_send(now)
    now = both.one.next_timer()
    assert not both.one.lost
    assert now == 3 * DEFAULT_LIMITS.heartbeat_interval
    (event,) = both.one.handle_timer(now)
    assert isinstance(event, ChannelClosed)
    assert both.one.closed
    assert both.one.lost


def test_answers_keep_a_channel_alive() -> None:
    both = pair()
    both.one.open()
    both.settle()
    for _ in range(20):
        now = both.one.next_timer()
        assert both.one.handle_timer(now) == []
        assert both.one.quiet
        assert both.settle(now) == ([], [])
        assert not both.one.quiet
    assert now > 15 * DEFAULT_LIMITS.heartbeat_interval


def test_a_channel_that_nobody_uses_is_closed() -> None:
    limits = ChannelLimits(idle_timeout=50, heartbeat_interval=1000)
    both = pair(limits)
    number = both.one.open()
    both.settle(now=10)
    assert both.one.next_timer() > 50
    for machine in both:
        machine.finish(number)
    both.settle(now=20)
    assert both.one.next_timer() == 70
    assert both.one.handle_timer(69.9) == []
    (event,) = both.one.handle_timer(70)
    assert isinstance(event, ChannelClosed)
    assert isinstance(both.settle(now=70)[1][0], ChannelClosed)
    assert both.one.closed
    assert not both.one.lost


def test_an_idle_timeout_can_be_left_out() -> None:
    limits = ChannelLimits(idle_timeout=math.inf)
    assert pair(limits).one.next_timer() == limits.heartbeat_interval
