"""Pytest fixtures, for this project's tests and for those of applications built on it.

In a `conftest.py`: `pytest_plugins = ["overlay.testing.fixtures"]`.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from overlay.testing.i2p import PrivateI2pNetwork
from overlay.testing.programs import Home, MakeHome
from overlay.testing.tor import PrivateTorNetwork


@pytest.fixture(scope="session")
def tor_network() -> Iterator[PrivateTorNetwork]:
    """A private Tor network, in a thread of its own: it belongs to no test's event loop.

    Without tor the test is skipped, but with `CI=true` in the environment it fails.
    """
    _require("Tor", "tor", "tor-gencert")
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(PrivateTorNetwork()) as network,
    ):
        yield network


@pytest.fixture(scope="session")
def i2p_network() -> Iterator[PrivateI2pNetwork]:
    """A private I2P network. It belongs to no event loop: a test may kill and start its routers from its own.

    Without i2pd or a C compiler the test is skipped, but with `CI=true` in the environment it fails.
    """
    _require("I2P", "i2pd", "cc")
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(PrivateI2pNetwork()) as network,
    ):
        yield network


@pytest.fixture
def make_home() -> Iterator[MakeHome]:
    """Make homes for real `overlay` processes; their nodes end with the test."""
    homes: list[Home] = []
    # Short: a Unix socket's path has at most 107 bytes, and pytest's own folders are long.
    with tempfile.TemporaryDirectory(prefix="ov-") as folder:

        def make(name: str, *, up_options: Sequence[str] = ("--transport", "tcp")) -> Home:
            home = Home(Path(folder) / name, up_options)
            homes.append(home)
            home.run("init", "--name", name)
            return home

        yield make
        for home in homes:
            if home.process is not None:
                home.end(signal.SIGKILL)


def _require(network: str, *programs: str) -> None:
    missing = [program for program in programs if not _find(program)]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{' and '.join(missing)} must be installed for tests on a real {network} network")
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
