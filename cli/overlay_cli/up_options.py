"""The options of `overlay up` that are for one transport: what they need, exclude and count more than."""

from __future__ import annotations

import argparse
from dataclasses import replace

from overlay.control.config import Config
from overlay.errors import MalformedError

_TRANSPORT_OF = {
    "torrc": "tor",
    "tor_control": "tor",
    "sam": "i2p",
    "i2pd": "i2p",
    "i2p_config": "i2p",
    "listen": "tcp",
}
"""Each option, as argparse names it, with the transport that it is for."""


def check_up_options(options: argparse.Namespace, transports: tuple[str, ...]) -> None:
    """Refuse options that exclude each other, and those that would change nothing.

    Raises:
        MalformedError: which, and what to do.
    """
    if options.torrc and options.tor_control:
        raise MalformedError("--torrc is for the node's own tor, --tor-control for another: give one of them")
    for own in ("i2pd", "i2p_config"):
        if options.sam and getattr(options, own):
            raise MalformedError(
                f"{_written(own)} is for the node's own I2P router, --sam for another: give one of them"
            )
    for name, transport in _TRANSPORT_OF.items():
        if getattr(options, name) and transport not in transports:
            raise MalformedError(
                f"{_written(name)} is for {transport}, and this node uses {' and '.join(transports)} only: "
                f"add '--transport {transport}', or leave {_written(name)} away"
            )


def with_up_options(config: Config, options: argparse.Namespace) -> Config:
    """Put the options over what config.toml says; one that chooses the other way ends what it excludes."""
    own_router = options.i2pd or options.i2p_config
    return replace(
        config,
        listen=options.listen or config.listen,
        tor_control=options.tor_control or ("" if options.torrc else config.tor_control),
        torrc=options.torrc or ("" if options.tor_control else config.torrc),
        sam=options.sam or ("" if own_router else config.sam),
        i2pd=options.i2pd or ("" if options.sam else config.i2pd),
        i2p_config=options.i2p_config or ("" if options.sam else config.i2p_config),
    )


def _written(name: str) -> str:
    return "--" + name.replace("_", "-")
