"""Which tor a transport uses, and how long it waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from overlay.errors import MalformedError

ONION_PORT = 9351
"""The port that an onion service offers; its address is its own, so no other program's port is in the way."""

ControlAddress = Path | tuple[str, int]
"""Where a control port listens: a Unix socket, or an address and a TCP port."""


@dataclass(frozen=True)
class LaunchedTor:
    """A tor process of the transport's own, which ends with it.

    Attributes:
        data_directory: kept between runs, for guards and the cached consensus; made with mode 0700.
        extra_torrc: a file of lines to add to the configuration: bridges, a private network.
        executable: the program, by name or path.
    """

    data_directory: Path
    extra_torrc: Path | None = None
    executable: str = "tor"


@dataclass(frozen=True)
class AttachedTor:
    """A tor on this machine that somebody else runs.

    Attributes:
        control: `HOST:PORT`, or the path of a Unix socket.
        password: called when tor wants one; None, or a call that gives None, means cookie authentication.
    """

    control: str
    password: Callable[[], str | None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse what is no address.

        Raises:
            MalformedError: `control` is neither a path nor an address and a port.
        """
        _ = self.address

    @property
    def address(self) -> ControlAddress:
        """`control`, read.

        Raises:
            MalformedError: neither a path nor an address and a port.
        """
        if "/" in self.control:
            return Path(self.control).expanduser()
        host, colon, port = self.control.rpartition(":")
        if not colon or not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise MalformedError(
                f"'{self.control}' is no control port: write 127.0.0.1:9051 or the path of a Unix socket"
            )
        return host.strip("[]"), int(port)


@dataclass(frozen=True)
class TorTimeouts:
    """Seconds that the transport waits; the defaults are for the public network.

    Attributes:
        dial: for a whole dial. A first contact fetches a descriptor and builds two circuits of three and
            four hops, each of which tor may retry; tor itself gives up after about two minutes.
        start: from launching tor until its control port answers.
        stall: of no progress at all in bootstrapping; a slow bridge needs most of a minute for one step.
        publish: until one directory has taken the onion service's descriptor.
        reply: for one reply on the control port, generous because tor answers between its other work.
    """

    dial: float = 60.0
    start: float = 30.0
    stall: float = 90.0
    publish: float = 120.0
    reply: float = 30.0
