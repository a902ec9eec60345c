"""The command: how fast it starts beside an empty Python, and what an idle node takes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, sleep

from scripts.benchmarks.figures import Figure, spread

ROUNDS = 20
OVERLAY = str(Path(sys.executable).with_name("overlay"))
_TCP = ("--transport", "tcp", "--listen", "127.0.0.1:0")
SETTLE_SECONDS = 5.0
"""What an idle node still does after its start is over by then."""


def measure_version() -> list[Figure]:
    """Compare `overlay version` with `python -c pass`."""
    what = "the time of `overlay version` over that of `python -c pass`"
    return [_compared("version", what, [OVERLAY, "version"], goal=5)]


def measure_status() -> list[Figure]:
    """Compare `overlay status`, asked of a running node, with `python -c pass`."""
    what = "the time of `overlay status` over that of `python -c pass`"
    with _idle_node(*_TCP) as (home, _):
        return [_compared("status", what, [OVERLAY, "--home", home, "status"], goal=8)]


def measure_memory() -> list[Figure]:
    """Start a node over TCP, leave it alone, and read its resident memory."""
    resident = idle_memory(*_TCP)
    return [Figure("memory", "resident memory of an idle node over TCP", resident, "MiB", 60, "less")]


def idle_memory(*options: str) -> float:
    """The resident memory, in MiB, of a node that was started with `options` and left alone."""
    with _idle_node(*options) as (_, process):
        sleep(SETTLE_SECONDS)
        return _resident_mebibytes(process)


def ready_seconds(*options: str) -> float:
    """The seconds from starting a node with `options` until `status --wait` says that it is ready."""
    began = perf_counter()
    with _idle_node(*options):
        return perf_counter() - began


def _compared(name: str, what: str, command: Sequence[str], *, goal: float) -> Figure:
    empty, ours = [], []
    for _ in range(ROUNDS):  # in turns, so that whatever else the machine does falls on both
        empty.append(_milliseconds([sys.executable, "-c", "pass"]))
        ours.append(_milliseconds(command))
    detail = spread("ms", ours) | spread("python ms", empty)
    return Figure(name, what, float(detail["ms"]) / float(detail["python ms"]), "x", goal, "less", detail)


def _milliseconds(command: Sequence[str]) -> float:
    began = perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)  # noqa: S603 - our own commands
    return (perf_counter() - began) * 1000


@contextmanager
def _idle_node(*options: str) -> Iterator[tuple[str, int]]:
    """Run a node for the length of a block; gives its home and its process."""
    with tempfile.TemporaryDirectory(prefix="ov-bench-") as folder:
        home = os.path.join(folder, "home")  # noqa: PTH118 - only ever an argument
        subprocess.run([OVERLAY, "--home", home, "--quiet", "init"], stdout=subprocess.DEVNULL, check=True)  # noqa: S603
        words = ["up", "--directory", *options]
        node = subprocess.Popen([OVERLAY, "--home", home, "--quiet", *words], stdout=subprocess.DEVNULL)  # noqa: S603
        try:
            ready = [OVERLAY, "--home", home, "--json", "status", "--wait", "60"]
            subprocess.run(ready, stdout=subprocess.DEVNULL, check=True)  # noqa: S603
            yield home, node.pid
        finally:
            node.terminate()
            node.wait()


def _resident_mebibytes(process: int) -> float:
    if Path(f"/proc/{process}/status").exists():  # small Linux systems have no ps, and macOS has no /proc
        return status_mebibytes(process, "VmRSS")
    listing = ["ps", "-o", "rss=", "-p", str(process)]
    return int(subprocess.run(listing, capture_output=True, text=True, check=True).stdout) / 1024  # noqa: S603


def status_mebibytes(process: int, field: str) -> float:
    """Read an amount of memory from Linux's status of a process: `VmRSS` is resident, `VmHWM` its peak.

    Raises:
        OSError: the process has ended, or this is no Linux.
    """
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) / 1024
