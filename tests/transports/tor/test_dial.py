from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Protocol

import anyio
import pytest
from anyio import CapacityLimiter
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import OverlayError, RefusedError, TransportUnavailableError, UnreachableError
from overlay.transports.tor.dial import Credentials, _Tunnel, dial


class Server(Protocol):
    address: tuple[str, int]
    ended: threading.Event


Serve = Callable[[Callable[[socket.socket], None]], Server]
TARGET = ("a" * 56 + ".onion", 9351)
CREDENTIALS = Credentials.derive(b"secret", b"token")
GRANTED = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"


def read(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := client.recv(size - len(data))):
        data += more
    return data


def negotiate(client: socket.socket) -> tuple[bytes, bytes, bytes]:
    """The server's half of a SOCKS5 negotiation up to the request: username, password, request."""
    assert read(client, 4) == b"\x05\x02\x00\x02"
    client.sendall(b"\x05\x02")
    assert read(client, 1) == b"\x01"
    username = read(client, read(client, 1)[0])
    password = read(client, read(client, 1)[0])
    client.sendall(b"\x01\x00")
    head = read(client, 5)
    return username, password, head + read(client, head[4] + 2)


async def attempt(address: tuple[str, int], first: bytes = b"") -> anyio.abc.SocketStream:
    with anyio.fail_after(10):
        return await dial(address, TARGET, credentials=CREDENTIALS, limiter=CapacityLimiter(4), first=first)


async def test_asks_for_the_name_unresolved_with_credentials_and_carries_bytes(serve: Serve) -> None:
    asked = []

    def script(client: socket.socket) -> None:
        asked.append(negotiate(client))
        client.sendall(GRANTED + b"early")  # bytes of the stream may follow the reply at once
        assert read(client, 4) == b"ping"
        client.sendall(b"pong")

    async with await attempt(serve(script).address) as stream:
        assert await stream.receive() == b"early"
        await stream.send(b"ping")
        assert await stream.receive() == b"pong"
    name = TARGET[0].encode()
    assert asked == [
        (
            CREDENTIALS.username.encode(),
            CREDENTIALS.password.encode(),
            b"\x05\x01\x00\x03" + bytes([len(name)]) + name + TARGET[1].to_bytes(2, "big"),
        )
    ]


async def test_first_bytes_go_out_before_the_reply(serve: Serve) -> None:
    def script(client: socket.socket) -> None:
        negotiate(client)
        assert read(client, 5) == b"first"  # the reply comes after it
        client.sendall(GRANTED)
        assert read(client, 6) == b"second"
        client.sendall(b"all")

    async with await attempt(serve(script).address, b"first") as stream:
        await stream.send(b"second")
        assert await stream.receive() == b"all"


async def test_first_bytes_go_out_once_where_pysocks_asks_for_the_address_elsewhere(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(client: socket.socket) -> None:
        negotiate(client)
        client.sendall(GRANTED)
        assert read(client, 5) == b"first"
        client.sendall(b"all")

    monkeypatch.delattr(_Tunnel, "_write_SOCKS5_address")
    async with await attempt(serve(script).address, b"first") as stream:
        assert await stream.receive() == b"all"


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (0x01, UnreachableError, "could not reach"),
        (0x02, RefusedError, "rules"),
        (0x04, UnreachableError, "does not answer"),
        (0x05, UnreachableError, "this port"),
        (0xF0, UnreachableError, "no such onion service"),
        (0xF2, UnreachableError, "introduced"),
        (0xF4, RefusedError, "authorized clients"),
        (0xF5, RefusedError, "does not accept the key"),
        (0xF6, UnreachableError, "no onion address"),
        (0xEE, UnreachableError, "reply 238"),
    ],
)
async def test_replies_say_whose_fault_it_is(
    serve: Serve, status: int, kind: type[OverlayError], text: str
) -> None:
    def script(client: socket.socket) -> None:
        negotiate(client)
        client.sendall(bytes([5, status]) + GRANTED[2:])
        assert read(client, 1) == b""

    with pytest.raises(kind, match=text):
        await attempt(serve(script).address)


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.0 200 OK\r\n\r\n", b"\x04\x00", b"\x05\xff", b"\x05\x07"])
async def test_what_is_not_socks5_is_the_proxys_fault(serve: Serve, reply: bytes) -> None:
    def script(client: socket.socket) -> None:
        read(client, 4)
        client.sendall(reply)

    with pytest.raises(TransportUnavailableError, match="SOCKS5"):
        await attempt(serve(script).address)


@pytest.mark.parametrize("when", ["granted", "first bytes unread"])
async def test_a_connection_that_ends_as_soon_as_it_was_granted_is_unreachable(
    serve: Serve, when: str
) -> None:
    def script(client: socket.socket) -> None:
        negotiate(client)
        client.sendall(GRANTED)
        if when == "granted":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()  # a reset, as it is where bytes were not read

    ended = 0
    for _ in range(20):  # whether the reset comes before the socket is looked at is chance
        try:
            stream = await attempt(serve(script).address, b"first")
        except UnreachableError:
            ended += 1
        else:
            await anyio.aclose_forcefully(stream)
    assert ended


async def test_closed_port_is_the_proxys_fault() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(TransportUnavailableError, match="not open"):
            await attempt(taken.getsockname())


def stall_at_once(client: socket.socket, reached: threading.Event) -> None:
    assert read(client, 4) == b"\x05\x02\x00\x02"
    reached.set()


def stall_after_request(client: socket.socket, reached: threading.Event) -> None:
    negotiate(client)
    reached.set()


def stall_within_reply(client: socket.socket, reached: threading.Event) -> None:
    negotiate(client)
    client.sendall(GRANTED[:4])
    reached.set()


@pytest.mark.parametrize("stall", [stall_at_once, stall_after_request, stall_within_reply])
async def test_cancelled_dial_closes_its_socket_and_ends_its_thread(
    serve: Serve, stall: Callable[[socket.socket, threading.Event], None]
) -> None:
    reached = threading.Event()

    def script(client: socket.socket) -> None:
        stall(client, reached)
        assert read(client, 1) == b""

    server = serve(script)
    limiter = CapacityLimiter(1)
    async with anyio.create_task_group() as group:

        async def dial_in_vain() -> None:
            await dial(server.address, TARGET, credentials=CREDENTIALS, limiter=limiter)

        group.start_soon(dial_in_vain)
        assert await anyio.to_thread.run_sync(reached.wait, 10)
        group.cancel_scope.cancel()
    assert await anyio.to_thread.run_sync(server.ended.wait, 10)
    assert limiter.borrowed_tokens == 0


async def test_dial_that_is_cancelled_before_it_begins_ends() -> None:
    with anyio.fail_after(10), anyio.CancelScope() as scope:
        scope.cancel()
        await dial(("127.0.0.1", 1), TARGET, credentials=CREDENTIALS, limiter=CapacityLimiter(1))
    assert scope.cancelled_caught


@given(
    secret=st.binary(min_size=1, max_size=64), tokens=st.sets(st.binary(max_size=64), min_size=2, max_size=2)
)
def test_each_token_has_credentials_of_its_own(secret: bytes, tokens: set[bytes]) -> None:
    one, other = (Credentials.derive(secret, token) for token in tokens)
    assert one.username != other.username
    assert one.password != other.password
    assert 1 <= len(one.username) <= 255
    assert 1 <= len(one.password) <= 255
    assert Credentials.derive(b"other" + secret[:59], next(iter(tokens))) not in {one, other}
