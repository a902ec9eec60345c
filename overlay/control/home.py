"""The home: the folder that holds a node's keys, configuration and data, and who may use it.

    identity      64 secret bytes; whoever holds them is the node. A folder without it is no home
    config.toml   what the user chose; see `overlay.control.config`
    state.json    what `overlay up` was told once and keeps to: the directory to join, or to be one
    node.db       the database
    tor/          what belongs to Tor: the onion service's key, and data/ for the tor process
    i2p/          what belongs to I2P: the destination's key, and data/ for the router
    control.sock  the running node's control socket
    lock          held by whoever runs the node

Folders are 0700 and files 0600.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from overlay.errors import MalformedError, NotFoundError, RefusedError

FOLDER_MODE = 0o700
FILE_MODE = 0o600
IDENTITY_BYTES = 64
MAX_STATE_BYTES = 1 << 16
"""Bytes of state.json: a ticket with eight locators takes about 1,000."""

_LEFT_BY_INIT = frozenset({"config.toml", "lock", "tor", "i2p"})  # when it was cut short
_NEW = ".new-"  # before the name of a file that is still being written


@dataclass(frozen=True, slots=True)
class Remembered:
    """What one run of the node leaves to the next.

    Attributes:
        join: the ticket that it was told once, and keeps to.
        directory: whether it was told to be a directory, and keeps to it.
        tcp_port: the port that it listened on last, 0 for none: taken again when it is free, so that
            others find the node where they knew it.
    """

    join: str = ""
    directory: bool = False
    tcp_port: int = 0


class Home:
    """One node's folder. Making the object touches nothing.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path.cwd() / path

    @classmethod
    def locate(cls, given: str | None, environ: Mapping[str, str]) -> Home:
        """Find the home: `given`, else the variable `OVERLAY_HOME`, else the platform's data folder.

        Raises:
            MalformedError: `given` is empty, as when a script's variable is not set.
        """
        if given == "":
            raise MalformedError("the home that was given is empty: name a folder, or give none")
        chosen = given or environ.get("OVERLAY_HOME")
        return cls(Path(chosen).expanduser() if chosen else _data_folder(environ) / "overlay")

    @property
    def control_socket(self) -> Path:
        """Where the running node listens."""
        return self.path / "control.sock"

    @property
    def database(self) -> Path:
        """The database file."""
        return self.path / "node.db"

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.path / "config.toml"

    @property
    def tor(self) -> Path:
        """The folder of what belongs to Tor."""
        return self.path / "tor"

    @property
    def i2p(self) -> Path:
        """The folder of what belongs to I2P."""
        return self.path / "i2p"

    @property
    def exists(self) -> bool:
        """Tell whether this is a home: whether it holds an identity."""
        return (self.path / "identity").is_file()

    def create(self, config: str, entropy: Callable[[int], bytes]) -> None:
        """Make the home, with new keys.

        The identity is written last and at once: cut short at any moment, this leaves no home, and can be
        done again.

        Args:
            config: the text of config.toml.
            entropy: where the keys come from.

        Raises:
            RefusedError: there is a home already, or the folder holds other things.
            OSError: the folder cannot be written.
        """
        self._make_folder()
        with self.lock():
            if self.exists:
                raise RefusedError(f"{self.path} is a home already: nothing was changed")
            for folder in (self.tor, self.i2p):
                _make_private_folder(folder)
                _make_private_folder(folder / "data")
            write_private(self.config, config.encode())
            write_private(self.path / "identity", entropy(IDENTITY_BYTES))

    def check(self) -> list[str]:
        """Make sure that this is a home that nobody else can read.

        Returns:
            a sentence on each thing that others could read and now no longer can.

        Raises:
            NotFoundError: there is no home here.
            RefusedError: the home belongs to another user.
        """
        if not self.exists:
            raise NotFoundError(f"{self.path} is no home: make one with 'overlay init'")
        return [
            sentence for path in [self.path, *sorted(self.path.rglob("*"))] for sentence in _tighten(path)
        ]

    def identity(self) -> bytes:
        """Read the node's 64 secret bytes.

        Raises:
            NotFoundError: there is no home here.
            MalformedError: the file is damaged.
        """
        path = self.path / "identity"
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"{self.path} is no home: make one with 'overlay init'") from error
        if len(data) != IDENTITY_BYTES:
            raise MalformedError(f"{path} is damaged: it has {len(data)} bytes instead of {IDENTITY_BYTES}")
        return data

    def remembered(self) -> Remembered:
        """Read what was remembered; nothing at first.

        Raises:
            MalformedError: state.json is damaged.
        """
        path = self.path / "state.json"
        try:
            data = json.loads(path.read_bytes()[:MAX_STATE_BYTES])
        except FileNotFoundError:
            return Remembered()
        except ValueError as error:
            raise MalformedError(f"{path} is damaged: delete it, and join again with --join") from error
        match data:
            case {"join": str(join), "directory": bool(directory), "tcp_port": int(port)}:
                return Remembered(join, directory, port)
            case _:
                raise MalformedError(f"{path} is damaged: delete it, and join again with --join")

    def remember(self, remembered: Remembered) -> None:
        """Keep `remembered` for the next start."""
        write_private(self.path / "state.json", json.dumps(asdict(remembered)).encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the home: inside the block no other process runs or makes a node here.

        The kernel lets go of the lock when the process dies, however it dies.

        Raises:
            RefusedError: another process holds it.
        """
        with open(self.path / "lock", "ab", opener=_private_opener) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RefusedError(
                    f"a node runs on {self.path} already: end it with 'overlay down'"
                ) from error
            yield

    @property
    def locked(self) -> bool:
        """Tell whether a process holds the home at this moment."""
        if not (self.path / "lock").exists():
            return False
        try:
            with self.lock():
                return False
        except RefusedError:
            return True

    def _make_folder(self) -> None:
        if self.exists:
            raise RefusedError(f"{self.path} is a home already: nothing was changed")
        if self.path.exists() and not self.path.is_dir():
            raise RefusedError(f"{self.path} is not a folder: choose another home")
        entries = list(self.path.iterdir()) if self.path.is_dir() else []
        if not all(_left_by_init(entry.name) for entry in entries):
            raise RefusedError(f"{self.path} holds other things: choose an empty folder for the home")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _make_private_folder(self.path)


def write_private(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 whole or not at all; what was there before is replaced at once.

    On return the bytes are on the disk. One process at a time: whoever holds the home's lock.
    """
    temporary = path.with_name(_NEW + path.name)
    temporary.unlink(missing_ok=True)
    with open(temporary, "xb", opener=_private_opener) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_private_folder(path: Path) -> None:
    path.mkdir(mode=FOLDER_MODE, exist_ok=True)
    path.chmod(FOLDER_MODE)


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, FILE_MODE)


def _left_by_init(name: str) -> bool:
    return name in _LEFT_BY_INIT or name.startswith(_NEW)


def _tighten(path: Path) -> Iterator[str]:
    try:
        status = path.lstat()
    except FileNotFoundError:  # by a router that still ends, of a node that was killed
        return
    if status.st_uid != os.geteuid():
        raise RefusedError(f"{path} belongs to another user: give it to yours, or choose another home")
    kinds = {stat.S_IFDIR: FOLDER_MODE, stat.S_IFREG: FILE_MODE, stat.S_IFSOCK: FILE_MODE}
    wanted = kinds.get(stat.S_IFMT(status.st_mode))
    if wanted is not None and status.st_mode & 0o077:
        path.chmod(wanted)
        yield f"others could read {path}, and now cannot"


def _data_folder(environ: Mapping[str, str]) -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    given = environ.get("XDG_DATA_HOME", "")
    # The XDG specification has relative paths ignored.
    return Path(given) if given.startswith("/") else Path.home() / ".local" / "share"
