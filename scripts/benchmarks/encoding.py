"""The ERIS encoder: its speed on one core, and the memory that a long content takes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from time import process_time

from overlay.units.capability import LARGE_BLOCK
from overlay.units.encode import Encoder
from scripts.benchmarks.figures import Figure, spread

MEGABYTE = 1_000_000
MEBIBYTE = 1 << 20
CONTENT_BYTES = 64 * MEBIBYTE
LONG_CONTENT_BYTES = 1 << 30
ROUNDS = 5


def measure_speed() -> list[Figure]:
    """Encode content again and again, as files are: piece by piece, for each second of the processor."""
    piece = os.urandom(MEBIBYTE)
    rates = [CONTENT_BYTES / MEGABYTE / _seconds_to_encode(piece, CONTENT_BYTES) for _ in range(ROUNDS)]
    detail = spread("MB/s", rates)
    what = "content through the ERIS encoder, per second of processor time"
    return [Figure("eris", what, float(detail["MB/s"]), "MB/s", 250, "more", detail)]


def measure_memory() -> list[Figure]:
    """Encode 1 GiB in a process of its own and ask for the most memory that it ever had."""
    command = [sys.executable, "-m", "scripts.benchmarks.encoding"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - ourselves
    what = "peak memory of a process that encodes 1 GiB"
    return [Figure("eris-memory", what, float(answer.stdout), "MiB", 100, "less")]


def _seconds_to_encode(piece: bytes, length: int) -> float:
    encoder = Encoder(LARGE_BLOCK, os.urandom(32))
    began = process_time()
    for _ in range(length // len(piece)):
        encoder.feed(piece)
    encoder.finish()
    return process_time() - began


def main() -> None:
    """Encode 1 GiB, and print the peak memory of this process in MiB."""
    _seconds_to_encode(os.urandom(MEBIBYTE), LONG_CONTENT_BYTES)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak / (MEBIBYTE if sys.platform == "darwin" else 1024))


if __name__ == "__main__":
    main()
