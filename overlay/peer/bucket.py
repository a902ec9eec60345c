"""A rate limit as arithmetic: when the next bytes may pass. Pure.

The bucket is kept as the one moment at which it owes nothing (the *virtual scheduling* form of ITU-T I.371):
each amount that passes moves that moment by its own duration. So nothing adds up and loses precision, and the
time to wait for is exact. What passes may be larger than the bucket: it passes when nothing is owed, and what
comes after it waits longer.
"""

from __future__ import annotations

from overlay.errors import MalformedError

BURST_SECONDS = 0.25
"""Seconds whose unused rate may be used later, at once: more than a pause of the event loop, and less than
anybody sees in a display of rates."""

MIN_RATE = 16 * 1024
"""Bytes per second of the lowest limit: half a large chunk. Below it, requests would time out for waiting."""

MAX_RATE = 1 << 40
"""Bytes per second of the highest limit: faster than any machine; more was meant for something else."""


def check_rate(rate: int) -> int:
    """Give back a rate that can be a limit.

    Raises:
        MalformedError: it is negative, zero, or otherwise none.
    """
    if not MIN_RATE <= rate <= MAX_RATE:
        raise MalformedError(
            f"a limit is {MIN_RATE} to {MAX_RATE} bytes a second, or 'none'; {rate} is neither"
        )
    return rate


class Bucket:
    """Bytes that may pass: over any `t` seconds at most `rate * (t + BURST_SECONDS)`, and one amount more.

    Args:
        rate: bytes per second; None is no limit.
        now: seconds.
    """

    def __init__(self, rate: int | None, now: float) -> None:
        self._rate = rate
        self._paid_at = now

    @property
    def rate(self) -> int | None:
        """Bytes per second; None is no limit."""
        return self._rate

    def free_at(self, now: float) -> float:
        """Tell when something may pass: not later than `now` if it may at once."""
        return now if self._rate is None else self._paid_at

    def take(self, amount: int, now: float) -> None:
        """Note that `amount` bytes pass; it is for the caller to have waited until `free_at`."""
        if self._rate is not None:
            self._paid_at = max(self._paid_at, now - BURST_SECONDS) + amount / self._rate

    def change(self, rate: int | None, now: float) -> None:
        """Go on with another rate; what is owed is paid at that."""
        if self._rate is None or rate is None:
            self._paid_at = now
        else:
            self._paid_at = now + max(self._paid_at - now, -BURST_SECONDS) * self._rate / rate
        self._rate = rate
