from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import MalformedError
from overlay.units.capability import (
    CAPABILITY_BYTES,
    LARGE_BLOCK,
    MAX_LEVEL,
    NULL_SECRET,
    SMALL_BLOCK,
    ReadCapability,
    choose_block_size,
    chunk_reference,
    tree_shape,
    valid_chunk_size,
)
from overlay.units.encode import Encoder

capabilities = st.builds(
    ReadCapability,
    st.sampled_from([SMALL_BLOCK, LARGE_BLOCK]),
    st.integers(0, MAX_LEVEL),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
)
CAPABILITY = ReadCapability(SMALL_BLOCK, 1, b"R" * 32, b"K" * 32)


@given(capabilities)
def test_both_forms_round_trip(capability: ReadCapability) -> None:
    assert ReadCapability.from_bytes(capability.to_bytes()) == capability
    assert ReadCapability.parse(capability.urn) == capability


def test_text_is_taken_in_any_case_and_with_space_around() -> None:
    assert ReadCapability.parse(f"\n {CAPABILITY.urn.lower()} ") == CAPABILITY


@given(
    st.binary(max_size=80)
    | st.binary(min_size=66, max_size=66)
    | st.just(b"\x0a").flatmap(lambda code: st.binary(min_size=65, max_size=65).map(lambda rest: code + rest))
)
def test_any_bytes_are_a_capability_or_malformed(data: bytes) -> None:
    try:
        capability = ReadCapability.from_bytes(data)
    except MalformedError:
        return
    assert capability.to_bytes() == data


@given(st.text(max_size=130) | st.text("ABab27:=", min_size=106, max_size=106).map("urn:eris:".__add__))
def test_any_text_is_a_capability_or_malformed(text: str) -> None:
    try:
        capability = ReadCapability.parse(text)
    except MalformedError:
        return
    assert capability.urn.lower() == text.strip().lower()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(CAPABILITY_BYTES),
        CAPABILITY.to_bytes()[:-1],
        CAPABILITY.to_bytes() + b"\0",
        b"\x0b" + CAPABILITY.to_bytes()[1:],
        bytes((0x0A, MAX_LEVEL + 1)) + bytes(64),
        bytes((0x0F, 255)) + bytes(64),
    ],
)
def test_bad_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        ReadCapability.from_bytes(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "urn:eris:",
        CAPABILITY.urn[:-1],
        CAPABILITY.urn + "A",
        CAPABILITY.urn.replace("urn:eris", "urn:isbn"),
        CAPABILITY.urn[:-1] + "1",  # no base32 character
        CAPABILITY.urn[:-1] + "B",  # bits left over
    ],
)
def test_bad_text_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        ReadCapability.parse(text)


@pytest.mark.parametrize(("reference", "key"), [(b"", bytes(32)), (bytes(32), bytes(31))])
def test_a_part_of_a_wrong_length_is_refused(reference: bytes, key: bytes) -> None:
    with pytest.raises(MalformedError):
        ReadCapability(SMALL_BLOCK, 0, reference, key)


def test_no_secret_in_repr_or_str() -> None:
    for text in (repr(CAPABILITY), str(CAPABILITY)):
        assert "K" * 8 not in text
        assert "R" * 8 not in text
        assert CAPABILITY.urn not in text


@pytest.mark.parametrize(
    ("size", "block_size"),
    [(None, LARGE_BLOCK), (0, SMALL_BLOCK), (16383, SMALL_BLOCK), (16384, LARGE_BLOCK)],
)
def test_block_size_follows_the_recommendation(size: int | None, block_size: int) -> None:
    assert choose_block_size(size) == block_size


def test_chunk_sizes() -> None:
    assert [
        size for size in (0, 1, 1023, 1024, 1025, 2048, 32767, 32768, 65536) if valid_chunk_size(size)
    ] == [
        1024,
        32768,
    ]


def test_reference_is_plain_blake2b_256() -> None:
    # b2sum -l 256 of no input
    assert chunk_reference(b"").hex() == "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8"


@given(st.integers(0, 40_000))
def test_tree_shape_is_that_of_the_encoder(size: int) -> None:
    encoder = Encoder(SMALL_BLOCK, NULL_SECRET)
    chunks = encoder.feed(bytes(size))
    last, capability = encoder.finish()
    assert tree_shape(size, SMALL_BLOCK) == (len(chunks + last), capability.level)


def test_the_largest_length_fits_the_highest_level() -> None:
    assert tree_shape(2**63 - 1, SMALL_BLOCK)[1] == MAX_LEVEL
