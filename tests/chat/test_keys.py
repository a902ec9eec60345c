from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.chat.keys import BOX_OVERHEAD, MAX_BOX_BYTES, BoxContext, SessionKeys
from overlay.errors import MalformedError, VerificationError
from overlay.identity import NodeIdentifier

KEYS = SessionKeys(bytes(32), b"s" * 32)
ALICE, BOB = NodeIdentifier(b"a" * 32), NodeIdentifier(b"b" * 32)
CONTEXT = BoxContext("page", ALICE, BOB, b"r" * 32)


def seal(plain: bytes, context: BoxContext = CONTEXT) -> bytes:
    return KEYS.seal(plain, context, lambda count: b"\7" * count)


@given(st.binary(max_size=300))
def test_what_is_sealed_opens_in_its_own_context(plain: bytes) -> None:
    assert KEYS.open(seal(plain), CONTEXT) == plain


@pytest.mark.parametrize(
    "other",
    [
        replace(CONTEXT, purpose="sync"),
        replace(CONTEXT, sender=BOB),
        replace(CONTEXT, receiver=ALICE),
        replace(CONTEXT, sender=BOB, receiver=ALICE),
        replace(CONTEXT, request=b"q" * 32),
        replace(CONTEXT, request=b""),
    ],
)
def test_a_box_replayed_elsewhere_does_not_open(other: BoxContext) -> None:
    with pytest.raises(VerificationError):
        KEYS.open(seal(b"hello"), other)


@pytest.mark.parametrize(
    "other",
    [SessionKeys(b"\1" * 32, b"s" * 32), SessionKeys(bytes(32), b"t" * 32)],
    ids=["secret", "session"],
)
def test_other_sessions_open_nothing(other: SessionKeys) -> None:
    with pytest.raises(VerificationError):
        other.open(seal(b"hello"), CONTEXT)


@given(st.integers(0, BOX_OVERHEAD + 4), st.integers(0, 7))
def test_every_changed_bit_is_noticed(byte: int, bit: int) -> None:
    box = bytearray(seal(b"hello"))
    box[byte] ^= 1 << bit
    with pytest.raises(VerificationError):
        KEYS.open(bytes(box), CONTEXT)


@given(st.binary(max_size=200))
def test_any_bytes_are_malformed_or_not_verified(data: bytes) -> None:
    with pytest.raises((MalformedError, VerificationError)):
        KEYS.open(data, CONTEXT)


def test_boxes_have_a_largest_size() -> None:
    largest = bytes(MAX_BOX_BYTES - BOX_OVERHEAD)
    assert KEYS.open(seal(largest), CONTEXT) == largest
    with pytest.raises(MalformedError):
        seal(largest + b"x")
    with pytest.raises(MalformedError):
        KEYS.open(bytes(MAX_BOX_BYTES + 1), CONTEXT)


def test_a_proof_holds_for_one_author_and_one_secret() -> None:
    proof = KEYS.prove(b"p" * 32)
    assert KEYS.proves(b"p" * 32, proof)
    assert not KEYS.proves(b"q" * 32, proof)
    assert not SessionKeys(b"\1" * 32, b"s" * 32).proves(b"p" * 32, proof)


def test_a_secret_has_32_bytes() -> None:
    with pytest.raises(MalformedError):
        SessionKeys(b"short", b"s" * 32)
