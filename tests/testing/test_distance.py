"""Forwarders with distance, over real sockets."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import ByteReceiveStream, SocketAttribute, SocketStream

from overlay.errors import TransportUnavailableError
from overlay.testing.delay_line import Distance
from overlay.testing.distance import LOOPBACK, Forwarder, open_distance

Serve = Callable[[SocketStream], Awaitable[None]]

PATTERN = bytes(range(251)) * 4177  # about 1 MiB, and no piece of it looks like the next


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Real sockets need real clocks."""
    return str(request.param)


async def read_all(stream: ByteReceiveStream) -> bytes:
    return b"".join([piece async for piece in stream])


async def echo(stream: SocketStream) -> None:
    async with stream:
        async for piece in stream:
            await stream.send(piece)
        await stream.send_eof()


@asynccontextmanager
async def far_away(distance: Distance, serve: Serve) -> AsyncIterator[int]:
    """Run a server, and a forwarder in front of it; gives the forwarder's port."""
    async with (
        await anyio.create_tcp_listener(local_host=LOOPBACK) as server,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(server.serve, serve)
        with Forwarder(distance, server.extra(SocketAttribute.local_port)) as forwarder:  # noqa: S610 - not Django
            tasks.start_soon(forwarder.run)
            yield forwarder.port
            tasks.cancel_scope.cancel()


async def test_bytes_come_back_whole_and_after_both_ways() -> None:
    async with (
        far_away(Distance(delay=0.05), echo) as port,
        await anyio.connect_tcp(LOOPBACK, port) as stream,
    ):
        begun = anyio.current_time()
        await stream.send(b"x")
        assert await stream.receive() == b"x"
        connected = anyio.current_time()
        assert connected - begun >= 4 * 0.05  # a handshake, and there and back
        await stream.send(b"y")
        assert await stream.receive() == b"y"
        assert anyio.current_time() - connected >= 2 * 0.05


async def test_a_delay_takes_nothing_from_the_rate() -> None:
    async with (
        far_away(Distance(delay=0.2), echo) as port,
        await anyio.connect_tcp(LOOPBACK, port) as stream,
        anyio.create_task_group() as tasks,
    ):
        begun = anyio.current_time()

        async def send() -> None:
            for _ in range(4):
                await stream.send(PATTERN)
            await stream.send_eof()

        tasks.start_soon(send)
        assert await read_all(stream) == PATTERN * 4
        # 64 pieces and more: one after the other they would take 13 s each way.
        assert anyio.current_time() - begun < 6


async def test_the_rate_is_that_of_all_connections_together() -> None:
    received = 0

    async def sink(stream: SocketStream) -> None:
        nonlocal received
        async with stream:
            data = await read_all(stream)
        received += len(data)

    async def call(port: int) -> None:
        async with await anyio.connect_tcp(LOOPBACK, port) as stream:
            await stream.send(bytes(200_000))
            await stream.send_eof()
            assert await read_all(stream) == b""

    async with far_away(Distance(rate=2_000_000), sink) as port:
        begun = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(call, port)
        assert received == 600_000
        assert anyio.current_time() - begun >= 0.3


async def test_what_was_said_before_the_end_arrives() -> None:
    received: list[bytes] = []
    done = anyio.Event()

    async def keep(stream: SocketStream) -> None:
        async with stream:
            received.append(await read_all(stream))
        done.set()

    async with far_away(Distance(delay=0.1), keep) as port:
        async with await anyio.connect_tcp(LOOPBACK, port) as stream:
            await stream.send(PATTERN)
            await stream.send_eof()
        await done.wait()
    assert received == [PATTERN]


async def test_an_answer_arrives_from_one_who_closes_at_once() -> None:
    async def answer(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"bye")

    async with (
        far_away(Distance(delay=0.05), answer) as port,
        await anyio.connect_tcp(LOOPBACK, port) as stream,
    ):
        await stream.send(b"x")
        assert await read_all(stream) == b"bye"


async def test_a_reset_ends_the_connection() -> None:
    async def reset(stream: SocketStream) -> None:
        await stream.receive(1)
        await stream.aclose()  # with bytes unread, which makes it a reset

    async with (
        far_away(Distance(delay=0.02), reset) as port,
        await anyio.connect_tcp(LOOPBACK, port) as stream,
    ):
        await stream.send(bytes(100_000))
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await stream.receive()


async def test_where_nobody_listens_the_connection_ends() -> None:
    with Forwarder(Distance(delay=0.01), 1) as forwarder:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(forwarder.run)
            for _ in range(2):  # and the forwarder lives on
                async with await anyio.connect_tcp(LOOPBACK, forwarder.port) as stream:
                    with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                        await stream.receive()
            tasks.cancel_scope.cancel()


async def test_who_sends_to_one_who_does_not_read_is_stopped() -> None:
    sent = 0
    with (
        socket.create_server((LOOPBACK, 0)) as never_accepts,
        Forwarder(Distance(delay=0.01), never_accepts.getsockname()[1]) as forwarder,
    ):
        async with (
            await anyio.connect_tcp(LOOPBACK, forwarder.port) as stream,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(forwarder.run)
            with anyio.move_on_after(0.7):  # far more than it needs to fill every buffer
                while sent < 200_000_000:
                    await stream.send(PATTERN)
                    sent += len(PATTERN)
            tasks.cancel_scope.cancel()
    assert 0 < sent < 50_000_000  # a few of ours, and what the kernel holds


async def test_a_process_forwards_to_several_ports_and_ends(tmp_path: Path) -> None:
    async def name(stream: SocketStream) -> None:
        async with stream:
            await stream.send(str(stream.extra(SocketAttribute.local_port)).encode())  # noqa: S610 - not Django

    async with (
        await anyio.create_tcp_listener(local_host=LOOPBACK) as one,
        await anyio.create_tcp_listener(local_host=LOOPBACK) as other,
        anyio.create_task_group() as tasks,
    ):
        real = [listener.extra(SocketAttribute.local_port) for listener in (one, other)]  # noqa: S610 - not Django
        for listener in (one, other):
            tasks.start_soon(listener.serve, name)
        async with open_distance(Distance(delay=0.01), real, tmp_path / "log") as ports:
            for port, expected in zip(ports, real, strict=True):
                async with await anyio.connect_tcp(LOOPBACK, port) as stream:
                    assert await read_all(stream) == str(expected).encode()
        for port in ports:
            assert not is_listening(port)
        tasks.cancel_scope.cancel()
    assert (tmp_path / "log").read_bytes() == b""


async def test_a_process_that_does_not_start_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such snake >&2\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(TransportUnavailableError, match="did not start: no such snake"):
        await open_distance(Distance(delay=0.01), [1], tmp_path / "log").__aenter__()


KILLED_PARENT = """
import anyio, sys
from pathlib import Path
from overlay.testing.delay_line import Distance
from overlay.testing.distance import open_distance
async def main():
    async with open_distance(Distance(delay=0.01), [1], Path(sys.argv[1])) as ports:
        print(*ports, flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""


def test_the_process_ends_with_a_killed_parent(tmp_path: Path) -> None:
    words = [sys.executable, "-c", KILLED_PARENT, str(tmp_path / "log")]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        assert is_listening(port)
        parent.kill()
    anyio.run(until_nobody_listens, port)


async def until_nobody_listens(port: int) -> None:
    with anyio.fail_after(10):
        while is_listening(port):  # noqa: ASYNC110 - the process is nobody's child now, so nobody is told
            await anyio.sleep(0.02)


def is_listening(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex((LOOPBACK, port)) == 0
