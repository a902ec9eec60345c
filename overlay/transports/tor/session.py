"""A tor that is ready for use: launched or attached to, authenticated, bootstrapped."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from overlay.connection import TransportStatus
from overlay.errors import TransportUnavailableError
from overlay.transports.tor.control import ControlConnection, open_control
from overlay.transports.tor.process import launch_tor, quote
from overlay.transports.tor.settings import AttachedTor, LaunchedTor, TorTimeouts

MAX_SOCKET_PATH = 103
"""Bytes of a Unix socket's path: macOS takes 103, Linux 107."""

MAX_TORRC_BYTES = 65_536
"""Bytes of extra configuration; a long list of bridges has a few thousand."""

_POLL = 0.1
_NO_ISOLATION = {"noisolatesocksauth", "prefersocksnoauth"}

Report = Callable[[TransportStatus], None]


@dataclass(frozen=True)
class TorSession:
    """What a transport needs of a tor that is ready.

    Attributes:
        control: authenticated. When it is lost, so is the session.
        proxy: address and port of a SOCKS port.
        process: the number of the launched process; None for an attached tor.
        version: what tor says of itself, as `0.4.8.9`.
    """

    control: ControlConnection
    proxy: tuple[str, int]
    process: int | None
    version: str


@asynccontextmanager
async def open_session(
    tor: LaunchedTor | AttachedTor, timeouts: TorTimeouts, report: Report
) -> AsyncIterator[TorSession]:
    """Launch or attach, and wait until tor is connected to its network.

    Args:
        tor: which.
        timeouts: how long to wait for each step.
        report: told of bootstrapping as it goes.

    Yields:
        the session. A launched tor ends with the block.

    Raises:
        TransportUnavailableError: tor is not installed, is not there, refuses, or gets no further.
    """
    async with AsyncExitStack() as stack:
        process: int | None = None
        if isinstance(tor, LaunchedTor):
            control, process = await _launch(tor, timeouts, stack)
        else:
            control = await _attach(tor, timeouts, stack)
        await _bootstrapped(control, timeouts.stall, report)
        version = (await control.get_info("version")).partition(" ")[0]  # without "(git-…)"
        yield TorSession(control, await _socks_port(control), process, version)


async def _launch(
    tor: LaunchedTor, timeouts: TorTimeouts, stack: AsyncExitStack
) -> tuple[ControlConnection, int]:
    directory = tor.data_directory.absolute()
    path = _socket_path(directory, stack)
    # The extra lines come first: of an option with one value the last line counts, and we depend on ours.
    torrc = [*_extra_lines(tor.extra_torrc), *_lines(directory, path)]
    process = await stack.enter_async_context(launch_tor(torrc, directory, executable=tor.executable))
    control = await process.connect_control(path, start=timeouts.start, reply=timeouts.reply)
    await stack.enter_async_context(control)
    await control.authenticate(None)
    # Tor now ends at once when this connection does; its watch over our process alone takes up to 15 s.
    await control.request("TAKEOWNERSHIP")
    return control, process.pid


def _lines(directory: Path, control: Path) -> list[str]:
    return [
        f"DataDirectory {quote(directory)}",
        f"ControlSocket {quote(control)}",
        "CookieAuthentication 1",
        f"CookieAuthFile {quote(directory / 'control_auth_cookie')}",
        "SocksPort 127.0.0.1:auto IsolateSOCKSAuth ExtendedErrors",
        "ClientOnly 1",
        "AvoidDiskWrites 1",
    ]


def _socket_path(directory: Path, stack: AsyncExitStack) -> Path:
    """In the data directory; in a temporary one of ours where that path would be too long."""
    path = directory / "control.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    short = tempfile.TemporaryDirectory(prefix="overlay-", ignore_cleanup_errors=True)
    return Path(stack.enter_context(short)) / "control.sock"


def _extra_lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TORRC_BYTES + 1)
        lines = data.decode("utf-8").splitlines()
    except OSError as error:
        raise TransportUnavailableError(f"the torrc file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TransportUnavailableError(f"the torrc file {path} is no text") from error
    if len(data) > MAX_TORRC_BYTES:
        raise TransportUnavailableError(f"the torrc file {path} is longer than {MAX_TORRC_BYTES} bytes")
    return lines


async def _attach(tor: AttachedTor, timeouts: TorTimeouts, stack: AsyncExitStack) -> ControlConnection:
    control = await open_control(tor.address, reply_timeout=timeouts.reply)
    await stack.enter_async_context(control)
    await control.authenticate(tor.password() if tor.password else None)
    await _require_isolation(control)
    return control


async def _require_isolation(control: ControlConnection) -> None:
    """Refuse a tor that would let connections share circuits that were asked to be apart.

    Raises:
        TransportUnavailableError: it would.
    """
    for line in await control.request("GETCONF SocksPort"):
        if _NO_ISOLATION & set(line.lower().split()):
            raise TransportUnavailableError(
                "this tor's SocksPort does not keep circuits apart: remove NoIsolateSOCKSAuth and"
                " PreferSOCKSNoAuth from its configuration"
            )


async def _bootstrapped(control: ControlConnection, stall: float, report: Report) -> None:
    """Wait for 100 percent, as long as there is progress.

    Raises:
        TransportUnavailableError: there is none.
    """
    reported: tuple[int, str] | None = None
    deadline = anyio.current_time() + stall
    while True:
        progress, doing = await control.bootstrap()
        if progress == 100:
            return
        if reported is None or progress > reported[0]:
            deadline = anyio.current_time() + stall
        if (progress, doing) != reported:
            reported = progress, doing
            report(TransportStatus("starting", f"bootstrapping: {doing}", progress))
        if anyio.current_time() >= deadline:
            raise TransportUnavailableError(
                f"tor got no further than {progress} % in {stall:.0f} s ({doing}): check the internet"
                " connection, or add bridges with --torrc where Tor is blocked"
            )
        await anyio.sleep(_POLL)


async def _socks_port(control: ControlConnection) -> tuple[str, int]:
    """Ask tor where it takes SOCKS connections; Unix sockets are left out.

    Raises:
        TransportUnavailableError: nowhere.
    """
    for listener in shlex.split(await control.get_info("net/listeners/socks")):
        host, _, port = listener.rpartition(":")
        if host != "unix" and port.isascii() and port.isdigit():
            return host.strip("[]"), int(port)
    raise TransportUnavailableError("this tor has no SOCKS port: add 'SocksPort auto' to its configuration")
