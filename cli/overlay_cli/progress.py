"""A progress bar with rate and remaining time, on a terminal only."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

BAR_WIDTH = 24
REDRAW_INTERVAL = 0.1
"""Seconds between two drawings; more only flickers."""
_LONGEST_LEFT = 100 * 3600.0  # seconds; nobody waits longer, and it is a guess anyway
_UNITS = ("KiB", "MiB", "GiB", "TiB")
_CLEAR_LINE = "\r\x1b[K"


class Progress:
    """Shows how far something is, until the block ends; then nothing of it is left on the terminal.

    Args:
        stream: where to draw; nothing is drawn unless it is a terminal.
        label: what is going on, printable.
        clock: seconds that never go back.
        shown: False draws nothing anywhere.
    """

    def __init__(self, stream: TextIO, label: str, clock: Callable[[], float], *, shown: bool = True) -> None:
        self._stream = stream
        self._label = label
        self._clock = clock
        self._shown = shown and stream.isatty()
        self._started: tuple[float, int] | None = None
        self._drawn = -REDRAW_INTERVAL

    def __call__(self, done: int, total: int) -> None:
        """Tell that `done` bytes of `total` are done."""
        now = self._clock()
        if self._started is None:
            self._started = (now, done)
        if self._shown and (now - self._drawn >= REDRAW_INTERVAL or done >= total):
            self._drawn = now
            began, first = self._started
            self._stream.write(_CLEAR_LINE + draw(self._label, done, total, now - began, done - first))
            self._stream.flush()

    def __enter__(self) -> Self:
        """Show it for the length of a block."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wipe the bar away."""
        if self._shown and self._started is not None:
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()


def draw(label: str, done: int, total: int, seconds: float, moved: int) -> str:
    """Draw one line.

    Args:
        label: what is going on.
        done: bytes done.
        total: bytes in all.
        seconds: how long it has been observed.
        moved: bytes done meanwhile.
    """
    share = min(done / total, 1.0) if total > 0 else 1.0
    filled = int(share * BAR_WIDTH)
    bar = "#" * filled + "-" * (BAR_WIDTH - filled)
    rate = moved / seconds if seconds > 0 else 0.0
    seconds_left = (total - done) / rate if rate > 0 else _LONGEST_LEFT
    left = f", {duration(seconds_left)} left" if done < total and seconds_left < _LONGEST_LEFT else ""
    return f"{label} [{bar}] {share:4.0%} {size(done)} of {size(total)}, {size(rate)}/s{left}"


def size(count: float) -> str:
    """Write a number of bytes for a person: `3.4 MiB`."""
    if count < 1024:
        return f"{count:.0f} B"
    exponent = 1
    while count >= 1024 ** (exponent + 1) and exponent < len(_UNITS):
        exponent += 1
    return f"{count / 1024**exponent:.1f} {_UNITS[exponent - 1]}"


def duration(seconds: float) -> str:
    """Write a number of seconds for a person: `2 h 5 min`, `1 min 3 s`, `9 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class StatusLine:
    """Shows a status that changes: in place on a terminal, line by line elsewhere.

    Args:
        stream: where to show it.
        shown: False shows nothing.
    """

    def __init__(self, stream: TextIO, *, shown: bool) -> None:
        self._stream = stream
        self._shown = shown
        self._in_place = stream.isatty()
        self._before = ""

    def show(self, text: str, *, last: bool) -> None:
        """Show `text`, printable, instead of what was shown before; the `last` one stays."""
        if not self._shown or text == self._before:
            return
        self._before = text
        begin = _CLEAR_LINE if self._in_place else ""
        end = "" if self._in_place and not last else "\n"
        self._stream.write(begin + text + end)
        self._stream.flush()
