from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.channel.frames import Frame, FrameType, parse_frames
from overlay.channel.noise import CipherState
from overlay.channel.records import (
    BLOCK_BYTES,
    BLOCK_ROOM,
    CELL_BYTES,
    CELL_ROOM,
    PAGE_BYTES,
    PAGE_ROOM,
    RecordReader,
    RecordSealer,
)
from overlay.errors import ProtocolViolationError

KEY = bytes(32)


def sealer() -> RecordSealer:
    return RecordSealer(CipherState(KEY))


def reader() -> RecordReader:
    return RecordReader(CipherState(KEY))


def data(body: bytes, exchange: int = 1) -> Frame:
    return Frame(FrameType.DATA, exchange, body)


def sizes(wire: bytes) -> list[int]:
    found = []
    while wire:
        found.append(int.from_bytes(wire[:2], "big") + 2)
        wire = wire[found[-1] :]
    return found


def read_messages(plaintexts: list[bytes]) -> list[bytes]:
    messages, partial = [], b""
    for frame in (frame for plaintext in plaintexts for frame in parse_frames(plaintext)):
        partial += frame.body
        if frame.type is FrameType.DATA:
            messages.append(partial)
            partial = b""
    return messages


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (0, [CELL_BYTES]),
        (CELL_ROOM - 7, [CELL_BYTES]),
        (CELL_ROOM - 6, [CELL_BYTES, CELL_BYTES]),
        (PAGE_ROOM - CELL_ROOM - 7, [CELL_BYTES] * 8),
        (PAGE_ROOM - CELL_ROOM - 6, [PAGE_BYTES]),
        (PAGE_ROOM - 7, [PAGE_BYTES]),
        (PAGE_ROOM, [PAGE_BYTES, CELL_BYTES]),
        (BLOCK_ROOM - CELL_ROOM - 6, [BLOCK_BYTES]),
        (BLOCK_ROOM - 7, [BLOCK_BYTES]),
        (BLOCK_ROOM + PAGE_ROOM, [BLOCK_BYTES, PAGE_BYTES, CELL_BYTES]),
    ],
)
def test_records_have_three_sizes(body: int, expected: list[int]) -> None:
    wire = sealer().seal(
        [data(bytes([7]) * body)] if body < 65_536 else [data(bytes(65_000)), data(bytes(body - 65_000 - 7))]
    )
    assert sizes(wire) == expected


@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=6))
def test_less_than_a_cell_is_wasted(lengths: list[int]) -> None:
    wire = sealer().seal([data(bytes(length)) for length in lengths])
    found = sizes(wire)
    carried = sum(length + 7 for length in lengths) + (len(found) - 1) * 7
    rooms = sum(size - 18 for size in found)
    assert carried - 7 * len(found) <= rooms < carried + CELL_ROOM + 15 * len(found)


@given(st.lists(st.binary(max_size=3_000), min_size=1, max_size=5), st.data())
def test_any_chunking_gives_the_same_messages(messages: list[bytes], draw: st.DataObject) -> None:
    wire = sealer().seal([data(message) for message in messages])
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    receiver, found = reader(), []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        found += list(receiver.receive(wire[start:end]))
    assert read_messages(found) == messages
    assert not receiver._kept


@pytest.mark.parametrize("cut", [1, 2, 3, CELL_BYTES - 1, CELL_BYTES, CELL_BYTES + 1])
def test_the_rest_of_a_record_may_come_with_others(cut: int) -> None:
    sender = sealer()
    wire = b"".join(sender.seal([data(bytes((number,)))]) for number in range(4))
    receiver = reader()
    found = [*receiver.receive(wire[:cut]), *receiver.receive(wire[cut:])]
    assert read_messages(found) == [bytes((number,)) for number in range(4)]
    assert not receiver._kept


def test_byte_by_byte_is_the_same_as_whole() -> None:
    wire = sealer().seal([data(b"a" * 2_000), data(b"b")])
    receiver, found = reader(), []
    for byte in wire:
        found += list(receiver.receive(bytes((byte,))))
    assert found == list(reader().receive(wire))


@given(st.binary(min_size=2, max_size=3_000))
def test_any_bytes_are_kept_waiting_or_a_violation(noise: bytes) -> None:
    receiver = reader()
    try:
        assert list(receiver.receive(noise)) == []
    except ProtocolViolationError:
        return
    assert receiver._kept


@given(st.integers(0, 2 * CELL_BYTES - 1), st.integers(1, 255))
def test_any_change_is_noticed(place: int, change: int) -> None:
    wire = bytearray(sealer().seal([data(b"x" * (CELL_ROOM + 100))]))
    wire[place] ^= change
    receiver, found = reader(), []
    with pytest.raises(ProtocolViolationError):
        found += list(receiver.receive(bytes(wire) + bytes(BLOCK_BYTES)))
    assert found == []


@pytest.mark.parametrize("order", [[0, 0], [1, 0], [0, 2], [1]])
def test_repeated_moved_and_missing_records_are_refused(order: list[int]) -> None:
    sender = sealer()
    records = [sender.seal([data(bytes((number,)))]) for number in range(3)]
    with pytest.raises(ProtocolViolationError):
        list(reader().receive(b"".join(records[number] for number in order)))


@pytest.mark.parametrize("length", [0, 1, 1021, 1023, 65_535])
def test_a_length_of_no_class_is_refused_at_once(length: int) -> None:
    with pytest.raises(ProtocolViolationError):
        list(reader().receive(length.to_bytes(2, "big")))


def test_a_cut_record_shows() -> None:
    receiver = reader()
    assert list(receiver.receive(sealer().seal([data(b"x")])[:-1])) == []
    assert receiver._kept
