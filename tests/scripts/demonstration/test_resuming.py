"""The part of the demonstration that kills a node, with real nodes over TCP."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from scripts.demonstration.console import Console
from scripts.demonstration.processes import Household, StepFailedError, left_over
from scripts.demonstration.resuming import COPY, NAME, SIZES, ResumedFetch

pytestmark = pytest.mark.timeout(120)
UP = ("--transport", "tcp", "--listen", "127.0.0.1:0")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ov-demo-") as name:  # short, for a Unix socket's path
        yield Path(name).resolve()


@pytest.fixture
def household(folder: Path) -> Iterator[Household]:
    household = Household(folder, lambda *_: None)
    for name in ("ada", "bob"):
        household.run("overlay", "--home", name, "init")
    household.node("ada", *UP, "--directory")
    household.run("overlay", "--home", "ada", "status", "--wait", "60")
    household.node("bob", *UP, "--join", household.run("overlay", "--home", "ada", "ticket")["ticket"])
    household.run("overlay", "--home", "bob", "status", "--wait", "60")
    yield household
    household.close()
    assert left_over(folder) == []


def test_a_killed_fetch_goes_on_and_says_how_much_was_there(folder: Path, household: Household) -> None:
    out = StringIO()
    ResumedFetch(folder, Console(out), household, UP, SIZES["tcp"]).tell()
    story = out.getvalue()
    assert re.search(r"of 192.0 MiB, .*/s, [2-8] circuits to \d node", story)
    there, came = (
        float(found[1])
        for found in (re.search(rf"([\d.]+) MiB {what}", story) for what in ("were", "came"))
        if found
    )
    assert there >= 48
    assert there + came == pytest.approx(192, abs=0.2)
    assert (folder / COPY).read_bytes() == (folder / NAME).read_bytes()


def test_a_file_that_comes_too_soon_is_no_proof(folder: Path, household: Household) -> None:
    story = ResumedFetch(folder, Console(StringIO()), household, UP, 1024 * 1024)
    with pytest.raises(StepFailedError, match="was there before"):
        story.tell()
