"""Files: what is left of a raw stream when all is verified and on disk, and what a killed transfer costs."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import anyio

from overlay.testing.programs import COMMAND, Home
from scripts.benchmarks import files_chat, onionshare, resume
from scripts.benchmarks.children import TCP, build_transport
from scripts.benchmarks.command import status_mebibytes
from scripts.benchmarks.figures import Figure, spread
from scripts.benchmarks.onion import NEARBY, PLAIN, QUICK, can_be_quick, run_quick
from scripts.benchmarks.onion_files import FAR_DELAY, FAR_RATE, FAR_RELAYS, MEGABYTE, Plan
from scripts.benchmarks.raw import download, sending
from scripts.benchmarks.streams import MEBIBYTE

FAR = f"{FAR_RELAYS} relays, {FAR_DELAY * 1000:.0f} ms and {FAR_RATE // MEGABYTE} MB/s each"

SPARE_BYTES = 1024 * MEBIBYTE
"""What stays free on the disk beside a large file and its copy."""


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
        fill(file, size)
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


def measure_chat(effort: Effort) -> list[Figure]:
    """Measure messages between two nodes while one fetches from the other, with distance."""
    plan = files_chat.Plan((effort.mebibytes or 128) * MEBIBYTE, effort.rounds or 3)
    return _run_onion("scripts.benchmarks.files_chat", json.dumps(asdict(plan)), far=True)


def measure_large(effort: Effort) -> list[Figure]:
    """Measure the most memory that both nodes take for a file far larger than that.

    Raises:
        OSError: there is no room for the file and its copy, or this is no Linux.
    """
    size = (effort.mebibytes or 10 * 1024) * MEBIBYTE
    with tempfile.TemporaryDirectory(prefix="ov-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < 2 * size + SPARE_BYTES:
            raise OSError(f"two files of {size // MEBIBYTE} MiB have no room in {folder.parent}: set TMPDIR")
        file, copy = folder / "file.bin", folder / "copy.bin"
        fill(file, size)
        nodes = [_node(folder / each, stack) for each in ("offers", "fetches")]
        link = json.loads(_run_long(nodes[0], "file", "share", str(file)))["link"]
        seconds = _get_seconds(nodes[1], link, file, copy)
        offering, fetching = (status_mebibytes(_process(node), "VmHWM") for node in nodes)
    detail: dict[str, float | str] = {
        "bytes": size,
        "offering node MiB": offering,
        "fetching node MiB": fetching,
        "s": seconds,
        "MB/s": size / MEGABYTE / seconds,
    }
    what = f"peak memory of both nodes each, {size // MEBIBYTE} MiB over TCP loopback in {seconds:.0f} s"
    return [Figure("files-large", what, max(offering, fetching), "MiB", 150, "less", detail)]


ON_REQUEST = ("files-large",)
"""What is measured only if it is named: it takes minutes and a large part of the disk."""

BENCHMARKS: dict[str, Callable[[Effort], list[Figure]]] = {
    "files": measure_near,
    "files-far": measure_far,
    "files-chat": measure_chat,
    "files-tcp": measure_tcp,
    "files-resume": measure_resume,
    "files-large": measure_large,
}


def _measure_onion(effort: Effort, *, far: bool, mebibytes: int, rounds: int) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="ov-bench-") as folder:
        program: str | None = None
        try:
            program = str(onionshare.install(Path(folder) / "onionshare"))
        except onionshare.LeftOutError as error:
            print(f"  {error}", file=sys.stderr)
        plan = Plan(far, (effort.mebibytes or mebibytes) * MEBIBYTE, effort.rounds or rounds, program)
        return _run_onion("scripts.benchmarks.onion_files", json.dumps(asdict(plan)), far=far)


def _run_onion(module: str, plan: str, *, far: bool) -> list[Figure]:
    """Run a module that measures over onion services, and say of its figures under which conditions."""
    quick = can_be_quick()
    answer = run_quick(module, plan, quick=quick)
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


def _process(node: Home) -> int:
    assert node.process is not None  # noqa: S101 - it was started
    return node.process.pid


def _run_long(home: Home, *words: str) -> str:
    """Run a command for as long as it takes, where `Home.run` would say that it hangs; gives what it printed.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [*COMMAND, "--home", str(home.path), "--json", "--quiet", *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout  # noqa: S603 - our own


def _get_seconds(getter: Home, link: str, file: Path, copy: Path) -> float:
    began = perf_counter()
    _run_long(getter, "file", "get", link, "-o", str(copy))
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


def fill(file: Path, size: int) -> None:
    """Write a file that no compression and no repetition makes smaller."""
    with file.open("wb") as output:
        for _ in range(size // MEBIBYTE):
            output.write(os.urandom(MEBIBYTE))
