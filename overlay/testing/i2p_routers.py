"""The routers of the private I2P network: their configuration, their files and their processes.

i2pd 2.45 takes no connections from loopback and private addresses, whatever it is told; those reserved for
benchmarks (198.18.0.0/15) slip through, because the end of that range is misspelt in its table.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import anyio
from anyio.abc import Process
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from overlay.errors import TransportUnavailableError

T = TypeVar("T")

MAX_LOG_TAIL = 16_384
"""Bytes read from the end of a router's log to explain a failure; i2pd's lines have some hundred."""

MAX_ROUTERS = 200
"""One host number of 198.18.0.0/24 for each, from 10 on."""

STEP_TIMEOUT = 20.0
"""Seconds for a router to make its keys, or to open its SAM port; it takes about 0.1 s on an idle machine."""

_POLL = 0.02
_IDENTITY = 387  # bytes of keys and the certificate's head; its length is in the last two of them
_SIGNATURE = 64
_SIGNING_KEY_END = 384
# An empty list of subscriptions would end i2pd three minutes later, and no address book at the first connect.
_ADDRESS_BOOK = ("hosts.txt", "subscriptions.txt")
_LOG_HEAD = re.compile(r"^[\d:@]+/\x1b\[[\d;]+m\w+\x1b\[0m - ")
_EMPTY_ZIP = b"PK\5\6" + bytes(18)
_EMPTY_ZIP_NAME = "empty.zip"


@dataclass(frozen=True)
class RouterInfo:
    """What a router says of itself, as it is written in `router.info`.

    Attributes:
        data: the file's bytes, with a signature that has been verified.
    """

    data: bytes

    @property
    def file_name(self) -> str:
        """Where another router keeps it, below its data directory."""
        size = _IDENTITY + int.from_bytes(self.data[_IDENTITY - 2 : _IDENTITY], "big")
        name = base64.b64encode(sha256(self.data[:size]).digest(), b"-~").decode("ascii")
        return f"netDb/r{name[0]}/routerInfo-{name}.dat"


def parse_router_info(data: bytes) -> RouterInfo | None:
    """Read a `router.info`, which i2pd writes in place, in parts.

    Returns:
        it; None when it is not whole, or not yet reachable by NTCP2.
    """
    if len(data) < _IDENTITY + _SIGNATURE or b"NTCP2" not in data:
        return None
    key = Ed25519PublicKey.from_public_bytes(data[_SIGNING_KEY_END - 32 : _SIGNING_KEY_END])
    try:
        key.verify(data[-_SIGNATURE:], data[:-_SIGNATURE])
    except InvalidSignature:
        return None
    return RouterInfo(data)


@dataclass(frozen=True)
class Place:
    """Where one router of the network is.

    Attributes:
        number: its number, from 0; addresses and ports follow from it.
        directory: where it keeps its files.
        floodfill: whether it serves the network database.
    """

    number: int
    directory: Path
    floodfill: bool

    @property
    def host(self) -> str:
        """Its address, on the namespace's loopback interface."""
        return f"198.18.0.{10 + self.number}"

    @property
    def port(self) -> int:
        """The port at which other routers reach it."""
        return 19000 + self.number

    @property
    def sam_port(self) -> int:
        """Its SAM port on 127.0.0.1 of the namespace; the UDP port is one less."""
        return 7656 + 2 * self.number

    @staticmethod
    def is_one(directory: Path) -> bool:
        """Whether a directory was prepared for such a router; no other router has the file that tells."""
        file = directory / _EMPTY_ZIP_NAME
        return file.is_file() and file.read_bytes() == _EMPTY_ZIP

    def configuration(self) -> str:
        """The lines of its `i2pd.conf`; i2pd wants those without a dot first."""
        folder = self.directory
        lines = [
            "log = stdout",
            "loglevel = error",
            f"tunconf = {folder / 'tunnels.conf'}",
            f"tunnelsdir = {folder / 'tunnels.d'}",
            "netid = 77",
            f"host = {self.host}",
            f"address4 = {self.host}",
            f"port = {self.port}",
            "ipv4 = true",
            "ipv6 = false",
            "nat = false",
            "reservedrange = false",
            f"floodfill = {str(self.floodfill).lower()}",
            "bandwidth = X",
            "share = 100",
            "notransit = false",
            "ntcp2.enabled = true",
            "ntcp2.published = true",
            "ssu2.enabled = false",
            "reseed.threshold = 0",
            "reseed.urls =",
            "reseed.yggurls =",
            f"reseed.zipfile = {folder / _EMPTY_ZIP_NAME}",
            "nettime.enabled = false",
            "nettime.frompeers = false",
            "persist.profiles = false",
            "sam.enabled = true",
            "sam.address = 127.0.0.1",
            f"sam.port = {self.sam_port}",
            "addressbook.enabled = true",
        ]
        lines += [f"exploratory.{way}.length = 0" for way in ("inbound", "outbound")]
        lines += [f"exploratory.{way}.quantity = 2" for way in ("inbound", "outbound")]
        off = ("http", "httpproxy", "socksproxy", "bob", "i2cp", "i2pcontrol", "upnp")
        lines += [f"{service}.enabled = false" for service in off]
        return "".join(f"{line}\n" for line in lines)

    def prepare(self) -> None:
        """Write the files that it starts with, in place of all that is there.

        Raises:
            OSError: they cannot be written.
        """
        if self.directory.exists():
            shutil.rmtree(self.directory)
        book = self.directory / "addressbook"
        book.mkdir(mode=0o700, parents=True)
        for name in _ADDRESS_BOOK:
            (self.directory / name).write_text("# none\n", encoding="ascii")
        (self.directory / _EMPTY_ZIP_NAME).write_bytes(_EMPTY_ZIP)
        (self.directory / "i2pd.conf").write_text(self.configuration(), encoding="utf-8")

    def write_infos(self, own: RouterInfo, known: Iterable[RouterInfo]) -> None:
        """Write what it says of itself, and what it knows of others, while it does not run."""
        (self.directory / "router.info").write_bytes(own.data)
        for info in known:
            if info is not own:
                path = self.directory / info.file_name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(info.data)


class Router:
    """One router, whose process can be started again and again.

    Args:
        place: where it is; `prepare` has been called.
        executable: the path of i2pd.
        environment: what its process needs beside this process's environment.
    """

    def __init__(self, place: Place, executable: str, environment: Mapping[str, str]) -> None:
        self.place = place
        self._command = [
            executable,
            f"--datadir={place.directory}",
            f"--conf={place.directory / 'i2pd.conf'}",
        ]
        self._environment = {**os.environ, **environment}
        self._process: Process | None = None
        self._lock = anyio.Lock()

    @property
    def ended(self) -> bool:
        """Whether it does not run."""
        return self._process is None or self._process.returncode is not None

    @property
    def killed(self) -> bool:
        """Whether it was killed, or never started."""
        return self._process is None

    async def start(self) -> None:
        """Start its process, unless it runs; it is not ready yet."""
        async with self._lock:
            if self.ended:
                await self._spawn()

    async def kill(self) -> None:
        """End its process by SIGKILL, and reap it; does nothing more when it is gone."""
        async with self._lock:
            process, self._process = self._process, None
            if process is not None:
                if process.returncode is None:
                    process.send_signal(signal.SIGKILL)
                await process.aclose()

    async def keep_running(self) -> None:
        """Start its process again whenever it ended by itself, until it is killed.

        As a service manager does on other machines: i2pd 2.45 can crash, mostly when a client with
        open streams ends all at once.
        """
        while (process := self._process) is not None:
            await process.wait()
            async with self._lock:
                if self._process is process:
                    await self._spawn()

    async def _spawn(self) -> None:
        with (self.place.directory / "i2pd.log").open("ab") as log:
            self._process = await anyio.open_process(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )

    async def wait_for_info(self) -> RouterInfo:
        """Wait until it has made its keys and says where it is.

        Raises:
            TransportUnavailableError: it ended, or took too long.
        """
        path = self.place.directory / "router.info"

        async def read() -> RouterInfo | None:
            return parse_router_info(path.read_bytes()) if path.exists() else None

        return await self._until("making its keys", read)

    async def wait_for_sam(self) -> None:
        """Wait until its SAM port is open.

        Raises:
            TransportUnavailableError: it ended, or took too long.
        """

        async def connect() -> bool:
            try:
                stream = await anyio.connect_tcp("127.0.0.1", self.place.sam_port)
            except OSError:
                return False
            await stream.aclose()
            return True

        await self._until("opening its SAM port", connect)

    def reason(self) -> str:
        """The last line of its log; "it gave no reason" when there is none."""
        with (self.place.directory / "i2pd.log").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_LOG_TAIL))
            lines = file.read(MAX_LOG_TAIL).decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it gave no reason")
        return _LOG_HEAD.sub("", last)

    async def _until(self, step: str, look: Callable[[], Awaitable[T | None]]) -> T:
        deadline = anyio.current_time() + STEP_TIMEOUT
        while not (found := await look()):
            ended = self.ended
            if ended or anyio.current_time() > deadline:
                state = "ended" if ended else f"did not finish within {STEP_TIMEOUT:.0f} s"
                name = self.place.directory.name
                raise TransportUnavailableError(f"{name} {state} while {step}: {self.reason()}")
            await anyio.sleep(_POLL)
        return found
