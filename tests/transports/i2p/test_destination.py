from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import MalformedError, VerificationError
from overlay.transports.i2p.destination import (
    MAX_DESTINATION_BYTES,
    MAX_PRIVATE_BYTES,
    Destination,
    PrivateDestination,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def plain(certificate: int) -> bytes:
    """A destination with a certificate of some length, of a kind that says nothing about its key."""
    return bytes(384) + b"\0" + certificate.to_bytes(2, "big") + bytes(certificate)


def test_public_part_and_its_address(make_destination: Callable[[int], PrivateDestination]) -> None:
    private = make_destination(1)
    public = private.public
    assert len(private.data) == 679
    assert private.data.startswith(public.data)
    assert len(public.data) == 391
    assert len(public.base64) == 524
    assert len(private.base64) == 908
    digest = base64.b32encode(hashlib.sha256(public.data).digest()).decode().rstrip("=").lower()
    assert public.locator.host == f"{digest}.b32.i2p"
    assert repr(public) == f"Destination({public.locator.host})"


def test_text_comes_back(make_destination: Callable[[int], PrivateDestination]) -> None:
    private = make_destination(2)
    assert Destination.from_base64(private.public.base64) == private.public
    assert PrivateDestination.from_base64(private.base64) == private


def test_alphabet_is_i2ps_own() -> None:
    data = b"\xfb\xff\xfe" * 128 + plain(0)[384:]
    text = Destination(data).base64
    assert "-~" in text
    assert Destination.from_base64(text).data == data
    with pytest.raises(MalformedError):
        Destination.from_base64(text.replace("-", "+").replace("~", "/"))
    with pytest.raises(MalformedError):
        Destination.from_base64(text.replace("~", "_"))


def test_private_keys_are_not_shown(make_destination: Callable[[int], PrivateDestination]) -> None:
    private = make_destination(3)
    assert repr(private) == "PrivateDestination()"
    _ = private.public
    assert repr(private) == "PrivateDestination()"


@pytest.mark.parametrize("size", [0, 4, 5, 8, 388])
def test_any_certificate_that_ends_with_the_bytes(size: int) -> None:
    assert Destination(plain(size)).data == plain(size)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0\0", bytes(386), plain(0) + b"\0", plain(4)[:-1], plain(MAX_DESTINATION_BYTES - 386)],
)
def test_other_lengths_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        Destination(data)


@given(st.binary(max_size=2000))
def test_any_bytes_are_refused_or_kept(data: bytes) -> None:
    for kind in (Destination, PrivateDestination):
        try:
            made = kind(data)
        except (MalformedError, VerificationError):
            continue
        assert made.data == data


@given(st.text(max_size=600))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        Destination.from_base64(text)
    with pytest.raises(MalformedError):
        PrivateDestination.from_base64(text)


@pytest.mark.parametrize("text", ["AAAA", "A" * 516 + " ", "\n" + "A" * 516, "A" * 517, "A" * 3000])
def test_text_that_other_readers_take(text: str) -> None:
    with pytest.raises(MalformedError):
        Destination.from_base64(text)


def test_text_has_one_form_only() -> None:
    data = plain(1)  # whose base64 ends in spare bits
    text = Destination(data).base64
    assert text.endswith(("A=", "AA=="))
    position = text.index("=") - 1
    with pytest.raises(MalformedError):
        Destination.from_base64(text[:position] + "B" + text[position + 1 :])


@pytest.mark.parametrize("cut", [0, 386, 391, 391 + 275])
def test_private_destination_that_is_cut(
    make_destination: Callable[[int], PrivateDestination], cut: int
) -> None:
    with pytest.raises(MalformedError):
        PrivateDestination(make_destination(1).data[:cut])


def test_private_destination_that_is_too_long() -> None:
    with pytest.raises(MalformedError):
        PrivateDestination(plain(0) + bytes(MAX_PRIVATE_BYTES))


def test_keys_that_do_not_match(make_destination: Callable[[int], PrivateDestination]) -> None:
    ours, theirs = make_destination(1), make_destination(2)
    mixed = ours.public.data + theirs.data[len(theirs.public.data) :]
    with pytest.raises(VerificationError):
        PrivateDestination(mixed)
    with pytest.raises(VerificationError):
        PrivateDestination.from_base64(base64.b64encode(mixed, b"-~").decode())


@given(position=st.integers(352, 383) | st.integers(647, 678), change=st.integers(1, 255))
def test_damage_to_the_signing_key_is_noticed(position: int, change: int) -> None:
    seed = bytes(range(32))
    signing = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    data = bytearray(bytes(352) + signing + bytes.fromhex("05 0004 0007 0000") + bytes(256) + seed)
    PrivateDestination(bytes(data))
    data[position] ^= change
    with pytest.raises(VerificationError):
        PrivateDestination(bytes(data))


def test_keys_of_other_kinds_are_taken_as_they_are() -> None:
    assert PrivateDestination(plain(0) + bytes(276)).public.data == plain(0)
