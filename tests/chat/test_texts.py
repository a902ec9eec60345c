from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.chat.texts import (
    MAX_NAME_BYTES,
    MAX_TEXT_BYTES,
    check_file_name,
    check_line,
    check_text,
)
from overlay.errors import MalformedError


@pytest.mark.parametrize(
    "name",
    [
        "",
        "   ",
        "a\nb",
        "a\x1b[31m",
        "tab\there",
        "\x00",
        "x\u202egpj",
        "\ufeffx",
        "a\u2028b",
        "a\x9bm",
        "\ud800",
    ],
)
def test_lines_with_anything_a_terminal_would_act_on_are_refused(name: str) -> None:
    with pytest.raises(MalformedError):
        check_line("name", name, limit=MAX_NAME_BYTES)


@pytest.mark.parametrize("name", ["Alice", "Zoë", "北京", "👩‍👩‍👧", "o' <b>hi</b>", "x" * MAX_NAME_BYTES])
def test_lines_in_any_language_pass_unchanged(name: str) -> None:
    assert check_line("name", name, limit=MAX_NAME_BYTES) == name


def test_a_limit_counts_bytes_not_characters() -> None:
    with pytest.raises(MalformedError, match="100 bytes"):
        check_line("name", "é" * (MAX_NAME_BYTES // 2 + 1), limit=MAX_NAME_BYTES)


@pytest.mark.parametrize("name", [".", "..", "a/b", "/etc/passwd", "..\\x", "c:\\x", "a\x00b", ""])
def test_a_file_name_is_never_a_path(name: str) -> None:
    with pytest.raises(MalformedError):
        check_file_name(name)


def test_texts_may_hold_line_breaks_but_have_an_end() -> None:
    assert check_text("two\nlines\x1b[0m") == "two\nlines\x1b[0m"
    for bad in ("", "x" * (MAX_TEXT_BYTES + 1), "é" * (MAX_TEXT_BYTES // 2 + 1), "\udfff"):
        with pytest.raises(MalformedError):
            check_text(bad)


@given(st.text(st.characters(exclude_categories=())))
def test_every_string_is_a_name_or_malformed(name: str) -> None:
    try:
        assert check_file_name(name) == name
    except MalformedError:
        return
    assert "\n" not in name
    assert name.isprintable() or not name.isascii()
