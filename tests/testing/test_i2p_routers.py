from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from overlay.testing.i2p_routers import Place, Router, RouterInfo, parse_router_info

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
IDENTITY = bytes(352) + KEY.public_key().public_bytes_raw() + b"\x05\x00\x04" + b"\x00\x07\x00\x04"


def signed(rest: bytes) -> bytes:
    return IDENTITY + rest + KEY.sign(IDENTITY + rest)


WHOLE = signed(b"...NTCP2...")


def test_a_whole_router_info_is_named_after_its_identity() -> None:
    info = parse_router_info(WHOLE)
    assert info is not None
    digest = info.file_name.removeprefix("netDb/r").removesuffix(".dat").partition("/routerInfo-")
    assert digest[0] == digest[2][0]
    assert "+" not in digest[2]
    assert "/" not in digest[2]
    assert parse_router_info(signed(b"other NTCP2")) != info
    assert info.file_name == RouterInfo(signed(b"other NTCP2")).file_name
    assert len(digest[2]) == len(sha256().digest()) * 4 // 3 + 2


@given(st.integers(0, len(WHOLE) - 1))
def test_a_part_of_a_router_info_is_none(size: int) -> None:
    assert parse_router_info(WHOLE[:size]) is None


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_damaged_router_info_is_none(place: int, change: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[place] ^= change
    assert parse_router_info(bytes(damaged)) is None


def test_a_router_info_without_an_address_is_none() -> None:
    assert parse_router_info(signed(b"nothing yet")) is None


def test_no_two_routers_share_an_address_or_a_port(tmp_path: Path) -> None:
    places = [Place(number, tmp_path / str(number), floodfill=False) for number in range(200)]
    assert len({place.host for place in places}) == 200
    taken = [port for place in places for port in (place.sam_port, place.sam_port - 1, place.port)]
    assert len(set(taken)) == 600


def test_a_router_is_prepared_with_its_configuration_and_told_of_others(tmp_path: Path) -> None:
    place = Place(3, tmp_path / "router3", floodfill=True)
    place.prepare()
    text = (place.directory / "i2pd.conf").read_text(encoding="utf-8").splitlines()
    first_dotted = next(number for number, line in enumerate(text) if "." in line.partition("=")[0])
    assert all("." in line.partition("=")[0] for line in text[first_dotted:])
    assert {"netid = 77", "floodfill = true", "host = 198.18.0.13", "ntcp2.enabled = true"} <= set(text)
    own, other = RouterInfo(WHOLE), RouterInfo(b"another" + WHOLE[7:])
    place.write_infos(own, [own, other])
    assert (place.directory / "router.info").read_bytes() == WHOLE
    assert (place.directory / other.file_name).read_bytes() == other.data
    assert not (place.directory / own.file_name).exists()


@pytest.mark.parametrize(
    ("log", "reason"),
    [("", "it gave no reason"), ("a\nb \n\n", "b"), ("12:00:01@1/\x1b[1;31merror\x1b[0m - why\n", "why")],
)
def test_the_reason_of_a_failure_is_the_last_line_of_the_log(tmp_path: Path, log: str, reason: str) -> None:
    (tmp_path / "i2pd.log").write_text(log, encoding="utf-8")
    router = Router(Place(0, tmp_path, floodfill=False), os.devnull, {})
    assert router.reason() == reason


def test_only_what_was_prepared_is_taken_for_a_router_of_such_a_network(tmp_path: Path) -> None:
    place = Place(0, tmp_path / "router0", floodfill=False)
    place.prepare()
    assert Place.is_one(place.directory)
    foreign = tmp_path / "router1"
    (foreign / "addressbook").mkdir(parents=True)  # as in the data directory of any i2pd
    assert not Place.is_one(foreign)
    (foreign / "empty.zip").write_bytes(b"not empty")
    assert not Place.is_one(foreign)
