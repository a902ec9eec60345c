"""Dialling through tor's SOCKS port: PySocks, which blocks, made cancellable.

Each isolation token becomes a SOCKS username and password of its own, and tor (IsolateSOCKSAuth, its default)
gives each pair circuits of its own.

Sources: RFC 1928, RFC 1929, https://spec.torproject.org/socks-extensions
"""

from __future__ import annotations

import hashlib
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedWriter

import anyio
import anyio.lowlevel
import socks
from anyio import CapacityLimiter, to_thread
from anyio.abc import SocketStream

from overlay.errors import OverlayError, RefusedError, TransportUnavailableError, UnreachableError

MAX_DIALS = 64
"""Dials at once; each holds a thread. A lookup dials up to 20 nodes at once, and several can run."""

_NUDGE = 0.01  # seconds between attempts to wake a thread that is about to connect
_STATUS = re.compile(r"^0x([0-9a-f]{2}):")
_CREDENTIAL_BYTES = 16

_REPLIES: dict[int, tuple[type[OverlayError], str]] = {
    0x01: (UnreachableError, "tor could not reach the onion service; try again in a moment"),
    0x02: (RefusedError, "this tor's rules do not allow the connection"),
    0x03: (UnreachableError, "tor's network is unreachable; check the internet connection"),
    0x04: (UnreachableError, "the onion service does not answer; it may be offline"),
    0x05: (UnreachableError, "the onion service takes no connection on this port at the moment"),
    0x06: (UnreachableError, "the connection to the onion service timed out within tor; try again"),
    0xF0: (
        UnreachableError,
        "no such onion service is published; it may be offline, or the address outdated",
    ),
    0xF1: (UnreachableError, "the onion service's descriptor is invalid; its tor may have to be updated"),
    0xF2: (UnreachableError, "tor could not be introduced to the onion service; try again"),
    0xF3: (UnreachableError, "tor could not meet the onion service; try again"),
    0xF4: (RefusedError, "the onion service is for authorized clients, and this tor has no key for it"),
    0xF5: (RefusedError, "the onion service does not accept the key that this tor has for it"),
    0xF6: (UnreachableError, "tor says that this is no onion address; copy it again"),
    0xF7: (UnreachableError, "tor was not introduced to the onion service in time; try again"),
}
"""SOCKS5 replies and tor's ExtendedErrors, as whose fault they are."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The SOCKS username and password that stand for one isolation token."""

    username: str
    password: str

    @classmethod
    def derive(cls, secret: bytes, isolation: bytes) -> Credentials:
        """Make the pair for `isolation`; without `secret`, other users of the same tor cannot make it too."""
        digest = hashlib.blake2b(isolation, key=secret, digest_size=2 * _CREDENTIAL_BYTES).hexdigest()
        return cls(digest[: 2 * _CREDENTIAL_BYTES], digest[2 * _CREDENTIAL_BYTES :])


async def dial(
    proxy: tuple[str, int],
    target: tuple[str, int],
    *,
    credentials: Credentials,
    limiter: CapacityLimiter,
    first: bytes = b"",
) -> SocketStream:
    """Connect to an onion service.

    Args:
        proxy: tor's SOCKS port.
        target: onion name and port; the name is given to tor as it is and looked up nowhere.
        credentials: which circuits may be shared.
        limiter: bounds the threads; a dial waits for its turn.
        first: what the stream begins with.

    Returns:
        the connected stream. There is no time limit: the caller's cancel scope is the limit.

    Raises:
        explain_failure: UnreachableError: tor says that the service cannot be reached; RefusedError: the
            service, or this tor's rules, say no; TransportUnavailableError: tor's SOCKS port does not
            answer as one.
        UnreachableError: the service, or tor, ended the connection as soon as it was open.
        Cancelled, it leaves neither a socket nor a thread behind.
    """
    family = socket.AF_INET6 if ":" in proxy[0] else socket.AF_INET
    tunnel = _Tunnel(family, first)
    try:
        tunnel.set_proxy(
            socks.SOCKS5, *proxy, rdns=True, username=credentials.username, password=credentials.password
        )
        await _connect(tunnel, target, limiter)
        # Nagle's algorithm would hold back small frames until tor, next door, acknowledges the one before.
        tunnel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return await _plain(tunnel)
    except socks.ProxyError as error:
        raise explain_failure(error) from error
    except (OSError, ValueError) as error:  # the socket ended as soon as it was open; anyio says so by either
        raise UnreachableError(
            "the connection ended as soon as it was open; try again in a moment"
        ) from error
    finally:
        tunnel.close()


class _Tunnel(socks.socksocket):  # type: ignore[misc]  # PySocks has no types
    """Says the first bytes of the stream in one breath with the request to connect.

    Tor takes such *optimistic data* along with its own request to the service, where it would else begin to
    send one round trip through seven relays later. PySocks has no way to say something before the reply.

    Source: https://spec.torproject.org/proposals/174-optimistic-data-server.html
    """

    def __init__(self, family: int, first: bytes) -> None:
        super().__init__(family)
        self._first = first

    def _write_SOCKS5_address(self, address: tuple[str, int], file: BufferedWriter) -> tuple[str, int]:  # noqa: N802 - PySocks's name
        written: tuple[str, int] = super()._write_SOCKS5_address(address, file)
        file.write(self._first)  # the address ends the request, which is sent when `file` is flushed
        self._first = b""
        return written

    def connect(self, target: tuple[str, int]) -> None:
        super().connect(target)
        if self._first:  # a PySocks that writes the address elsewhere
            socket.socket.sendall(self, self._first)


async def _connect(tunnel: socks.socksocket, target: tuple[str, int], limiter: CapacityLimiter) -> None:
    done = anyio.Event()

    async def wake_when_cancelled() -> None:
        try:
            await done.wait()
        finally:
            with anyio.CancelScope(shield=True):
                while not done.is_set():
                    with suppress(OSError):  # not connected to tor yet, or no longer
                        socket.socket.shutdown(tunnel, socket.SHUT_RDWR)
                    await anyio.sleep(_NUDGE)

    failure: OSError | None = None
    async with limiter, anyio.create_task_group() as group:
        group.start_soon(wake_when_cancelled)
        try:
            # Not abandoned when cancelled, so when this returns, or does not begin, no thread is left.
            await to_thread.run_sync(tunnel.connect, target, limiter=CapacityLimiter(1))
        except OSError as error:  # raised outside, because the group would wrap it
            failure = error
        finally:
            done.set()
    if failure is not None:
        await anyio.lowlevel.checkpoint_if_cancelled()  # then the failure is only what woke the thread
        raise failure


async def _plain(tunnel: socks.socksocket) -> SocketStream:
    """Make a stream of a socket without PySocks, whose methods the event loop should not meet.

    Raises:
        OSError, ValueError: the other side has ended it.
    """
    plain = socket.socket(fileno=tunnel.detach())
    try:
        return await SocketStream.from_socket(plain)
    except BaseException:  # failed or cancelled: nobody else knows of it
        plain.close()
        raise


def explain_failure(error: socks.ProxyError) -> OverlayError:
    """Make the error that says whose fault PySocks's error is."""
    if isinstance(error, socks.ProxyConnectionError):
        return TransportUnavailableError("tor's SOCKS port is not open: tor may be starting")
    # PySocks takes its own errors for those of the socket, and wraps them; a reply begins with its code.
    reply = _STATUS.match(str(error.socket_err or error))
    if reply is None:
        return TransportUnavailableError("tor's SOCKS port does not speak SOCKS5, or tor has ended")
    status = int(reply[1], 16)
    kind, sentence = _REPLIES.get(status, (UnreachableError, f"tor failed to connect (SOCKS reply {status})"))
    return kind(sentence)
