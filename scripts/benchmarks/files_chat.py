"""A chat beside a transfer: how long messages take between two nodes while one fetches a file from the other.

Real nodes with the real command over onion services with distance. A message counts from asking its node to
send it until `overlay chat read --follow` has printed it at the other. Beside the messages goes a raw echo
through the same two tors, with which our nodes have nothing to do: what a transfer does to it, tor does.
"""

from __future__ import annotations

import filecmp
import json
import os
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import anyio
from anyio import to_thread

from overlay.control.client import Client
from overlay.testing.programs import COMMAND, PATIENCE, Home
from overlay.testing.tor import PrivateTorNetwork
from scripts.benchmarks.children import TOR, build_transport
from scripts.benchmarks.figures import Figure
from scripts.benchmarks.onion_files import (
    FAR_DELAY,
    FAR_RATE,
    FAR_RELAYS,
    MEGABYTE,
    running_tor,
    tor_options,
)
from scripts.benchmarks.streams import echoing, serving

GOAL = 2.0
"""The 95th percentile of messages beside a transfer, over that of an idle node."""
IDLE_MESSAGES = 30
"""Messages of each node before each transfer, and as many echoes."""
MESSAGE_BYTES = 80
PAUSES = 0.4, 0.8
"""Seconds between messages, least and most, by chance so that nothing falls into step. A node tells another
one thing at a time: a message that came sooner would wait until the one before is acknowledged."""
FULL_PART = 8
"""One of so many parts of the file is there when its rate counts as full."""
_POLL = 0.05
_BLOCK_BYTES = 512  # of `st_blocks`

FETCHING, SERVING, ECHO = "from the node that fetches", "from the node that serves", "raw echo"
Ways = dict[str, Callable[[], Awaitable[float]]]
"""What is sent again and again, by what it is: each gives the milliseconds that it took."""
Samples = dict[str, list[float]]
"""Milliseconds, by what was measured."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How many bytes are fetched, and how often."""

    size: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Stage:
    """Two nodes, a file that one offers to the other, and what can be sent between them."""

    plan: Plan
    file: Path
    link: str
    getter: Home
    ways: Ways


class Screen:
    """Shows a chat as a person sees it, and notes when each text was there.

    Args:
        home: whose chat.
        session: which.
    """

    def __init__(self, home: Home, session: str) -> None:
        words = ("--json", "chat", "read", session, "--follow")
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            [*COMMAND, "--home", str(home.path), *words], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        self._shown: queue.SimpleQueue[tuple[str, float]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def shown_at(self, text: str) -> float:
        """Wait for a text and tell when it was there; those before it are passed over.

        Raises:
            queue.Empty: it did not come.
        """
        while True:
            shown, at = self._shown.get(timeout=PATIENCE)
            if shown == text:
                return at

    def close(self) -> None:
        """Show no more."""
        self._process.kill()
        self._process.wait()
        self._thread.join()

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        with self._process.stdout as lines:
            for line in lines:
                at = perf_counter()
                self._shown.put((json.loads(line)["text"], at))


async def run(plan: Plan) -> list[Figure]:
    """Start the network and measure."""
    idle: Samples = {}
    busy: Samples = {}
    rates: list[float] = []
    with tempfile.TemporaryDirectory(prefix="ov-bench-") as name:
        folder = Path(name)
        network = PrivateTorNetwork(folder / "net", FAR_RELAYS, link_delay=FAR_DELAY, link_rate=FAR_RATE)
        async with network, _stage(plan, network, folder) as stage:
            await measure(stage.ways, {}, lambda count: count < 1)  # the first ones find everything cold
            for number in range(plan.rounds):
                await measure(stage.ways, idle, lambda count: count < IDLE_MESSAGES)
                rates.append(await _fetch_and_chat(stage, folder / "copy.bin", busy))
                print(f"  round {number + 1} of {plan.rounds}", file=sys.stderr)
    return figures(idle, busy, rates)


@asynccontextmanager
async def _stage(plan: Plan, network: PrivateTorNetwork, folder: Path) -> AsyncIterator[Stage]:
    file = folder / "file.bin"
    file.write_bytes(os.urandom(plan.size))
    async with AsyncExitStack() as stack:
        tors = [await stack.enter_async_context(running_tor(network, folder / name)) for name in ("a", "b")]
        server, getter = (Home(tor.control.parent / "home", tor_options(tor)) for tor in tors)
        await to_thread.run_sync(_start, server, getter, stack)
        offers, fetches = (f"{TOR}{tor.control}" for tor in tors)
        transport = await stack.enter_async_context(build_transport(fetches, folder))
        echo = await stack.enter_async_context(serving(offers, folder / "echo"))
        round_trip = await stack.enter_async_context(echoing(transport, echo, MESSAGE_BYTES))
        talk = stack.enter_context(talking(server, getter))
        link = (await to_thread.run_sync(server.one, "file", "share", str(file)))["link"]
        yield Stage(plan, file, link, getter, talk | {ECHO: round_trip})


def _start(server: Home, getter: Home, stack: AsyncExitStack) -> None:
    for home in (server, getter):
        home.run("init", "--name", home.path.parent.name)
    server.up("--directory")
    stack.callback(server.end)
    getter.up("--join", server.one("ticket")["ticket"])
    stack.callback(getter.end)


@contextmanager
def talking(server: Home, getter: Home) -> Iterator[Ways]:
    """Open a chat between two nodes, and give what sends a message each way."""
    with ExitStack() as stack:
        created = server.one("chat", "create", "benchmark")
        getter.run("chat", "join", created["invite"])
        ways: Ways = {}
        for name, sender, reader in ((FETCHING, getter, server), (SERVING, server, getter)):
            screen = Screen(reader, created["session"])
            stack.callback(screen.close)
            client = stack.enter_context(Client(sender.path / "control.sock", timeout=PATIENCE))
            ways[name] = partial(to_thread.run_sync, _send, client, created["session"], screen)
        yield ways


def _send(client: Client, session: str, screen: Screen) -> float:
    """Send a message, and give the milliseconds until it is shown."""
    text = os.urandom(MESSAGE_BYTES // 2).hex()
    began = perf_counter()
    client.call("chat.send", {"session": session, "text": text})
    return (screen.shown_at(text) - began) * 1000


async def measure(ways: Ways, samples: Samples, goes_on: Callable[[int], bool]) -> None:
    """Send in all ways side by side; what is on its way when it is over does not count."""

    async def repeat(send: Callable[[], Awaitable[float]], times: list[float]) -> None:
        count = 0
        while goes_on(count):
            await anyio.sleep(random.uniform(*PAUSES))  # noqa: S311 - no secret
            milliseconds = await send()
            if goes_on(count):
                times.append(milliseconds)
            count += 1

    async with anyio.create_task_group() as group:
        for name, send in ways.items():
            group.start_soon(repeat, send, samples.setdefault(name, []))


async def _fetch_and_chat(stage: Stage, copy: Path, busy: Samples) -> float:
    """Fetch the file while messages go both ways; gives the MB/s.

    Raises:
        AssertionError: what was fetched is something else.
    """
    seconds: list[float] = []

    async def get() -> None:
        began = perf_counter()
        await to_thread.run_sync(stage.getter.run, "file", "get", stage.link, "-o", str(copy))
        seconds.append(perf_counter() - began)

    async with anyio.create_task_group() as group:
        group.start_soon(get)
        while not seconds and _written(copy) < stage.plan.size // FULL_PART:  # noqa: ASYNC110 - no event tells
            await anyio.sleep(_POLL)
        await measure(stage.ways, busy, lambda _: not seconds)
    if not filecmp.cmp(stage.file, copy, shallow=False):
        raise AssertionError("what was fetched is something else")
    await anyio.Path(copy).unlink()
    return stage.plan.size / MEGABYTE / seconds[0]


def _written(copy: Path) -> int:
    """Bytes that a fetch has written; its hidden file has holes where nothing came yet."""
    return sum(part.stat().st_blocks * _BLOCK_BYTES for part in copy.parent.glob(f".{copy.name}.*.part"))


def percentile(samples: Sequence[float]) -> float:
    """What 95 of 100 samples do not exceed."""
    return statistics.quantiles(samples, n=20, method="inclusive")[-1]


def figures(idle: Samples, busy: Samples, rates: Sequence[float]) -> list[Figure]:
    """Compare messages beside a transfer with those of idle nodes."""
    detail: dict[str, float | str] = {"file get MB/s": statistics.median(rates)}
    for name in idle:
        for state, samples in (("idle", idle[name]), ("beside a transfer", busy[name])):
            detail[f"{name}, {state}: messages"] = len(samples)
            detail[f"{name}, {state}: p50 ms"] = statistics.median(samples)
            detail[f"{name}, {state}: p95 ms"] = percentile(samples)
    names = {"files-chat-fetching": FETCHING, "files-chat-serving": SERVING}
    return [
        Figure(name, _what(way, detail), _ratio(way, detail), "x", GOAL, "less", detail)
        for name, way in names.items()
    ]


def _ratio(way: str, detail: dict[str, float | str]) -> float:
    return float(detail[f"{way}, beside a transfer: p95 ms"]) / float(detail[f"{way}, idle: p95 ms"])


def _what(way: str, detail: dict[str, float | str]) -> str:
    """Say it with its parts: the figure alone is a ratio."""
    idle, busy = (
        " and ".join(f"{detail[f'{way}, {state}: {part} ms']:.0f}" for part in ("p50", "p95"))
        for state in ("idle", "beside a transfer")
    )
    echo = f"a raw echo {_ratio(ECHO, detail):.2f} x"
    return f"p95 of messages {way} at full rate, against idle: p50 and p95 {busy} ms, idle {idle} ms; {echo}"


def main() -> None:
    """Measure what the JSON in the argument says, and print the figures as JSON."""
    found = anyio.run(run, Plan(**json.loads(sys.argv[1])))
    print(json.dumps([figure.fields() for figure in found]))


if __name__ == "__main__":
    main()
