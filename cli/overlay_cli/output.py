"""What a command prints: data on stdout, everything else on stderr, and nothing that steers a terminal.

Names, titles and texts come from other people. `printable` makes them harmless, and whatever is printed for
a person passes through it. With --json each line is one object in ASCII, everything else escaped.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Mapping
from typing import TextIO

from overlay.errors import OverlayError

_JOINERS = "\u200c\u200d"  # they cannot be seen, but Persian words and many emoji need them
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


def printable(text: str, *, lines: bool = False) -> str:
    r"""Make foreign text harmless to a terminal and to the eye.

    Whatever is not a printable character becomes its escape (`\x1b`, `\u202e`), so no sequence can move the
    cursor, colour what follows, or turn the direction of writing; odd spaces become plain ones.

    Args:
        text: anything.
        lines: keep line breaks, and indent what follows them so that it cannot pass for a line of ours.

    Returns:
        text of printable characters and, if asked for, line breaks.
    """
    if lines:
        return "\n    ".join(printable(line) for line in text.split("\n"))
    return "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    return character.encode("unicode_escape").decode("ascii")


class Output:
    """Where a command writes.

    Args:
        as_json: one JSON object a line.
        quiet: nothing on stderr but errors.
        stdout: for data.
        stderr: for everything else.
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        quiet: bool = False,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr

    def data(self, value: Mapping[str, object], *human: str) -> None:
        """Print one object: as a line of JSON, or as the lines in `human`, which are printable already."""
        for line in (json.dumps(value),) if self.as_json else human:
            self.stdout.write(line + "\n")
        self.stdout.flush()

    def note(self, text: str) -> None:
        """Tell a person something in passing, on stderr."""
        if not self.quiet:
            self._write_aside(printable(text))

    def error(self, error: OverlayError) -> None:
        """Print the one sentence of an error on stderr; with --json as an object."""
        if self.as_json:
            self._write_aside(json.dumps({"error": {"code": error.code, "message": str(error)}}))
        else:
            self._write_aside(f"{self.styled('overlay:', 'red', self.stderr)} {printable(str(error))}")

    def styled(self, text: str, style: str, stream: TextIO | None = None) -> str:
        """Colour `text`, where `stream` (stdout, if not given) is a terminal and NO_COLOR is not set."""
        if (
            not (stream or self.stdout).isatty()
            or os.environ.get("NO_COLOR")
            or os.environ.get("TERM") == "dumb"
        ):
            return text
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"

    def _write_aside(self, line: str) -> None:
        self.stderr.write(line + "\n")
        self.stderr.flush()


def make_encodable(*streams: TextIO) -> None:
    """Have characters that a stream's encoding lacks written as escapes, so that printing never fails."""
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
