from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import (
    MalformedError,
    OverlayError,
    TransportUnavailableError,
    UnreachableError,
)
from overlay.transports.i2p import protocol
from overlay.transports.i2p.protocol import LineReader, Reply, Retry, failure, parse_reply, retry_rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from overlay.transports.i2p.destination import PrivateDestination

HASH = "a" * 52 + ".b32.i2p"


@pytest.mark.parametrize(
    ("line", "topic", "fields"),
    [
        (b"HELLO REPLY RESULT=OK VERSION=3.1", "HELLO REPLY", {"RESULT": "OK", "VERSION": "3.1"}),
        (b"STREAM STATUS", "STREAM STATUS", {}),
        (b"STREAM STATUS  RESULT=OK ", "STREAM STATUS", {"RESULT": "OK"}),
        (
            b'SESSION STATUS RESULT=I2P_ERROR MESSAGE="Socket already in use"',
            "SESSION STATUS",
            {"RESULT": "I2P_ERROR", "MESSAGE": "Socket already in use"},
        ),
        (
            b'SESSION STATUS MESSAGE="a=b \\"c\\" \\\\" X',
            "SESSION STATUS",
            {"MESSAGE": 'a=b "c" \\', "X": ""},
        ),
        (b'SESSION STATUS MESSAGE="" RESULT=', "SESSION STATUS", {"MESSAGE": "", "RESULT": ""}),
        (b"NAMING REPLY NAME=ME VALUE=AA==", "NAMING REPLY", {"NAME": "ME", "VALUE": "AA=="}),
        ("SESSION STATUS MESSAGE=Größe".encode(), "SESSION STATUS", {"MESSAGE": "Größe"}),
    ],
)
def test_lines_are_read(line: bytes, topic: str, fields: dict[str, str]) -> None:
    reply = parse_reply(line)
    assert (reply.topic, reply.fields) == (topic, fields)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"HELLO",
        b"hello reply",
        b"HELLO  REPLY",
        b"HELLO REPLY=1",
        b" HELLO REPLY",
        b"HTTP/1.1 400 Bad Request",
        b"STREAM STATUS RESULT=OK RESULT=OK",
        b'STREAM STATUS MESSAGE="no end',
        b'STREAM STATUS MESSAGE="a"b',
        b'STREAM STATUS MESSAGE=a"b"',
        b"STREAM STATUS =OK",
        b"STREAM STATUS RESULT=OK\r",
        b"STREAM STATUS MESSAGE=\x1b[2J",
        b"STREAM STATUS MESSAGE=\xe2\x80\xae",
        b"STREAM STATUS MESSAGE=\xff",
        b"STREAM STATUS\tRESULT=OK",
        b"STREAM STATUS X=" + b"A" * protocol.MAX_REPLY_BYTES,
    ],
)
def test_other_lines_are_refused(line: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_reply(line)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_give_a_reply(line: bytes) -> None:
    try:
        reply = parse_reply(line)
    except MalformedError:
        return
    assert reply.topic.isprintable()
    assert isinstance(failure(reply), OverlayError)
    assert retry_rule(reply) in Retry


@given(st.text(alphabet='ABC =."\\\x00é', max_size=60))
def test_nearly_lines_are_refused_or_give_a_reply(text: str) -> None:
    try:
        reply = parse_reply(f"STREAM STATUS {text}".encode())
    except MalformedError:
        return
    assert all(key and "=" not in key and value.isprintable() for key, value in reply.fields.items())


KEYS = st.text("ABCXYZ_.", min_size=1, max_size=8)
VALUES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.just(" "), max_size=30)


@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_quoted_values_come_back(fields: dict[str, str]) -> None:
    def quote(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"')

    words = [f'{key}="{quote(value)}"' for key, value in fields.items()]
    assert parse_reply(" ".join(["A B", *words]).encode()).fields == fields


def test_private_keys_in_a_reply_are_not_shown() -> None:
    assert "SECRET" not in repr(parse_reply(b"SESSION STATUS RESULT=OK DESTINATION=SECRET"))


def test_result_of_a_new_destination_is_ok_without_saying_so() -> None:
    assert parse_reply(b"DEST REPLY PUB=AA PRIV=BB").ok
    assert not parse_reply(b"DEST REPLY RESULT=I2P_ERROR").ok
    assert not parse_reply(b"STREAM STATUS PRIV=BB").ok


@pytest.mark.parametrize(
    ("line", "kind", "retry", "words"),
    [
        ("STREAM STATUS RESULT=CANT_REACH_PEER", UnreachableError, Retry.SAME, "cannot be reached"),
        ("STREAM STATUS RESULT=PEER_NOT_FOUND", UnreachableError, Retry.SAME, "does not know"),
        ("STREAM STATUS RESULT=TIMEOUT", UnreachableError, Retry.SAME, "did not answer in time"),
        ("NAMING REPLY RESULT=INVALID_KEY NAME=x", UnreachableError, Retry.SAME, "nobody publishes it"),
        ("STREAM STATUS RESULT=INVALID_KEY", UnreachableError, Retry.SAME, "no I2P destination"),
        ("SESSION STATUS RESULT=INVALID_KEY", MalformedError, Retry.NEVER, "restore its key file"),
        ("NAMING REPLY RESULT=KEY_NOT_FOUND NAME=x", UnreachableError, Retry.SAME, "publishes this address"),
        ("STREAM STATUS RESULT=INVALID_ID", TransportUnavailableError, Retry.NEW_SESSION, "no longer has"),
        (
            "SESSION STATUS RESULT=DUPLICATED_ID",
            TransportUnavailableError,
            Retry.NEW_IDENTIFIER,
            "already has a session",
        ),
        ("SESSION STATUS RESULT=DUPLICATED_DEST", TransportUnavailableError, Retry.NEVER, "already in use"),
        ("HELLO REPLY RESULT=NOVERSION", TransportUnavailableError, Retry.NEVER, "update it"),
        ("STREAM STATUS RESULT=ALREADY_ACCEPTING", TransportUnavailableError, Retry.SAME, "one does already"),
        ("STREAM STATUS RESULT=I2P_ERROR", TransportUnavailableError, Retry.SAME, "reports an error"),
        (
            'SESSION STATUS RESULT=I2P_ERROR MESSAGE="Socket already in use"',
            TransportUnavailableError,
            Retry.SAME,
            "reports an error: Socket already in use",
        ),
        ("STREAM STATUS RESULT=SULKING", TransportUnavailableError, Retry.SAME, "answered with SULKING"),
        ("STREAM STATUS", TransportUnavailableError, Retry.SAME, "without a result"),
    ],
)
def test_whose_fault_a_refusal_is(line: str, kind: type[OverlayError], retry: Retry, words: str) -> None:
    reply = parse_reply(line.encode())
    assert not reply.ok
    assert type(failure(reply)) is kind
    assert words in str(failure(reply))
    assert retry_rule(reply) is retry


def test_a_routers_long_speech_is_cut() -> None:
    reply = Reply("STREAM STATUS", {"RESULT": "X" * 5000, "MESSAGE": "Y" * 5000})
    assert len(str(failure(reply))) < 600


@given(st.binary(max_size=400), st.lists(st.integers(1, 40), max_size=40))
def test_lines_are_the_same_however_they_are_cut(data: bytes, sizes: list[int]) -> None:
    data = data.replace(b"\x00", b"\n")  # more lines
    expected = [line.removesuffix(b"\r") for line in data.split(b"\n")[:-1]]
    reader, lines, position = LineReader(), list[bytes](), 0
    for size in [*sizes, len(data) + 1]:
        reader.feed(data[position : position + size])
        position += size
        while (line := reader.line()) is not None:
            lines.append(line)
    assert lines == expected
    assert reader.take(1000) == data.rsplit(b"\n", 1)[-1]
    assert len(reader) == 0


@given(st.integers(1, 3000))
def test_line_without_an_end_is_refused_before_it_fills_the_memory(chunk: int) -> None:
    reader = LineReader()
    while len(reader) + chunk < protocol.MAX_REPLY_BYTES:
        reader.feed(b"A" * chunk)
        assert reader.line() is None
    reader.feed(b"A" * chunk)
    with pytest.raises(MalformedError):
        reader.line()


def test_longest_line() -> None:
    reader = LineReader()
    reader.feed(b"A" * (protocol.MAX_REPLY_BYTES - 1) + b"\n" + b"A" * protocol.MAX_REPLY_BYTES + b"\n")
    assert len(reader.line() or b"") == protocol.MAX_REPLY_BYTES - 1
    with pytest.raises(MalformedError):
        reader.line()


def test_peer_line(make_destination: Callable[[int], PrivateDestination]) -> None:
    destination = make_destination(1).public
    line = destination.base64.encode()
    assert protocol.parse_peer(line) == destination
    assert protocol.parse_peer(line + b" FROM_PORT=1 TO_PORT=2") == destination
    for bad in (b"", b"STREAM STATUS RESULT=I2P_ERROR", line[:-4], b"\xff" * 524):
        with pytest.raises(MalformedError):
            protocol.parse_peer(bad)


def test_commands(make_destination: Callable[[int], PrivateDestination]) -> None:
    own = make_destination(1)
    assert protocol.hello() == b"HELLO VERSION MIN=3.1 MAX=3.1\n"
    assert protocol.dest_generate() == b"DEST GENERATE SIGNATURE_TYPE=7\n"
    assert protocol.naming_lookup("ME") == b"NAMING LOOKUP NAME=ME\n"
    assert (
        protocol.stream_connect("a-1", HASH)
        == f"STREAM CONNECT ID=a-1 DESTINATION={HASH} SILENT=false\n".encode()
    )
    assert protocol.stream_accept("a-1") == b"STREAM ACCEPT ID=a-1 SILENT=false\n"
    assert protocol.session_create("a-1", "STREAM", own.base64, ("inbound.length=3", "x.y=4,0")) == (
        f"SESSION CREATE STYLE=STREAM ID=a-1 DESTINATION={own.base64} inbound.length=3 x.y=4,0\n".encode()
    )
    assert protocol.session_create("a-1", "DATAGRAM", protocol.TRANSIENT, ()) == (
        b"SESSION CREATE STYLE=DATAGRAM ID=a-1 DESTINATION=TRANSIENT SIGNATURE_TYPE=7\n"
    )
    assert protocol.datagram_send(own.public, 12) == (
        f"DATAGRAM SEND DESTINATION={own.public.base64} SIZE=12\n".encode()
    )


def test_longest_command_fits_what_a_name_may_have(
    make_destination: Callable[[int], PrivateDestination],
) -> None:
    protocol.stream_connect("a", "A" * protocol.MAX_NAME_LETTERS)
    with pytest.raises(MalformedError):
        protocol.stream_connect("a", "A" * (protocol.MAX_NAME_LETTERS + 1))
    with pytest.raises(MalformedError):
        protocol.datagram_send(make_destination(1).public, 0)


BREAKERS = ["", "a b", "a\nSESSION REMOVE", 'a"', "a\r", "a'", "a/b", "<a>", "a\x00", "ä", "a" * 5000]


@pytest.mark.parametrize("text", BREAKERS)
def test_arguments_that_would_break_a_command_are_refused(text: str) -> None:
    makers: list[Callable[[], bytes]] = [
        lambda: protocol.stream_accept(text),
        lambda: protocol.stream_connect(text, HASH),
        lambda: protocol.stream_connect("a", text),
        lambda: protocol.naming_lookup(text),
        lambda: protocol.session_create(text, "STREAM", protocol.TRANSIENT, ()),
        lambda: protocol.session_create("a", "STREAM", text, ()),
        lambda: protocol.session_create("a", "STREAM", protocol.TRANSIENT, (f"key={text}",)),
        lambda: protocol.session_create("a", "STREAM", protocol.TRANSIENT, (text,)),
    ]
    for make in makers:
        with pytest.raises(MalformedError) as refused:
            make()
        assert not text or text not in str(refused.value)  # it may be a private key


@given(st.text(max_size=80))
def test_a_command_is_one_line(text: str) -> None:
    for make in (protocol.stream_accept, protocol.naming_lookup):
        try:
            command = make(text)
        except MalformedError:
            continue
        assert command.endswith(b"\n")
        assert command[:-1].decode("ascii").isprintable()
