"""SAM, the protocol between an I2P router and its clients: replies read, commands written. Pure.

A reply is one line: two words that name its topic, then `KEY=value` and `KEY="two words"` in any order.
Its topic does not say which command it answers: i2pd gives its general errors as `SESSION STATUS`.
`failure` says whose fault a refusal is, and `retry_rule` what can be tried next.

Sources: https://geti2p.net/en/docs/api/samv3, and i2pd 2.45.1, libi2pd_client/SAM.cpp
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from i2plib import sam as i2plib

from overlay.errors import MalformedError, OverlayError, TransportUnavailableError, UnreachableError
from overlay.transports.i2p.destination import Destination

MAX_REPLY_BYTES = 8192
"""Of one line, its newline included. The longest is SESSION STATUS with a private destination, about 1000
bytes, 2200 with the longest keys of the specification; i2pd itself has no more room than 8192 for a line."""

VERSION = "3.1"
"""The version of SAM that is spoken: the only one besides 3.0 that i2pd 2.45.1 grants, and Java I2P does."""

SIGNATURE_TYPE = 7
"""Ed25519. Routers make DSA keys of 1024 bits, which are long out of date, unless they are told otherwise."""

TRANSIENT = "TRANSIENT"
"""In place of a destination's keys: the router makes new ones, which end with the session."""

MAX_NAME_LETTERS = 1368
"""Of what can be dialled or asked for: a full destination of `MAX_DESTINATION_BYTES` as base64."""

Style = Literal["STREAM", "DATAGRAM"]

_MAX_SHOWN = 200  # letters of a router's own words in an error; its sentences have a few dozen
_TOPIC = re.compile(r"([A-Z]{1,16} [A-Z]{1,16})(?= |$)")
_FIELD = re.compile(r' +(?P<key>[^\s="]+)(?:=(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s"]*)))?(?= |$)')
_ESCAPE = re.compile(r"\\(.)")
_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAME = re.compile(r"[A-Za-z0-9.~=-]+")
_KEYS = re.compile(r"[A-Za-z0-9~=-]{1,4096}")
_OPTION = re.compile(r"[A-Za-z0-9_.]{1,64}=[A-Za-z0-9_.,~-]{1,1024}")


@dataclass(frozen=True)
class Reply:
    """A line from the router. What it says is not shown, because it may hold private keys.

    Attributes:
        topic: its first two words.
        fields: what follows; a key without a value has an empty one.
    """

    topic: str
    fields: Mapping[str, str] = field(repr=False)

    @property
    def result(self) -> str:
        """The RESULT code; `OK` for a new destination, which comes without; empty where there is none."""
        made = self.topic == "DEST REPLY" and "PRIV" in self.fields
        return self.fields.get("RESULT", "OK" if made else "")

    @property
    def ok(self) -> bool:
        """Whether the router did what it was asked."""
        return self.result == "OK"

    @property
    def message(self) -> str:
        """The router's own words; empty where it has none."""
        return self.fields.get("MESSAGE", "")


def parse_reply(line: bytes) -> Reply:
    """Read one line, without its newline.

    Raises:
        MalformedError: not a line of SAM: too long, not text, control characters, no topic, a key twice, or
            a quote that does not end.
    """
    if len(line) >= MAX_REPLY_BYTES:
        raise MalformedError(f"a line of {len(line)} bytes is longer than any of SAM")
    try:
        text = line.decode("utf-8").rstrip(" ")
    except UnicodeDecodeError as error:
        raise MalformedError("not a line of SAM: it is not text") from error
    topic = _TOPIC.match(text)
    if topic is None or not text.isprintable():
        raise MalformedError("not a line of SAM")
    return Reply(topic[1], _fields(text, topic.end()))


def _fields(text: str, position: int) -> dict[str, str]:
    fields: dict[str, str] = {}
    while position < len(text):
        found = _FIELD.match(text, position)
        if found is None or found["key"] in fields:
            raise MalformedError("not a line of SAM: a key comes twice, or a quote does not end")
        quoted = found["quoted"]
        value = found["plain"] or "" if quoted is None else _ESCAPE.sub(r"\1", quoted)
        fields[found["key"]] = value
        position = found.end()
    return fields


def parse_peer(line: bytes) -> Destination:
    """Read the line that comes before an accepted stream: the caller's destination, perhaps with ports.

    Raises:
        MalformedError: it is something else.
    """
    return Destination.from_base64(line.split(b" ", 1)[0].decode("ascii", "replace"))


class LineReader:
    """Cuts what a router sends into lines; what follows the last line wanted stays here, for `take`."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take in what was received; after each call, `line` is asked before more is read."""
        self._buffer += data

    def line(self) -> bytes | None:
        """The next line without its end; None when it has not come whole.

        Raises:
            MalformedError: it is longer than `MAX_REPLY_BYTES`, whether or not it ends somewhere.
        """
        end = self._buffer.find(b"\n", 0, MAX_REPLY_BYTES)
        if end >= 0:
            return self.take(end + 1)[:-1].removesuffix(b"\r")
        if len(self._buffer) >= MAX_REPLY_BYTES:
            raise MalformedError(f"a line is longer than the {MAX_REPLY_BYTES} bytes that SAM needs")
        return None

    def take(self, size: int) -> bytes:
        """Remove and return up to `size` bytes that came after the lines."""
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def __len__(self) -> int:
        """Bytes received and not taken yet."""
        return len(self._buffer)


class Retry(Enum):
    """What can be tried after a refusal.

    Attributes:
        NEVER: the same again is refused again; somebody has to change something.
        SAME: the same again, after a pause, on a new socket.
        NEW_IDENTIFIER: the same again, under another session identifier.
        NEW_SESSION: the session is gone; the same again works on a new one.
    """

    NEVER = "never"
    SAME = "same"
    NEW_IDENTIFIER = "new identifier"
    NEW_SESSION = "new session"


_FAILURES: dict[str, tuple[type[OverlayError], Retry, str]] = {
    "CANT_REACH_PEER": (
        UnreachableError,
        Retry.SAME,
        "the I2P destination cannot be reached; it may be offline, or has just begun: try again in a moment",
    ),
    "PEER_NOT_FOUND": (
        UnreachableError,
        Retry.SAME,
        "the I2P network does not know this destination; it may be offline, or the address outdated",
    ),
    "TIMEOUT": (UnreachableError, Retry.SAME, "the I2P destination did not answer in time; try again"),
    "INVALID_KEY": (
        UnreachableError,
        Retry.SAME,
        "this is no I2P destination, or nobody publishes it: it may be offline, or the address outdated",
    ),
    "KEY_NOT_FOUND": (
        UnreachableError,
        Retry.SAME,
        "nobody on the I2P network publishes this address; it may be offline, or outdated",
    ),
    "INVALID_ID": (
        TransportUnavailableError,
        Retry.NEW_SESSION,
        "the I2P router no longer has this node's session: it was restarted, or ended the session",
    ),
    "DUPLICATED_ID": (
        TransportUnavailableError,
        Retry.NEW_IDENTIFIER,
        "the I2P router already has a session of this name",
    ),
    "DUPLICATED_DEST": (
        TransportUnavailableError,
        Retry.NEVER,
        "this node's I2P key is already in use on this router: end the other program that has it",
    ),
    "NOVERSION": (
        TransportUnavailableError,
        Retry.NEVER,
        f"this I2P router does not speak SAM {VERSION}: update it",
    ),
    "ALREADY_ACCEPTING": (
        TransportUnavailableError,
        Retry.SAME,
        "the I2P router lets one program at a time accept on this session, and one does already",
    ),
    "I2P_ERROR": (TransportUnavailableError, Retry.SAME, "the I2P router reports an error"),
}
"""What each RESULT code means for what was asked about another node."""

_OWN_KEY_REFUSED = (
    MalformedError,
    Retry.NEVER,
    "the I2P router does not accept this node's own key: restore its key file from a copy",
)


def _classify(reply: Reply) -> tuple[type[OverlayError], Retry, str]:
    if reply.result == "INVALID_KEY" and reply.topic == "SESSION STATUS":
        return _OWN_KEY_REFUSED
    known = _FAILURES.get(reply.result)
    if known is not None:
        return known
    said = f"with {reply.result[:_MAX_SHOWN]}" if reply.result else "without a result"
    return TransportUnavailableError, Retry.SAME, f"the I2P router answered {said}, which is not understood"


def failure(reply: Reply) -> OverlayError:
    """Make the error for a reply that is not OK, which says whose fault it is and what can be done."""
    kind, _, sentence = _classify(reply)
    words = reply.message[:_MAX_SHOWN]
    return kind(f"{sentence}: {words}" if words else sentence)


def retry_rule(reply: Reply) -> Retry:
    """Tell what can be tried after a reply that is not OK."""
    return _classify(reply)[1]


def hello() -> bytes:
    """The first command on each socket, to be sent in one piece: i2pd closes the socket otherwise."""
    # A range up to a later version would get 3.0 from i2pd.
    return bytes(i2plib.hello(VERSION, VERSION))


def session_create(identifier: str, style: Style, destination: str, options: Sequence[str]) -> bytes:
    """Ask for a session, which lives as long as the socket.

    Args:
        identifier: the session's name in later commands; other clients of the router must not have it.
        style: of streams or of datagrams.
        destination: private keys as base64, or `TRANSIENT`.
        options: `KEY=value`, each.

    Raises:
        MalformedError: an argument that would not stay one word.
    """
    words = (_check(_OPTION, option, "option") for option in options)
    transient = (f"SIGNATURE_TYPE={SIGNATURE_TYPE}",) if destination == TRANSIENT else ()
    return bytes(
        i2plib.session_create(
            style,
            _check(_IDENTIFIER, identifier, "session identifier"),
            _check(_KEYS, destination, "private destination"),
            " ".join((*transient, *words)),
        )
    )


def stream_connect(identifier: str, name: str) -> bytes:
    """Dial `name`, a b32 name or a full destination, from a session.

    Raises:
        MalformedError: an argument that would not stay one word.
    """
    return bytes(i2plib.stream_connect(_check(_IDENTIFIER, identifier, "session identifier"), _named(name)))


def stream_accept(identifier: str) -> bytes:
    """Wait for one caller of a session.

    Raises:
        MalformedError: an identifier that would not stay one word.
    """
    return bytes(i2plib.stream_accept(_check(_IDENTIFIER, identifier, "session identifier")))


def naming_lookup(name: str) -> bytes:
    """Ask for the full destination of a b32 name, or of `ME`, which only a session's own socket knows.

    Raises:
        MalformedError: a name that would not stay one word.
    """
    return bytes(i2plib.naming_lookup(_named(name)))


def dest_generate() -> bytes:
    """Ask for a new destination with its private keys."""
    return bytes(i2plib.dest_generate(SIGNATURE_TYPE))


def datagram_send(destination: Destination, size: int) -> bytes:
    """Announce a datagram of `size` bytes, which follow at once; nothing answers.

    Raises:
        MalformedError: nothing to send, which no router carries.
    """
    if size < 1:
        raise MalformedError("an I2P datagram has at least one byte")
    return f"DATAGRAM SEND DESTINATION={destination.base64} SIZE={size}\n".encode("ascii")


def _named(name: str) -> str:
    if len(name) > MAX_NAME_LETTERS:
        raise MalformedError("the name of an I2P destination is longer than any")
    return _check(_NAME, name, "I2P name")


def _check(form: re.Pattern[str], text: str, what: str) -> str:
    """Refuse what would break a command in two, without showing it: it may be secret.

    Raises:
        MalformedError: `text` is not of the form.
    """
    if form.fullmatch(text) is None:
        raise MalformedError(f"this is no {what}: it has letters that SAM does not take, or too many")
    return text
