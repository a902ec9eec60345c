"""A v3 onion service from a key of ours, so that its address survives restarts.

The key file has the format of tor's own `hs_ed25519_secret_key`: 32 bytes of header, then the expanded
64-byte key. A service made by tor can therefore be moved here, and back.

Sources: https://spec.torproject.org/control-spec (ADD_ONION), https://spec.torproject.org/rend-spec
"""

from __future__ import annotations

import base64
import hashlib
import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import anyio
from anyio import to_thread
from anyio.streams.memory import MemoryObjectReceiveStream

from overlay.errors import MalformedError, TransportUnavailableError
from overlay.identity import Entropy
from overlay.locators import NodeLocator
from overlay.transports.private_files import write_private
from overlay.transports.tor.control import ControlConnection, TorRefusedError

LATE_UPLOADS = 5.0
"""Seconds after the first upload of a descriptor that the others get; they are begun at the same time."""

_HEADER = b"== ed25519v1-secret: type0 ==".ljust(32, b"\0")
_KEY_BYTES = 64
_SYNTAX_ERROR = 512  # also: an argument that this tor does not know
_COLLISION = 550


@dataclass(frozen=True)
class OnionKey:
    """The expanded Ed25519 secret key of an onion service (RFC 8032 section 5.1.5, steps 1 and 2)."""

    expanded: bytes = field(repr=False)

    @classmethod
    def generate(cls, entropy: Entropy) -> Self:
        """Make a new key from 32 random bytes."""
        digest = bytearray(hashlib.sha512(entropy(32)).digest())
        digest[0] &= 248
        digest[31] = digest[31] & 63 | 64
        return cls(bytes(digest))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the bytes of a key file.

        Raises:
            MalformedError: not such a file, or damaged.
        """
        key = data[len(_HEADER) :]
        clamped = len(key) == _KEY_BYTES and key[0] & 7 == 0 and key[31] & 192 == 64
        if not data.startswith(_HEADER) or not clamped:
            raise MalformedError("this is no onion service key, or it is damaged: restore it from a copy")
        return cls(key)

    def to_bytes(self) -> bytes:
        """The bytes of a key file."""
        return _HEADER + self.expanded


async def load_key(path: Path, entropy: Entropy) -> OnionKey:
    """Load the key from `path`; make and store it when there is none.

    Args:
        path: of the key file, which only this user can read.
        entropy: where a new key comes from.

    Returns:
        the key, which is on disk.

    Raises:
        MalformedError: the file is not a key; it is left as it is.
        TransportUnavailableError: the file can be neither read nor written.
    """
    try:
        return await to_thread.run_sync(_load_or_make, path, entropy)
    except OSError as error:
        raise TransportUnavailableError(
            f"the onion service's key in {path} cannot be used: {error.strerror}"
        ) from error


def _load_or_make(path: Path, entropy: Entropy) -> OnionKey:
    if path.exists():
        with path.open("rb") as file:
            return OnionKey.from_bytes(file.read(len(_HEADER) + _KEY_BYTES + 1))
    key = OnionKey.generate(entropy)
    write_private(path, key.to_bytes())
    return key


@dataclass(frozen=True)
class OnionService:
    """What to publish: a key, the port that the network sees, and the local port that it leads to."""

    key: OnionKey
    port: int
    target_port: int

    async def publish(self, control: ControlConnection, *, timeout: float) -> NodeLocator:  # noqa: ASYNC109 - its error says the limit
        """Add the service to tor and wait until a directory has its descriptor.

        The service lives as long as the control connection.

        Args:
            control: of the tor that is to run it.
            timeout: seconds to wait for the descriptor's upload.

        Returns:
            where the service is reached.

        Raises:
            TransportUnavailableError: tor refuses, or no directory took the descriptor in time; the service
                is not left behind.
        """
        async with control.events("HS_DESC") as events:
            name = await self._add(control)
            locator = NodeLocator.onion(name, self.port)
            with anyio.move_on_after(timeout):
                await _uploaded(events, name)
                return locator
            await self.withdraw(control, locator)
        raise TransportUnavailableError(
            f"the onion service was not published within {timeout:.0f} s: check the internet connection"
        )

    async def _add(self, control: ControlConnection) -> str:
        """Have tor run the service, and return its name.

        Raises:
            TransportUnavailableError: tor serves the same key already, or is lost.
            TorRefusedError: tor refuses for another reason.
        """
        secret = base64.b64encode(self.key.expanded).decode("ascii")
        command = f"ADD_ONION ED25519-V3:{secret} Port={self.port},127.0.0.1:{self.target_port}"
        try:
            return _service_name(await self._add_with_defence(control, command))
        except TorRefusedError as error:
            if error.reply == _COLLISION:
                raise TransportUnavailableError(
                    "this tor already serves the same onion key: another node may be using it"
                ) from error
            raise

    @staticmethod
    async def _add_with_defence(control: ControlConnection, command: str) -> list[str]:
        """Have callers solve a puzzle when the service is flooded, where tor was built with that.

        Raises:
            TorRefusedError: tor refuses, and not because of the puzzle.
        """
        try:
            return await control.request(f"{command} PoWDefensesEnabled=1")
        except TorRefusedError as error:
            if error.reply != _SYNTAX_ERROR:
                raise
            return await control.request(command)

    async def withdraw(self, control: ControlConnection, locator: NodeLocator) -> None:
        """Take the service down; nothing happens when it is down, or tor is gone."""
        with suppress(TransportUnavailableError):
            await control.request(f"DEL_ONION {locator.host.removesuffix('.onion')}")


async def _uploaded(events: MemoryObjectReceiveStream[str], name: str) -> None:
    """Wait until one directory has the descriptor, and a little longer for those that are getting it.

    A caller asks one of them at random, and takes the answer of one that has nothing yet for final.

    Raises:
        TransportUnavailableError: the events ended, because tor is lost.
    """
    outstanding, deadline = 0, math.inf
    while outstanding or deadline == math.inf:
        with anyio.move_on_after(deadline - anyio.current_time()) as scope:
            action = await _next_action(events, name)
            outstanding += {"UPLOAD": 1, "UPLOADED": -1, "FAILED": -1}.get(action, 0)
            if action == "UPLOADED":
                deadline = min(deadline, anyio.current_time() + LATE_UPLOADS)
        if scope.cancelled_caught:
            return


async def _next_action(events: MemoryObjectReceiveStream[str], name: str) -> str:
    """Wait for what tor does next with the descriptor of the service `name`, and not with another's.

    Raises:
        TransportUnavailableError: the events ended, because tor is lost.
    """
    async for event in events:
        kind, action, subject = [*event.split()[:3], "", "", ""][:3]
        if kind == "HS_DESC" and subject == name:
            return action
    raise TransportUnavailableError("tor was lost while the onion service was published")


def _service_name(reply: list[str]) -> str:
    for line in reply:
        if line.startswith("ServiceID="):
            return line.removeprefix("ServiceID=")
    raise TransportUnavailableError("tor's answer to ADD_ONION is not understood")
