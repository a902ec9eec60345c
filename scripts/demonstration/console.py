"""What the demonstration prints: numbered steps, commands as they are typed, times, what each step proves."""

from __future__ import annotations

import os
import shlex
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TextIO

WIDTH = 110
"""Columns of a line of text, where the terminal has as many."""
LONGEST_WORD = 48
"""Characters of an argument that are shown; a ticket has hundreds, and nobody reads them."""

_STYLES = {"bold": "1", "dim": "2", "green": "32", "red": "31", "cyan": "36"}


class Console:
    """Prints the steps of the demonstration.

    Args:
        out: where to; it is coloured when it is a terminal and NO_COLOR is not set.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._colour = out.isatty() and not os.environ.get("NO_COLOR")
        self._width = min(WIDTH, shutil.get_terminal_size((WIDTH, 0)).columns)
        self._steps = 0
        self._began = perf_counter()

    def headline(self, text: str) -> None:
        """Print what is about to be seen."""
        self._print(f"\n{self._paint(text, 'bold')}")

    @contextmanager
    def step(self, title: str, *, proves: str) -> Iterator[None]:
        """Print a numbered step, run the block, and say how long it took and what that proves."""
        self._steps += 1
        self._print(f"\n{self._paint(f'{self._steps}  {title}', 'bold')}")
        began = perf_counter()
        yield
        lines = textwrap.wrap(proves, self._width - 14)
        seconds = f"{perf_counter() - began:5.1f} s"
        self._print(f"   {self._paint('✓', 'green')} {seconds}  {lines[0]}")
        for line in lines[1:]:
            self._print(" " * 14 + line)

    def command(self, words: Sequence[str], *, background: bool = False) -> None:
        """Print a command as a person types it, with very long arguments shortened."""
        shown = " ".join(_quoted(word) if len(word) <= LONGEST_WORD else f"{word[:24]}…" for word in words)
        self._print(self._paint(f"   $ {shown}{' &' if background else ''}", "cyan"))

    def fact(self, label: str, text: str) -> None:
        """Print something that a command answered."""
        self._print(f"     {self._paint(f'{label:<10}', 'dim')} {text}")

    def failure(self, reason: str, details: Sequence[str]) -> None:
        """Print why the demonstration ends early, and the last words of whoever is to blame."""
        self._print(f"   {self._paint('✗ failed:', 'red')} {reason}")
        for line in details:
            self._print(self._paint(f"     | {line}", "dim"))

    def farewell(self, text: str) -> None:
        """Print the last line, with the time that everything took together."""
        self._print(f"\n{self._paint(f'{text} {perf_counter() - self._began:.1f} s in all.', 'bold')}\n")

    def _paint(self, text: str, style: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._colour else text

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)


def _quoted(word: str) -> str:
    return f'"{word}"' if " " in word and '"' not in word else shlex.quote(word)
