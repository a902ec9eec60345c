"""Scripted ends of the two protocols that tor speaks to us."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

Script = Callable[[socket.socket], None]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Real sockets and threads need real clocks."""
    backend: str = request.param
    return backend


class ScriptedServer:
    """A server on loopback that serves one connection as a function says, in a thread of its own.

    Attributes:
        address: where it listens.
        ended: set when the script has run to its end, because the other side closed or it had enough.
    """

    def __init__(self, script: Script) -> None:
        self.ended = threading.Event()
        self._script = script
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listening.getsockname()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            accepted, _ = self._listening.accept()
        except OSError:  # nobody came
            return
        with accepted, suppress(ConnectionError):  # the other side may close while something is unread
            self._script(accepted)
        self.ended.set()

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes a thread that still waits for somebody
        self._listening.close()
        self._thread.join(timeout=10)
        assert not self._thread.is_alive()


@pytest.fixture
def serve() -> Iterator[Callable[[Script], ScriptedServer]]:
    servers: list[ScriptedServer] = []

    def start(script: Script) -> ScriptedServer:
        servers.append(ScriptedServer(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
