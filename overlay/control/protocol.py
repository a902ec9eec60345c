"""The control API's lines: what a program and the node that runs on its home say to each other. Pure.

One JSON object a line, UTF-8, over a Unix socket; docs/spec/control.md is the specification. A program asks

    {"id": 1, "verb": "chat.send", "args": {"session": "…", "text": "…"}}

and the node answers under the same number with any count of `item` and `progress` lines, then with exactly
one `result` or `error`:

    {"id": 1, "item": …}    {"id": 1, "progress": {"done": 1, "total": 9}}
    {"id": 1, "result": …}    {"id": 1, "error": {"code": "refused", "message": "…"}}

Only the standard library is imported, so that the command line starts fast.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NoReturn, TypeAlias

from overlay.errors import MalformedError, OverlayError, error_from_code

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
"""What a line may hold."""

AnswerKind = Literal["result", "item", "progress", "error"]

MAX_LINE_BYTES = 1 << 20
"""Bytes of a line with its end: a message of 64 KiB takes at most six times that when it is escaped."""
MAX_REQUEST_ID = 2**53 - 1
"""The largest integer that every JSON reader keeps exact."""
MAX_VERB_LENGTH = 64
"""Characters; the longest verb has 13."""
MAX_MESSAGE_LENGTH = 2000
"""Characters of an error's message: one sentence, which may name a path."""
NO_REQUEST = 0
"""The number under which a line is answered that holds none of its own; requests count from 1."""

_KINDS: tuple[AnswerKind, ...] = ("result", "item", "progress", "error")


@dataclass(frozen=True, slots=True)
class Request:
    """One thing that a program asks of the node."""

    id: int
    verb: str
    args: Mapping[str, JSON] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Write the line, with its end.

        Raises:
            MalformedError: the line would be longer than `MAX_LINE_BYTES`.
        """
        return _line({"id": self.id, "verb": self.verb, "args": dict(self.args)})


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of an answer: `item` and `progress` may come often, `result` or `error` ends it."""

    id: int
    kind: AnswerKind
    value: JSON

    @property
    def last(self) -> bool:
        """Tell whether nothing follows under this number."""
        return self.kind in {"result", "error"}

    @classmethod
    def failure(cls, request: int, error: OverlayError) -> Answer:
        """Make the `error` that tells the other side of `error`."""
        return cls(request, "error", {"code": error.code, "message": str(error)[:MAX_MESSAGE_LENGTH]})

    @property
    def error(self) -> OverlayError:
        """The error that an `error` answer tells of; anything odd about it makes a plain `OverlayError`."""
        detail = self.value if isinstance(self.value, dict) else {}
        code, message = detail.get("code"), detail.get("message")
        return error_from_code(str(code), str(message or "the node failed and does not say why"))

    def encode(self) -> bytes:
        """Write the line, with its end.

        Raises:
            MalformedError: the line would be longer than `MAX_LINE_BYTES`.
        """
        return _line({"id": self.id, self.kind: self.value})


def parse_request(line: bytes) -> Request:
    """Read a request.

    Raises:
        MalformedError: not a request; it is answered under `request_number(line)`.
    """
    data = _object(line)
    verb, args = data.get("verb"), data.get("args", {})
    if not isinstance(verb, str) or not 0 < len(verb) <= MAX_VERB_LENGTH:
        raise MalformedError("a request needs a 'verb', which is a text")
    if not isinstance(args, dict):
        raise MalformedError("the 'args' of a request are an object")
    if unknown := data.keys() - {"id", "verb", "args"}:
        raise MalformedError(f"a request has no '{min(unknown)[:MAX_VERB_LENGTH]}'")
    return Request(_number(data, least=1), verb, args)


def request_number(line: bytes) -> int:
    """Give the number under which a line that is no request is answered: its own, else `NO_REQUEST`."""
    try:
        return _number(_object(line), least=1)
    except MalformedError:
        return NO_REQUEST


def parse_answer(line: bytes) -> Answer:
    """Read a line of an answer.

    Raises:
        MalformedError: not an answer.
    """
    data = _object(line)
    kinds = [kind for kind in _KINDS if kind in data]
    if len(kinds) != 1:
        raise MalformedError("an answer holds one of 'result', 'item', 'progress' and 'error'")
    return Answer(_number(data, least=NO_REQUEST), kinds[0], data[kinds[0]])


class LineReader:
    """Cuts a stream of bytes into lines; how the bytes are cut on their way makes no difference.

    Args:
        limit: the most bytes that a line may have, its end included.
    """

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take bytes and give each whole line without its end; iterate to the end before the next call.

        Raises:
            MalformedError: a line is too long. Nothing after it can be read, so the connection is closed.
        """
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole = bytes(self._pending) + line
            self._pending.clear()
            self._check(len(whole) + 1)
            yield whole
        self._pending += rest
        self._check(len(self._pending) + 1)

    def _check(self, length: int) -> None:
        if length > self._limit:
            raise MalformedError(f"a line of the control API is longer than {self._limit} bytes")


def _line(value: dict[str, JSON]) -> bytes:
    line = json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise MalformedError(f"this would be a line of {len(line)} bytes, and {MAX_LINE_BYTES} are allowed")
    return line


def _object(line: bytes) -> dict[str, JSON]:
    try:
        value = json.loads(line.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedError("a line of the control API is not JSON in UTF-8") from error
    if not isinstance(value, dict):
        raise MalformedError("a line of the control API is not an object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _number(data: Mapping[str, JSON], *, least: int) -> int:
    number = data.get("id")
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= MAX_REQUEST_ID:
        raise MalformedError(f"the 'id' of a line is a whole number from {least} to {MAX_REQUEST_ID}")
    return number
