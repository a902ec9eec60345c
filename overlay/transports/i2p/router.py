"""An I2P router for use: one that somebody else runs, or an i2pd of our own that always ends with us.

i2pd has no option that names its owner. It is therefore the child of a few lines of shell, the keeper, which
hold the reading end of a pipe whose writing end only this process has: when that closes, because we are done
or because we were killed, the keeper ends i2pd.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio import to_thread
from anyio.abc import Process

from overlay.connection import TransportStatus
from overlay.errors import TransportUnavailableError
from overlay.transports.i2p.sam import open_sam
from overlay.transports.i2p.settings import AttachedRouter, I2pTimeouts, LaunchedRouter
from overlay.transports.private_files import write_private

MAX_CONFIG_BYTES = 65_536
"""Bytes of extra configuration; i2pd's own example, with all its comments, has about 12,000."""

MAX_LOG_TAIL = 16_384
"""Bytes read from the end of i2pd's log to explain a failure; its lines have some hundred."""

END_PATIENCE = 5.0
"""Seconds that i2pd has to end on SIGTERM before SIGKILL: its main loop looks once a second, and a router
that is killed while it writes its files leaves empty ones."""

_KEEPER_PATIENCE = 5.0  # more: seconds for the keeper, which only waits, before it is killed too

_POLL = 0.05
_PORT_LOST = "Exception in SAM bridge"  # i2pd's words when another program has the port; it goes on without
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_COMPLAINT = re.compile(r"^[\d:]+@\d+/(?:error|critical) - (.+)")
_DAEMON = re.compile(r"^\s*daemon\s*=", re.MULTILINE)
# i2pd crashes at the first dial without an address book, and would fetch lists of names with an empty one.
_ADDRESS_BOOK = ("hosts.txt", "subscriptions.txt")
_NO_NAMES = b"# No names are kept here: nodes are reached by their addresses.\n"
_OFF = ("http", "httpproxy", "socksproxy", "bob", "i2cp", "i2pcontrol", "upnp")
_CERTIFICATES = (Path("/usr/share/i2pd/certificates"), Path("/usr/local/share/i2pd/certificates"))
_MORE_PLACES = ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin", "/usr/sbin", "/usr/local/sbin")

_LOG_WRITES = 5000  # of i2pd, about 400 KB: offline it complains every few seconds, for as long as it runs
# Arguments: tenths of a second to wait after SIGTERM, writes of the log to keep, then the command.
# Its input is the pipe that we hold; its output begins with i2pd's number; its errors are the log.
_KEEPER = """
patience=$1 writes=$2
shift 2
exec 3<&0 4>&1
{
  "$@" 3<&- 4>&- 2>&1 &
  router=$!
  echo "$router" >&4
  {
    read -r _ <&3
    kill -TERM "$router"
    tenths=0
    while kill -0 "$router" && [ "$tenths" -lt "$patience" ]; do sleep 0.1; tenths=$((tenths + 1)); done
    kill -KILL "$router"
  } >/dev/null 2>&1 4>&- &
  watcher=$!
  exec 3<&- 4>&-
  wait "$router"
  kill -KILL "$watcher"
} | { dd bs=65536 count="$writes" 2>/dev/null; exec cat >/dev/null; } 3<&- 4>&- >&2
"""

Report = Callable[[TransportStatus], None]


@dataclass(frozen=True)
class RouterHandle:
    """A router that answers.

    Attributes:
        address: of its SAM bridge.
        version: of SAM, that it speaks.
        launched: whether it is ours, and ends with us.
    """

    address: tuple[str, int]
    version: str
    launched: bool


@asynccontextmanager
async def open_router(
    router: LaunchedRouter | AttachedRouter, timeouts: I2pTimeouts, report: Report
) -> AsyncIterator[RouterHandle]:
    """Launch or attach, and wait until the router answers. That says nothing of its tunnels yet.

    Args:
        router: which.
        timeouts: `start` and `hello` are the limits.
        report: told what is being waited for.

    Yields:
        what is needed to use it. A launched one ends with the block, and with this process however that ends.

    Raises:
        TransportUnavailableError: it is not installed, does not start, is not there, or is no SAM bridge.
    """
    if isinstance(router, AttachedRouter):
        report(TransportStatus("starting", "looking for the I2P router"))
        yield RouterHandle(router.address, await _version(router.address, timeouts), launched=False)
        return
    report(TransportStatus("starting", "starting i2pd"))
    try:
        port = _free_port()
    except OSError as error:
        raise TransportUnavailableError(f"there is no port for i2pd: {error.strerror}") from error
    async with launch_i2pd(router, port) as process:
        yield RouterHandle(("127.0.0.1", port), await process.answered(port, timeouts), launched=True)


async def _version(address: tuple[str, int], timeouts: I2pTimeouts) -> str:
    async with await open_sam(address, timeouts) as sam:
        return sam.version


class I2pdProcess:
    """A running i2pd and its keeper. Made by `launch_i2pd`.

    Attributes:
        pid: i2pd's own number.
    """

    def __init__(self, keeper: Process, pid: int, log: Path) -> None:
        self.pid = pid
        self._keeper = keeper
        self._log = log

    @property
    def ended(self) -> bool:
        """Whether i2pd is gone; the keeper ends with it."""
        return self._keeper.returncode is not None

    def reason(self) -> str:
        """What i2pd complained of last, in its own words; "it gave no reason" when it did not."""
        try:
            with self._log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_LOG_TAIL))
                text = _ANSI.sub("", file.read(MAX_LOG_TAIL).decode("utf-8", "replace"))
        except OSError as error:
            return f"its log cannot be read ({error.strerror})"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        logged = [found[1] for line in lines if (found := _COMPLAINT.match(line))]
        # What is wrong with its options i2pd prints before its log begins.
        printed = [line for line in lines if "@" not in line]
        return next(reversed(logged or printed), "it gave no reason")

    async def answered(self, port: int, timeouts: I2pTimeouts) -> str:
        """Wait until the SAM bridge answers, and return its version.

        Raises:
            TransportUnavailableError: i2pd has ended, with its reason, or did not answer in time.
        """
        with anyio.move_on_after(timeouts.start):
            while not self.ended and _PORT_LOST not in self.reason():
                try:
                    version = await _version(("127.0.0.1", port), timeouts)
                except TransportUnavailableError:  # not there yet
                    await anyio.sleep(_POLL)
                    continue
                if not _is_own(port):
                    raise TransportUnavailableError(
                        "another user's program took the port that was meant for i2pd: start again"
                    )
                return version
        if self.ended:
            raise TransportUnavailableError(f"i2pd does not start: {self.reason()}")
        raise TransportUnavailableError(
            f"i2pd did not open its SAM port within {timeouts.start:.0f} s: {self.reason()}"
        )

    async def end(self) -> None:
        """End i2pd and its keeper, and reap them; does nothing more when they are gone."""
        if self._keeper.stdin is not None:
            await self._keeper.stdin.aclose()
        with anyio.move_on_after(END_PATIENCE + _KEEPER_PATIENCE):
            await self._keeper.wait()
        if not self.ended:
            self._keeper.kill()
        await self._keeper.aclose()


@asynccontextmanager
async def launch_i2pd(router: LaunchedRouter, port: int) -> AsyncIterator[I2pdProcess]:
    """Run i2pd for the length of a block, and be sure that it has ended afterwards.

    Args:
        router: which, and where.
        port: for SAM, on 127.0.0.1; i2pd takes the UDP port before it as well.

    Yields:
        the process, started, perhaps not ready, perhaps about to end over its configuration.

    Raises:
        TransportUnavailableError: i2pd is not installed, or the directory or configuration cannot be used.
    """
    program = find_i2pd(router.executable)
    directory = router.data_directory.absolute()
    log = directory / "i2pd.log"
    config = await to_thread.run_sync(_read_config, router.extra_config)
    try:
        await _until_free(directory / "i2pd.pid")
        await to_thread.run_sync(_prepare, directory, config, log)
    except OSError as error:
        raise TransportUnavailableError(f"{directory} cannot be used for i2pd: {error.strerror}") from error
    try:
        process = await _spawn([program, *_options(directory, port)], log)
    except OSError as error:
        raise TransportUnavailableError(f"i2pd cannot be started: {error.strerror}") from error
    try:
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            await process.end()


def find_i2pd(name: str) -> str:
    """Find i2pd, also where system programs are.

    Raises:
        TransportUnavailableError: it is not installed.
    """
    # Debian's AppArmor profile lets /usr/sbin/i2pd write to its own directories only, not to a node's; the
    # same program in /usr/bin is not held to it.
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    places = sorted((*path, *_MORE_PLACES), key=lambda place: Path(place).name == "sbin")
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise TransportUnavailableError(
            f"{name} is not installed: install it (Debian, Ubuntu: apt install i2pd; macOS: brew install"
            " i2pd), or start an I2P router and give --sam HOST:PORT"
        )
    return found


def _options(directory: Path, port: int) -> list[str]:
    """Ours come on the command line: there they win over a configuration file, which may not repeat them."""
    options = [
        f"--datadir={directory}",
        f"--conf={directory / 'i2pd.conf'}",
        f"--tunconf={directory / 'tunnels.conf'}",
        "--log=stdout",
        "--loglevel=error",
        "--sam.enabled=true",
        "--sam.address=127.0.0.1",
        f"--sam.port={port}",
        "--addressbook.enabled=true",
        *(f"--{name}.enabled=false" for name in _OFF),
    ]
    # The first routers that are met come from servers whose signatures i2pd checks only if told to.
    certificates = next(filter(Path.is_dir, _CERTIFICATES), None)
    if certificates is not None:
        options += [f"--certsdir={certificates}", "--reseed.verify=true"]
    return options


def _read_config(path: Path | None) -> bytes:
    if path is None:
        return b""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise TransportUnavailableError(
            f"the i2pd configuration {path} cannot be read: {error.strerror}"
        ) from error
    except UnicodeDecodeError as error:
        raise TransportUnavailableError(f"the i2pd configuration {path} is no text") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise TransportUnavailableError(
            f"the i2pd configuration {path} is longer than {MAX_CONFIG_BYTES} bytes"
        )
    if _DAEMON.search(text):
        raise TransportUnavailableError(
            f"the i2pd configuration {path} sets 'daemon', and i2pd would outlive this node: remove that line"
        )
    return data


async def _until_free(lock: Path) -> None:
    """Wait until no i2pd runs in a directory: that of a node which was killed needs a moment to end.

    Raises:
        TransportUnavailableError: one does, and does not end.
        OSError: the lock cannot be read.
    """
    deadline = anyio.current_time() + END_PATIENCE + _KEEPER_PATIENCE
    while _is_locked(lock):
        if anyio.current_time() >= deadline:
            raise TransportUnavailableError(
                f"another i2pd runs in {lock.parent}: end it, or give the SAM address of that one with --sam"
            )
        await anyio.sleep(_POLL)


def _is_locked(lock: Path) -> bool:
    try:
        with lock.open("r+b") as file:
            fcntl.lockf(
                file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # i2pd takes the same lock; closing gives it back
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _prepare(directory: Path, config: bytes, log: Path) -> None:
    write_private(directory / "i2pd.conf", config)
    write_private(log, b"")
    for name in _ADDRESS_BOOK:
        write_private(directory / name, _NO_NAMES)


async def _spawn(command: list[str], log: Path) -> I2pdProcess:
    with log.open("ab") as output:
        # A session of its own: a Ctrl-C on the terminal is for us, and we end i2pd in order.
        keeper = await anyio.open_process(
            [
                "/bin/sh",
                "-c",
                _KEEPER,
                "i2pd-keeper",
                str(int(END_PATIENCE * 10)),
                str(_LOG_WRITES),
                *command,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=True,
        )
    try:
        return I2pdProcess(keeper, await _read_pid(keeper), log)
    except BaseException:  # failed or cancelled: closing the keeper's pipe ends i2pd, which nobody else would
        with anyio.CancelScope(shield=True):
            await I2pdProcess(keeper, 0, log).end()
        raise


async def _read_pid(keeper: Process) -> int:
    """Read what the keeper says first.

    Raises:
        TransportUnavailableError: it says nothing, because it could not be run.
    """
    line = b""
    while keeper.stdout is not None and not line.endswith(b"\n"):
        try:
            line += await keeper.stdout.receive(16)
        except anyio.EndOfStream as error:
            raise TransportUnavailableError("i2pd cannot be started: its keeper, /bin/sh, ended") from error
    return int(line)


def _is_own(port: int) -> bool:
    """Tell whether a program of this user listens at a port of 127.0.0.1, where the system says (Linux).

    i2pd's port is on its command line, which every user of the machine can read before i2pd has taken it.
    """
    try:
        lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()
    except OSError:
        return True
    host = int.from_bytes(socket.inet_aton("127.0.0.1"), sys.byteorder)
    rows = [line.split() for line in lines[1:]]
    owners = [int(row[7]) for row in rows if row[1] == f"{host:08X}:{port:04X}" and row[3] == "0A"]
    return owners == [os.geteuid()]


def _free_port() -> int:
    """Find a port for SAM whose neighbour is free for UDP too, which i2pd takes and cannot do without."""
    while True:
        with (
            socket.create_server(("127.0.0.1", 0)) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port - 1))
            except OSError:
                continue
            return port
