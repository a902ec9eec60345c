"""The TCP transport: `overlay.connection.Transport` over sockets of this machine."""

from __future__ import annotations

import ipaddress
import os
import socket
from contextlib import suppress
from types import TracebackType
from typing import NoReturn

import anyio
from anyio.abc import SocketAttribute, SocketStream

from overlay.connection import Connection, Listener, Properties, StreamConnection, Transport
from overlay.errors import MalformedError, TransportUnavailableError, UnreachableError
from overlay.locators import NodeLocator
from overlay.transports.tcp.listener import BACKLOG, OUT_OF_RESOURCES, TcpListener

TCP_PROPERTIES = Properties(
    hides_sender=False,
    hides_receiver=False,
    encrypts=False,
    authenticates_receiver=False,
    reorders=False,
    pads=False,
    synchronous=True,
    half_closes=True,
    round_trip=0.05,
    dial_timeout=10.0,
)
"""Each side sees the other's address, and everybody in between sees all of it."""

_PROTOCOLS = ("ip4", "ip6")


class TcpTransport(Transport):
    """Connects nodes by TCP. Addresses are IP addresses; names are never looked up.

    Args:
        host: the address to listen on, and no other. The default reaches this machine only.
        port: the port to listen on; 0 takes a free one.
        preferred: with port 0, the port to take if it is free; a node that starts again is then found at
            the address that others know.
        advertise: the locator to publish instead of the bound address: needed when `host` stands for all
            addresses (`0.0.0.0`, `::`), useful behind a router that forwards a port.

    Raises:
        MalformedError: `host` is no IP address, `port` no port, `advertise` no TCP locator, or `host`
            stands for all addresses and there is nothing to advertise.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        preferred: int = 0,
        advertise: NodeLocator | None = None,
    ) -> None:
        super().__init__()
        try:
            self._host = ipaddress.ip_address(host)
        except ValueError as error:
            raise MalformedError(f"{host!r} is not an IP address, and names are not looked up") from error
        for each in (port, preferred):
            if not 0 <= each <= 65535:
                raise MalformedError(f"{each} is not a port from 0 to 65535")
        if advertise is not None and not self.carries(advertise):
            raise MalformedError(f"{advertise} cannot be advertised for TCP: give an IP address and a port")
        if advertise is None and self._host.is_unspecified:
            raise MalformedError(f"{host} is every address of this machine: say which one to advertise")
        self._port = port
        self._preferred = preferred
        self._advertise = advertise
        self._listener: TcpListener | None = None

    @property
    def name(self) -> str:
        """`tcp`."""
        return "tcp"

    @property
    def properties(self) -> Properties:
        """Nothing is hidden or encrypted."""
        return TCP_PROPERTIES

    def carries(self, locator: NodeLocator) -> bool:
        """Tell whether `locator` is an IP address with a TCP port."""
        return locator.protocol in _PROTOCOLS

    async def connect(self, locator: NodeLocator, *, isolation: bytes = b"") -> Connection:  # noqa: ARG002 - there are no circuits
        """Dial; see `Transport.connect`.

        Raises:
            UnreachableError: refused, no route, not a TCP locator, or no answer within `dial_timeout`.
            TransportUnavailableError: not started, or the system has no descriptor left for a socket.
        """
        self._require_started()
        if not self.carries(locator):
            raise UnreachableError(f"{locator} is not reached by TCP")
        try:
            with anyio.fail_after(TCP_PROPERTIES.dial_timeout):
                stream = await anyio.connect_tcp(locator.host, locator.port)
        except TimeoutError as error:
            seconds = TCP_PROPERTIES.dial_timeout
            raise UnreachableError(f"{locator} did not answer within {seconds:g} seconds") from error
        except OSError as error:
            _raise_dial_error(locator, error)
        await _refuse_own_echo(stream, locator)
        return StreamConnection(stream, locator=locator, properties=TCP_PROPERTIES)

    async def listen(self) -> Listener:
        """Bind and listen; see `Transport.listen`.

        Raises:
            TransportUnavailableError: the address is taken or not one of this machine, the port needs more
                rights, or this transport listens already.
        """
        self._require_started()
        if self._listener is not None and self._listener.is_open:
            raise TransportUnavailableError("this TCP transport listens already: close that listener first")
        listening = self._bind_preferred()
        bound = NodeLocator.tcp(*listening.getsockname()[:2])
        self._listener = TcpListener(listening, self._advertise or bound, TCP_PROPERTIES)
        return self._listener

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Stop, and stop listening."""
        if self._listener is not None:
            self._listener.close()
        return await super().__aexit__(exc_type, exc, traceback)

    def _bind_preferred(self) -> socket.socket:
        if self._preferred and not self._port:
            with suppress(TransportUnavailableError):
                return self._bind(self._preferred)
        return self._bind(self._port)

    def _bind(self, port: int) -> socket.socket:
        """Give a listening socket, bound to the one address that was asked for.

        Raises:
            TransportUnavailableError: the system says no.
        """
        family = socket.AF_INET if self._host.version == 4 else socket.AF_INET6
        listening: socket.socket | None = None
        try:
            listening = socket.socket(family, socket.SOCK_STREAM)
            listening.setblocking(False)
            # A node that starts again takes its port back from connections that are still winding down.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind((str(self._host), port))
            listening.listen(BACKLOG)
        except OSError as error:
            if listening is not None:
                listening.close()
            raise TransportUnavailableError(
                f"cannot listen on {self._host} port {port} ({_reason(error)}):"
                " choose another address or port"
            ) from error
        return listening

    def _require_started(self) -> None:
        if self.status.state != "ready":
            raise TransportUnavailableError("the TCP transport is not started: enter it first")


async def _refuse_own_echo(stream: SocketStream, locator: NodeLocator) -> None:
    """Close a connection whose two ends are one socket.

    When nobody listens on a port of the range that outgoing sockets use, Linux may give the dialling socket
    that very port, and TCP's simultaneous open then connects it to itself.

    Raises:
        UnreachableError: it is such a connection.
    """
    ends = stream.extra_attributes
    remote = ends.get(SocketAttribute.remote_address)  # missing when the peer has reset it already
    if remote is not None and remote() == ends[SocketAttribute.local_address]():
        await anyio.aclose_forcefully(stream)
        raise UnreachableError(f"{locator} refused the connection: nobody listens there")


def _raise_dial_error(locator: NodeLocator, error: OSError) -> NoReturn:
    """Say whose fault it was; anyio keeps the system's own error as the cause of its summary.

    Raises:
        TransportUnavailableError: this side's, which has no socket left.
        UnreachableError: the network's, or the other side's.
    """
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    reason = _reason(cause)
    if cause.errno in OUT_OF_RESOURCES:
        raise TransportUnavailableError(
            f"no socket can be opened ({reason}): raise the limit of open files"
        ) from error
    raise UnreachableError(f"{locator} cannot be reached: {reason}") from error


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)
