from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import NotFoundError, RefusedError
from overlay_cli.output import Output, make_encodable, printable


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(st.text())
def test_nothing_steers_the_terminal(text: str) -> None:
    shown = printable(text)
    assert all(character.isprintable() or character in "\u200c\u200d" for character in shown)


@given(st.text())
def test_several_lines_stay_inside_their_indent(text: str) -> None:
    first, *others = printable(text, lines=True).split("\n")
    assert len(others) == text.count("\n")
    assert all(line.startswith("    ") for line in others)
    assert all(line.isprintable() for line in [first, *others] if not set(line) & set("\u200c\u200d"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zoë 你好 👋", "Zoë 你好 👋"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b2J", "\\x9b2J"),
        ("a\rb\tc", "a\\rb\\tc"),
        ("invoice\u202efdp.exe", "invoice\\u202efdp.exe"),
        ("non\u00a0breaking", "non breaking"),
        ("one\u200cword", "one\u200cword"),
        ("half \ud800", "half \\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_becomes_of_text(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_data_is_a_line_of_json_or_lines_for_people() -> None:
    for as_json in (True, False):
        stdout = io.StringIO()
        Output(as_json=as_json, stdout=stdout).data({"text": "é\x1b\u202e", "n": 1}, "one", "two")
        if as_json:
            assert stdout.getvalue() == '{"text": "\\u00e9\\u001b\\u202e", "n": 1}\n'
        else:
            assert stdout.getvalue() == "one\ntwo\n"


def test_an_error_is_one_line_on_stderr() -> None:
    stderr, stdout = io.StringIO(), io.StringIO()
    Output(stdout=stdout, stderr=stderr).error(RefusedError("no\x1b[2J\nway"))
    assert stderr.getvalue() == "overlay: no\\x1b[2J\\nway\n"
    assert not stdout.getvalue()


def test_an_error_with_json_is_an_object_on_stderr() -> None:
    stderr = io.StringIO()
    Output(as_json=True, stderr=stderr).error(NotFoundError("gone"))
    assert json.loads(stderr.getvalue()) == {"error": {"code": "not-found", "message": "gone"}}


def test_quiet_leaves_notes_out_but_no_errors() -> None:
    stderr = io.StringIO()
    output = Output(quiet=True, stderr=stderr)
    output.note("by the way")
    output.error(NotFoundError("gone"))
    assert stderr.getvalue() == "overlay: gone\n"


@pytest.mark.parametrize(
    ("stream", "environ", "coloured"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_colour_is_for_terminals_that_want_it(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, environ: dict[str, str], *, coloured: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert (Output(stdout=stream).styled("x", "red") != "x") is coloured


def test_what_an_encoding_lacks_is_escaped() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    make_encodable(stream)
    Output(stdout=stream).data({}, "é")
    assert raw.getvalue() == b"\\xe9\n"
