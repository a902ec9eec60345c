"""`overlay doctor`: looks for what keeps a node from working, and says what to do about each thing."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import anyio

from overlay.control.config import Config, load_config
from overlay.control.protocol import JSON
from overlay.errors import NotRunningError, OverlayError
from overlay.transports.i2p.settings import AttachedRouter, I2pTimeouts
from overlay_cli.context import ANSWER_TIMEOUT, Context, as_list, as_object
from overlay_cli.exit_codes import DONE, FAILURE, NOT_FOUND, REFUSED, UNAVAILABLE, UNREACHABLE, exit_code
from overlay_cli.output import Output, printable
from overlay_cli.transports import choose_router

OLDEST_PYTHON = (3, 11)
OLDEST_TOR = (0, 4, 6)
"""The first without v2 onion services; all that are maintained are newer."""
RELEASED = 1_780_000_000.0
"""When this version was made, roughly, in seconds since 1970: no right clock shows an earlier time."""
OLDEST_I2PD = (2, 38, 0)
"""The first that takes b32 names over SAM."""
TOR_PROGRAM = "tor-program"
"""The check of the installed program; the transport's own is `tor`."""
I2P_ROUTER = "i2p-router"
"""The check of the router, or of the program that would be launched; the transport's own is `i2p`."""
VERSION_TIMEOUT = 10.0
"""Seconds for a program to print its version, which takes a few milliseconds."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what was found, and the exit code that it stands for."""

    check: str
    detail: str
    code: int = DONE


def doctor(options: argparse.Namespace, output: Output) -> int:
    """Look at everything; the exit code is that of the first thing that is wrong."""
    context = Context(options, output)
    first = DONE
    for finding in _examine(context):
        first = first or finding.code
        mark = output.styled("ok", "green") if finding.code == DONE else output.styled("no", "red")
        output.data(
            {"check": finding.check, "ok": finding.code == DONE, "detail": finding.detail},
            f"{mark}  {finding.check:11} {printable(finding.detail)}",
        )
    return first


def _examine(context: Context) -> Iterator[Finding]:
    yield _python()
    yield _clock(context)
    if not context.home.exists:
        yield Finding("home", f"{context.home.path} is no home: make one with 'overlay init'", NOT_FOUND)
        return
    yield _guarded("home", lambda: _home(context))
    try:
        config = load_config(context.home.config)
    except OverlayError as error:
        yield Finding("config", str(error), exit_code(error))
        return
    try:
        status = context.ask("status", timeout=ANSWER_TIMEOUT)
    except OverlayError as error:
        yield from _not_running(context, config, error)
    else:
        yield Finding("config", "well-formed; what counts are the transports that the node runs with")
        yield from _running(status)


def _not_running(context: Context, config: Config, silence: OverlayError) -> Iterator[Finding]:
    config = replace(config, transports=tuple(dict.fromkeys(context.options.transport or config.transports)))
    try:
        config.check_transports()
    except OverlayError as error:
        yield Finding("config", str(error), exit_code(error))
        return
    yield Finding("config", f"transports: {', '.join(config.transports)}{_whose_choice(context)}")
    yield from _could_run(context, config)
    yield _silent(context, silence)


def _whose_choice(context: Context) -> str:
    if context.options.transport:
        return ", as --transport says"
    return "; options of 'overlay up' count more: for others, run 'overlay doctor --transport NAME'"


def _guarded(check: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except OverlayError as error:
        return Finding(check, str(error), exit_code(error))


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        return Finding(
            "python", f"{found} is too old: install {'.'.join(map(str, OLDEST_PYTHON))} or newer", FAILURE
        )
    return Finding("python", found)


def _clock(context: Context) -> Finding:
    now = time.time()  # noqa: TID251 - the machine's clock is what is looked at
    identity = context.home.path / "identity"
    made = identity.stat().st_mtime if context.home.exists else 0.0
    if now < max(RELEASED, made):
        shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
        return Finding(
            "clock", f"it shows {shown}, which is past: set it, or signatures are refused", FAILURE
        )
    return Finding("clock", "not in the past")


def _home(context: Context) -> Finding:
    context.home.identity()
    loose = [
        path for path in (context.home.path, context.home.path / "identity") if path.stat().st_mode & 0o077
    ]
    if loose:
        return Finding("home", f"others can read {loose[0]}: 'overlay up' closes it to them", REFUSED)
    return Finding("home", str(context.home.path))


def _tor(config: Config) -> Finding:
    missing = [name for name in ("stem", "socks") if importlib.util.find_spec(name) is None]
    if missing:
        return Finding(
            TOR_PROGRAM, f"{missing[0]} is missing: run pip install 'overlay-p2p[tor]'", UNAVAILABLE
        )
    if config.tor_control:
        return Finding(TOR_PROGRAM, f"the one at {config.tor_control}")
    # Imported now that the libraries that it needs are known to be there.
    program: str = importlib.import_module("overlay.transports.tor.process").find_program("tor")
    return _version(TOR_PROGRAM, program, "tor", OLDEST_TOR)


def _i2p(context: Context, config: Config) -> Finding:
    if importlib.util.find_spec("i2plib") is None:
        return Finding(I2P_ROUTER, "i2plib is missing: run pip install 'overlay-p2p[i2p]'", UNAVAILABLE)
    router = choose_router(context.home, config)
    if isinstance(router, AttachedRouter):
        return Finding(I2P_ROUTER, anyio.run(_greet, router))
    program: str = importlib.import_module("overlay.transports.i2p.router").find_i2pd(router.executable)
    return _version(I2P_ROUTER, program, "i2pd", OLDEST_I2PD)


async def _greet(router: AttachedRouter) -> str:
    sam = importlib.import_module("overlay.transports.i2p.sam")
    bridge = await sam.open_sam(router.address, I2pTimeouts())
    await bridge.aclose()
    return f"the one at {router.sam}, which speaks SAM {bridge.version}"


def _version(check: str, program: str, package: str, oldest: tuple[int, ...]) -> Finding:
    try:
        done = subprocess.run(  # noqa: S603 - the program was found on the user's own PATH, or is the user's choice
            [program, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return Finding(
            check, f"{program} does not run: install your system's package '{package}' again", UNAVAILABLE
        )
    found = re.search(r"\b(\d+)\.(\d+)\.(\d+)(?:\.\d+)*", done.stdout)
    if found is None or tuple(map(int, found.groups())) < oldest:
        needed = ".".join(map(str, oldest))
        return Finding(check, f"{program} is too old: install {needed} or newer", UNAVAILABLE)
    return Finding(check, found.group())


def _could_run(context: Context, config: Config) -> Iterator[Finding]:
    """What `overlay up` would need, where no node tells what it has."""
    if "tor" in config.transports:
        yield _guarded(TOR_PROGRAM, lambda: _tor(config))
    if "i2p" in config.transports:
        yield _guarded(I2P_ROUTER, lambda: _i2p(context, config))
    yield from _networks(config.transports)


def _silent(context: Context, error: OverlayError) -> Finding:
    if not isinstance(error, NotRunningError):
        return Finding("node", str(error), exit_code(error))
    if context.home.locked:
        return Finding("node", "it holds its home but takes no connection", UNREACHABLE)
    return Finding("node", "not running: start it with 'overlay up'")


def _running(status: Mapping[str, JSON]) -> Iterator[Finding]:
    transports = [as_object(each) for each in as_list(status.get("transports"))]
    yield from _networks([each.get("name") for each in transports])
    yield Finding("node", "running")
    yield from map(_transport, transports)
    yield _directory(status)


def _networks(names: Sequence[JSON]) -> Iterator[Finding]:
    if {"tor", "i2p"} <= set(map(str, names)):
        yield Finding(
            "networks",
            "Tor and I2P: whoever knows one of the node's two addresses can learn the other, "
            "so keep a pseudonym that must not be linked in a home with one network",
        )


def _transport(found: Mapping[str, JSON]) -> Finding:
    told = str(found.get("detail") or "")
    facts = [(name, fact) for name, fact in as_object(found.get("facts")).items() if str(fact) not in told]
    shown = "; ".join(f"{'last error' if name == 'error' else name}: {fact}" for name, fact in facts)
    detail = f"{found.get('state')} {told}".rstrip() + (f" ({shown})" if shown else "")
    return Finding(str(found.get("name")), detail, DONE if found.get("state") == "ready" else UNAVAILABLE)


def _directory(status: Mapping[str, JSON]) -> Finding:
    reached = status.get("state") == "ready"
    return Finding("directory", str(status.get("detail")), DONE if reached else UNREACHABLE)
