"""Two networks, of which one ends: how long until a message gets through over the other.

Real nodes with the real command, on a private Tor and a private I2P network. The Tor network's processes are
killed, so that its connections end at once, and nothing is left of it.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

from anyio.from_thread import start_blocking_portal

from overlay.testing.i2p import PrivateI2pNetwork
from overlay.testing.programs import Home, read_until
from overlay.testing.tor import PrivateTorNetwork
from scripts.benchmarks.figures import Figure, spread

ROUNDS = 3
NAMES = ("dir", "ada", "bob")


def measure() -> list[Figure]:
    """Measure `ROUNDS` times, each on networks of its own."""
    times = [_seconds() for _ in range(ROUNDS)]
    what = "from the death of the Tor network until a chat message has come over I2P"
    return [Figure("failover", what, float(spread("s", times)["s"]), "s", 3, "less", spread("s", times))]


def _seconds() -> float:
    with ExitStack() as stack, ExitStack() as tor_alone:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ov-bench-")))
        portal = stack.enter_context(start_blocking_portal("asyncio"))
        i2p = stack.enter_context(portal.wrap_async_context_manager(PrivateI2pNetwork()))
        tor = tor_alone.enter_context(portal.wrap_async_context_manager(PrivateTorNetwork()))
        homes = [_home(folder / name, tor, i2p.sam_addresses[at]) for at, name in enumerate(NAMES)]
        for home in homes:
            stack.callback(_end, home)
        session = _open_chat(*homes)
        _, ada, bob = homes
        _say(ada, bob, session, "before")
        tor_alone.close()
        began = perf_counter()
        _say(ada, bob, session, "after")
        return perf_counter() - began


def _home(path: Path, tor: PrivateTorNetwork, sam: str) -> Home:
    home = Home(
        path, ("--transport", "tor", "--torrc", str(tor.client_torrc), "--transport", "i2p", "--sam", sam)
    )
    home.run("init", "--name", path.name)
    return home


def _open_chat(directory: Home, ada: Home, bob: Home) -> str:
    directory.up("--directory")
    ticket = directory.one("ticket")["ticket"]
    for home in (ada, bob):
        home.up("--join", ticket)
    created = ada.one("chat", "create", "failover")
    bob.run("chat", "join", created["invite"], "--as", "bob")
    session: str = created["session"]
    return session


def _say(ada: Home, bob: Home, session: str, text: str) -> None:
    ada.run("chat", "send", session, text)
    read_until(bob, session, text)


def _end(home: Home) -> None:
    if home.process is not None:
        home.end()
