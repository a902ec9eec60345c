from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

from overlay.errors import TransportUnavailableError
from overlay.testing import i2p_clock
from overlay.testing.i2p_clock import SharedClock, compile_clock

SLEEP = [shutil.which("sleep") or "sleep", "30"]
READ_UNTIL_TOLD = """
import select, sys, time
wrong, begun = 0, time.time()
print("reading", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    wrong += sum(not begun <= time.time() <= begun + 3600 for _ in range(1000))
    time.sleep(1e-7)
print(wrong)
"""
READ = "import time; print(time.time()); input(); print(time.time())"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None and os.environ.get("CI") != "true":
        pytest.skip("cc not installed")
    return anyio.run(compile_clock, tmp_path_factory.mktemp("clock"))


def test_the_date_runs_at_the_pace_and_keeps_what_it_gained(library: Path, tmp_path: Path) -> None:
    with SharedClock(tmp_path / "clock") as clock:
        environment = {**os.environ, **clock.environment(library)}
        with subprocess.Popen(
            [sys.executable, "-c", READ],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert float(process.stdout.readline()) == pytest.approx(time.time(), abs=5)
            clock.set_pace(1e6)
            clock.set_pace(1.0)
            process.stdin.write("\n")
            process.stdin.flush()
            gained = float(process.stdout.readline()) - time.time()
    assert 0.5 < gained < 1e6


def test_stated_waits_become_shorter(library: Path, tmp_path: Path) -> None:
    with SharedClock(tmp_path / "clock") as clock:
        clock.set_pace(100.0)
        begun = time.monotonic()
        subprocess.run(SLEEP, env={**os.environ, **clock.environment(library)}, check=True)
    assert time.monotonic() - begun < 15


def test_a_date_that_is_read_while_the_pace_changes_is_right(library: Path, tmp_path: Path) -> None:
    with SharedClock(tmp_path / "clock") as clock:
        environment = {**os.environ, **clock.environment(library)}
        command = [sys.executable, "-c", READ_UNTIL_TOLD]
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"reading\n"
            for number in range(300_000):
                clock.set_pace(1.0 + number % 2 / 1000)
            output, _ = reader.communicate(b"\n")
    assert reader.returncode == 0  # waits are divided by the pace
    assert int(output) == 0


def test_a_program_whose_keeper_is_gone_does_not_start(library: Path, tmp_path: Path) -> None:
    with SharedClock(tmp_path / "clock") as clock:
        environment = {**os.environ, **clock.environment(library), "OVERLAY_KEEPER": "1"}
        assert subprocess.run(SLEEP, env=environment, check=False).returncode == 1


async def test_what_the_compiler_says_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(i2p_clock, "SOURCE", tmp_path / "missing.c")
    with pytest.raises(TransportUnavailableError, match="was not compiled"):
        await compile_clock(tmp_path)
