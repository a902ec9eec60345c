"""Tor processes of our own: found, configured, watched, and always ended."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import Process

from overlay.errors import TransportUnavailableError
from overlay.transports.private_files import write_private
from overlay.transports.tor.control import ControlConnection, open_control

MAX_LOG_TAIL = 16_384
"""Bytes read from the end of tor's log to explain a failure; tor cuts its lines at 10000."""

END_TIMEOUT = 5.0
"""Seconds that tor has to end on SIGTERM, which it does at once with ShutdownWaitLength 0, before SIGKILL."""

_POLL = 0.05
_COMPLAINT = re.compile(r"^\w{3} \d+ [\d:.]+ \[(?:warn|err)\] (.+)")
_MORE_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin", "/usr/local/bin")


def find_program(name: str) -> str:
    """Find a program of the tor package, also where system programs are.

    Raises:
        TransportUnavailableError: it is not installed.
    """
    places = os.pathsep.join((os.environ.get("PATH", os.defpath), *_MORE_PLACES))
    found = shutil.which(name, path=places)
    if found is None:
        raise TransportUnavailableError(
            f"{name} is not installed: install tor (Debian, Ubuntu: apt install tor; macOS: brew install tor)"
        )
    return found


def quote(path: Path) -> str:
    """Write a path as a torrc value."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class TorProcess:
    """A running tor. Made by `launch_tor`."""

    def __init__(self, process: Process, log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.returncode is not None

    def reason(self) -> str:
        """Why tor complained last, in its own words; "it gave no reason" when it did not."""
        with self._log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_LOG_TAIL))
            lines = file.read(MAX_LOG_TAIL).decode("utf-8", "replace").splitlines()
        complaints = [found[1] for line in lines if (found := _COMPLAINT.match(line))]
        # "Reading config failed--see warnings above" says nothing; the warning before it does.
        telling = [text for text in complaints if "see warnings above" not in text]
        return telling[-1] if telling else "it gave no reason"

    async def connect_control(self, path: Path, *, start: float, reply: float) -> ControlConnection:
        """Wait until the control socket answers, and connect.

        Args:
            path: the Unix socket that the configuration names.
            start: seconds to wait.
            reply: seconds for one reply, later.

        Returns:
            the connection, not yet authenticated, which the caller enters and so closes.

        Raises:
            TransportUnavailableError: tor has ended, with its reason, or did not answer in time.
        """
        deadline = anyio.current_time() + start
        while not self.ended and anyio.current_time() < deadline:
            try:
                return await open_control(path, reply_timeout=reply)
            except TransportUnavailableError:  # not there yet
                await anyio.sleep(_POLL)
        if self.ended:
            raise TransportUnavailableError(f"tor does not start: {self.reason()}")
        raise TransportUnavailableError(f"tor did not open its control port within {start:.0f} s")

    async def end(self) -> None:
        """End the process and reap it; does nothing more when it is gone."""
        if not self.ended:
            self._process.send_signal(signal.SIGTERM)
            with anyio.move_on_after(END_TIMEOUT):
                await self._process.wait()
        if not self.ended:
            self._process.send_signal(signal.SIGKILL)
        await self._process.aclose()


@asynccontextmanager
async def launch_tor(
    torrc: Sequence[str], directory: Path, *, executable: str = "tor"
) -> AsyncIterator[TorProcess]:
    """Run tor for the length of a block, and be sure that it has ended afterwards.

    Args:
        torrc: lines of configuration. Those about owner, log and foreground are added here.
        directory: where configuration and log are written; made with mode 0700.
        executable: the program, by name or path.

    Yields:
        the process, started, perhaps not ready, perhaps about to end over its configuration.

    Raises:
        TransportUnavailableError: tor is not installed, or the directory cannot be used.
    """
    program = find_program(executable)
    lines = [*torrc, "RunAsDaemon 0", "Log notice stdout", "ShutdownWaitLength 0"]
    lines.append(f"__OwningControllerProcess {os.getpid()}")
    path, log = directory / "torrc", directory / "tor.log"
    try:
        write_private(path, "".join(f"{line}\n" for line in lines).encode())
        write_private(log, b"")
    except OSError as error:
        raise TransportUnavailableError(f"{directory} cannot be used for tor: {error.strerror}") from error
    tor = TorProcess(await _spawn([program, "-f", str(path), "--defaults-torrc", os.devnull], log), log)
    try:
        yield tor
    finally:
        with anyio.CancelScope(shield=True):
            await tor.end()


async def _spawn(command: Sequence[str], log: Path) -> Process:
    # Tor's own log begins after its configuration was read, so its output is the log. A session of its own:
    # a Ctrl-C on the terminal is for us, and we end tor in order.
    with log.open("ab") as output:
        return await anyio.open_process(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
