"""One connection to tor's control port: stem, which blocks, brought into the event loop.

stem reads in threads of its own and every call of it blocks, so calls run in worker threads and events come
back through the event loop's thread-safe door. stem's high-level `Controller.authenticate` is avoided on
purpose: it takes ownership of a tor that names this process as its owner, and closing such a controller
ends that tor, whoever else uses it.

Source: https://spec.torproject.org/control-spec
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.lowlevel
import stem
import stem.connection
import stem.control
import stem.response
import stem.socket
import stem.util.log
from anyio import CapacityLimiter, from_thread, to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from overlay.errors import TransportUnavailableError
from overlay.transports.tor.settings import ControlAddress

# stem logs every message that it sends, passwords and onion keys among them, whatever level others ask for.
stem.util.log.get_logger().setLevel(logging.CRITICAL)

CONNECT_TIMEOUT = 5.0
"""Seconds for reaching a control port; it is on this machine, where an open port answers at once."""

MAX_WAITING_EVENTS = 256
"""Events kept for a subscriber that is late; a service's upload makes about twenty."""

_CALLS_AT_ONCE = 4  # stem sends one command at a time; more threads would only wait for its lock
_BOOTSTRAP = re.compile(r"PROGRESS=(\d{1,3})\b(?:.*?\bSUMMARY=\"([^\"]*)\")?(?:.*?\bWARNING=\"([^\"]*)\")?")


class TorRefusedError(TransportUnavailableError):
    """Tor answered a command with an error.

    Attributes:
        reply: tor's three-digit code.
    """

    def __init__(self, reply: int, text: str) -> None:
        super().__init__(f"tor refused a command: {text}")
        self.reply = reply


class _Socket(stem.socket.ControlSocket):  # type: ignore[misc]  # stem has no types
    """stem's sockets connect without a limit of time; this one does not."""

    def __init__(self, address: ControlAddress) -> None:
        super().__init__()
        self._address = address
        self.connect()

    def _make_socket(self) -> socket.socket:
        try:
            return self._open()
        except OSError as error:
            raise stem.SocketError(error) from error

    def _open(self) -> socket.socket:
        if not isinstance(self._address, Path):
            opened = socket.create_connection(self._address, timeout=CONNECT_TIMEOUT)
        else:
            opened = socket.socket(socket.AF_UNIX)
            try:
                opened.settimeout(CONNECT_TIMEOUT)
                opened.connect(str(self._address))
            except OSError:
                opened.close()
                raise
        opened.settimeout(None)  # tor speaks when it has something to say
        return opened


class _Controller(stem.control.BaseController):  # type: ignore[misc]  # stem has no types
    """stem's reader and event threads, with events handed to a function."""

    def __init__(self, address: ControlAddress, on_event: Callable[[str], None]) -> None:
        self._on_event = on_event
        super().__init__(_Socket(address))

    def _handle_event(self, event_message: object) -> None:
        self._on_event(str(event_message))


class ControlConnection:
    """An open connection to a control port; an async context manager that closes it. Made by `open_control`.

    Attributes:
        lost: set when the connection has ended, from either side, or tor has stopped answering.
    """

    def __init__(self, *, reply_timeout: float) -> None:
        self.lost = anyio.Event()
        self._timeout = reply_timeout
        self._limiter = CapacityLimiter(_CALLS_AT_ONCE)
        self._token = anyio.lowlevel.current_token()
        self._subscriber: MemoryObjectSendStream[str] | None = None
        self._controller: _Controller

    async def _connect(self, address: ControlAddress) -> None:
        def connect() -> _Controller:
            controller = _Controller(address, self._event_in_thread)
            controller.add_status_listener(self._status_in_thread)
            return controller

        # Not abandoned when cancelled: CONNECT_TIMEOUT bounds it, and nothing would close what it opened.
        self._controller = await to_thread.run_sync(connect, limiter=self._limiter)

    async def __aenter__(self) -> Self:
        """Nothing more to open."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; waits, even when cancelled, for stem's threads, which end with the socket."""
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(self._controller.close, limiter=CapacityLimiter(1))
        self._lose()

    async def request(self, command: str) -> list[str]:
        """Send one command and wait for its reply.

        Args:
            command: a line, or several for a command with data.

        Returns:
            the lines of the reply without their codes; a data line keeps its line breaks.

        Raises:
            TorRefusedError: tor answered with an error.
            TransportUnavailableError: the connection is lost, or tor did not answer in time.
            Cancelled, the reply is read and thrown away, and the connection can still be used.
        """
        message = await self._call(self._controller.msg, command)
        lines = message.content()
        code, _, text = lines[-1]
        if not code.startswith("2"):
            raise TorRefusedError(int(code), text)
        return [content for _, _, content in lines]

    async def get_info(self, key: str) -> str:
        """Ask for one value.

        Raises:
            TorRefusedError: tor does not know the key, or has no value yet.
            TransportUnavailableError: as for `request`, or the answer is not understood.
        """
        lines = await self.request(f"GETINFO {key}")
        name, equals, value = lines[0].partition("=")
        if not equals or name != key:
            raise TransportUnavailableError(f"tor's answer to GETINFO {key} is not understood")
        return value.removeprefix("\n")

    async def bootstrap(self) -> tuple[int, str]:
        """Ask how far tor has got in connecting to its network.

        Returns:
            percent, and what it is doing in tor's words, with the trouble that it has, if any.

        Raises:
            TransportUnavailableError: as for `get_info`.
        """
        phase = await self.get_info("status/bootstrap-phase")
        found = _BOOTSTRAP.search(phase)
        if not found:
            raise TransportUnavailableError("tor's report on its bootstrapping is not understood")
        progress, summary, warning = found.groups()
        return min(int(progress), 100), " - ".join(filter(None, (summary, warning))) or "connecting"

    @asynccontextmanager
    async def events(self, kind: str) -> AsyncIterator[MemoryObjectReceiveStream[str]]:
        """Subscribe to one kind of event for the length of a block; one block at a time.

        Yields:
            the events' texts, until the connection is lost.

        Raises:
            TransportUnavailableError: as for `request`.
        """
        sender, receiver = anyio.create_memory_object_stream[str](MAX_WAITING_EVENTS)
        with sender, receiver:
            self._subscriber = sender
            try:
                await self.request(f"SETEVENTS {kind}")
                yield receiver
            finally:
                self._subscriber = None
        if not self.lost.is_set():
            await self.request("SETEVENTS")

    async def authenticate(self, password: str | None) -> None:
        """Authenticate: with `password` if there is one and tor takes it, else as tor offers, cookies first.

        Raises:
            TransportUnavailableError: tor refuses, or the cookie cannot be read.
        """
        reply = await self._call(self._controller.msg, "PROTOCOLINFO 1")
        if not reply.content()[0][2].startswith("PROTOCOLINFO 1"):  # stem fails on what has no such line
            raise TransportUnavailableError("what answers there is not a tor control port")
        try:
            stem.response.convert("PROTOCOLINFO", reply)
        except stem.ControllerError as error:
            raise TransportUnavailableError("what answers there is not a tor control port") from error
        method = stem.connection.AuthMethod
        offered = set(reply.auth_methods)
        if password is not None and method.PASSWORD in offered:
            await self._authenticate_password(password)
        elif method.NONE in offered:
            await self.request("AUTHENTICATE")
        elif method.SAFECOOKIE in offered:
            await self._authenticate_cookie(stem.connection.authenticate_safecookie, reply.cookie_path)
        elif method.COOKIE in offered:
            await self._authenticate_cookie(stem.connection.authenticate_cookie, reply.cookie_path)
        else:
            raise TransportUnavailableError(
                "this tor wants a control password, and none was given: pass it "
                "(the overlay command takes it from OVERLAY_TOR_PASSWORD)"
            )

    async def _authenticate_password(self, password: str) -> None:
        try:
            await self.request(f"AUTHENTICATE {password.encode().hex()}")  # hex: quoting differs between tors
        except TorRefusedError as error:
            raise TransportUnavailableError("tor refused the control password: check it") from error

    async def _authenticate_cookie(self, authenticate: Callable[[Any, str], None], path: str) -> None:
        try:
            await self._call(authenticate, self._controller, path)
        except stem.connection.UnreadableCookieFile as error:
            raise TransportUnavailableError(
                "tor's control cookie cannot be read: this user may have to join the group that tor runs as"
            ) from error
        except stem.connection.AuthenticationFailure as error:
            raise TransportUnavailableError("tor refused its own control cookie: restart that tor") from error

    async def _call(self, function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - no types
        try:
            with anyio.fail_after(self._timeout):
                return await to_thread.run_sync(
                    function, *arguments, abandon_on_cancel=True, limiter=self._limiter
                )
        except TimeoutError as error:
            self._lose()
            raise TransportUnavailableError("tor does not answer on its control port: restart it") from error
        except stem.connection.AuthenticationFailure:
            raise
        except stem.ControllerError as error:
            self._lose()
            raise TransportUnavailableError("the connection to tor's control port was lost") from error

    def _event_in_thread(self, text: str) -> None:
        from_thread.run_sync(self._deliver, text, token=self._token)

    def _status_in_thread(self, _controller: object, state: str, _at: float) -> None:
        if state == stem.control.State.CLOSED:
            from_thread.run_sync(self._lose, token=self._token)

    def _lose(self) -> None:
        self.lost.set()
        if self._subscriber is not None:
            self._subscriber.close()

    def _deliver(self, text: str) -> None:
        if self._subscriber is not None:
            # A flood is not worth memory; the subscriber's own deadline ends its wait.
            with suppress(anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
                self._subscriber.send_nowait(text)


async def open_control(address: ControlAddress, *, reply_timeout: float) -> ControlConnection:
    """Connect to a control port, not yet authenticated.

    Args:
        address: where it listens.
        reply_timeout: seconds for one reply.

    Returns:
        the connection, which the caller enters and so closes.

    Raises:
        TransportUnavailableError: nothing listens there, or it may not be reached.
    """
    connection = ControlConnection(reply_timeout=reply_timeout)
    try:
        await connection._connect(address)  # noqa: SLF001 - the only maker of connections
    except stem.ControllerError as error:
        where = str(address) if isinstance(address, Path) else f"{address[0]}:{address[1]}"
        raise TransportUnavailableError(
            f"no tor control port at {where}: start tor, or correct the address"
        ) from error
    return connection
