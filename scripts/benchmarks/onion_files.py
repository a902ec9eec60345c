"""Files over onion services: raw streams, the engine, the whole command and OnionShare, side by side.

All of them meet at the same two tors: one that offers, one that fetches. Every fetch has circuits of its own
and is counted from before its first dial. They take turns, so that whatever else the machine does falls on
all.
"""

from __future__ import annotations

import filecmp
import json
import os
import socket
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import anyio
from anyio import to_thread

from overlay.connection import Transport
from overlay.locators import NodeLocator
from overlay.peer.node import Node
from overlay.testing.programs import Home
from overlay.testing.tor import PrivateTorNetwork
from overlay.transports.tor.process import launch_tor, quote
from scripts.benchmarks import onionshare
from scripts.benchmarks.children import TOR, build_transport
from scripts.benchmarks.engine import fetch_link, fetching
from scripts.benchmarks.figures import Figure, spread
from scripts.benchmarks.raw import download, sending

FAR_RELAYS, FAR_DELAY, FAR_RATE = 8, 0.03, 20_000_000
"""What a network with distance has: relays, seconds of each link, bytes a second of each relay."""
STREAMS = 8
"""Raw streams together, as many as the engine has circuits at most."""
MEGABYTE = 1_000_000
WARM_BYTES = 65_536

RAW, RAW_OPEN, RAWS, ONE, ENGINE, GET, CURL = (
    "raw stream",
    "raw stream once open",
    f"{STREAMS} raw streams",
    "one circuit",
    "engine",
    "file get",
    "curl from OnionShare",
)
RATIOS = {
    False: (
        ("files-circuit", "the engine with one circuit, against a raw stream", ONE, RAW, 0.85),
        ("files-get", "the whole `overlay file get`, against a raw stream", GET, RAW, 0.7),
        ("files-onionshare", "the whole `overlay file get`, against OnionShare", GET, CURL, 1),
    ),
    True: (
        ("files-circuits-far", "the engine with distance, against itself with one circuit", ENGINE, ONE, 3),
        ("files-streams-far", f"the engine with distance, against {STREAMS} raw ones", ENGINE, RAWS, 0.85),
        ("files-onionshare-far", "`overlay file get` with distance, against OnionShare", GET, CURL, 2),
    ),
}
"""Without and with distance: name, what it is, two of those above, the goal for the one over the other."""

Measured = dict[str, list[float]]
"""Seconds of each round, by what was measured."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: with or without distance, how many bytes how often, and with which OnionShare."""

    far: bool
    size: int
    rounds: int
    onionshare: str | None


@dataclass(frozen=True, slots=True)
class Tor:
    """A tor that all who offer share, or all who fetch: where its control socket and its SOCKS port are."""

    control: Path
    proxy: tuple[str, int]


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that is there to fetch from and to fetch with."""

    plan: Plan
    transport: Transport
    node: Node
    raw: NodeLocator
    file: Path
    link: str
    getter: Home
    shared: str | None
    proxy: tuple[str, int]


async def run(plan: Plan) -> list[Figure]:
    """Start the network and measure."""
    measured: Measured = {}
    with tempfile.TemporaryDirectory(prefix="ov-bench-") as name:
        folder = Path(name)
        network = PrivateTorNetwork(folder / "net")
        if plan.far:
            network = PrivateTorNetwork(folder / "net", FAR_RELAYS, link_delay=FAR_DELAY, link_rate=FAR_RATE)
        async with network, _stage(plan, network, folder) as stage:
            await download(stage.transport, stage.raw, WARM_BYTES)
            for number in range(plan.rounds):
                await _round(stage, measured, folder)
                print(f"  round {number + 1} of {plan.rounds}", file=sys.stderr)
    return _figures(plan, measured)


@asynccontextmanager
async def _stage(plan: Plan, network: PrivateTorNetwork, folder: Path) -> AsyncIterator[Stage]:
    file = folder / "file.bin"
    file.write_bytes(os.urandom(plan.size))
    async with AsyncExitStack() as stack:
        offers = await stack.enter_async_context(running_tor(network, folder / "offers"))
        fetches = await stack.enter_async_context(running_tor(network, folder / "fetches"))
        transport = await stack.enter_async_context(build_transport(f"{TOR}{fetches.control}", folder))
        raw = await stack.enter_async_context(sending(f"{TOR}{offers.control}", folder / "raw"))
        node = await stack.enter_async_context(fetching(transport))
        homes = [
            Home(folder / tor.control.parent.name / "home", tor_options(tor)) for tor in (offers, fetches)
        ]
        for home in homes:
            await to_thread.run_sync(home.run, "init")
            await to_thread.run_sync(home.up, "--directory")
            stack.callback(home.end)
        link = (await to_thread.run_sync(homes[0].one, "file", "share", str(file)))["link"]
        shared = None
        if plan.onionshare is not None:
            offering = onionshare.offering(Path(plan.onionshare), file, offers.control, folder / "onionshare")
            try:
                shared = stack.enter_context(offering)
            except onionshare.LeftOutError as error:
                print(f"  {error}", file=sys.stderr)
        yield Stage(plan, transport, node, raw, file, link, homes[1], shared, fetches.proxy)


def tor_options(tor: Tor) -> Sequence[str]:
    """What a node is started with that uses a tor of these."""
    return "--transport", "tor", "--tor-control", str(tor.control)


@asynccontextmanager
async def running_tor(network: PrivateTorNetwork, directory: Path) -> AsyncIterator[Tor]:
    """Run a tor for the length of a block; what it keeps is in `directory`."""
    network.seed(directory)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        proxy = probe.getsockname()
    control = directory / "control.sock"
    lines = [
        *network.client_torrc.read_text().splitlines(),
        f"DataDirectory {quote(directory)}",
        f"ControlSocket {quote(control)}",
        f"SocksPort {proxy[0]}:{proxy[1]} IsolateSOCKSAuth ExtendedErrors",
        "CookieAuthentication 0",
        "ClientOnly 1",
        "AvoidDiskWrites 1",
    ]
    async with (
        launch_tor(lines, directory) as process,
        await process.connect_control(control, start=30, reply=30),  # waits until it is there
    ):
        yield Tor(control, proxy)


async def _round(stage: Stage, measured: Measured, folder: Path) -> None:
    """Fetch the file once in each way.

    Raises:
        AssertionError: one brought something else.
    """
    size, streams = stage.plan.size, partial(download, stage.transport, stage.raw)
    for name, opened, number in ((RAW, RAW_OPEN, 1), (RAWS, None, STREAMS)):
        result = await streams(size, streams=number)
        measured.setdefault(name, []).append(result.whole)
        if opened is not None:
            measured.setdefault(opened, []).append(result.flow)
    ways: dict[str, Callable[[Path], Awaitable[float]]] = {
        ONE: partial(fetch_link, stage.node, stage.link, max_circuits=1),
        ENGINE: partial(fetch_link, stage.node, stage.link),
        GET: partial(_in_thread, partial(_get, stage.getter, stage.link)),
    }
    if stage.shared is not None and len(measured.get(CURL, ())) == len(measured.get(GET, ())):
        ways[CURL] = partial(_in_thread, lambda path: onionshare.curl(str(stage.shared), path, stage.proxy))
    for name, fetch in ways.items():
        path = folder / "copy.bin"
        try:
            measured.setdefault(name, []).append(await fetch(path))
        except onionshare.LeftOutError as error:
            print(f"  {error}", file=sys.stderr)
            path.unlink(missing_ok=True)
            return
        if not filecmp.cmp(stage.file, path, shallow=False):
            raise AssertionError(f"{name} brought something else")
        path.unlink()


async def _in_thread(fetch: Callable[[Path], float], path: Path) -> float:
    return await to_thread.run_sync(fetch, path)


def _get(home: Home, link: str, path: Path) -> float:
    """The seconds from starting `overlay file get` until it has ended, with the file whole."""
    began = perf_counter()
    home.run("file", "get", link, "-o", str(path))
    return perf_counter() - began


def _figures(plan: Plan, measured: Measured) -> list[Figure]:
    figures = []
    for name, what, ours, theirs, goal in RATIOS[plan.far]:
        if not measured.get(theirs):
            continue
        # Where OnionShare got stuck it has fewer rounds, the first.
        ratios = [one / other for one, other in zip(measured[theirs], measured[ours], strict=False)]
        detail: dict[str, float | str] = {"bytes": plan.size} | spread("ratio", ratios)
        for each in filter(measured.get, measured):
            detail |= spread(f"{each} MB/s", [plan.size / MEGABYTE / seconds for seconds in measured[each]])
        figures.append(Figure(name, what, statistics.median(ratios), "x", goal, "more", detail))
    return figures


def main() -> None:
    """Measure what the JSON in the argument says, and print the figures as JSON."""
    figures = anyio.run(run, Plan(**json.loads(sys.argv[1])))
    print(json.dumps([figure.fields() for figure in figures]))


if __name__ == "__main__":
    main()
