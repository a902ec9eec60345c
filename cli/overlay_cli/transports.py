"""Builds the transports that the user chose: the only place that names concrete ones."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from overlay.connection import Transport
from overlay.control.config import Config, parse_address
from overlay.control.home import Home
from overlay.errors import MalformedError
from overlay.transports.tcp import TcpTransport
from overlay.transports.tor.settings import AttachedTor, LaunchedTor


def build_transports(home: Home, config: Config) -> list[Transport]:
    """Build each transport of `config`, not started yet, in order of preference.

    Raises:
        MalformedError: an address or a file that cannot be.
        RefusedError: transports that contradict each other.
        ModuleNotFoundError: a library that a transport needs is not installed.
    """
    config.check_transports()
    return [_build(name, home, config) for name in config.transports]


def _build(name: str, home: Home, config: Config) -> Transport:
    if name == "tcp":
        return TcpTransport(*parse_address(config.listen), preferred=home.remembered().tcp_port)
    return _build_tor(home, config)


def _build_tor(home: Home, config: Config) -> Transport:
    # Imported when it is chosen, because the libraries that it needs are an optional extra.
    module = importlib.import_module("overlay.transports.tor.transport")
    tor: AttachedTor | LaunchedTor
    if config.tor_control:
        tor = AttachedTor(config.tor_control, password=lambda: config.tor_password or None)
    else:
        tor = LaunchedTor(home.tor / "data", extra_torrc=_torrc(config))
    transport: Transport = module.TorTransport(tor, key_path=home.tor / "onion.key")
    return transport


def _torrc(config: Config) -> Path | None:
    if not config.torrc:
        return None
    path = Path(config.torrc).expanduser().absolute()
    if not path.is_file() or not os.access(path, os.R_OK):
        raise MalformedError(f"{path} cannot be read: --torrc takes a file with lines for tor")
    return path
