from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from overlay.control import address
from overlay.control.client import Client
from overlay.errors import (
    ClosedError,
    MalformedError,
    NotFoundError,
    NotRunningError,
    OverlayError,
    ProtocolViolationError,
    RefusedError,
    UnreachableError,
)


@pytest.fixture
def path() -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield Path(folder) / "control.sock"


@contextmanager
def node(path: Path, *answers: bytes) -> Iterator[Future[bytes]]:
    """A node that answers one request with `answers` and goes away; gives the request that it was sent."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> bytes:
        connection, _ = listener.accept()
        with connection:
            request = connection.makefile("rb").readline()
            for answer in answers:
                connection.sendall(answer)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
            return request

    with ThreadPoolExecutor(1) as pool, listener:
        yield pool.submit(run)


def test_a_call_gives_the_result(path: Path) -> None:
    seen = []
    answers = [b'{"id":1,"progress":{"done":1,"total":2,"rate":3}}\n{"id":1,"res', b'ult":{"a":1}}\n']
    with node(path, *answers) as asked, Client(path) as client:
        result = client.call("verb", {"x": "ü"}, progress=lambda *told: seen.append(told))
    assert result == {"a": 1}
    assert seen == [(1, 2, {"done": 1, "total": 2, "rate": 3})]
    assert asked.result() == b'{"id":1,"verb":"verb","args":{"x":"\\u00fc"}}\n'


def test_a_stream_gives_items(path: Path) -> None:
    with (
        node(path, b'{"id":1,"item":1}\n{"id":1,"item":2}\n{"id":1,"result":null}\n'),
        Client(path) as client,
    ):
        assert list(client.stream("verb")) == [1, 2]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b'{"id":1,"error":{"code":"not-found","message":"m"}}\n', NotFoundError),
        (b'{"id":0,"error":{"code":"refused","message":"m"}}\n', RefusedError),
        (b'{"id":1,"error":{"code":"malformed","message":"m"}}\n', MalformedError),
        (b'{"id":1,"error":{"code":"news","message":"m"}}\n', OverlayError),
        (b"", ClosedError),
        (b'{"id":1,"resu', ClosedError),
        (b"HTTP/1.1 400 Bad Request\r\n", ProtocolViolationError),
        (b'{"id":1}\n', ProtocolViolationError),
        (b'{"id":1,"progress":7}\n', ProtocolViolationError),
        (b"x" * (2 << 20), ProtocolViolationError),
    ],
)
def test_what_goes_wrong_is_told(path: Path, answer: bytes, error: type[OverlayError]) -> None:
    with node(path, answer), Client(path) as client, pytest.raises(OverlayError) as caught:
        client.call("verb", progress=lambda *_: None)
    assert type(caught.value) is error


def test_an_answer_to_another_request_is_left_aside(path: Path) -> None:
    with node(path, b'{"id":9,"result":1}\n{"id":1,"result":2}\n'), Client(path) as client:
        assert client.call("verb") == 2


def test_no_node(path: Path) -> None:
    with pytest.raises(NotRunningError, match="overlay up"):
        Client(path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NotRunningError):
        Client(path)
    with pytest.raises(NotRunningError):
        Client(path / "not-a-folder")


def test_a_node_that_does_not_answer(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with Client(path, timeout=0.01) as client, pytest.raises(UnreachableError):
            client.call("verb")


def test_a_path_too_long_for_this_system_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "_OPEN_FOLDERS", tmp_path / "none")
    with pytest.raises(RefusedError, match="too long"):
        Client(tmp_path / ("x" * 200) / "control.sock")
    with pytest.raises(NotRunningError):
        Client(tmp_path / "control.sock")


def test_it_imports_nothing_but_the_standard_library() -> None:
    script = (
        "import sys; import overlay.control.client, overlay.control.home\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names))"
    )
    command = [sys.executable, "-S", "-c", script]
    environ = {"PYTHONPATH": str(Path(address.__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.split() == ["__main__", "overlay"]
