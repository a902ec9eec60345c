"""Records: Noise transport messages of three sizes, so that lengths say little. Pure.

On the wire a record is two bytes of length, then one Noise message; both together have one of three sizes.
Inside are whole frames, then zeros. Bytes and rules: docs/spec/channel.md, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from overlay.channel.frames import HEADER_BYTES, Frame, FrameType, encode_frames
from overlay.channel.noise import TAG_BYTES, CipherState
from overlay.errors import ProtocolViolationError, VerificationError

PREFIX_BYTES = 2
CELL_BYTES = 1_024
"""The smallest record: a chat message, a credit, a heartbeat."""
PAGE_BYTES = 8_192
BLOCK_BYTES = 65_536
"""The largest record; with its prefix it is one byte short of the longest Noise message, 65,535 bytes."""

_OVERHEAD = PREFIX_BYTES + TAG_BYTES
CELL_ROOM, PAGE_ROOM, BLOCK_ROOM = (size - _OVERHEAD for size in (CELL_BYTES, PAGE_BYTES, BLOCK_BYTES))
"""Bytes of frames that fit a record of each size."""

_PREFIXES = {
    room: (room + TAG_BYTES).to_bytes(PREFIX_BYTES, "big") for room in (CELL_ROOM, PAGE_ROOM, BLOCK_ROOM)
}
_SIZES = {PREFIX_BYTES + int.from_bytes(prefix, "big"): prefix for prefix in _PREFIXES.values()}


class RecordSealer:
    """Puts frames into records and encrypts them."""

    def __init__(self, cipher: CipherState) -> None:
        self._cipher = cipher

    def seal(self, frames: Iterable[Frame]) -> bytes:
        """Put `frames` into the largest records that they fill but for less than a cell, the rest into cells.

        Args:
            frames: in the order in which they are to arrive. A frame with the bytes of a message is
                divided where a record ends.

        Returns:
            the records' bytes on the wire.
        """
        waiting = list(frames)
        out: list[bytes] = []
        while waiting:
            total = HEADER_BYTES * len(waiting)
            for _, _, body in waiting:
                total += len(body)
            room = _room_for(total)
            fitting, waiting = (waiting, []) if total <= room else _divide(waiting, room)
            out += (_PREFIXES[room], self._cipher.encrypt(encode_frames(fitting).ljust(room, b"\0")))
        return b"".join(out)


def _room_for(total: int) -> int:
    """The room in the largest record that `total` bytes fill but for less than a cell."""
    if total > BLOCK_ROOM - CELL_ROOM:
        return BLOCK_ROOM
    return PAGE_ROOM if total > PAGE_ROOM - CELL_ROOM else CELL_ROOM


def _divide(frames: list[Frame], room: int) -> tuple[list[Frame], list[Frame]]:
    """Tell the frames, or the part of one, that fit `room` bytes from the rest, of which there is some."""
    place = 0
    while frames[place].size <= room:
        room -= frames[place].size
        place += 1
    fitting, rest = frames[:place], frames[place:]
    frame, cut = rest[0], room - HEADER_BYTES
    if frame.type in {FrameType.DATA, FrameType.PART} and cut > 0:
        body = memoryview(frame.body)
        fitting.append(Frame(FrameType.PART, frame.exchange, body[:cut]))
        rest[0] = Frame(frame.type, frame.exchange, body[cut:])
    return fitting, rest


class RecordReader:
    """Cuts a byte stream into records and decrypts them. Holds less than one record between calls."""

    def __init__(self, cipher: CipherState) -> None:
        self._cipher = cipher
        self._kept = b""

    def receive(self, data: bytes) -> Iterator[bytes]:
        """Take bytes off the wire, cut in any way.

        Args:
            data: the next bytes; taken in when the first plaintext is asked for.

        Yields:
            the plaintext of each record that is now complete.

        Raises:
            ProtocolViolationError: a length that no record has, or a record that the peer did not make in
                this place: changed, repeated, left out or moved.
        """
        place = 0
        if self._kept:
            # Only the record that began before is joined: joining all of `data` would copy four to mend one.
            place = self._missing(data)
            if place > len(data):
                self._kept += data
                return
            record, self._kept = self._kept + data[:place], b""
            yield self._open(memoryview(record)[PREFIX_BYTES:])
        with memoryview(data) as view:
            while len(view) - place >= PREFIX_BYTES:
                end = place + _record_size(view[place : place + PREFIX_BYTES])
                if end > len(view):
                    break
                yield self._open(view[place + PREFIX_BYTES : end])
                place = end
        self._kept = data[place:]

    def _missing(self, data: bytes) -> int:
        """How many bytes the kept record still needs; two, while `data` does not even complete its length."""
        begin = self._kept + data[:PREFIX_BYTES]
        if len(begin) < PREFIX_BYTES:
            return PREFIX_BYTES
        return _record_size(begin[:PREFIX_BYTES]) - len(self._kept)

    def _open(self, sealed: memoryview) -> bytes:
        try:
            return self._cipher.decrypt(sealed)
        except VerificationError as error:
            raise ProtocolViolationError("a record was changed, repeated, left out or moved") from error


def _record_size(prefix: bytes | memoryview) -> int:
    size = PREFIX_BYTES + int.from_bytes(prefix, "big")
    if size not in _SIZES:
        raise ProtocolViolationError("a record has a length that records do not have")
    return size
