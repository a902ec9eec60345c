"""Frames: what records carry. Pure. Bytes and rules: docs/spec/channel.md, section 4.

Each frame is a header of seven bytes (type, exchange, length of the body; big endian) and a body. A zero
where a type should be ends the frames of a record; the rest is zeros.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

from overlay.errors import ProtocolViolationError

HEADER_BYTES = 7
MAX_CREDIT = 2**31 - 1
"""The most credit that an exchange may have, far above the largest window; it bounds the arithmetic."""

_HEADER = struct.Struct(">BIH")
_CREDIT = struct.Struct(">I")
_CODE = struct.Struct(">H")


class FrameType(IntEnum):
    """The first byte of a frame."""

    OPEN = 1
    PART = 2  # bytes of a message, more of which follow
    DATA = 3  # the last, or only, bytes of a message
    CREDIT = 4
    FINISH = 5
    RESET = 6
    PING = 7
    PONG = 8
    CLOSE = 9


class CloseCode(IntEnum):
    """Why a channel is closed. A code that is not known counts as `GOODBYE`."""

    GOODBYE = 0
    IDLE = 1
    VIOLATION = 2


class ResetCode(IntEnum):
    """Why an exchange is reset. A code that is not known counts as `CANCELLED`."""

    CANCELLED = 0
    ANSWER = 1  # the answer to a reset


BULK_FLAG = 1
"""The bit of OPEN's body that says that the exchange gives way to others."""

_BODY_BYTES = {
    FrameType.OPEN: 1,
    FrameType.CREDIT: _CREDIT.size,
    FrameType.FINISH: 0,
    FrameType.RESET: _CODE.size,
    FrameType.PING: 8,
    FrameType.PONG: 8,
    FrameType.CLOSE: _CODE.size,
}
_OF_CHANNEL = frozenset((FrameType.PING, FrameType.PONG, FrameType.CLOSE))
_RULES = {kind.value: (kind, kind in _OF_CHANNEL, _BODY_BYTES.get(kind)) for kind in FrameType}
"""By the number on the wire: the type, whether it is of the channel, the length of its body if that is fixed.
Looked up once for each frame; the tables above, by type, would run the enum's Python code for each lookup."""


class Frame(NamedTuple):
    """One frame. `exchange` is 0 for those of the channel as a whole."""

    type: FrameType
    exchange: int
    body: bytes | memoryview

    @property
    def size(self) -> int:
        """Bytes that it takes in a record."""
        return HEADER_BYTES + len(self.body)

    @property
    def header(self) -> bytes:
        """The seven bytes before the body."""
        return _HEADER.pack(self.type, self.exchange, len(self.body))

    @property
    def number(self) -> int:
        """The body as a number: of credit, of flags, or a code."""
        return int.from_bytes(self.body, "big")


def open_frame(exchange: int, *, bulk: bool) -> Frame:
    """Begin an exchange."""
    return Frame(FrameType.OPEN, exchange, bytes((BULK_FLAG if bulk else 0,)))


def credit_frame(exchange: int, amount: int) -> Frame:
    """Allow `amount` more of cost to be sent."""
    return Frame(FrameType.CREDIT, exchange, _CREDIT.pack(amount))


def finish_frame(exchange: int) -> Frame:
    """Say that no message follows."""
    return Frame(FrameType.FINISH, exchange, b"")


def reset_frame(exchange: int, code: ResetCode) -> Frame:
    """Say that nothing follows and nothing more is read."""
    return Frame(FrameType.RESET, exchange, _CODE.pack(code))


def close_frame(code: CloseCode) -> Frame:
    """End the channel."""
    return Frame(FrameType.CLOSE, 0, _CODE.pack(code))


def encode_frames(frames: Iterable[Frame]) -> bytes:
    """Write frames as they are in a record, without its padding."""
    parts: list[bytes | memoryview] = []
    for kind, exchange, body in frames:
        parts += (_HEADER.pack(kind, exchange, len(body)), body)
    return b"".join(parts)


def parse_frames(plaintext: bytes) -> Iterator[Frame]:
    """Read the frames of one record.

    Args:
        plaintext: the record, decrypted: frames, then zeros.

    Yields:
        the frames in order; bodies are views of `plaintext`.

    Raises:
        ProtocolViolationError: an unknown type, a body of another length than its type has or that does
            not fit the record, an exchange where none belongs or none where one does, or padding that is
            not zero.
    """
    view = memoryview(plaintext)
    place, end = 0, len(plaintext)
    while end - place >= HEADER_BYTES and plaintext[place]:
        kind, exchange, size = _HEADER.unpack_from(view, place)
        place += HEADER_BYTES
        if size > end - place:
            raise ProtocolViolationError("a frame does not fit its record")
        yield _checked(kind, exchange, view[place : place + size])
        place += size
    if plaintext.count(0, place) != end - place:
        raise ProtocolViolationError("the padding of a record is not zero")


def _checked(kind: int, exchange: int, body: memoryview) -> Frame:
    rules = _RULES.get(kind)
    if rules is None:
        raise ProtocolViolationError(f"frames of type {kind} are not known here")
    frame_type, of_channel, body_bytes = rules
    if (exchange == 0) is not of_channel:
        raise ProtocolViolationError("a frame names an exchange where it must not, or none where it must")
    if body_bytes is not None and len(body) != body_bytes:
        raise ProtocolViolationError(f"a {frame_type.name} frame has a body of {len(body)} bytes")
    return Frame(frame_type, exchange, body)
