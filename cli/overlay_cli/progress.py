"""What changes while a command runs: progress bars with rate and remaining time, and statuses in place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self, TextIO

from overlay.control.protocol import JSON

BAR_WIDTH = 24
MIN_BAR_WIDTH = 6
REDRAW_INTERVAL = 0.1
"""Seconds between two drawings; more only flickers."""
LINE_INTERVAL = 1.0
"""Seconds between two lines of progress for programs: a transfer of an hour has a log that can be read."""
DEFAULT_SIZE = (80, 24)
"""Columns and lines of a terminal that does not say how large it is."""
_LONGEST_LEFT = 100 * 3600.0  # seconds; nobody waits longer, and it is a guess anyway
_UNITS = ("KiB", "MiB", "GiB", "TiB")
_CLEAR_LINE = "\r\x1b[K"
_NOTHING: Mapping[str, JSON] = {}


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

    def __call__(self, done: int, total: int, more: Mapping[str, JSON] = _NOTHING) -> None:
        """Tell that `done` bytes of `total` are done, and `more` of docs/spec/control.md; see `draw`."""
        now = self._clock()
        if self._started is None:
            self._started = (now, done)
        if self._shown and (now - self._drawn >= REDRAW_INTERVAL or 0 < total <= done):
            self._drawn = now
            began, first = self._started
            width = terminal_size(self._stream)[0] - 1
            line = draw(self._label, done, total, now - began, done - first, more=more, width=width)
            self._stream.write(_CLEAR_LINE + line)
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


class ProgressLines:
    """Shows the same to a program: `{"progress": …}`, a line each second at most.

    Args:
        stream: where to write.
        clock: seconds that never go back.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._written = float("-inf")

    def __call__(self, done: int, total: int, more: Mapping[str, JSON] = _NOTHING) -> None:
        """Tell that `done` bytes of `total` are done, and `more` of docs/spec/control.md.

        A total that is not known, which is 0 there, is null: nobody divides by that.
        """
        now = self._clock()
        if now - self._written >= LINE_INTERVAL:
            self._written = now
            told = {"done": done, **more, "total": total or None}  # what the node says has a total, too
            self._stream.write(json.dumps({"progress": told}) + "\n")
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
        """Nothing is left to do."""


def draw(
    label: str,
    done: int,
    total: int,
    seconds: float,
    moved: int,
    *,
    more: Mapping[str, JSON] = _NOTHING,
    width: int = 200,
) -> str:
    """Draw one line; where it is too long, first the bar gives way, then what is said last.

    Without a total there is no bar.

    Args:
        label: what is going on.
        done: bytes done.
        total: bytes in all; 0 while that is not known.
        seconds: how long it has been observed.
        moved: bytes done meanwhile.
        more: what the node says of it; its `rate` and `left` come before those that were observed.
        width: columns at most.
    """
    rate, left = _pace(done, total, seconds, moved, more)
    parts = [f"{size(done)} of {size(total)}" if total > 0 else size(done)]
    if not stands_still(more):
        parts.append(f"{size(rate)}/s")
    if done < total and left < _LONGEST_LEFT and not stands_still(more):
        parts.append(f"{duration(left)} left")
    if not 0 < total <= done or not stands_still(more):
        parts += used(more)
    if total <= 0:
        return f"{label} {', '.join(parts)}"[:width]
    share = min(done / total, 1.0)
    while len(parts) > 1 and _length(label, parts) + MIN_BAR_WIDTH > width:
        parts.pop()
    room = max(MIN_BAR_WIDTH, min(BAR_WIDTH, width - _length(label, parts)))
    filled = int(share * room)
    bar = "#" * filled + "-" * (room - filled)
    return f"{label} [{bar}] {share:4.0%} {', '.join(parts)}"[:width]


def stands_still(more: Mapping[str, JSON]) -> bool:
    """Whether nothing comes because no provider is connected: a rate would be that of earlier seconds."""
    return more.get("circuits") == 0 and more.get("stage") != "storing"


def used(more: Mapping[str, JSON]) -> list[str]:
    """Say what a fetch uses: `3 circuits to 2 nodes`, or why none; nothing where there is nothing to say."""
    circuits, providers = more.get("circuits"), more.get("providers")
    if not isinstance(circuits, int) or not isinstance(providers, int) or more.get("stage") == "storing":
        return []
    if more.get("stage") == "looking":
        return ["looking at what is there"]
    liars = more.get("liars")
    left = [f"{counted(len(liars), 'node')} sent wrong chunks"] if isinstance(liars, list) and liars else []
    if not circuits:
        return ["no provider is connected, still trying", *left]
    return [f"{counted(circuits, 'circuit')} to {counted(providers, 'node')}", *left]


def counted(count: int, name: str) -> str:
    """Write how many of something there are: `1 node`, `2 nodes`."""
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


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


def terminal_size(stream: TextIO) -> tuple[int, int]:
    """Tell how many columns and lines a terminal has."""
    try:
        found = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):  # no terminal; no descriptor either
        return DEFAULT_SIZE
    return found.columns or DEFAULT_SIZE[0], found.lines or DEFAULT_SIZE[1]


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


class StatusBlock:
    """Shows lines that change, and stay when it ends: in place on a terminal, one below the other elsewhere.

    Args:
        stream: where to show them.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._in_place = stream.isatty()
        self._before: list[str] = []

    def show(self, lines: Sequence[str]) -> None:
        """Show `lines`, printable, instead of those before; a terminal gets as much as it has room for."""
        shown = [*lines]
        if self._in_place:
            width, height = terminal_size(self._stream)
            shown = [line[: width - 1] for line in lines[: height - 1]]
        if shown == self._before:
            return
        if self._in_place and self._before:  # back to the first line, and wipe all away
            self._stream.write(f"\x1b[{len(self._before)}A\r\x1b[J")
        self._before = shown
        self._stream.writelines(line + "\n" for line in shown)
        self._stream.flush()


def _pace(done: int, total: int, seconds: float, moved: int, more: Mapping[str, JSON]) -> tuple[float, float]:
    """Bytes a second, and seconds left: as the node says, else as observed."""
    told, left = more.get("rate"), more.get("left")
    if isinstance(told, int | float):
        return told, left if isinstance(left, int | float) else _LONGEST_LEFT
    rate = moved / seconds if seconds > 0 else 0.0
    return rate, (total - done) / rate if rate > 0 else _LONGEST_LEFT


def _length(label: str, parts: Sequence[str]) -> int:
    """Columns of a line but for its bar."""
    return len(label) + len(" [] 100% ") + len(", ".join(parts))
