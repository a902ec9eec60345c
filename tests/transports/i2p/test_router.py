"""Launching, with a stand-in for i2pd; tests/interop/test_i2p_router.py has the real one."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from overlay.connection import TransportStatus
from overlay.errors import TransportUnavailableError
from overlay.transports.i2p import router as module
from overlay.transports.i2p.router import RouterHandle, find_i2pd, launch_i2pd, open_router
from overlay.transports.i2p.settings import AttachedRouter, I2pTimeouts, LaunchedRouter

if TYPE_CHECKING:
    from tests.transports.i2p.conftest import FakeRouter

STAND_IN = """#!{python}
import os, signal, socket, sys
options = dict(word[2:].split("=", 1) for word in sys.argv[1:])
data = options["datadir"]
with open(data + "/pid.new", "w") as file:
    file.write(str(os.getpid()))
os.rename(data + "/pid.new", data + "/pid")
what = open(options["conf"]).read()
if what == "refuse":
    sys.exit("unrecognised option 'refuse'")
if what == "complain":
    print("10:00:00@1/\\x1b[1;31merror\\x1b[0m - Daemon: Failed to start Transports", flush=True)
    sys.exit(1)
if what == "taken":
    print("10:00:00@1/error - Clients: Exception in SAM bridge: bind: Address already in use", flush=True)
if what == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if what in {{"silent", "taken"}}:
    signal.pause()
listening = socket.create_server(("127.0.0.1", int(options["sam.port"])))
if what == "chatty":
    for number in range(20000):
        print("10:00:00@1/error - line", number, flush=True)
while True:
    accepted, _ = listening.accept()
    with accepted:
        accepted.recv(100)
        accepted.sendall(b"HELLO REPLY RESULT=OK VERSION=3.1\\n")
        accepted.recv(100)
"""
TIMEOUTS = I2pTimeouts()


def ignore(_: TransportStatus) -> None:
    pass


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[str], LaunchedRouter]:
    """Make settings of a router that behaves as its configuration says."""
    program = tmp_path / "i2pd"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o700)

    def make(config: str) -> LaunchedRouter:
        extra = tmp_path / "extra.conf"
        extra.write_text(config)
        return LaunchedRouter(tmp_path / "home" / "i2pd", extra, str(program))

    return make


def pid_of(router: LaunchedRouter) -> int:
    return int((router.data_directory / "pid").read_text())


async def until(condition: Callable[[], bool]) -> None:
    """Another program's doings can only be looked at again and again."""
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - there is no event
            await anyio.sleep(0.01)


def is_gone(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    return True


async def fails(router: LaunchedRouter | AttachedRouter, timeouts: I2pTimeouts = TIMEOUTS) -> str:
    with pytest.raises(TransportUnavailableError) as failed:
        async with open_router(router, timeouts, ignore):
            pass
    return str(failed.value)


async def test_attached(fake_router: FakeRouter) -> None:
    reported: list[TransportStatus] = []
    host, port = fake_router.address
    async with open_router(AttachedRouter(f"{host}:{port}"), TIMEOUTS, reported.append) as router:
        assert router == RouterHandle((host, port), "3.1", launched=False)
        await fake_router.connections[0].ended()
    assert [status.detail for status in reported] == ["looking for the I2P router"]


async def test_nothing_to_attach_to() -> None:
    assert "no I2P router answers at 127.0.0.1:9:" in await fails(AttachedRouter("127.0.0.1:9"))


async def test_launched_router_lives_as_long_as_the_block(stand_in: Callable[[str], LaunchedRouter]) -> None:
    settings = stand_in("bandwidth = P\n")
    async with open_router(settings, TIMEOUTS, ignore) as router:
        assert router.launched
        assert router.version == "3.1"
        pid = pid_of(settings)
        assert not is_gone(pid)
    assert is_gone(pid)
    home = settings.data_directory
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "i2pd.conf").read_text() == "bandwidth = P\n"
    for name in ("hosts.txt", "subscriptions.txt"):
        lines = (home / name).read_text().splitlines()
        assert lines
        assert all(line.startswith("#") for line in lines)


async def test_everything_but_sam_is_off(
    stand_in: Callable[[str], LaunchedRouter], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    spawn = module._spawn

    async def record(command: list[str], log: Path) -> module.I2pdProcess:
        commands.append(command)
        return await spawn(command, log)

    monkeypatch.setattr(module, "_spawn", record)
    async with open_router(stand_in(""), TIMEOUTS, ignore) as router:
        pass
    for name in ("http", "httpproxy", "socksproxy", "bob", "i2cp", "i2pcontrol", "upnp"):
        assert f"--{name}.enabled=false" in commands[0]
    assert "--sam.address=127.0.0.1" in commands[0]
    assert f"--sam.port={router.address[1]}" in commands[0]


@pytest.mark.parametrize(
    ("config", "reason"),
    [("refuse", "unrecognised option 'refuse'"), ("complain", "Daemon: Failed to start Transports")],
)
async def test_reason_of_a_failing_start(
    stand_in: Callable[[str], LaunchedRouter], config: str, reason: str
) -> None:
    assert await fails(stand_in(config)) == f"i2pd does not start: {reason}"


async def test_port_that_another_program_took(stand_in: Callable[[str], LaunchedRouter]) -> None:
    settings = stand_in("taken")
    assert "Address already in use" in await fails(settings)
    assert is_gone(pid_of(settings))


async def test_router_that_never_answers(stand_in: Callable[[str], LaunchedRouter]) -> None:
    settings = stand_in("silent")
    message = await fails(settings, I2pTimeouts(start=0.5))
    assert message == "i2pd did not open its SAM port within 0 s: it gave no reason"
    assert is_gone(pid_of(settings))


async def test_cancelled_start_ends_the_router(stand_in: Callable[[str], LaunchedRouter]) -> None:
    settings = stand_in("silent")
    async with anyio.create_task_group() as group:
        group.start_soon(fails, settings)
        await until((settings.data_directory / "pid").exists)
        group.cancel_scope.cancel()
    assert is_gone(pid_of(settings))


async def test_router_that_ignores_the_request_to_end(
    stand_in: Callable[[str], LaunchedRouter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "END_PATIENCE", 0.2)
    settings = stand_in("stubborn")
    async with open_router(settings, TIMEOUTS, ignore):
        pass
    assert is_gone(pid_of(settings))


async def test_router_that_ends_by_itself_is_noticed(stand_in: Callable[[str], LaunchedRouter]) -> None:
    settings = stand_in("silent")
    async with launch_i2pd(settings, 1) as process:
        await until((settings.data_directory / "pid").exists)
        assert process.pid == pid_of(settings)
        assert not process.ended
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: process.ended)


async def test_log_does_not_fill_the_disk(
    stand_in: Callable[[str], LaunchedRouter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOG_WRITES", 3)
    settings = stand_in("chatty")
    async with open_router(settings, TIMEOUTS, ignore):
        assert 0 < (settings.data_directory / "i2pd.log").stat().st_size <= 3 * 65536


PARENT = """
import sys, anyio
from pathlib import Path
from overlay.transports.i2p import router as module
from overlay.transports.i2p.settings import I2pTimeouts, LaunchedRouter
module.END_PATIENCE = 0.2
async def main():
    router = LaunchedRouter(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    async with module.open_router(router, I2pTimeouts(), lambda status: None):
        print("ready\\n", end="", flush=True)
        await anyio.sleep_forever()
anyio.run(main, backend=sys.argv[4])
"""


@pytest.mark.parametrize("config", ["", "stubborn"])
async def test_router_ends_with_a_parent_that_is_killed(
    stand_in: Callable[[str], LaunchedRouter], anyio_backend: str, config: str
) -> None:
    settings = stand_in(config)
    arguments = [str(settings.data_directory), str(settings.extra_config), settings.executable, anyio_backend]
    async with await anyio.open_process(
        [sys.executable, "-c", PARENT, *arguments],
        stdin=subprocess.DEVNULL,
        stderr=None,
    ) as parent:
        assert parent.stdout is not None
        assert await parent.stdout.receive() == b"ready\n"
        pid = pid_of(settings)
        assert not is_gone(pid)
        parent.kill()
        await until(lambda: is_gone(pid))


async def test_next_router_waits_for_the_one_before(
    stand_in: Callable[[str], LaunchedRouter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "END_PATIENCE", 0.1)
    monkeypatch.setattr(module, "_KEEPER_PATIENCE", 0.1)
    settings = stand_in("")
    settings.data_directory.mkdir(parents=True)
    lock = settings.data_directory / "i2pd.pid"
    holder = [sys.executable, "-c", _HOLDER, str(lock)]
    async with await anyio.open_process(holder, stdin=subprocess.PIPE, stderr=None) as process:
        assert process.stdout
        assert process.stdin
        assert await process.stdout.receive() == b"locked\n"
        assert "another i2pd runs in" in await fails(settings)
        monkeypatch.setattr(module, "END_PATIENCE", 5.0)
        async with anyio.create_task_group() as group:
            group.start_soon(process.stdin.aclose)
            async with open_router(settings, TIMEOUTS, ignore) as router:
                assert router.launched


_HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked\\n", end="", flush=True)
sys.stdin.read()
"""


async def test_missing_program(tmp_path: Path) -> None:
    settings = LaunchedRouter(tmp_path / "home", executable="no-such-i2pd")
    assert await fails(settings) == (
        "no-such-i2pd is not installed: install it (Debian, Ubuntu: apt install i2pd; macOS: brew install"
        " i2pd), or start an I2P router and give --sam HOST:PORT"
    )
    assert not (tmp_path / "home").exists()


def test_program_outside_sbin_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("sbin", "bin"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "i2pd-of-test").touch(mode=0o700)
    monkeypatch.setenv("PATH", os.pathsep.join(str(tmp_path / name) for name in ("sbin", "bin")))
    assert find_i2pd("i2pd-of-test") == str(tmp_path / "bin" / "i2pd-of-test")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (b"[sam]\nenabled = true\n[x]\n  daemon = true\n", "sets 'daemon'"),
        (b"# " + b"a" * module.MAX_CONFIG_BYTES, "longer than"),
        (b"\xff\xfe", "is no text"),
    ],
)
async def test_extra_configuration_that_is_refused(tmp_path: Path, config: bytes, words: str) -> None:
    extra = tmp_path / "extra.conf"
    extra.write_bytes(config)
    message = await fails(LaunchedRouter(tmp_path / "home", extra, sys.executable))
    assert words in message
    assert str(extra) in message


async def test_extra_configuration_that_is_not_there(tmp_path: Path) -> None:
    settings = LaunchedRouter(tmp_path / "home", tmp_path / "nothing.conf", sys.executable)
    assert "cannot be read: No such file" in await fails(settings)


async def test_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = LaunchedRouter(tmp_path / "file" / "home", executable=sys.executable)
    assert "cannot be used for i2pd: Not a directory" in await fails(settings)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says who listens")
async def test_port_that_another_user_took(
    stand_in: Callable[[str], LaunchedRouter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert "another user's program took the port" in await fails(stand_in(""))


@pytest.mark.parametrize(("where", "what"), [(module, "_free_port"), (anyio, "open_process")])
async def test_no_descriptor_is_left(
    stand_in: Callable[[str], LaunchedRouter], monkeypatch: pytest.MonkeyPatch, where: object, what: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    settings = stand_in("")
    monkeypatch.setattr(where, what, refuse)
    assert "Too many open files" in await fails(settings)
