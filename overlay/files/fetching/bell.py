"""What wakes whoever waits for a change of a transfer."""

from __future__ import annotations

import anyio


class Bell:
    """Rung at every change. A ring is heard by those who took `next` before: take it, look, then wait."""

    def __init__(self) -> None:
        self._rung = anyio.Event()

    def ring(self) -> None:
        """Wake all who wait."""
        self._rung.set()
        self._rung = anyio.Event()

    @property
    def next(self) -> anyio.Event:
        """What the next ring sets."""
        return self._rung
