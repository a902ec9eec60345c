from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.control.choose import MIN_PREFIX_LENGTH, Choice, choose
from overlay.errors import MalformedError, NotFoundError, OverlayError, RefusedError
from overlay.identity import format_identifier

ONE, TWO, THREE = (format_identifier("unit", hashlib.sha256(bytes([count])).digest()) for count in range(3))
CHOICES = [Choice(ONE, "garden"), Choice(TWO, "kitchen"), Choice(THREE, "kitchen")]


def chosen(text: str, choices: list[Choice] | None = None) -> str:
    return choose("session", "unit", text, CHOICES if choices is None else choices)


@pytest.mark.parametrize("text", [ONE, ONE.upper(), f" {ONE}\n", ONE[:MIN_PREFIX_LENGTH], ONE[:20], "garden"])
def test_a_session_is_found(text: str) -> None:
    assert chosen(text) == ONE


@pytest.mark.parametrize("text", ["gard", "Garden", ONE[: MIN_PREFIX_LENGTH - 1], ONE[1:20], "", "\x1b[2J"])
def test_what_fits_nothing_is_not_found(text: str) -> None:
    with pytest.raises(NotFoundError):
        chosen(text)


def test_an_identifier_of_something_unknown_is_not_found() -> None:
    with pytest.raises(NotFoundError):
        chosen(format_identifier("unit", b"9" * 32))


@pytest.mark.parametrize(
    "text", [ONE[:-1] + ("a" if ONE[-1] != "a" else "b"), format_identifier("node", bytes(32))]
)
def test_a_mistyped_identifier_or_one_of_another_kind_is_malformed(text: str) -> None:
    with pytest.raises(MalformedError):
        chosen(text)


def test_several_that_fit_are_named() -> None:
    with pytest.raises(RefusedError) as caught:
        chosen("kitchen")
    assert TWO[:12] in str(caught.value)
    assert THREE[:12] in str(caught.value)
    assert ONE[:12] not in str(caught.value)


def test_a_name_cannot_hide_an_identifier() -> None:
    """Titles come from other people: one that looks like another session's identifier makes it ambiguous."""
    with pytest.raises(RefusedError):
        chosen(ONE[:6], [*CHOICES, Choice(format_identifier("unit", b"7" * 32), ONE[:6])])
    assert chosen(ONE, [*CHOICES, Choice(format_identifier("unit", b"7" * 32), ONE)]) == ONE


def test_an_error_stays_short_however_many_fit() -> None:
    many = [Choice(format_identifier("unit", bytes([count]) * 32), "same") for count in range(200)]
    with pytest.raises(RefusedError) as caught:
        chosen("same", many)
    assert len(str(caught.value)) < 400


@given(st.text(max_size=60))
def test_any_text_means_one_or_is_refused(text: str) -> None:
    try:
        found = chosen(text)
    except OverlayError:
        return
    assert found in {ONE, TWO, THREE}
