from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import MalformedError, TransportUnavailableError
from overlay.transports.tor.onion import OnionKey, load_key


def entropy(size: int) -> bytes:
    return bytes(range(size))


def test_generated_key_is_the_expansion_of_rfc_8032() -> None:
    digest = hashlib.sha512(entropy(32)).digest()
    expanded = OnionKey.generate(entropy).expanded
    assert expanded[1:31] == digest[1:31]
    assert expanded[32:] == digest[32:]
    assert expanded[0] == digest[0] & 0b11111000
    assert expanded[31] == digest[31] & 0b00111111 | 0b01000000
    assert Ed25519PrivateKey.from_private_bytes(entropy(32)).public_key().public_bytes_raw()


def test_file_has_the_form_of_tors_own() -> None:
    data = OnionKey.generate(entropy).to_bytes()
    assert len(data) == 96
    assert data.startswith(b"== ed25519v1-secret: type0 ==\0\0\0")


def test_key_is_not_shown() -> None:
    key = OnionKey.generate(entropy)
    assert repr(key) == "OnionKey()"


@given(st.binary(max_size=200))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        OnionKey.from_bytes(data)


@given(st.integers(0, 95), st.integers(1, 255))
def test_damage_is_noticed_or_gives_another_key(position: int, change: int) -> None:
    data = bytearray(OnionKey.generate(entropy).to_bytes())
    data[position] ^= change
    try:
        key = OnionKey.from_bytes(bytes(data))
    except MalformedError:
        return
    assert position >= 32
    assert key.to_bytes() == bytes(data)


async def test_key_is_made_once_and_only_readable_by_us(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "onion.key"
    key = await load_key(path, entropy)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert await load_key(path, bytes) == key
    assert [file.name for file in path.parent.iterdir()] == ["onion.key"]


async def test_damaged_file_is_kept_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "onion.key"
    path.write_bytes(b"precious")
    with pytest.raises(MalformedError, match="restore"):
        await load_key(path, entropy)
    assert path.read_bytes() == b"precious"


async def test_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TransportUnavailableError, match="cannot be used"):
        await load_key(tmp_path / "file" / "onion.key", entropy)
