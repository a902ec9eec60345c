"""Channel and chat over onion services of a private Tor network, beside a raw stream over the same.

Where the system lets us, all of it runs in a network namespace whose loopback acknowledges at once: otherwise
Nagle's algorithm and delayed acknowledgements wait for each other between tors, 40 ms at a time, which
happens on loopback only. Raw and channel run under the same conditions either way.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import anyio
import anyio.to_thread

from overlay.testing.tor import PrivateTorNetwork
from scripts.benchmarks.chat import added_latency
from scripts.benchmarks.children import build_transport
from scripts.benchmarks.command import idle_memory
from scripts.benchmarks.figures import Figure
from scripts.benchmarks.streams import MEBIBYTE, Ratio, compare, serving

BYTES = 16 * MEBIBYTE
ROUNDS = 5
PLAIN = "loopback as it is"
QUICK = "loopback with quickack"
NEARBY = "Schedulers Vanilla"

_QUICK_LOOPBACK = """
ip link set lo up
for what in 127.0.0.0/8 127.0.0.1; do
  ip route change local "$what" dev lo table local proto kernel scope host src 127.0.0.1 quickack 1
done
"""


def measure() -> list[Figure]:
    """Measure in a process of its own, in a network namespace where there can be one."""
    quick = can_be_quick()
    answer = run_quick("scripts.benchmarks.onion", f"{QUICK if quick else PLAIN}, {NEARBY}", quick=quick)
    return [Figure(**fields) for fields in json.loads(answer)]


def run_quick(module: str, *words: str, quick: bool) -> str:
    """Run a module in a process of its own and give what it prints; `quick`: in a network namespace.

    Raises:
        subprocess.CalledProcessError: it failed; why is on standard error.
    """
    command = [sys.executable, "-m", module, *words]
    if quick:
        command = ["unshare", "-rn", "sh", "-ec", f'{_QUICK_LOOPBACK}exec "$@"', "sh", *command]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - ourselves
    return answer.stdout


def can_be_quick() -> bool:
    """Tell whether this system lets us have a network namespace, whose loopback acknowledges at once."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    trial = ["unshare", "-rn", "sh", "-ec", _QUICK_LOOPBACK]
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0  # noqa: S603 - a constant


async def run(conditions: str) -> list[Figure]:
    """Start the network and measure."""
    with tempfile.TemporaryDirectory(prefix="ov-bench-") as name:
        folder = Path(name)
        async with PrivateTorNetwork(folder / "net") as network:
            torrc = str(network.client_torrc)
            for client in ("", "echo", "reader", "bulk"):
                network.seed(folder / client / "data")
            async with build_transport(torrc, folder) as transport:
                async with serving(torrc, folder / "bulk") as server:
                    ratio = await compare(transport, server, BYTES, ROUNDS)
                added = await added_latency(transport, torrc, folder)
            memory = await anyio.to_thread.run_sync(idle_memory, "--transport", "tor", "--torrc", torrc)
    resident = Figure("memory-tor", "the same over Tor, tor not counted", memory, "MiB", 60, "less")
    return [*_figures(ratio, added, conditions), resident]


def _figures(ratio: Ratio, added: dict[str, float | str], conditions: str) -> list[Figure]:
    where: dict[str, float | str] = {"conditions": conditions}
    what = "channel throughput over an onion service, against a raw stream of it"
    channel = Figure("channel-tor", what, ratio.value, "x", 0.9, "more", ratio.detail | where)
    what = "latency of a chat message that the onion service does not account for"
    chat = Figure("chat-tor", what, float(added["added ms"]), "ms", 5, "less", added | where)
    return [channel, chat]


def main() -> None:
    """Measure, and print the figures as JSON."""
    figures = anyio.run(run, sys.argv[1])
    print(json.dumps([figure.fields() for figure in figures]))


if __name__ == "__main__":
    main()
