"""Runs the benchmarks, prints the table, and writes the figures; a goal that is missed is no failure."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from overlay.errors import OverlayError
from scripts.benchmarks import chat, command, encoding, failover, files, garlic, onion, streams
from scripts.benchmarks.figures import Failure, Figure, table

BENCHMARKS: dict[str, Callable[[], list[Figure]]] = {
    "eris": encoding.measure_speed,
    "eris-memory": encoding.measure_memory,
    "version": command.measure_version,
    "status": command.measure_status,
    "memory": command.measure_memory,
    "channel": streams.measure_tcp,
    "chat": chat.measure_tcp,
    "tor": onion.measure,
    "i2p": garlic.measure,
    "failover": failover.measure,
}

ALL = (*BENCHMARKS, *files.BENCHMARKS)
USUAL = tuple(name for name in ALL if name not in files.ON_REQUEST)
"""What is measured if nothing is named."""


def run(names: Sequence[str], effort: files.Effort) -> list[Figure | Failure]:
    """Run the benchmarks called `names`, one after the other; those of files with `effort`."""
    outcomes: list[Figure | Failure] = []
    for name in names:
        print(f"measuring {name} …", file=sys.stderr)
        try:
            outcomes += BENCHMARKS[name]() if name in BENCHMARKS else files.BENCHMARKS[name](effort)
        except (OverlayError, OSError, subprocess.CalledProcessError) as error:
            outcomes.append(Failure(name, str(error)))
    return outcomes


def conditions_of(outcomes: Sequence[Figure | Failure]) -> set[str]:
    """The network settings that figures name."""
    figures = [outcome for outcome in outcomes if isinstance(outcome, Figure)]
    return {str(figure.detail["conditions"]) for figure in figures if "conditions" in figure.detail}


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "overlay": version("overlay-p2p"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=ALL, help="measure this alone (repeatable)")
    parser.add_argument("--mebibytes", type=int, help="size of what the benchmarks of files fetch")
    parser.add_argument("--rounds", type=int, help="how often they fetch it")
    parser.add_argument("--kills", type=int, help="how often files-resume kills both ends")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and end")
    chosen = parser.parse_args()
    if chosen.list:
        print("\n".join(ALL))
        return
    outcomes = run(chosen.only or USUAL, files.Effort(chosen.mebibytes, chosen.rounds, chosen.kills))
    print(table(outcomes))
    for conditions in sorted(conditions_of(outcomes)):
        print(f"onion services: a private Tor network on {conditions}")
    if chosen.json:
        figures = [outcome.to_json() for outcome in outcomes if isinstance(outcome, Figure)]
        chosen.json.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
