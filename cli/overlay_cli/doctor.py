"""`overlay doctor`: looks for what keeps a node from working, and says what to do about each thing."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from overlay.control.config import Config, load_config
from overlay.control.protocol import JSON
from overlay.errors import NotRunningError, OverlayError
from overlay_cli.context import ANSWER_TIMEOUT, Context, as_list, as_object
from overlay_cli.exit_codes import DONE, FAILURE, NOT_FOUND, REFUSED, UNAVAILABLE, UNREACHABLE, exit_code
from overlay_cli.output import Output, printable

OLDEST_PYTHON = (3, 11)
OLDEST_TOR = (0, 4, 6)
"""The first without v2 onion services; all that are maintained are newer."""
RELEASED = 1_780_000_000.0
"""When this version was made, roughly, in seconds since 1970: no right clock shows an earlier time."""
TOR_PROGRAM = "tor-program"
"""The check of the installed program; the transport's own is `tor`."""
TOR_TIMEOUT = 10.0
"""Seconds for `tor --version`, which takes a few milliseconds."""


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
        config.check_transports()
    except OverlayError as error:
        yield Finding("config", str(error), exit_code(error))
        return
    yield Finding("config", f"transports: {', '.join(config.transports)}")
    if "tor" in config.transports:
        yield _guarded(TOR_PROGRAM, lambda: _tor(config))
    yield from _running(context)


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
    return _tor_version(program)


def _tor_version(program: str) -> Finding:
    try:
        done = subprocess.run(  # noqa: S603 - the program was found on the user's own PATH
            [program, "--version"], capture_output=True, text=True, timeout=TOR_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return Finding(
            TOR_PROGRAM, f"{program} does not run: install your system's package 'tor' again", UNAVAILABLE
        )
    found = re.search(r"\b(\d+)\.(\d+)\.(\d+)(?:\.\d+)*", done.stdout)
    if found is None or tuple(map(int, found.groups())) < OLDEST_TOR:
        return Finding(
            TOR_PROGRAM,
            f"{program} is too old: install {'.'.join(map(str, OLDEST_TOR))} or newer",
            UNAVAILABLE,
        )
    return Finding(TOR_PROGRAM, found.group())


def _running(context: Context) -> Iterator[Finding]:
    try:
        status = context.ask("status", timeout=ANSWER_TIMEOUT)
    except NotRunningError:
        held = context.home.locked
        detail = (
            "it holds its home but takes no connection" if held else "not running: start it with 'overlay up'"
        )
        yield Finding("node", detail, UNREACHABLE if held else DONE)
        return
    except OverlayError as error:
        yield Finding("node", str(error), exit_code(error))
        return
    yield Finding("node", "running")
    for transport in map(as_object, as_list(status.get("transports"))):
        ready = transport.get("state") == "ready"
        detail = f"{transport.get('state')} {transport.get('detail')}".rstrip()
        yield Finding(str(transport.get("name")), detail, DONE if ready else UNAVAILABLE)
    yield _directory(status)


def _directory(status: dict[str, JSON]) -> Finding:
    reached = status.get("state") == "ready"
    return Finding("directory", str(status.get("detail")), DONE if reached else UNREACHABLE)
