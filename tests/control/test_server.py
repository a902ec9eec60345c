from __future__ import annotations

import json
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import anyio
import msgspec
import pytest
from anyio.abc import SocketStream

from overlay.control.address import MAX_ADDRESS_BYTES, socket_address
from overlay.control.protocol import JSON, MAX_LINE_BYTES
from overlay.control.server import (
    MAX_CLIENTS,
    MAX_REQUESTS,
    Answers,
    Arguments,
    Handler,
    Handlers,
    NoArguments,
    serve,
)
from overlay.errors import NotFoundError


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Real sockets need real clocks."""
    return request.param, {"debug": True} if request.param == "asyncio" else {}


@pytest.fixture
def socket_path() -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield Path(folder) / "control.sock"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def listed(path: Path) -> bool:
    return path in list(path.parent.iterdir())


class Echo(Arguments, frozen=True):
    text: Annotated[str, msgspec.Meta(max_length=10)]
    times: int = 1


class Script:
    """Handlers that record what happens to them."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = anyio.Event()
        self.go = anyio.Event()

    @property
    def handlers(self) -> Handlers:
        return {
            "echo": Handler(Echo, self.echo),
            "fail": Handler(NoArguments, self.fail),
            "hang": Handler(NoArguments, self.hang),
            "flood": Handler(NoArguments, self.flood),
            "work": Handler(NoArguments, self.work),
            "huge": Handler(NoArguments, self.huge),
        }

    async def echo(self, args: Echo, answers: Answers) -> JSON:
        for _ in range(args.times - 1):
            await answers.item(args.text)
        return args.text

    async def fail(self, _args: NoArguments, _answers: Answers) -> JSON:
        raise NotFoundError("there is nothing")

    async def hang(self, _args: NoArguments, _answers: Answers) -> JSON:
        self.started += 1
        try:
            await self.go.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled.set()
            raise
        return "went"

    async def flood(self, _args: NoArguments, answers: Answers) -> JSON:
        while True:
            await answers.item("x" * 100_000)

    async def work(self, _args: NoArguments, answers: Answers) -> JSON:
        for done in range(1000):
            answers.progress(done, 1000)
        await self.go.wait()
        return None

    async def huge(self, _args: NoArguments, _answers: Answers) -> JSON:
        return "x" * MAX_LINE_BYTES


class Program:
    """A program that speaks raw lines."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self._pending = b""

    async def ask(self, number: int, verb: str, **args: JSON) -> None:
        await self.say(json.dumps({"id": number, "verb": verb, "args": args}).encode())

    async def say(self, line: bytes) -> None:
        await self.stream.send(line + b"\n")

    async def hear(self) -> dict[str, Any]:
        while b"\n" not in self._pending:
            self._pending += await self.stream.receive()
        line, self._pending = self._pending.split(b"\n", 1)
        heard: dict[str, Any] = json.loads(line)
        return heard


@asynccontextmanager
async def serving(path: Path, script: Script) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(serve, path, script.handlers)
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def program(path: Path) -> AsyncIterator[Program]:
    with socket_address(path) as address:
        stream = await anyio.connect_unix(address)
    async with stream:
        yield Program(stream)


async def test_a_result_an_item_and_an_error(socket_path: Path) -> None:
    async with serving(socket_path, Script()), program(socket_path) as one:
        await one.ask(1, "echo", text="hi", times=3)
        assert [await one.hear() for _ in range(3)] == [
            {"id": 1, "item": "hi"},
            {"id": 1, "item": "hi"},
            {"id": 1, "result": "hi"},
        ]
        await one.ask(2, "fail")
        assert await one.hear() == {"id": 2, "error": {"code": "not-found", "message": "there is nothing"}}


@pytest.mark.parametrize(
    ("line", "number"),
    [
        (b"junk", 0),
        (b"\xff", 0),
        (b"{}", 0),
        (b'{"id": 4}', 4),
        (b'{"id": 4, "verb": "unknown"}', 4),
        (b'{"id": 4, "verb": "echo"}', 4),
        (b'{"id": 4, "verb": "echo", "args": {"text": 5}}', 4),
        (b'{"id": 4, "verb": "echo", "args": {"text": "eleven char"}}', 4),
        (b'{"id": 4, "verb": "echo", "args": {"text": "x", "more": 1}}', 4),
        (b'{"id": 4, "verb": "fail", "args": {"text": "x"}}', 4),
    ],
)
async def test_a_bad_line_is_answered_and_the_connection_goes_on(
    socket_path: Path, line: bytes, number: int
) -> None:
    async with serving(socket_path, Script()), program(socket_path) as one:
        await one.say(line)
        heard = await one.hear()
        assert heard["id"] == number
        assert heard["error"]["code"] == "malformed"
        await one.ask(5, "echo", text="on")
        assert await one.hear() == {"id": 5, "result": "on"}


async def test_a_line_that_never_ends_closes_the_connection(socket_path: Path) -> None:
    async with serving(socket_path, Script()), program(socket_path) as one:
        await one.stream.send(b"x" * MAX_LINE_BYTES)
        heard = await one.hear()
        assert (heard["id"], heard["error"]["code"]) == (0, "malformed")
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await one.hear()


async def test_a_number_in_use_closes_the_connection(socket_path: Path) -> None:
    script = Script()
    async with serving(socket_path, script), program(socket_path) as one:
        await one.ask(1, "hang")
        await one.ask(1, "hang")
        assert (await one.hear())["error"]["code"] == "malformed"
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await one.hear()
        await script.cancelled.wait()


async def test_a_result_too_long_for_a_line_is_an_error(socket_path: Path) -> None:
    async with serving(socket_path, Script()), program(socket_path) as one:
        await one.ask(1, "huge")
        assert (await one.hear())["error"]["code"] == "malformed"


async def test_requests_run_side_by_side(socket_path: Path) -> None:
    script = Script()
    async with serving(socket_path, script), program(socket_path) as one:
        await one.ask(1, "hang")
        await one.ask(2, "echo", text="first")
        assert await one.hear() == {"id": 2, "result": "first"}
        script.go.set()
        assert await one.hear() == {"id": 1, "result": "went"}


async def test_too_many_requests_are_refused_not_queued(socket_path: Path) -> None:
    script = Script()
    async with serving(socket_path, script), program(socket_path) as one:
        for number in range(1, MAX_REQUESTS + 2):
            await one.ask(number, "hang")
        heard = await one.hear()
        assert (heard["id"], heard["error"]["code"]) == (MAX_REQUESTS + 1, "refused")
        script.go.set()
        for _ in range(MAX_REQUESTS):
            assert (await one.hear())["result"] == "went"
        assert script.started == MAX_REQUESTS


async def test_too_many_programs_are_refused(socket_path: Path) -> None:
    async with serving(socket_path, Script()), anyio.create_task_group() as tasks:
        connected, finished = anyio.Semaphore(0), anyio.Event()

        async def one() -> None:
            async with program(socket_path) as each:
                await each.ask(1, "echo", text="x")
                assert "result" in await each.hear()
                connected.release()
                await finished.wait()

        for _ in range(MAX_CLIENTS):
            tasks.start_soon(one)
        for _ in range(MAX_CLIENTS):
            await connected.acquire()
        async with program(socket_path) as late:
            assert (await late.hear())["error"]["code"] == "refused"
        finished.set()


async def test_what_is_done_for_a_program_ends_when_it_goes_away(socket_path: Path) -> None:
    script = Script()
    async with serving(socket_path, script):
        async with program(socket_path) as one:
            await one.ask(1, "hang")
            await one.ask(2, "echo", text="x")
            await one.hear()
        await script.cancelled.wait()


async def test_a_program_that_does_not_read_blocks_no_other(socket_path: Path) -> None:
    async with serving(socket_path, Script()), program(socket_path) as slow, program(socket_path) as other:
        await slow.ask(1, "flood")
        for number in range(1, 20):
            await other.ask(number, "echo", text="quick")
            assert await other.hear() == {"id": number, "result": "quick"}


async def test_progress_is_thinned_out_and_the_last_word_is_told(socket_path: Path) -> None:
    script = Script()
    async with serving(socket_path, script), program(socket_path) as one:
        await one.ask(1, "work")
        assert await one.hear() == {"id": 1, "progress": {"done": 999, "total": 1000}}
        script.go.set()
        assert await one.hear() == {"id": 1, "result": None}


async def test_the_socket_is_private_and_goes_with_the_server(socket_path: Path) -> None:
    async with serving(socket_path, Script()):
        assert mode(socket_path) == 0o600
    assert not listed(socket_path)


async def test_a_socket_left_by_a_killed_node_is_replaced(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(socket_path))
    assert listed(socket_path)
    async with serving(socket_path, Script()), program(socket_path) as one:
        await one.ask(1, "echo", text="x")
        assert "result" in await one.hear()


async def test_a_home_with_a_long_path_works_too(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    path = folder / "control.sock"
    assert len(bytes(path)) > MAX_ADDRESS_BYTES
    async with serving(path, Script()), program(path) as one:
        assert listed(path)
        await one.ask(1, "echo", text="x")
        assert "result" in await one.hear()
    assert not listed(path)
