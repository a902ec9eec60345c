"""Distance between two places, as a calculation: when what is sent now arrives at the other end.

Pure: bytes and the time go in, bytes come out when it is theirs. `overlay.testing.distance` moves them.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from overlay.errors import MalformedError

MAX_DELAY = 1.0
"""Seconds in one direction: far more than a link on Earth takes, and what its buffers are bounded by."""

MAX_PIECE_BYTES = 65_536
"""Bytes that are read at once."""

PIECE_TIME = 0.005
"""Seconds that a piece is on its way into the link at most, so that connections take turns."""

MIN_PIECE_BYTES = 1460
"""Bytes of a piece on a slow link: what a packet holds on an Ethernet."""

MAX_QUEUE_TIME = 0.02
"""Seconds for which bytes queue before a busy link; who has more to send is kept waiting."""

UNPACED_RATE = 50_000_000
"""Bytes a second that a link without a rate has buffers for; tor carries half of it on two processors."""


@dataclass(frozen=True, slots=True)
class Distance:
    """What lies between two nodes; nothing at all if both are left out.

    Attributes:
        delay: seconds that each byte is on its way, in each direction.
        rate: bytes a second in each direction; None for no limit.
    """

    delay: float = 0.0
    rate: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no link can have.

        Raises:
            MalformedError: a delay below 0, above 1 s or not a number, or a rate below 1.
        """
        if not 0 <= self.delay <= MAX_DELAY:
            raise MalformedError(f"a link's delay is 0 to {MAX_DELAY:g} seconds, not {self.delay:g}")
        if self.rate is not None and not self.rate >= 1:
            raise MalformedError(f"a link's rate is at least 1 byte a second, not {self.rate}")

    def __bool__(self) -> bool:
        """Tell whether there is any distance."""
        return self.delay > 0 or self.rate is not None

    @property
    def piece_bytes(self) -> int:
        """How much of one connection is read and sent at once."""
        if self.rate is None:
            return MAX_PIECE_BYTES
        return min(MAX_PIECE_BYTES, max(MIN_PIECE_BYTES, int(self.rate * PIECE_TIME)))

    @property
    def most_bytes(self) -> int:
        """How much of one direction of a connection is held before the next piece is waited with.

        It is what the link carries while a byte queues and travels, so that it is never the limit.
        """
        rate = self.rate or UNPACED_RATE
        return math.ceil(rate * (self.delay + MAX_QUEUE_TIME)) + self.piece_bytes


class Pace:
    """The time that a link needs to take bytes in, shared by all connections over it in one direction."""

    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        self._free_at = -math.inf

    @property
    def open_at(self) -> float:
        """From when on more bytes may queue."""
        return self._free_at - MAX_QUEUE_TIME

    def send(self, size: int, now: float) -> float:
        """Take bytes in after all that came before.

        Returns:
            when the last of them has left.
        """
        seconds = size / self._rate if self._rate else 0.0
        self._free_at = max(self._free_at, now) + seconds
        return self._free_at


class DelayLine:
    """What is on its way in one direction of one connection, in its order.

    Args:
        distance: how long, and how fast.
        pace: of this direction of the link, shared with other connections.

    Attributes:
        ended: whether the end of the stream has arrived, after all of its bytes.
    """

    def __init__(self, distance: Distance, pace: Pace) -> None:
        self._distance = distance
        self._pace = pace
        self._on_its_way: deque[tuple[float, bytes]] = deque()  # b"" for the end of the stream
        self._held = 0
        self.ended = False

    @property
    def full(self) -> bool:
        """Whether nothing more may be fed before something was taken."""
        return self._held >= self._distance.most_bytes

    @property
    def open_at(self) -> float:
        """From when on the link takes more, if nobody else gives it something first."""
        return self._pace.open_at

    def feed(self, data: bytes, now: float) -> None:
        """Send bytes."""
        self._held += len(data)
        self._on_its_way.append((self._pace.send(len(data), now) + self._distance.delay, data))

    def end(self, now: float) -> None:
        """Send the end of the stream, which is on its way as long as a byte would be."""
        self.feed(b"", now)

    @property
    def due(self) -> float | None:
        """When the next piece arrives; None if nothing is on its way."""
        return self._on_its_way[0][0] if self._on_its_way else None

    def take(self, now: float) -> bytes:
        """Receive everything that has arrived."""
        pieces = []
        while self._on_its_way and self._on_its_way[0][0] <= now:
            _, piece = self._on_its_way.popleft()
            self.ended = not piece
            pieces.append(piece)
        data = b"".join(pieces)
        self._held -= len(data)
        return data
