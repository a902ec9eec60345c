"""config.toml: what the user of a home chose, checked key by key."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from overlay.chat.texts import MAX_NAME_BYTES, check_line
from overlay.errors import MalformedError, RefusedError

TRANSPORTS = ("tor", "i2p", "tcp")
MAX_TEXT_LENGTH = 4096
"""Characters of any other text in the file: a ticket has about 1,000."""
MAX_TUNNEL_LENGTH = 7
"""Hops; I2P routers build no longer tunnels."""
MAX_TUNNEL_QUANTITY = 16
"""Tunnels each way; a lease set has room for as many."""


@dataclass(frozen=True, slots=True)
class Config:
    """What config.toml says; a missing key means what stands here.

    Attributes:
        name: how the user is called in a chat, where no other name is given.
        transports: what carries connections, in order of preference.
        anonymous: whether the node hides where it is; None: it does unless tcp alone was chosen.
        listen: HOST:PORT where tcp listens; port 0 takes a free one.
        directory: be a directory for others.
        relay: pass messages on for others.
        join: the ticket of the directory to register at.
        tor_control: HOST:PORT or path of the control socket of a tor that runs already; empty: launch one.
        tor_password: the control password of that tor.
        torrc: a file with lines for the tor that is launched: bridges, a private network.
        sam: HOST:PORT of the SAM bridge of an I2P router that runs already; empty: look for one at the usual
            address, and launch one where there is none.
        i2pd: the program to launch as I2P router, by name or path; empty: `i2pd`.
        i2p_config: a file with lines for the configuration of the router that is launched.
        tunnel_length: hops of each I2P tunnel.
        tunnel_quantity: I2P tunnels each way.
        quota_mib: MiB of chunks that this node stores at most.
        idle_timeout: seconds after which a connection that carries nothing is closed.
    """

    name: str = ""
    transports: tuple[str, ...] = ("tor",)
    anonymous: bool | None = None
    listen: str = "127.0.0.1:0"
    directory: bool = False
    relay: bool = False
    join: str = ""
    tor_control: str = ""
    tor_password: str = ""
    torrc: str = ""
    sam: str = ""
    i2pd: str = ""
    i2p_config: str = ""
    tunnel_length: int = 3
    tunnel_quantity: int = 5
    quota_mib: int = 1024
    idle_timeout: int = 600

    def __repr__(self) -> str:
        """Leave the password out."""
        shown = (
            f"{item.name}={getattr(self, item.name)!r}" for item in fields(self) if item.name not in _SECRET
        )
        return f"Config({', '.join(shown)})"

    @property
    def hides(self) -> bool:
        """Whether the node hides where it is."""
        return self.anonymous if self.anonymous is not None else self.transports != ("tcp",)

    def check_transports(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            RefusedError: tcp on a node that hides where it is, which tcp would reveal.
            MalformedError: settings for a tor or a router to launch beside one that runs already.
        """
        if self.hides and "tcp" in self.transports:
            raise RefusedError(
                "tcp would reveal where this anonymous node is: leave tcp away, "
                "or write 'anonymous = false' in config.toml"
            )
        if self.tor_control and self.torrc:
            raise MalformedError(
                "tor.torrc is for the node's own tor, tor.control for another: "
                "keep one of them in config.toml"
            )
        if self.sam and (self.i2pd or self.i2p_config):
            raise MalformedError(
                "i2p.i2pd and i2p.config are for the node's own router, i2p.sam for another: "
                "keep one of them in config.toml"
            )


_SECRET = frozenset({"tor_password", "join"})


def load_config(path: Path) -> Config:
    """Read the file; one that is missing means the defaults.

    Raises:
        MalformedError: not TOML, an unknown key, or a value that a key cannot have; file and key are named.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Config()
    except ValueError as error:
        raise MalformedError(f"{path} is not valid TOML: {error}") from error
    values: dict[str, Any] = {}
    for key, value in _flatten(tables).items():
        if key not in _KEYS:
            raise MalformedError(f"{path}: there is no key '{key}'")
        name, read = _KEYS[key]
        try:
            values[name] = read(value)
        except MalformedError as error:
            raise MalformedError(f"{path}: {key} {error}") from error
    return Config(**values)


def config_template(name: str = "") -> str:
    """Write the text of a new config.toml: every key is there, commented out but the name."""
    return _TEMPLATE.replace("@NAME@", json.dumps(name, ensure_ascii=False))


def parse_address(text: str) -> tuple[str, int]:
    """Read HOST:PORT, or [HOST]:PORT for IPv6.

    Raises:
        MalformedError: anything else, or a port above 65535.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise MalformedError(f"'{text}' is not HOST:PORT, as in 127.0.0.1:0")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _flatten(tables: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        if key in _TABLES and isinstance(value, dict):
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            flat[key] = value
    return flat


def _text(limit: int = MAX_TEXT_LENGTH) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or len(value) > limit:
            raise MalformedError(f"must be a text of at most {limit} characters")
        return value

    return read


def _name(value: object) -> str:
    name = _text()(value)
    try:
        return check_line("name", name, limit=MAX_NAME_BYTES) if name else ""
    except MalformedError as error:
        raise MalformedError(f"cannot be used, because {error}") from error


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise MalformedError("must be true or false")
    return value


def _whole(least: int, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise MalformedError(f"must be a whole number from {least} to {most}")
        return value

    return read


def _address(example: str, *, needed: bool = True) -> Callable[[object], str]:
    def read(value: object) -> str:
        text = _text()(value)
        try:
            if text or needed:
                parse_address(text)
        except MalformedError as error:
            raise MalformedError(f"must be HOST:PORT, as in {example}") from error
        return text

    return read


def _transports(value: object) -> tuple[str, ...]:
    names = value if isinstance(value, list) else []
    if not names or len(set(map(str, names))) < len(names) or any(name not in TRANSPORTS for name in names):
        raise MalformedError(f"must be a list of one or more of {', '.join(TRANSPORTS)}")
    return tuple(names)


_KEYS: dict[str, tuple[str, Callable[[object], object]]] = {
    "name": ("name", _name),
    "transports": ("transports", _transports),
    "anonymous": ("anonymous", _truth),
    "listen": ("listen", _address("127.0.0.1:0")),
    "directory": ("directory", _truth),
    "relay": ("relay", _truth),
    "join": ("join", _text()),
    "tor.control": ("tor_control", _text()),
    "tor.password": ("tor_password", _text()),
    "tor.torrc": ("torrc", _text()),
    "i2p.sam": ("sam", _address("127.0.0.1:7656", needed=False)),
    "i2p.i2pd": ("i2pd", _text()),
    "i2p.config": ("i2p_config", _text()),
    "i2p.length": ("tunnel_length", _whole(1, MAX_TUNNEL_LENGTH)),
    "i2p.quantity": ("tunnel_quantity", _whole(1, MAX_TUNNEL_QUANTITY)),
    "storage.quota_mib": ("quota_mib", _whole(0, 1 << 20)),
    "limits.idle_timeout": ("idle_timeout", _whole(10, 86400)),
}

_TABLES = frozenset(key.split(".")[0] for key in _KEYS if "." in key)

_TEMPLATE = """\
# The configuration of an overlay node. What is commented out shows the default.
# Options of 'overlay up' count more than this file. Every key is described in docs/cli.md.

# How you are called in a chat, where you give no other name.
name = @NAME@

# What carries connections, in order of preference: "tor", "i2p", "tcp". With "tor" and "i2p" the node is
# reached over both, and whoever knows its one address learns the other.
#transports = ["tor"]

# Hide where this node is. An anonymous node never uses tcp, which would reveal it.
# The default is true, unless tcp alone is chosen.
#anonymous = true

# Where tcp listens; port 0 takes a free one.
#listen = "127.0.0.1:0"

# Be a directory: a node that others register at.
#directory = false

# Pass messages on for other nodes, so that they need not meet.
#relay = false

# The ticket of the directory to register at; 'overlay up --join TICKET' is remembered without this.
#join = ""

[tor]
# A tor that runs already: HOST:PORT or the path of its control socket. Empty: a tor of the node's own.
#control = ""

# Its control password, if it has one; OVERLAY_TOR_PASSWORD in the environment counts more.
#password = ""

# A file with lines for the node's own tor: bridges, a private network.
#torrc = ""

[i2p]
# The SAM bridge of an I2P router that runs already, HOST:PORT. It is given the key of this node's
# destination, so name one that is yours. Empty: the one at 127.0.0.1:7656 if there is one, else a router of
# the node's own.
#sam = ""

# The program that the node's own router is, by name or path. Empty: i2pd.
#i2pd = ""

# A file with lines for the configuration of the node's own router, as for i2pd.conf.
#config = ""

# Hops of each tunnel, 1 to 7. A hop knows only its neighbours: with 3 no hop knows both ends, with 1 the
# only hop does. Every further hop costs time, and makes a tunnel fail more often.
#length = 3

# Tunnels each way, 1 to 16. More make the node faster and survive more failures, and show more routers that
# it is there; with fewer than 3 it may be out of reach until a tunnel that failed has been replaced.
#quantity = 5

[storage]
# MiB of chunks that this node stores at most: what is pinned, and other people's with the rest.
#quota_mib = 1024

[limits]
# Seconds after which a connection that carries nothing is closed; opening one through Tor costs seconds.
#idle_timeout = 600
"""
