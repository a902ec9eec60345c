from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from hypothesis import given
from hypothesis import strategies as st

from overlay.testing.i2p_bridge import Door, Haste, SessionWatch
from overlay.testing.i2p_clock import SharedClock

HELLO = b"HELLO VERSION MIN=3.1 MAX=3.1\n"
CREATE = b"SESSION CREATE STYLE=STREAM ID=x DESTINATION=TRANSIENT\n"
STATUS = b"SESSION STATUS RESULT=OK DESTINATION=abc\n"


class Watched:
    """A watch, and what it told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.watch = SessionWatch(lambda: self.events.append("begun"), lambda: self.events.append("ended"))


def parts(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


@given(st.lists(st.integers(0, 200)), st.lists(st.integers(0, 200)))
def test_a_session_is_seen_however_the_bytes_are_cut(sent: list[int], answered: list[int]) -> None:
    watched = Watched()
    for part in parts(HELLO + CREATE, sent):
        watched.watch.sent(part)
    assert watched.events == ["begun"]
    for part in parts(b"HELLO REPLY RESULT=OK VERSION=3.1\n" + STATUS, answered):
        watched.watch.answered(part)
    assert watched.events == ["begun", "ended"]


def test_a_closed_connection_waits_for_nothing() -> None:
    watched = Watched()
    watched.watch.sent(CREATE)
    watched.watch.close()
    watched.watch.close()
    assert watched.events == ["begun", "ended"]


@pytest.mark.parametrize("command", [b"STREAM CONNECT ID=x", b"STREAM ACCEPT ID=x", b"STREAM FORWARD ID=x"])
def test_what_a_peer_sends_is_no_command(command: bytes) -> None:
    watched = Watched()
    watched.watch.sent(HELLO + command + b"\n" + CREATE)
    watched.watch.sent(CREATE)
    assert watched.events == []


@given(st.binary(max_size=200))
def test_whatever_is_sent_nothing_ends_that_has_not_begun(data: bytes) -> None:
    watched = Watched()
    watched.watch.answered(data)
    watched.watch.sent(data)
    watched.watch.close()
    assert watched.events in ([], ["begun", "ended"])


async def test_haste_lasts_from_the_first_session_until_a_little_after_the_last(tmp_path: Path) -> None:
    with SharedClock(tmp_path / "clock") as clock:
        haste = Haste(clock, 30.0, 0.02)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(haste.run)
            haste.begin()
            haste.begin()
            haste.end()
            await anyio.sleep(0.1)
            assert clock.pace == 30.0
            haste.end()
            assert clock.pace == 30.0
            await anyio.sleep(0.1)
            assert clock.pace == 1.0
            haste.begin()
            haste.set_pace(40.0)
            assert clock.pace == 40.0
            tasks.cancel_scope.cancel()


async def test_without_haste_the_clock_keeps_its_pace(tmp_path: Path) -> None:
    with SharedClock(tmp_path / "clock") as clock:
        haste = Haste(clock, None, 0.0)
        haste.begin()
        assert clock.pace == 1.0


class TestDoor:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    async def test_passes_bytes_and_ends_of_directions_on_both_ways(self, tmp_path: Path) -> None:
        async def answer(stream: SocketStream) -> None:
            received = b""
            async for part in stream:
                received += part
            await stream.send(received[::-1])
            await stream.aclose()

        with SharedClock(tmp_path / "clock") as clock, Door() as door:
            haste = Haste(clock, 30.0, 0.0)
            async with (
                await anyio.create_tcp_listener(local_host="127.0.0.1") as router,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(router.serve, answer)
                await tasks.start(door.serve, router.extra(SocketAttribute.local_port), haste)  # noqa: S610 - not Django's
                host, _, port = door.address.partition(":")
                async with await anyio.connect_tcp(host, int(port)) as client:
                    await client.send(bytes(range(256)) * 1000)
                    await client.send_eof()
                    assert b"".join([part async for part in client]) == bytes(range(255, -1, -1)) * 1000
                await door.shut()
                with pytest.raises(OSError, match=r"connect|refused"):
                    await anyio.connect_tcp(host, int(port))
                tasks.cancel_scope.cancel()

    async def test_opens_again_at_the_same_address_after_it_was_shut(self, tmp_path: Path) -> None:
        with SharedClock(tmp_path / "clock") as clock, Door() as door:
            haste = Haste(clock, 30.0, 0.0)
            async with anyio.create_task_group() as tasks:
                await door.shut()
                for _ in range(3):
                    await tasks.start(door.serve, 1, haste)
                    host, _, port = door.address.partition(":")
                    async with await anyio.connect_tcp(host, int(port)) as client:
                        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                            await client.receive()  # nothing listens on port 1
                    await door.shut()
                tasks.cancel_scope.cancel()
