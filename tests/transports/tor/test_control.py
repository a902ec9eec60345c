from __future__ import annotations

import hashlib
import hmac
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import anyio
import pytest

from overlay.errors import TransportUnavailableError
from overlay.transports.tor.control import ControlConnection, TorRefusedError, open_control


class Server(Protocol):
    address: tuple[str, int]


Serve = Callable[[Callable[[socket.socket], None]], Server]
COOKIE = bytes(range(32))
VERSION = '250-VERSION Tor="0.4.8.0"\r\n250 OK\r\n'


def replies(answers: Mapping[str, str], seen: list[str] | None = None) -> Callable[[socket.socket], None]:
    """A control port that answers by the first word of a command, or of two; an empty answer hangs up."""

    def script(client: socket.socket) -> None:
        for line in client.makefile("r", newline="\r\n"):
            command = line.rstrip("\r\n")
            if seen is not None:
                seen.append(command)
            key = next((key for key in answers if command.startswith(key)), None)
            answer = "510 Unrecognized command\r\n" if key is None else answers[key]
            if not answer:
                return
            client.sendall(answer.encode())

    return script


def info(methods: str, cookie: Path | None = None) -> str:
    file = f' COOKIEFILE="{cookie}"' if cookie else ""
    return f"250-PROTOCOLINFO 1\r\n250-AUTH METHODS={methods}{file}\r\n{VERSION}"


async def connect(server: Server, *, reply_timeout: float = 10.0) -> ControlConnection:
    return await open_control(server.address, reply_timeout=reply_timeout)


def stem_threads() -> list[threading.Thread]:
    names = {"Tor listener", "Event notifier"}
    return [thread for thread in threading.enumerate() if thread.name in names]


async def test_no_authentication(serve: Serve) -> None:
    seen: list[str] = []
    server = serve(replies({"PROTOCOLINFO": info("NULL"), "AUTHENTICATE": "250 OK\r\n"}, seen))
    async with await connect(server) as control:
        await control.authenticate(None)
    assert seen == ["PROTOCOLINFO 1", "AUTHENTICATE"]
    assert stem_threads() == []


async def test_password_is_sent_in_hexadecimal(serve: Serve) -> None:
    seen: list[str] = []
    script = replies({"PROTOCOLINFO": info("HASHEDPASSWORD"), "AUTHENTICATE": "250 OK\r\n"}, seen)
    async with await connect(serve(script)) as control:
        await control.authenticate('p"\\ä')
    assert seen[1] == "AUTHENTICATE " + 'p"\\ä'.encode().hex()


async def test_wrong_password(serve: Serve) -> None:
    refusal = "515 Authentication failed: Password did not match\r\n"
    script = replies({"PROTOCOLINFO": info("HASHEDPASSWORD"), "AUTHENTICATE": refusal})
    async with await connect(serve(script)) as control:
        with pytest.raises(TransportUnavailableError, match="refused the control password") as caught:
            await control.authenticate("hunter2")
    assert "hunter2" not in str(caught.value)


async def test_password_that_is_missing(serve: Serve) -> None:
    async with await connect(serve(replies({"PROTOCOLINFO": info("HASHEDPASSWORD")}))) as control:
        with pytest.raises(TransportUnavailableError, match="none was given"):
            await control.authenticate(None)


async def test_cookie(serve: Serve, tmp_path: Path) -> None:
    cookie = tmp_path / "cookie"
    cookie.write_bytes(COOKIE)
    seen: list[str] = []
    answers = {"PROTOCOLINFO": info("COOKIE", cookie), "AUTHENTICATE": "250 OK\r\n"}
    async with await connect(serve(replies(answers, seen))) as control:
        await control.authenticate(None)
    assert seen[1] == f"AUTHENTICATE {COOKIE.hex()}"


@pytest.mark.parametrize("honest", [True, False])
async def test_safecookie_checks_the_server(serve: Serve, tmp_path: Path, honest: bool) -> None:  # noqa: FBT001 - a case
    cookie = tmp_path / "cookie"
    cookie.write_bytes(COOKIE)
    nonce = bytes(32)

    def script(client: socket.socket) -> None:
        lines = client.makefile("r", newline="\r\n")
        assert next(lines) == "PROTOCOLINFO 1\r\n"
        client.sendall(info("COOKIE,SAFECOOKIE", cookie).encode())
        _, _, challenge = next(lines).split()
        key = b"Tor safe cookie authentication server-to-controller hash"
        known = COOKIE if honest else bytes(32)
        proof = hmac.new(key, known + bytes.fromhex(challenge) + nonce, hashlib.sha256).hexdigest()
        client.sendall(f"250 AUTHCHALLENGE SERVERHASH={proof} SERVERNONCE={nonce.hex()}\r\n".encode())
        for _ in lines:
            client.sendall(b"250 OK\r\n")

    async with await connect(serve(script)) as control:
        if honest:
            await control.authenticate(None)
        else:
            with pytest.raises(TransportUnavailableError, match="cookie"):
                await control.authenticate(None)


async def test_unreadable_cookie(serve: Serve, tmp_path: Path) -> None:
    async with await connect(serve(replies({"PROTOCOLINFO": info("COOKIE", tmp_path / "none")}))) as control:
        with pytest.raises(TransportUnavailableError, match="cookie cannot be read"):
            await control.authenticate(None)


@pytest.mark.parametrize(
    "answer", ["250 OK\r\n", "HTTP/1.0 400 Bad\r\n", "\r\n", "250-PROTOCOLINFO 7\r\n250 OK\r\n"]
)
async def test_what_is_no_control_port(serve: Serve, answer: str) -> None:
    async with await connect(serve(replies({"PROTOCOLINFO": answer}))) as control:
        with pytest.raises(TransportUnavailableError):
            await control.authenticate(None)


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(TransportUnavailableError, match="no tor control port"):
            await open_control(taken.getsockname(), reply_timeout=1)
    with pytest.raises(TransportUnavailableError, match="no tor control port"):
        await open_control(Path("/nowhere/control"), reply_timeout=1)


async def test_refusal_carries_tors_words(serve: Serve) -> None:
    async with await connect(serve(replies({"SIGNAL": '552 Unrecognized signal code "X"\r\n'}))) as control:
        with pytest.raises(TorRefusedError, match='signal code "X"') as caught:
            await control.request("SIGNAL X")
        assert caught.value.reply == 552
        assert not control.lost.is_set()


async def test_values_of_one_and_of_several_lines(serve: Serve) -> None:
    answers = {
        "GETINFO one": "250-one=a=b\r\n250 OK\r\n",
        "GETINFO many": "250+many=\r\nfirst\r\nsecond\r\n.\r\n250 OK\r\n",
        "GETINFO odd": "250-other=1\r\n250 OK\r\n",
    }
    async with await connect(serve(replies(answers))) as control:
        assert await control.get_info("one") == "a=b"
        assert await control.get_info("many") == "first\nsecond"
        with pytest.raises(TransportUnavailableError, match="not understood"):
            await control.get_info("odd")


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ('NOTICE BOOTSTRAP PROGRESS=14 TAG=handshake SUMMARY="Handshaking"', (14, "Handshaking")),
        ('WARN BOOTSTRAP PROGRESS=5 SUMMARY="Connecting" WARNING="No route"', (5, "Connecting - No route")),
        ("NOTICE BOOTSTRAP PROGRESS=999", (100, "connecting")),
    ],
)
async def test_bootstrap_report(serve: Serve, phase: str, expected: tuple[int, str]) -> None:
    answer = f"250-status/bootstrap-phase={phase}\r\n250 OK\r\n"
    async with await connect(serve(replies({"GETINFO": answer}))) as control:
        assert await control.bootstrap() == expected


async def test_hang_up_is_a_loss(serve: Serve) -> None:
    async with await connect(serve(replies({"GETINFO": ""}))) as control:
        with pytest.raises(TransportUnavailableError, match="was lost"):
            await control.request("GETINFO version")
        await control.lost.wait()


async def test_stall_is_a_loss_and_leaves_no_thread(serve: Serve) -> None:
    before = threading.active_count()

    def script(client: socket.socket) -> None:
        while client.recv(1000):
            pass

    async with await connect(serve(script), reply_timeout=0.2) as control:
        with pytest.raises(TransportUnavailableError, match="does not answer"):
            await control.request("GETINFO version")
        assert control.lost.is_set()
    assert stem_threads() == []
    assert threading.active_count() <= before + 5  # idle workers of the event loop are kept


async def test_cancelled_request_leaves_the_connection_usable(serve: Serve) -> None:
    asked, answer = threading.Event(), threading.Event()

    def script(client: socket.socket) -> None:
        lines = client.makefile("r", newline="\r\n")
        next(lines)
        asked.set()
        answer.wait(10)
        client.sendall(b"250-version=late\r\n250 OK\r\n")
        next(lines)
        client.sendall(b"250-other=right\r\n250 OK\r\n")

    async with await connect(serve(script)) as control:
        async with anyio.create_task_group() as group:
            group.start_soon(control.get_info, "version")
            assert await anyio.to_thread.run_sync(asked.wait, 10)
            group.cancel_scope.cancel()
        answer.set()
        assert await control.get_info("other") == "right"


async def test_events_reach_their_subscriber_and_end_with_the_connection(serve: Serve) -> None:
    def script(client: socket.socket) -> None:
        lines = client.makefile("r", newline="\r\n")
        assert next(lines) == "SETEVENTS HS_DESC\r\n"
        client.sendall(b"250 OK\r\n650 HS_DESC UPLOADED name NO_AUTH $AA\r\n")

    async with await connect(serve(script)) as control, control.events("HS_DESC") as events:
        assert [event.split()[:3] async for event in events] == [["HS_DESC", "UPLOADED", "name"]]
    assert control.lost.is_set()
