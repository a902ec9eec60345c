from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import MalformedError, VerificationError
from overlay.identity import (
    NodeIdentifier,
    NodePublic,
    NodeSecret,
    SigningSecret,
    format_identifier,
    parse_identifier,
    verify_signature,
)

keys = st.binary(min_size=32, max_size=32)
SECRET = NodeSecret.from_bytes(bytes(range(64)))


def flip(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data, "big") ^ 1 << bit).to_bytes(len(data), "big")


def test_the_identifier_follows_from_both_keys() -> None:
    public = SECRET.public
    expected = hashlib.blake2b(public.signing + public.static, digest_size=32, person=b"overlay/node")
    assert SECRET.identifier.value == expected.digest()
    for other in (NodePublic(bytes(32), public.static), NodePublic(public.signing, bytes(32))):
        assert other.identifier != SECRET.identifier


def test_forms_are_pinned() -> None:
    """What is written down or signed must be read by every later version."""
    # RFC 8032 and RFC 7748 with the secrets 00..1f and 20..3f
    assert SECRET.public.signing.hex() == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    assert SECRET.public.static.hex() == "358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254"
    assert str(SECRET.identifier) == "rny37lndudmrsjfdkinz6sqxrmatv76xuzzvnt7tkvjbwqfof6kc5g3j"


def test_secret_and_public_round_trip() -> None:
    again = NodeSecret.from_bytes(SECRET.to_bytes())
    assert SECRET.to_bytes() == bytes(range(64))
    assert again.public == SECRET.public
    assert NodePublic.from_bytes(SECRET.public.to_bytes()) == SECRET.public


def test_generate_takes_only_the_entropy_that_it_is_given() -> None:
    first = NodeSecret.generate(random.Random(5).randbytes)
    assert first.to_bytes() == NodeSecret.generate(random.Random(5).randbytes).to_bytes()
    assert first.public != NodeSecret.generate(random.Random(6).randbytes).public
    assert SigningSecret.generate(random.Random(5).randbytes).seed == first.signing.seed


@pytest.mark.parametrize("size", [0, 31, 33, 63, 65, 128])
def test_any_other_length_is_refused(size: int) -> None:
    for read in (NodeIdentifier, NodePublic.from_bytes, NodeSecret.from_bytes):
        with pytest.raises(MalformedError):
            read(bytes(size))


@given(keys, st.sampled_from(["node", "unit", "session"]))
def test_identifier_text_round_trips(value: bytes, kind: str) -> None:
    text = format_identifier(kind, value)
    assert len(text) == 56
    assert parse_identifier(kind, text) == parse_identifier(kind, f" {text.upper()}\n") == value
    with pytest.raises(MalformedError, match="not a other identifier"):
        parse_identifier("other", text)


@given(keys, st.integers(0, 55), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_a_mistyped_identifier_is_refused(value: bytes, at: int, letter: str) -> None:
    text = str(NodeIdentifier(value))
    for bad in (text[:at], text[:at] + text[at + 1 :], text + letter):
        with pytest.raises(MalformedError):
            NodeIdentifier.parse(bad)
    if text[at] != letter:
        with pytest.raises(MalformedError):
            NodeIdentifier.parse(text[:at] + letter + text[at + 1 :])


@given(st.text(max_size=150) | st.text("aAbz27", min_size=56, max_size=56))
def test_any_text_is_malformed(text: str) -> None:
    with pytest.raises(MalformedError):
        NodeIdentifier.parse(text)


@given(st.binary(max_size=100), st.integers(0, 511))
def test_signature_fits_key_context_and_body_only(body: bytes, bit: int) -> None:
    signing = SECRET.signing
    signature = signing.sign("a", body)
    verify_signature(signing.public, "a", body, signature)
    forged = [
        (signing.public, "b", body, signature),
        (signing.public, "a", body + b"x", signature),
        (signing.public, "a", body, flip(signature, bit)),
        (signing.public, "a", body, signature[:-1]),
        (SigningSecret(bytes(32)).public, "a", body, signature),
        (b"no key", "a", body, signature),
        (signing.public, "a", body, b""),
    ]
    for case in forged:
        with pytest.raises(VerificationError):
            verify_signature(*case)


def test_context_and_body_cannot_be_shifted() -> None:
    signature = SECRET.signing.sign("event", b"body")
    with pytest.raises(VerificationError):
        verify_signature(SECRET.signing.public, "even", b"tbody", signature)


def test_no_secret_in_repr() -> None:
    secret = NodeSecret.from_bytes(b"S" * 64)
    for text in (repr(secret), str(secret), repr(secret.signing), repr(secret.__dict__["signing"])):
        assert "SSSS" not in text
        assert "53" * 4 not in text
