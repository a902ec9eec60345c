"""Asking the node that runs on a home, from a program that waits for the answer.

Blocking, and the standard library only: the command line starts on it, and so can any script.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from overlay.control.address import socket_address
from overlay.control.protocol import JSON, NO_REQUEST, Answer, LineReader, Request, parse_answer
from overlay.errors import (
    ClosedError,
    MalformedError,
    NotRunningError,
    ProtocolViolationError,
    RefusedError,
    UnreachableError,
)

_RECEIVE_BYTES = 65536
CONNECT_TIMEOUT = 10.0
"""Seconds; a node that is alive takes a connection in less than one of them."""

Progress = Callable[[int, int, Mapping[str, JSON]], None]
"""Told how much is done, of how much in all, and all that the node says of it, these two included."""


class Client:
    """A connection to the control socket of a node. One request at a time.

    Args:
        path: the control socket.
        timeout: seconds to wait for each line of an answer; None waits for as long as the node works on it.

    Raises:
        NotRunningError: no node runs there.
        RefusedError: this user may not reach it.
        UnreachableError: it takes no connection.
    """

    def __init__(self, path: Path, *, timeout: float | None = None) -> None:
        self._socket = _connect(path)
        self._socket.settimeout(timeout)
        self._reader = LineReader()
        self._lines: list[bytes] = []
        self._number = NO_REQUEST

    def call(
        self, verb: str, args: Mapping[str, JSON] | None = None, *, progress: Progress | None = None
    ) -> JSON:
        """Ask for one result.

        Args:
            verb: one of docs/spec/control.md.
            args: its arguments.
            progress: told how far the node is, for verbs that say so.

        Returns:
            the result.

        Raises:
            OverlayError: what the node answered instead, of the class that its code names.
            ClosedError: the node ended meanwhile.
            UnreachableError: the node did not answer in time.
            ProtocolViolationError: whatever listens there is no node.
        """
        for answer in self._answers(verb, args):
            if answer.kind == "progress" and progress is not None:
                progress(*_amounts(answer.value))
            elif answer.kind == "result":
                return answer.value
        raise ProtocolViolationError("the node ended an answer without a result")

    def stream(
        self, verb: str, args: Mapping[str, JSON] | None = None, *, progress: Progress | None = None
    ) -> Iterator[JSON]:
        """Ask for items, as they come; arguments and errors as for `call`."""
        for answer in self._answers(verb, args):
            if answer.kind == "item":
                yield answer.value
            elif answer.kind == "progress" and progress is not None:
                progress(*_amounts(answer.value))

    def wait_closed(self) -> None:
        """Wait until the node has ended."""
        while _receive(self._socket):
            pass

    def close(self) -> None:
        """Close the connection; the node drops what it still does for it."""
        self._socket.close()

    def __enter__(self) -> Self:
        """Stay connected for the length of a block."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _answers(self, verb: str, args: Mapping[str, JSON] | None) -> Iterator[Answer]:
        self._number += 1
        request = Request(self._number, verb, args or {}).encode()
        try:
            self._socket.sendall(request)
        except TimeoutError as error:
            raise UnreachableError("the node runs but takes no request: look at its log") from error
        except OSError as error:
            raise ClosedError("the node ended while it was asked") from error
        while True:
            answer = self._receive_answer()
            if answer.kind == "error":
                raise answer.error
            yield answer
            if answer.last:
                return

    def _receive_answer(self) -> Answer:
        while True:
            try:
                while not self._lines:
                    self._lines.extend(self._reader.feed(self._receive()))
                answer = parse_answer(self._lines.pop(0))
            except MalformedError as error:
                raise ProtocolViolationError(
                    f"what listens on the control socket is no node: {error}"
                ) from error
            if answer.id in {self._number, NO_REQUEST}:
                return answer

    def _receive(self) -> bytes:
        data = _receive(self._socket)
        if not data:
            raise ClosedError("the node ended before it answered: start it and give the same command again")
        return data


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(CONNECT_TIMEOUT)
    try:
        with socket_address(path) as address:
            connection.connect(address)
    except BaseException as error:  # failed or interrupted: nobody else knows of the socket
        connection.close()
        if isinstance(error, OSError):
            raise _connect_error(path, error) from error
        raise
    return connection


def _connect_error(path: Path, error: OSError) -> NotRunningError | RefusedError | UnreachableError:
    match error:
        case FileNotFoundError() | ConnectionRefusedError() | NotADirectoryError():
            return NotRunningError(f"no node runs on {path.parent}: start it with 'overlay up'")
        case PermissionError():
            return RefusedError(f"{path} belongs to another user")
        case _:
            return UnreachableError(
                f"the node on {path.parent} takes no connection: {error.strerror or error}"
            )


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(_RECEIVE_BYTES)
    except TimeoutError as error:
        raise UnreachableError("the node runs but does not answer in time: look at its log") from error
    except ConnectionError:
        return b""


def _amounts(value: JSON) -> tuple[int, int, Mapping[str, JSON]]:
    told = value if isinstance(value, dict) else {}
    match told:
        case {"done": int(done), "total": int(total)}:
            return done, total, told
        case _:
            raise ProtocolViolationError("the node's progress is not an amount")
