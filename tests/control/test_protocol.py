from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overlay.control.protocol import (
    JSON,
    MAX_LINE_BYTES,
    MAX_REQUEST_ID,
    NO_REQUEST,
    Answer,
    LineReader,
    Request,
    parse_answer,
    parse_request,
    request_number,
)
from overlay.errors import ERRORS_BY_CODE, MalformedError, OverlayError, RefusedError

values: st.SearchStrategy[JSON] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.integers(1, MAX_REQUEST_ID), st.text(min_size=1, max_size=64), st.dictionaries(st.text(), values))
def test_requests_come_back(number: int, verb: str, args: dict[str, JSON]) -> None:
    request = Request(number, verb, args)
    line = request.encode()
    assert line.count(b"\n") == 1
    assert parse_request(line) == request


@given(st.integers(0, MAX_REQUEST_ID), st.sampled_from(("result", "item", "progress")), values)
def test_answers_come_back(number: int, kind: str, value: JSON) -> None:
    line = json.dumps({"id": number, kind: value}).encode()
    answer = parse_answer(line)
    assert (answer.id, answer.kind, answer.value) == (number, kind, value)
    assert parse_answer(answer.encode()) == answer


@pytest.mark.parametrize("kind", ERRORS_BY_CODE.values())
def test_errors_come_back_as_what_they_were(kind: type[OverlayError]) -> None:
    answer = parse_answer(Answer.failure(7, kind("no, because")).encode())
    assert answer.last
    assert type(answer.error) is kind
    assert str(answer.error) == "no, because"


@pytest.mark.parametrize("value", [None, 3, {"code": 5}, {"message": "x", "code": "of the future"}])
def test_an_odd_error_is_a_plain_failure(value: JSON) -> None:
    assert type(Answer(1, "error", value).error) is OverlayError


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"id": 1}',
        b'{"id": 1, "verb": ""}',
        b'{"id": 1, "verb": 5}',
        b'{"id": 0, "verb": "x"}',
        b'{"id": true, "verb": "x"}',
        b'{"id": 1.0, "verb": "x"}',
        b'{"id": "1", "verb": "x"}',
        b'{"verb": "x"}',
        b'{"id": 1, "verb": "x", "args": []}',
        b'{"id": 1, "verb": "x", "args": {"a": NaN}}',
        b'{"id": 1, "verb": "x", "more": 1}',
        b'{"id": 9007199254740992, "verb": "x"}',
        b'{"id": 1, "verb": "' + b"x" * 65 + b'"}',
        b"[" * 100_000,
    ],
)
def test_what_is_not_a_request_is_refused(line: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_request(line)


@pytest.mark.parametrize(
    ("line", "number"),
    [(b'{"id": 12}', 12), (b'{"id": -1}', NO_REQUEST), (b"junk", NO_REQUEST), (b"[]", NO_REQUEST)],
)
def test_a_bad_line_is_answered_under_its_own_number(line: bytes, number: int) -> None:
    assert request_number(line) == number


@pytest.mark.parametrize(
    "line", [b"{}", b'{"id": 1}', b'{"id": 1, "result": 1, "item": 2}', b'{"result": 1}']
)
def test_what_is_not_an_answer_is_refused(line: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_answer(line)


@given(st.binary(max_size=200))
@example(b'{"id":1,"verb":"\\ud800","args":{}}')
@example(b'{"id":' + b"9" * 5000 + b"}")
def test_any_bytes_are_a_line_or_malformed(line: bytes) -> None:
    for parse in (parse_request, parse_answer):
        try:
            parse(line)
        except MalformedError:
            continue


@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line), max_size=8), st.data())
def test_how_the_stream_is_cut_makes_no_difference(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader = LineReader()
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [line for piece in pieces for line in reader.feed(piece)] == lines


def test_lines_before_one_that_is_too_long_are_given() -> None:
    reader = LineReader(limit=4)
    lines = reader.feed(b"abc\nabcd\n")
    assert next(lines) == b"abc"
    with pytest.raises(MalformedError):
        next(lines)


def test_a_line_that_never_ends_is_refused() -> None:
    reader = LineReader(limit=4)
    assert not list(reader.feed(b"abc"))
    with pytest.raises(MalformedError):
        list(reader.feed(b"d"))


def test_a_line_that_would_be_too_long_is_not_written() -> None:
    with pytest.raises(MalformedError):
        Request(1, "x", {"text": "x" * MAX_LINE_BYTES}).encode()
    assert len(Answer.failure(1, RefusedError("x")).encode()) < MAX_LINE_BYTES
