from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from overlay.errors import ProtocolViolationError

FRAMES = st.one_of(
    st.builds(open_frame, st.integers(1, 2**32 - 1), bulk=st.booleans()),
    st.builds(credit_frame, st.integers(1, 2**32 - 1), st.integers(0, 2**32 - 1)),
    st.builds(finish_frame, st.integers(1, 2**32 - 1)),
    st.builds(reset_frame, st.integers(1, 2**32 - 1), st.sampled_from(ResetCode)),
    st.builds(close_frame, st.sampled_from(CloseCode)),
    st.builds(
        Frame,
        st.sampled_from([FrameType.DATA, FrameType.PART]),
        st.integers(1, 2**32 - 1),
        st.binary(max_size=300),
    ),
    st.builds(
        Frame,
        st.sampled_from([FrameType.PING, FrameType.PONG]),
        st.just(0),
        st.binary(min_size=8, max_size=8),
    ),
)


def encode(frames: list[Frame]) -> bytes:
    return b"".join(frame.header + frame.body for frame in frames)


def plain(frames: list[Frame]) -> list[tuple[FrameType, int, bytes]]:
    return [(frame.type, frame.exchange, bytes(frame.body)) for frame in frames]


@given(st.lists(FRAMES, max_size=8), st.integers(0, 40))
def test_frames_are_read_as_they_were_written(frames: list[Frame], padding: int) -> None:
    data = encode(frames) + bytes(padding)
    assert plain(list(parse_frames(data))) == plain(frames)
    assert sum(frame.size for frame in frames) == len(data) - padding


@given(st.binary(max_size=400))
def test_any_bytes_are_frames_or_a_violation(data: bytes) -> None:
    try:
        frames = list(parse_frames(data))
    except ProtocolViolationError:
        return
    assert encode(frames) == data[: sum(frame.size for frame in frames)]


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("0a 00000001 0000"),  # a type that is not known
        bytes.fromhex("ff 00000000 0000"),
        bytes.fromhex("03 00000000 0000"),  # a message on no exchange
        bytes.fromhex("07 00000001 0008 0000000000000001"),  # a heartbeat on an exchange
        bytes.fromhex("01 00000001 0002 0000"),  # bodies of a wrong length
        bytes.fromhex("04 00000001 0003 000001"),
        bytes.fromhex("05 00000001 0001 00"),
        bytes.fromhex("09 00000000 0000"),
        bytes.fromhex("03 00000001 0005 6869"),  # longer than the record
        bytes.fromhex("03 00000001 0000 00 01"),  # padding that is not zero
        bytes.fromhex("03 00000001 00"),  # a header that is cut
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolViolationError):
        list(parse_frames(data))
