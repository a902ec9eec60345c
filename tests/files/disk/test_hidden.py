"""What hidden files are called: told from all others on every system, and never those of another content."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.files.disk.hidden import CONTENT, NODES, hidden_stem, is_unfinished
from overlay.units.capability import ReadCapability

CAPABILITY = ReadCapability(1024, 0, bytes(32), bytes(32))
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=255)


@given(NAMES)
def test_they_are_short_enough_and_known_by_their_names(name: str) -> None:
    for ending in (CONTENT, NODES):
        hidden = hidden_stem(name, CAPABILITY) + ending
        assert len(hidden.encode()) <= 255
        assert is_unfinished(hidden)


@given(NAMES, NAMES)
def test_each_file_and_each_content_has_its_own(name: str, other: str) -> None:
    stem = hidden_stem(name, CAPABILITY)
    assert (hidden_stem(other, CAPABILITY) == stem) == (other == name)
    assert hidden_stem(name, replace(CAPABILITY, key=bytes([1] * 32))) != stem


@pytest.mark.parametrize("name", [".A.0123ABCD.PART", ".a\nb.01234567.nodes"])
def test_a_system_that_folds_names_takes_these_for_them_too(name: str) -> None:
    assert is_unfinished(name)


@pytest.mark.parametrize(
    "name", ["a.01234567.part", ".a.0123456.part", ".a.part", ".a.01234567.parts", ".part"]
)
def test_others_are_not(name: str) -> None:
    assert not is_unfinished(name)
