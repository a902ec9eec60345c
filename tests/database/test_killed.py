"""SIGKILL at random moments of a writer: what it acknowledged is there, nothing is half-written."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from overlay.database.sqlite import open_file

WRITER = Path(__file__).with_name("writer.py")
KILLS = 8
BODY_BYTES = 32_768


def acknowledged_until_killed(path: Path, first: int, *, acknowledgements: int, spins: int) -> int:
    """Kill the writer `spins` turns of a loop after its n-th acknowledgement; return the last number seen."""
    command = [sys.executable, str(WRITER), str(path), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        seen = [int(writer.stdout.readline()) for _ in range(acknowledgements)]
        for _ in range(spins):  # shorter than any sleep, so that kills fall everywhere within a write
            pass
        writer.kill()
        seen += [int(line) for line in writer.stdout if line.endswith(b"\n")]
    return seen[-1]


@pytest.mark.timeout(60)
def test_what_was_acknowledged_survives_and_nothing_is_half_written(tmp_path: Path) -> None:
    chance = random.Random(20_041)
    path = tmp_path / "overlay.db"
    last = -1
    for _ in range(KILLS):
        last = acknowledged_until_killed(
            path, last + 1, acknowledgements=chance.randint(1, 20), spins=chance.randint(0, 200_000)
        )
        stored = check(path)
        # One more than was acknowledged may be there: killed between its commit and its word.
        assert stored in {last, last + 1}
        last = stored


def check(path: Path) -> int:
    """Check that every number up to the highest is there, both halves and whole; return the highest."""
    connection = open_file(path)
    assert connection.pragma("integrity_check") == "ok"
    query = "SELECT number, half, body FROM notes ORDER BY number, half"
    rows: list[tuple[Any, ...]] = connection.execute(query).fetchall()
    connection.close()
    assert [row[:2] for row in rows] == [
        (number, half) for number in range(len(rows) // 2) for half in (0, 1)
    ]
    assert all(body == bytes([number % 256]) * BODY_BYTES for number, _, body in rows)
    return len(rows) // 2 - 1
