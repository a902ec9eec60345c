"""How fast something goes that comes in large steps. Pure.

Over Tor a step of what is stored at others takes seconds. A rate that fades from each to the next, as that of
`Goodput`, would swing with them.
"""

from __future__ import annotations

import math

SMOOTHING = 15.0
"""Seconds over which the rate is smoothed: a few steps over Tor."""


class Steps:
    """Bytes per second, of steps that are noted when they are done.

    Args:
        now: when the first one begins.
    """

    def __init__(self, now: float) -> None:
        self._at = now
        self._step = 0.0  # seconds that the last one took
        self._count = 0.0
        self._seconds = 0.0

    def add(self, count: int, now: float) -> None:
        """Note a step of `count` bytes, which began when the one before it ended."""
        self._step = now - self._at
        faded = math.exp(-self._step / SMOOTHING)
        self._count = faded * self._count + count
        self._seconds = faded * self._seconds + self._step
        self._at = now

    def rate(self, now: float) -> float:
        """Bytes per second; it falls when a step takes longer than the one before it."""
        seconds = self._seconds + max(0.0, now - self._at - self._step)
        return self._count / seconds if seconds > 0 else 0.0
