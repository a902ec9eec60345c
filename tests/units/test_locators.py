from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import MalformedError, VerificationError
from overlay.identity import NodeIdentifier
from overlay.units.locators import (
    MAX_PLACE_BYTES,
    MAX_UNIT_LOCATOR_BYTES,
    SEALED_PLACE_BYTES,
    PlaceSeal,
    UnitLocator,
)
from overlay.wire.codec import encode

SEAL = PlaceSeal(b"k" * 32)
places = st.binary(max_size=MAX_PLACE_BYTES)
LOCATOR = UnitLocator(NodeIdentifier(b"n" * 32), SEAL.seal(b"place", random.Random(1).randbytes))


@given(places, st.randoms(use_true_random=False))
def test_seal_and_open(place: bytes, rng: random.Random) -> None:
    sealed = SEAL.seal(place, rng.randbytes)
    assert len(sealed) == SEALED_PLACE_BYTES
    assert SEAL.open(sealed) == place


@given(st.integers(0, 20), st.integers(0, 20))
def test_places_of_padding_bytes_come_back_whole(marks: int, zeros: int) -> None:
    place = b"\x80" * marks + bytes(zeros)
    assert SEAL.open(SEAL.seal(place, random.Random(0).randbytes)) == place


@given(places, st.integers(0, 2**32))
def test_two_seals_of_one_place_look_unrelated(place: bytes, seed: int) -> None:
    entropy = random.Random(seed).randbytes
    first, second = SEAL.seal(place, entropy), SEAL.seal(place, entropy)
    assert first[:12] != second[:12]
    equal = sum(a == b for a, b in zip(first, second, strict=True))
    assert equal < 12  # of 92; chance gives 0.4


@given(st.integers(0, SEALED_PLACE_BYTES - 1), st.integers(1, 255))
def test_a_changed_place_is_refused(index: int, change: int) -> None:
    sealed = bytearray(LOCATOR.place)
    sealed[index] ^= change
    with pytest.raises(VerificationError):
        SEAL.open(bytes(sealed))


@given(st.binary(max_size=120) | st.binary(min_size=SEALED_PLACE_BYTES, max_size=SEALED_PLACE_BYTES))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(VerificationError):
        SEAL.open(data)


def test_another_node_cannot_open_it() -> None:
    with pytest.raises(VerificationError, match="not sealed by this node"):
        PlaceSeal(b"o" * 32).open(LOCATOR.place)


def test_a_long_place_and_a_bad_key_are_refused() -> None:
    with pytest.raises(MalformedError):
        SEAL.seal(bytes(MAX_PLACE_BYTES + 1), random.Random(0).randbytes)
    with pytest.raises(MalformedError):
        PlaceSeal(bytes(31))


def test_the_key_is_not_in_repr() -> None:
    assert "kkkk" not in repr(SEAL)


def test_locator_round_trips() -> None:
    data = LOCATOR.to_bytes()
    assert len(data) == 140
    assert UnitLocator.from_bytes(data) == LOCATOR


def test_locator_with_a_field_of_a_newer_version() -> None:
    newer = encode({"node": b"n" * 32, "place": LOCATOR.place, "hint": 7})
    assert UnitLocator.from_bytes(newer) == LOCATOR


def test_locator_with_a_place_that_is_not_sealed() -> None:
    with pytest.raises(MalformedError):
        UnitLocator(NodeIdentifier(bytes(32)), b"place")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        LOCATOR.to_bytes()[:-1],
        LOCATOR.to_bytes() + b"\0",
        encode({"node": bytes(31), "place": LOCATOR.place}),
        encode({"node": bytes(32), "place": LOCATOR.place[1:]}),
        encode({"node": bytes(32)}),
        encode({"node": bytes(32), "place": LOCATOR.place, "x": bytes(MAX_UNIT_LOCATOR_BYTES)}),
    ],
)
def test_malformed_locators_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        UnitLocator.from_bytes(data)


@given(st.binary(max_size=200), st.integers(0, 139), st.binary(max_size=5))
def test_any_bytes_are_a_locator_or_malformed(noise: bytes, at: int, change: bytes) -> None:
    valid = LOCATOR.to_bytes()
    for data in (noise, valid[:at] + change + valid[at + len(change) :], valid[:at] + change + valid[at:]):
        try:
            UnitLocator.from_bytes(data)
        except MalformedError:
            continue
