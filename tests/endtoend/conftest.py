"""Fixtures of the tests that run real `overlay` processes."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from overlay.testing.programs import Home, MakeHome


@pytest.fixture
def make_home() -> Iterator[MakeHome]:
    """Make homes whose nodes end with the test."""
    homes: list[Home] = []
    # Short: a Unix socket's path has at most 107 bytes, and pytest's own folders are long.
    with tempfile.TemporaryDirectory(prefix="ov-") as folder:

        def make(name: str, *, up_options: Sequence[str] = ("--transport", "tcp")) -> Home:
            home = Home(Path(folder) / name, up_options)
            homes.append(home)
            home.run("init", "--name", name)
            return home

        yield make
        for home in homes:
            if home.process is not None:
                home.end(signal.SIGKILL)
