"""TCP where it differs from other transports: addresses, errors, and a system that runs short."""

from __future__ import annotations

import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

import anyio
import pytest
from anyio.abc import SocketAttribute

from overlay.connection import Listener
from overlay.errors import MalformedError, TransportUnavailableError, UnreachableError
from overlay.locators import NodeLocator, memory_locator
from overlay.transports.tcp import TCP_PROPERTIES, TcpTransport, listener
from overlay.transports.tcp import transport as transport_module


async def test_listener_binds_the_given_address_only() -> None:
    async with TcpTransport("127.0.0.2") as transport, await transport.listen() as opened:
        (locator,) = opened.locators
        assert locator.host == "127.0.0.2"
        with pytest.raises(
            UnreachableError, match=r"/ip4/127\.0\.0\.1/tcp/\d+ cannot be reached: connection refused"
        ):
            await transport.connect(NodeLocator.tcp("127.0.0.1", locator.port))


async def test_advertised_locator_is_published_and_on_accepted_connections() -> None:
    public = NodeLocator.tcp("192.0.2.7", 4000)
    async with TcpTransport("0.0.0.0", advertise=public) as transport, await transport.listen() as opened:  # noqa: S104
        assert tuple(opened.locators) == (public,)
        bound = opened._socket.getsockname()[1]  # type: ignore[attr-defined]
        async with (
            await transport.connect(NodeLocator.tcp("127.0.0.1", bound)),
            await opened.accept() as accepted,
        ):
            assert accepted.locator == public


@pytest.mark.parametrize(
    ("host", "port", "advertise", "says"),
    [
        ("0.0.0.0", 0, None, "which one to advertise"),  # noqa: S104
        ("::", 0, None, "which one to advertise"),
        ("example.org", 0, None, "names are not looked up"),
        ("127.0.0.1", 65536, None, "not a port"),
        ("127.0.0.1", 0, memory_locator(1), "cannot be advertised"),
    ],
)
def test_wrong_addresses_are_refused(host: str, port: int, advertise: NodeLocator | None, says: str) -> None:
    with pytest.raises(MalformedError, match=says):
        TcpTransport(host, port, advertise=advertise)


async def test_taken_port_is_unavailable() -> None:
    async with (
        TcpTransport() as first,
        await first.listen() as opened,
        TcpTransport(port=opened.locators[0].port) as second,
    ):
        with pytest.raises(TransportUnavailableError, match="address already in use"):
            await second.listen()


async def test_address_of_another_machine_is_unavailable() -> None:
    async with TcpTransport("192.0.2.1") as transport:
        with pytest.raises(TransportUnavailableError, match="choose another address"):
            await transport.listen()


async def test_port_can_be_taken_again_at_once() -> None:
    async with TcpTransport() as first, await first.listen() as opened:
        port = opened.locators[0].port
        async with await first.connect(opened.locators[0]), await opened.accept():
            pass
    async with TcpTransport(port=port) as second, await second.listen() as opened:
        assert opened.locators[0].port == port


async def test_ipv6_is_carried_or_said_to_be_missing() -> None:
    async with TcpTransport("::1") as transport:
        if not has_ipv6_loopback():
            with pytest.raises(TransportUnavailableError, match="cannot listen on ::1"):
                await transport.listen()
            return
        async with (
            await transport.listen() as opened,
            await transport.connect(opened.locators[0]),
            await opened.accept() as accepted,
        ):
            assert str(accepted.locator).startswith("/ip6/::1/tcp/")


def has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_dial_that_nobody_answers_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(host: str, port: int) -> None:  # noqa: ARG001
        await anyio.sleep_forever()

    monkeypatch.setattr(anyio, "connect_tcp", never)
    monkeypatch.setattr(transport_module, "TCP_PROPERTIES", replace(TCP_PROPERTIES, dial_timeout=0.01))
    async with TcpTransport() as transport:
        with pytest.raises(UnreachableError, match=r"did not answer within 0\.01 seconds"):
            await transport.connect(NodeLocator.tcp("192.0.2.1", 1))


async def test_process_without_descriptors_cannot_dial() -> None:
    async with TcpTransport() as transport, await transport.listen() as opened:
        with no_descriptors_left(), pytest.raises(TransportUnavailableError, match="raise the limit"):
            await transport.connect(opened.locators[0])
        async with await transport.connect(opened.locators[0]), await opened.accept():
            pass


async def test_listener_survives_a_process_without_descriptors() -> None:
    async with (
        TcpTransport() as transport,
        await transport.listen() as opened,
        await transport.connect(opened.locators[0]) as dialled,
    ):
        with no_descriptors_left():
            with anyio.move_on_after(0.05) as scope:
                await opened.accept()
            assert scope.cancelled_caught
        await dialled.send(b"late")
        async with await opened.accept() as accepted:
            assert await accepted.receive() == b"late"


async def test_listener_gives_up_when_descriptors_stay_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "EXHAUSTION_PAUSE", 0.001)
    monkeypatch.setattr(listener, "EXHAUSTION_ATTEMPTS", 5)
    async with (
        TcpTransport() as transport,
        await transport.listen() as opened,
        await transport.connect(opened.locators[0]),
    ):
        with no_descriptors_left(), pytest.raises(TransportUnavailableError, match="Too many open files"):
            await opened.accept()


async def test_listener_survives_a_connection_that_is_reset_before_it_is_accepted() -> None:
    async with TcpTransport() as transport, await transport.listen() as opened:
        address = (opened.locators[0].host, opened.locators[0].port)
        with socket.create_connection(address) as rude:
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        async with await transport.connect(opened.locators[0]) as dialled:
            await dialled.send(b"polite")
            assert await first_words(opened) == b"polite"


async def first_words(opened: Listener) -> bytes:
    while True:
        async with await opened.accept() as accepted:
            try:
                return await accepted.receive()
            except anyio.BrokenResourceError:
                continue


async def test_connection_of_a_socket_with_itself_is_none() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.connect(taken.getsockname())
        stream = await anyio.abc.SocketStream.from_socket(taken.dup())
        locator = NodeLocator.tcp(*taken.getsockname())
        with pytest.raises(UnreachableError, match="nobody listens"):
            await transport_module._refuse_own_echo(stream, locator)
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send(b"x")


async def test_small_writes_are_not_held_back() -> None:
    async with (
        TcpTransport() as transport,
        await transport.listen() as opened,
        await transport.connect(opened.locators[0]) as dialled,
        await opened.accept() as accepted,
    ):
        for connection in (dialled, accepted):
            raw = connection._stream.extra_attributes[SocketAttribute.raw_socket]()  # type: ignore[attr-defined]
            assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_transport_that_is_not_started_neither_dials_nor_listens() -> None:
    transport = TcpTransport()
    with pytest.raises(TransportUnavailableError, match="not started"):
        await transport.listen()
    with pytest.raises(TransportUnavailableError, match="not started"):
        await transport.connect(NodeLocator.tcp("127.0.0.1", 1))


async def test_stopping_the_transport_ends_its_listener() -> None:
    async with TcpTransport() as transport:
        opened = await transport.listen()
    with pytest.raises(anyio.ClosedResourceError):
        await opened.accept()


async def test_foreign_locator_is_unreachable() -> None:
    async with TcpTransport() as transport:
        with pytest.raises(UnreachableError, match="not reached by TCP"):
            await transport.connect(memory_locator(1))


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Lower the limit of open files to what is in use, and fill the gaps."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        gap = stack.enter_context(socket.socket())
        resource.setrlimit(resource.RLIMIT_NOFILE, (gap.fileno() + 20, before[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        with suppress(OSError):
            while True:
                stack.enter_context(socket.socket())
        yield


async def test_a_preferred_port_is_taken_when_it_is_free_and_given_up_when_not() -> None:
    async with TcpTransport() as first:
        listener = await first.listen()
        port = listener.locators[0].port
        async with TcpTransport(preferred=port) as second:
            assert (await second.listen()).locators[0].port != port
        await listener.aclose()
        async with TcpTransport(preferred=port) as third:
            assert (await third.listen()).locators[0].port == port
