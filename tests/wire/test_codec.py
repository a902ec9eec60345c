from __future__ import annotations

from typing import Annotated

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import MalformedError
from overlay.wire.codec import Count, Key32, Message, Signature64, Timestamp, decode, encode

LIMIT = 4096


class Sample(Message, frozen=True):
    key: Key32
    number: Count = 0
    names: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=4)], ...], msgspec.Meta(max_length=3)] = ()


SAMPLE = Sample(key=b"k" * 32, number=7, names=("a", "b"))
samples = st.builds(
    Sample,
    key=st.binary(min_size=32, max_size=32),
    number=st.integers(0, 2**63 - 1),
    names=st.lists(st.text(max_size=4), max_size=3).map(tuple),
)


@given(samples)
def test_round_trip(sample: Sample) -> None:
    assert decode(Sample, encode(sample), limit=LIMIT) == sample


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_read(kind: type) -> None:
    assert decode(Sample, kind(encode(SAMPLE)), limit=LIMIT) == SAMPLE


def test_form_is_a_map_by_name_with_defaults_left_out() -> None:
    assert encode(Sample(key=b"k" * 32)) == b"\x81\xa3key\xc4\x20" + b"k" * 32


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert decode(Sample, encode({"key": b"k" * 32, "more": [1, {"x": 2}]}), limit=LIMIT) == Sample(
        key=b"k" * 32
    )


def test_limit_is_exact() -> None:
    data = encode(SAMPLE)
    assert decode(Sample, data, limit=len(data)) == SAMPLE
    with pytest.raises(MalformedError, match="longer than"):
        decode(Sample, data, limit=len(data) - 1)


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        None,
        {"key": b"k" * 31},
        {"key": b"k" * 33},
        {"key": "k" * 32},
        {"key": b"k" * 32, "number": -1},
        {"key": b"k" * 32, "number": 2**63},
        {"key": b"k" * 32, "number": 1.0},
        {"key": b"k" * 32, "number": True},
        {"key": b"k" * 32, "names": ["abcde"]},
        {"key": b"k" * 32, "names": ["a"] * 4},
        {"key": b"k" * 32, "names": [b"a"]},
    ],
)
def test_what_is_out_of_bounds_is_refused(value: object) -> None:
    with pytest.raises(MalformedError):
        decode(Sample, encode(value), limit=LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",  # a code that MessagePack never uses
        encode(SAMPLE) + b"\x00",
        encode(SAMPLE)[:-1],
        b"\x81\xa1x" + b"\x91" * 3000 + b"\xc0",  # nested absurdly, in a field that is skipped
        b"\x91" * 3000,
        b"\x81\xa3key\xc6\xff\xff\xff\xff",  # lengths of 4 GiB
        b"\xdf\xff\xff\xff\xff",
        b"\x82\xa3key\xc4\x20" + b"k" * 32 + b"\xa5names\xdd\xff\xff\xff\xff",
        b"\x82\xa3key\xc4\x20" + b"k" * 32 + b"\xa5names\x91\xa2\xff\xfe",  # no UTF-8
    ],
)
def test_bad_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(Sample, data, limit=LIMIT)


@given(st.binary(max_size=120), st.integers(0, 60), st.binary(max_size=8))
def test_any_bytes_are_a_structure_or_malformed(noise: bytes, at: int, change: bytes) -> None:
    valid = encode(SAMPLE)
    for data in (noise, valid[:at] + change + valid[at + len(change) :], valid[:at] + change + valid[at:]):
        try:
            decoded = decode(Sample, data, limit=LIMIT)
        except MalformedError:
            continue
        assert len(decoded.key) == 32
        assert decoded.number >= 0
        assert len(decoded.names) <= 3


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Key32, [bytes(32)], [bytes(31), bytes(33)]),
        (Signature64, [bytes(64)], [bytes(63), bytes(65)]),
        (Count, [0, 2**63 - 1], [-1, 2**63]),
        (Timestamp, [0, 2**53 - 1], [-1, 2**53]),
    ],
)
def test_bounds_of_the_common_fields(kind: type[object], good: list[object], bad: list[object]) -> None:
    field = msgspec.defstruct("Field", [("x", kind)])
    for value in good:
        assert decode(field, encode({"x": value}), limit=LIMIT)
    for value in bad:
        with pytest.raises(MalformedError):
            decode(field, encode({"x": value}), limit=LIMIT)


def test_text_that_is_not_unicode_is_malformed() -> None:
    with pytest.raises(MalformedError, match="no characters"):
        encode({"text": "half a pair: \udcff"})
