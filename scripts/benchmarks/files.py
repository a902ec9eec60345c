"""Files: what is left of a raw stream when all is verified and on disk, and what a killed transfer costs."""

from __future__ import annotations

import filecmp
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import anyio

from overlay.testing.programs import Home
from scripts.benchmarks import onionshare, resume
from scripts.benchmarks.children import TCP, build_transport
from scripts.benchmarks.figures import Figure, spread
from scripts.benchmarks.onion import NEARBY, PLAIN, QUICK, can_be_quick, run_quick
from scripts.benchmarks.onion_files import FAR_DELAY, FAR_RATE, FAR_RELAYS, MEGABYTE, Plan
from scripts.benchmarks.raw import download, sending
from scripts.benchmarks.streams import MEBIBYTE

FAR = f"{FAR_RELAYS} relays, {FAR_DELAY * 1000:.0f} ms and {FAR_RATE // MEGABYTE} MB/s each"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is fetched how often; None for what each benchmark takes by itself."""

    mebibytes: int | None = None
    rounds: int | None = None
    kills: int | None = None


def measure_near(effort: Effort) -> list[Figure]:
    """Measure over onion services without distance."""
    return _measure_onion(effort, far=False, mebibytes=64, rounds=5)


def measure_far(effort: Effort) -> list[Figure]:
    """Measure over onion services with distance."""
    return _measure_onion(effort, far=True, mebibytes=16, rounds=3)


def measure_tcp(effort: Effort) -> list[Figure]:
    """Measure the command over TCP on loopback, beside a raw stream into a file."""
    size, rounds = (effort.mebibytes or 1024) * MEBIBYTE, effort.rounds or 3
    raw: list[float] = []
    ours: list[float] = []
    with tempfile.TemporaryDirectory(prefix="ov-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        file, copy = folder / "file.bin", folder / "copy.bin"
        _fill(file, size)
        provider, getter = (_node(folder / each, stack) for each in ("offers", "fetches"))
        link = provider.one("file", "share", str(file))["link"]
        for _ in range(rounds):
            raw.append(size / MEGABYTE / anyio.run(_raw_copy, folder, copy, size))
            copy.unlink()
            ours.append(size / MEGABYTE / _get_seconds(getter, link, file, copy))
            copy.unlink()
    detail = spread("MB/s", ours) | spread("raw copy MB/s", raw)
    what = (
        f"`overlay file get` of {size // MEBIBYTE} MiB over TCP loopback, from its start to the verified file"
    )
    return [Figure("files-tcp", what, statistics.median(ours), "MB/s", 120, "more", detail)]


def measure_resume(effort: Effort) -> list[Figure]:
    """Measure what is fetched twice when both ends are killed."""
    kills = 20 if effort.kills is None else effort.kills
    return [resume.measure((effort.mebibytes or 512) * MEBIBYTE, kills)]


BENCHMARKS: dict[str, Callable[[Effort], list[Figure]]] = {
    "files": measure_near,
    "files-far": measure_far,
    "files-tcp": measure_tcp,
    "files-resume": measure_resume,
}


def _measure_onion(effort: Effort, *, far: bool, mebibytes: int, rounds: int) -> list[Figure]:
    quick = can_be_quick()
    with tempfile.TemporaryDirectory(prefix="ov-bench-") as folder:
        program: str | None = None
        try:
            program = str(onionshare.install(Path(folder) / "onionshare"))
        except onionshare.LeftOutError as error:
            print(f"  {error}", file=sys.stderr)
        plan = Plan(far, (effort.mebibytes or mebibytes) * MEBIBYTE, effort.rounds or rounds, program)
        answer = run_quick("scripts.benchmarks.onion_files", json.dumps(asdict(plan)), quick=quick)
    conditions = {"conditions": f"{QUICK if quick else PLAIN}, {FAR if far else NEARBY}"}
    figures = [Figure(**fields) for fields in json.loads(answer)]
    for figure in figures:
        figure.detail.update(conditions)
    return figures


def _node(path: Path, stack: ExitStack) -> Home:
    home = Home(path, ("--transport", "tcp", "--listen", "127.0.0.1:0"))
    home.run("init")
    home.up("--directory")
    stack.callback(home.end)
    return home


def _get_seconds(getter: Home, link: str, file: Path, copy: Path) -> float:
    began = perf_counter()
    getter.run("file", "get", link, "-o", str(copy))
    seconds = perf_counter() - began
    if not filecmp.cmp(file, copy, shallow=False):
        raise AssertionError("what was fetched is something else")
    return seconds


async def _raw_copy(folder: Path, copy: Path, size: int) -> float:
    """The seconds that a raw stream takes to bring as much into a file."""
    async with sending(TCP, folder / "raw") as locator, build_transport(TCP, folder) as transport:
        with copy.open("wb") as file:
            took = await download(transport, locator, size, take=file.write)
    return took.whole


def _fill(file: Path, size: int) -> None:
    with file.open("wb") as output:
        for _ in range(size // MEBIBYTE):
            output.write(os.urandom(MEBIBYTE))
