"""A scripted router: a SAM bridge in this process, which answers as i2pd does or as a test says."""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

import anyio
import pytest
from anyio.abc import SocketStream, TaskGroup, TaskStatus
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from overlay.transports.i2p.destination import Destination, PrivateDestination


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Real sockets need real clocks."""
    backend: str = request.param
    return backend


def make_destination(number: int) -> PrivateDestination:
    """A destination of the kind that DEST GENERATE SIGNATURE_TYPE=7 makes; each number has its own."""
    seed = number.to_bytes(32, "big")
    signing = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    public = seed * 8 + bytes(96) + signing + bytes.fromhex("05 0004 0007 0000")
    return PrivateDestination(public + bytes(256) + seed)


@pytest.fixture(name="make_destination")
def make_destination_fixture() -> Callable[[int], PrivateDestination]:
    """`make_destination`, for test modules."""
    return make_destination


@dataclass(frozen=True)
class Answer:
    """What the router does about one command: sends `data`, `repeat`ed for ever if so, and may hang up."""

    data: bytes = b""
    close: bool = False
    repeat: bool = False


def reply(line: str, *, close: bool = False) -> Answer:
    """Answer a line; i2pd closes the socket after most refusals."""
    return Answer(line.encode() + b"\n", close=close)


def cut(line: str, at: int) -> Answer:
    """Answer the first `at` bytes of a line with its newline, and close."""
    return Answer((line.encode() + b"\n")[:at], close=True)


def stall() -> Answer:
    """Answer nothing, ever."""
    return Answer()


def flood(data: bytes = b"A" * 4096) -> Answer:
    """Answer bytes without a newline, for ever."""
    return Answer(data, repeat=True)


def hang_up() -> Answer:
    """Close without an answer."""
    return Answer(close=True)


class FakeConnection:
    """The router's end of one SAM socket. After CONNECT's or ACCEPT's OK it is the far end of a stream.

    Attributes:
        kind: `session`, `connect`, `accept`, or empty before and for other commands.
        identifier: of the session that it belongs to.
        name: what was dialled.
        caller: whose call an accepting socket was given; None while it waits.
        received: what came and was not taken yet.
        closed: whether the client's end is closed, or ours.
    """

    def __init__(self, router: FakeRouter, stream: SocketStream) -> None:
        self.kind = ""
        self.identifier = ""
        self.name = ""
        self.caller: Destination | None = None
        self.received = bytearray()
        self.closed = False
        self._router = router
        self._stream = stream
        self._sending = anyio.Lock()  # what a test sends waits until the answer to a command is out

    async def send(self, data: bytes) -> None:
        async with self._sending:
            await self._stream.send(data)

    async def receive_exactly(self, size: int) -> bytes:
        """Take `size` bytes, and wait for them."""
        await self._router.until(lambda: len(self.received) >= size or self.closed)
        assert len(self.received) >= size, "the client closed the stream before"
        data = bytes(self.received[:size])
        del self.received[:size]
        return data

    async def ended(self) -> None:
        """Wait until the client has closed its end."""
        await self._router.until(lambda: self.closed)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def pump(self, pause: float) -> bool:
        """Receive something; False at the end."""
        await anyio.sleep(pause)
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self.received += await self._stream.receive()
            return True
        return False


class FakeRouter:
    """A SAM bridge on loopback; what is not scripted is answered as by i2pd with working tunnels.

    Attributes:
        address: IP address and port; the same after `start`.
        commands: every command's line, in the order they came.
        connections: every socket that was ever open, in the order they came.
        sessions: identifiers of live sessions, with their private destinations.
        names: what NAMING LOOKUP knows beside `ME`, by name; of others it says INVALID_KEY.
        datagrams: what was sent by DATAGRAM SEND: receiver and body.
        reads_late: seconds before each read of a socket, when not 0. Then it also treats what comes in one
            read as i2pd does: one command of it, and the rest only after a datagram, with the next read.
    """

    # So that test modules need not import this one.
    reply = staticmethod(reply)
    cut = staticmethod(cut)
    stall = staticmethod(stall)
    flood = staticmethod(flood)
    hang_up = staticmethod(hang_up)

    def __init__(self, group: TaskGroup) -> None:
        self.address = ("127.0.0.1", 0)
        self.commands: list[str] = []
        self.connections: list[FakeConnection] = []
        self.sessions: dict[str, PrivateDestination] = {}
        self.names: dict[str, Destination] = {}
        self.datagrams: list[tuple[Destination, bytes]] = []
        self.reads_late = 0.0
        self._group = group
        self._once: defaultdict[str, deque[Answer]] = defaultdict(deque)
        self._always: dict[str, Answer] = {}
        self._numbers = itertools.count(1000)
        self._changed = anyio.Event()
        self._scope = anyio.CancelScope()
        self._down = anyio.Event()

    def script(self, topic: str, *answers: Answer) -> None:
        """Answer the next commands of `topic` so, one after the other, then as before.

        Args:
            topic: `STREAM CONNECT`, or `SESSION CREATE TRANSIENT` for those sessions alone.
            answers: what is answered.
        """
        self._once[topic].extend(answers)

    def always(self, topic: str, answer: Answer) -> None:
        """Answer every command of `topic` so."""
        self._always[topic] = answer

    def usually(self, topic: str) -> None:
        """Answer commands of `topic` again as a router does."""
        del self._always[topic]

    async def start(self) -> None:
        """Listen, on the same port as before."""
        self.address = await self._group.start(self._run)

    async def kill(self) -> None:
        """End as if by SIGKILL: every socket closes, and connections are refused."""
        self._scope.cancel()
        await self._down.wait()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` is true; it is asked after each thing that happens here."""
        with anyio.fail_after(10):
            while not condition():
                await self._changed.wait()

    async def seen(self, topic: str, count: int = 1) -> list[str]:
        """Wait until `count` commands of `topic` have come, and return all of them."""
        await self.until(lambda: len(self._of(topic)) >= count)
        return self._of(topic)

    def open(self, kind: str, identifier: str | None = None) -> list[FakeConnection]:
        """The open sockets of a kind."""
        return [
            each
            for each in self.connections
            if each.kind == kind and not each.closed and identifier in {None, each.identifier}
        ]

    def waiting(self, identifier: str | None = None) -> list[FakeConnection]:
        """The sockets that wait in ACCEPT."""
        return [each for each in self.open("accept", identifier) if each.caller is None]

    async def call(self, identifier: str, caller: Destination, data: bytes = b"") -> FakeConnection:
        """Have `caller` call a session, and say `data`; waits until somebody accepts."""
        await self.until(lambda: self.waiting(identifier))
        connection = self.waiting(identifier)[0]
        connection.caller = caller
        await connection.send(caller.base64.encode() + b"\n" + data)
        return connection

    async def deliver(self, identifier: str, sender: Destination, body: bytes) -> None:
        """Have a datagram arrive at a session."""
        (session,) = self.open("session", identifier)
        head = f"DATAGRAM RECEIVED DESTINATION={sender.base64} SIZE={len(body)}\n"
        await session.send(head.encode() + body)

    async def lose(self, identifier: str) -> None:
        """Close a session's socket from the router's side."""
        for session in self.open("session", identifier):
            await session.aclose()

    def _of(self, topic: str) -> list[str]:
        return [line for line in self.commands if line.startswith(topic)]

    def _happened(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _run(self, *, task_status: TaskStatus[tuple[str, int]]) -> None:
        self._scope, self._down = anyio.CancelScope(), anyio.Event()
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=self.address[1])
        port: int = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - not Django
        task_status.started(("127.0.0.1", port))
        try:
            with self._scope:
                async with listener:
                    await listener.serve(self._serve)
        finally:
            self._down.set()

    async def _serve(self, stream: SocketStream) -> None:
        connection = FakeConnection(self, stream)
        self.connections.append(connection)
        try:
            async with stream:
                while await connection.pump(self.reads_late):
                    if connection.kind not in {"connect", "accept"}:
                        await self._answer_all(connection)
                    self._happened()
        finally:
            connection.closed = True
            if connection.kind == "session":
                await self._end_session(connection.identifier)
            self._happened()

    async def _end_session(self, identifier: str) -> None:
        self.sessions.pop(identifier, None)
        with anyio.CancelScope(shield=True):
            for kind in ("connect", "accept"):
                for connection in self.open(kind, identifier):
                    await connection.aclose()

    async def _answer_all(self, connection: FakeConnection) -> None:
        while b"\n" in connection.received and connection.kind not in {"connect", "accept"}:
            head, _, rest = bytes(connection.received).partition(b"\n")
            line = head.decode()
            if line.startswith("DATAGRAM SEND"):
                size = int(_fields(line)["SIZE"])
                if len(rest) < size:
                    return
                self.datagrams.append((Destination.from_base64(_fields(line)["DESTINATION"]), rest[:size]))
                rest = rest[size:]
            connection.received[:] = rest
            self.commands.append(line)
            self._happened()
            await self._perform(connection, self._choose(connection, line))
            if self.reads_late:
                if not line.startswith("DATAGRAM SEND"):
                    connection.received.clear()
                return

    async def _perform(self, connection: FakeConnection, answer: Answer) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            if answer.data:
                await connection.send(answer.data)
            while answer.repeat:
                await connection.send(answer.data)
        if answer.close:
            await connection.aclose()

    def _choose(self, connection: FakeConnection, line: str) -> Answer:
        topic, fields = " ".join(line.split()[:2]), _fields(line)
        narrower = f"{topic} {fields.get('DESTINATION')}"
        for each in (narrower, topic):
            if self._once[each]:
                return self._once[each].popleft()
            if each in self._always:
                return self._always[each]
        return self._default(topic, connection, fields)

    def _default(self, topic: str, connection: FakeConnection, fields: dict[str, str]) -> Answer:
        match topic:
            case "HELLO VERSION":
                return reply("HELLO REPLY RESULT=OK VERSION=3.1")
            case "SESSION CREATE":
                return self._create(connection, fields)
            case "DEST GENERATE":
                made = make_destination(next(self._numbers))
                return reply(f"DEST REPLY PUB={made.public.base64} PRIV={made.base64}")
            case "NAMING LOOKUP":
                return self._look_up(connection, fields["NAME"])
            case "STREAM CONNECT" | "STREAM ACCEPT":
                return self._begin_stream(connection, topic.split()[1].lower(), fields)
        return stall() if topic == "DATAGRAM SEND" else hang_up()

    def _begin_stream(self, connection: FakeConnection, kind: str, fields: dict[str, str]) -> Answer:
        if fields["ID"] not in self.sessions:
            return reply("STREAM STATUS RESULT=INVALID_ID", close=True)
        connection.kind, connection.identifier = kind, fields["ID"]
        connection.name = fields.get("DESTINATION", "")
        return reply("STREAM STATUS RESULT=OK")

    def _create(self, connection: FakeConnection, fields: dict[str, str]) -> Answer:
        if fields["ID"] in self.sessions:
            return reply("SESSION STATUS RESULT=DUPLICATED_ID", close=True)
        made = fields["DESTINATION"] == "TRANSIENT"
        private = (
            make_destination(next(self._numbers))
            if made
            else PrivateDestination.from_base64(fields["DESTINATION"])
        )
        connection.kind, connection.identifier = "session", fields["ID"]
        self.sessions[fields["ID"]] = private
        return reply(f"SESSION STATUS RESULT=OK DESTINATION={private.base64}")

    def _look_up(self, connection: FakeConnection, name: str) -> Answer:
        known = dict(self.names)
        if connection.identifier in self.sessions:
            known["ME"] = self.sessions[connection.identifier].public
        if name not in known:
            return reply(f"NAMING REPLY RESULT=INVALID_KEY NAME={name}")
        return reply(f"NAMING REPLY RESULT=OK NAME={name} VALUE={known[name].base64}")


def _fields(line: str) -> dict[str, str]:
    return dict(word.partition("=")[::2] for word in line.split()[2:])


@pytest.fixture
async def fake_router() -> AsyncIterator[FakeRouter]:
    """A scripted router that listens; ends with the test."""
    async with anyio.create_task_group() as group:
        router = FakeRouter(group)
        await router.start()
        yield router
        group.cancel_scope.cancel()
