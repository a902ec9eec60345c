from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import MalformedError
from overlay.identity import NodeIdentifier
from overlay.units.identifiers import UnitIdentifier

keys = st.binary(min_size=32, max_size=32)


@given(keys)
def test_text_round_trips(value: bytes) -> None:
    assert UnitIdentifier.parse(str(UnitIdentifier(value))) == UnitIdentifier(value)


@given(keys)
def test_kinds_are_told_apart(value: bytes) -> None:
    with pytest.raises(MalformedError, match="unit identifier"):
        UnitIdentifier.parse(str(NodeIdentifier(value)))
    with pytest.raises(MalformedError, match="node identifier"):
        NodeIdentifier.parse(str(UnitIdentifier(value)))


def test_of_key_never_equals_the_hash_of_a_content() -> None:
    identifier = UnitIdentifier.of_key(bytes(32))
    assert identifier.value.hex() == "12593281b9552ab60486b1bbae6d70657d976082cc2b3827563315c532cbe5a1"
    assert identifier != UnitIdentifier(hashlib.blake2b(bytes(32), digest_size=32).digest())
    assert identifier != UnitIdentifier(bytes(32))


def test_the_example_of_the_specification() -> None:
    specification = Path(__file__).resolve().parents[2] / "docs" / "spec" / "units.md"
    found = re.search(r"```example-identifier\n(\w+)\n(\w+)\n```", specification.read_text("utf-8"))
    assert found is not None
    identifier = UnitIdentifier.of_key(bytes(32))
    assert found.groups() == (identifier.value.hex(), str(identifier))


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_any_other_length_is_refused(size: int) -> None:
    for make in (UnitIdentifier, UnitIdentifier.of_key):
        with pytest.raises(MalformedError):
            make(bytes(size))


@given(st.text(max_size=60) | st.text("abc234", min_size=56, max_size=56))
def test_any_text_is_malformed(text: str) -> None:
    with pytest.raises(MalformedError):
        UnitIdentifier.parse(text)
