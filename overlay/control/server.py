"""The control socket of a running node: many programs at once, each as slow as it likes.

What each verb does is told by handlers; this module knows lines, requests and connections only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from overlay.control.protocol import (
    JSON,
    NO_REQUEST,
    Answer,
    LineReader,
    Request,
    parse_request,
    request_number,
)
from overlay.control.sockets import UnixListener, UnixStream
from overlay.errors import MalformedError, OverlayError, RefusedError

MAX_CLIENTS = 64
"""Connections held at once; people have a few terminals, and a program needs one connection."""
MAX_REQUESTS = 32
"""Requests that one connection may have in work; more are refused, not queued."""
PROGRESS_INTERVAL = 0.1
"""Seconds between two lines of progress; a person sees no more."""
MAX_PATH_LENGTH = 4096
"""Characters; PATH_MAX on Linux, in bytes."""
PARTING_SECONDS = 1.0
"""Seconds that a program has to read why its connection is closed."""


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The base of each verb's arguments: a field an argument, its bounds in its type."""


class NoArguments(Arguments, frozen=True):
    """A verb that takes none."""


AbsolutePath = Annotated[str, msgspec.Meta(pattern=r"^/[^\x00]*\Z", max_length=MAX_PATH_LENGTH)]
"""A path among a verb's arguments: the node's own working folder means nothing to the program that asks."""


class Answers:
    """What a handler says before its result."""

    def __init__(self, send: Callable[[Answer], Awaitable[None]], request: int) -> None:
        self._send = send
        self._request = request
        self._progress: JSON = None
        self._changed = anyio.Event()

    async def item(self, value: JSON) -> None:
        """Send one item; waits while the program does not read.

        Raises:
            MalformedError: the item is too long for a line.
        """
        await self._send(Answer(self._request, "item", value))

    def progress(self, done: int, total: int, more: Mapping[str, JSON] | None = None) -> None:
        """Tell how much is done, of how much in all. Never waits: only the latest is sent, now and then.

        Args:
            done: bytes.
            total: bytes.
            more: what else there is to say of it, under names of its own.
        """
        self._progress = {**(more or {}), "done": done, "total": total}
        self._changed.set()

    async def send_progress(self) -> None:
        """Send what `progress` was told, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed = anyio.Event()
            await self._send(Answer(self._request, "progress", self._progress))
            await anyio.sleep(PROGRESS_INTERVAL)


A = TypeVar("A", bound=Arguments)


@dataclass(frozen=True, slots=True)
class Handler(Generic[A]):
    """One verb: the type of its arguments, and what to do.

    `run` gives the result, or raises an `OverlayError`, which becomes the answer. It is cancelled when the
    program that asked goes away.
    """

    arguments: type[A]
    run: Callable[[A, Answers], Awaitable[JSON]]


Handlers = Mapping[str, Handler[Any]]


async def serve(
    path: Path, handlers: Handlers, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Serve the control socket at `path` until cancelled; started once programs can connect.

    The caller holds the home's lock: a socket left by a node that was killed is removed. The socket is 0600
    in a folder that is 0700, so only this user reaches it. Nothing is left at `path` afterwards.

    Raises:
        RefusedError: the path is too long on this system.
        OSError: the socket cannot be made.
    """
    listener = UnixListener(path)
    places = anyio.Semaphore(MAX_CLIENTS)
    try:
        async with anyio.create_task_group() as tasks:
            task_status.started()
            while True:
                tasks.start_soon(_serve_client, await listener.accept(), handlers, places)
    finally:
        listener.close()


async def _serve_client(stream: UnixStream, handlers: Handlers, places: anyio.Semaphore) -> None:
    try:
        places.acquire_nowait()
    except anyio.WouldBlock:
        await _refuse(stream)
        return
    try:
        await _Client(stream, handlers).run()
    finally:
        places.release()
        stream.close()


async def _refuse(stream: UnixStream) -> None:
    error = RefusedError(f"{MAX_CLIENTS} programs talk to this node already: close some of them")
    try:
        with anyio.move_on_after(PARTING_SECONDS), suppress(ConnectionError):
            await stream.send(Answer.failure(NO_REQUEST, error).encode())
    finally:
        stream.close()


class _Client:
    """One connection: reads requests, runs each in a task of its own, and lets one task write all lines.

    A line is written whole or the connection ends, whatever is cancelled, because only `_write` writes.
    """

    def __init__(self, stream: UnixStream, handlers: Handlers) -> None:
        self._stream = stream
        self._handlers = handlers
        self._lines, self._written = anyio.create_memory_object_stream[bytes]()
        self._working: set[int] = set()

    async def run(self) -> None:
        """Serve until the program goes away; then everything that was done for it is cancelled."""
        with self._lines, self._written:
            async with anyio.create_task_group() as tasks:
                parting = anyio.Event()
                tasks.start_soon(self._write, tasks.cancel_scope, parting)
                try:
                    await self._read(tasks)
                except MalformedError as error:
                    await self._part(error, parting)
                tasks.cancel_scope.cancel()

    async def _read(self, tasks: TaskGroup) -> None:
        reader = LineReader()
        while data := await self._stream.receive():
            for line in reader.feed(data):
                await self._take(line, tasks)

    async def _write(self, everything: anyio.CancelScope, parted: anyio.Event) -> None:
        try:
            async for line in self._written:
                await self._stream.send(line)
        except ConnectionError:
            everything.cancel()
        parted.set()

    async def _part(self, error: MalformedError, parted: anyio.Event) -> None:
        """Say why the connection is closed, to a program that may not read."""
        with anyio.move_on_after(PARTING_SECONDS):
            await self._send(Answer.failure(NO_REQUEST, error))
            self._lines.close()
            await parted.wait()

    async def _take(self, line: bytes, tasks: TaskGroup) -> None:
        try:
            request = parse_request(line)
            handler, arguments = self._find(request)
        except OverlayError as error:
            await self._send(Answer.failure(request_number(line), error))
            return
        if request.id in self._working:
            raise MalformedError(f"request {request.id} is in work already: number requests upwards")
        self._working.add(request.id)
        tasks.start_soon(self._answer, request.id, handler, arguments)

    def _find(self, request: Request) -> tuple[Handler[Any], Arguments]:
        handler = self._handlers.get(request.verb)
        if handler is None:
            raise MalformedError(
                "this node does not know this verb: it may be older than the program that asks"
            )
        if len(self._working) >= MAX_REQUESTS:
            raise RefusedError(
                f"{MAX_REQUESTS} requests are in work on this connection: wait for one of them"
            )
        try:
            return handler, msgspec.convert(request.args, handler.arguments)
        except msgspec.ValidationError as error:
            raise MalformedError(f"{request.verb} does not take these arguments: {error}") from error

    async def _answer(self, request: int, handler: Handler[Any], arguments: Arguments) -> None:
        answers = Answers(self._send, request)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answers.send_progress)
            try:
                last = Answer(request, "result", await handler.run(arguments, answers)).encode()
            except OverlayError as error:
                last = Answer.failure(request, error).encode()
            tasks.cancel_scope.cancel()
        self._working.discard(request)
        await self._lines.send(last)

    async def _send(self, answer: Answer) -> None:
        await self._lines.send(answer.encode())
