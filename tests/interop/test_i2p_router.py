"""Launching the real i2pd, which meets nobody: it has no network but loopback, and knows no other router."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from overlay.connection import TransportStatus
from overlay.errors import TransportUnavailableError
from overlay.transports.i2p.keys import load_key
from overlay.transports.i2p.router import find_i2pd, launch_i2pd, open_router
from overlay.transports.i2p.settings import I2pTimeouts, LaunchedRouter

TIMEOUTS = I2pTimeouts()
ALONE = """
netid = 77
host = 127.0.0.1
address4 = 127.0.0.1
notransit = true
[ssu2]
enabled = false
[reseed]
threshold = 0
urls =
yggurls =
"""


@pytest.fixture
def launched(tmp_path: Path) -> LaunchedRouter:
    try:
        find_i2pd("i2pd")
    except TransportUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    (tmp_path / "alone.conf").write_text(ALONE)
    return LaunchedRouter(tmp_path / "i2pd", tmp_path / "alone.conf")


def ignore(_: TransportStatus) -> None:
    pass


def is_gone(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    return True


def pid_in(directory: Path) -> int:
    return int((directory / "i2pd.pid").read_text())


async def test_launched_and_of_use(launched: LaunchedRouter, tmp_path: Path) -> None:
    async with open_router(launched, TIMEOUTS, ignore) as router:
        assert (router.version, router.launched) == ("3.1", True)
        key = await load_key(tmp_path / "i2p.key", router.address, TIMEOUTS)
        assert (len(key.data), len(key.public.data)) == (679, 391)  # Ed25519, and the keys match
        pid = pid_in(launched.data_directory)
    assert is_gone(pid)
    async with open_router(launched, TIMEOUTS, ignore) as router:  # in the same directory
        assert await load_key(tmp_path / "i2p.key", router.address, TIMEOUTS) == key


async def test_our_options_win(launched: LaunchedRouter) -> None:
    assert launched.extra_config is not None
    with launched.extra_config.open("a") as file:
        file.write("[sam]\nenabled = false\nport = 1\n[httpproxy]\nenabled = true\nport = 1\n")
    async with open_router(launched, TIMEOUTS, ignore) as router:
        assert router.address[1] > 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [("nosuch = 1", "nosuch"), ("[ntcp2]\nenabled = false", "Failed to start Transports")],
)
async def test_reason_of_a_failing_start(launched: LaunchedRouter, line: str, reason: str) -> None:
    assert launched.extra_config is not None
    text = launched.extra_config.read_text()
    launched.extra_config.write_text(f"{line}\n{text}" if "[" not in line else f"{text}{line}\n")
    with pytest.raises(TransportUnavailableError, match=f"i2pd does not start: .*{reason}"):
        async with open_router(launched, TIMEOUTS, ignore):
            pass


async def test_port_that_is_taken(launched: LaunchedRouter) -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as taken:
        port = taken.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - not Django
        async with launch_i2pd(launched, port) as process:
            with pytest.raises(TransportUnavailableError, match="Address already in use"):
                await process.answered(port, I2pTimeouts(hello=1.0))


PARENT = """
import sys, anyio
from pathlib import Path
from overlay.transports.i2p.router import open_router
from overlay.transports.i2p.settings import I2pTimeouts, LaunchedRouter
async def main():
    launched = LaunchedRouter(Path(sys.argv[1]), Path(sys.argv[2]))
    async with open_router(launched, I2pTimeouts(), lambda status: None):
        print("ready\\n", end="", flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""


async def test_ends_with_a_parent_that_is_killed_and_can_be_launched_again(launched: LaunchedRouter) -> None:
    arguments = [str(launched.data_directory), str(launched.extra_config)]
    command = [sys.executable, "-c", PARENT, *arguments]
    async with await anyio.open_process(command, stdin=subprocess.DEVNULL, stderr=None) as parent:
        assert parent.stdout
        assert await parent.stdout.receive() == b"ready\n"
        pid = pid_in(launched.data_directory)
        parent.send_signal(signal.SIGKILL)
        await parent.wait()
        async with open_router(launched, TIMEOUTS, ignore):  # waits until the one before has ended
            assert is_gone(pid)
