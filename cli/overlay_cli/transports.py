"""Builds the transports that the user chose: the only place that names concrete ones."""

from __future__ import annotations

import importlib
import os
import socket
from pathlib import Path

from overlay.connection import Transport
from overlay.control.config import Config, parse_address
from overlay.control.home import Home
from overlay.errors import MalformedError
from overlay.transports.i2p.settings import DEFAULT_SAM, AttachedRouter, LaunchedRouter, TunnelOptions
from overlay.transports.tcp import TcpTransport
from overlay.transports.tor.settings import AttachedTor, LaunchedTor

LOOK_TIMEOUT = 1.0
"""Seconds for connecting to this machine itself, which takes less than a millisecond or is refused."""


def build_transports(home: Home, config: Config) -> list[Transport]:
    """Build each transport of `config`, not started yet, in order of preference.

    Looks for an I2P router on this machine where one is needed and none was named; blocks meanwhile.

    Raises:
        MalformedError: an address or a file that cannot be.
        RefusedError: transports that contradict each other.
        ModuleNotFoundError: a library that a transport needs is not installed.
    """
    config.check_transports()
    return [_build(name, home, config) for name in config.transports]


def choose_router(home: Home, config: Config) -> AttachedRouter | LaunchedRouter:
    """Say which I2P router is to be used: the one that is named, one that is found, or one of the node's own.

    Raises:
        MalformedError: an address or a file that cannot be.
    """
    if config.sam:
        return AttachedRouter(config.sam)
    usual = AttachedRouter(DEFAULT_SAM)
    if not (config.i2pd or config.i2p_config) and _listens(usual.address):
        return usual
    extra = _readable(config.i2p_config, "--i2p-config takes a file with lines for i2pd")
    return LaunchedRouter(home.i2p / "data", extra_config=extra, executable=config.i2pd or "i2pd")


def _build(name: str, home: Home, config: Config) -> Transport:
    match name:
        case "tcp":
            return TcpTransport(*parse_address(config.listen), preferred=home.remembered().tcp_port)
        case "i2p":
            return _build_i2p(home, config)
        case _:
            return _build_tor(home, config)


# The modules of tor and i2p are imported when they are chosen, because the libraries that they need are
# optional extras.


def _build_tor(home: Home, config: Config) -> Transport:
    module = importlib.import_module("overlay.transports.tor.transport")
    tor: AttachedTor | LaunchedTor
    if config.tor_control:
        tor = AttachedTor(config.tor_control, password=lambda: config.tor_password or None)
    else:
        extra = _readable(config.torrc, "--torrc takes a file with lines for tor")
        tor = LaunchedTor(home.tor / "data", extra_torrc=extra)
    transport: Transport = module.TorTransport(tor, key_path=home.tor / "onion.key")
    return transport


def _build_i2p(home: Home, config: Config) -> Transport:
    module = importlib.import_module("overlay.transports.i2p.transport")
    transport: Transport = module.I2pTransport(
        choose_router(home, config),
        key_path=home.i2p / "destination.key",
        tunnels=TunnelOptions(length=config.tunnel_length, quantity=config.tunnel_quantity),
    )
    return transport


def _readable(given: str, purpose: str) -> Path | None:
    if not given:
        return None
    path = Path(given).expanduser().absolute()
    if not path.is_file() or not os.access(path, os.R_OK):
        raise MalformedError(f"{path} cannot be read: {purpose}")
    return path


def _listens(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=LOOK_TIMEOUT):
            return True
    except OSError:
        return False
