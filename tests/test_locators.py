from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from overlay.errors import MalformedError, VerificationError
from overlay.identity import NodeSecret
from overlay.locators import (
    DIRECTORY_ROLE,
    MAX_CLOCK_SKEW,
    MAX_LOCATORS,
    MAX_RECORD_BYTES,
    MAX_RECORD_LIFETIME,
    RECORD_LIFETIME,
    LocatorRecord,
    NodeLocator,
    memory_locator,
    parse_locator,
)
from overlay.wire.codec import encode
from overlay.wire.tokens import format_token, parse_token

ROOT = Path(__file__).resolve().parents[1]
VECTORS = ROOT.parent / "shared" / "vectors" / "formats.json"
SPECIFICATION = ROOT / "docs" / "spec" / "locators.md"

ONION = "vww6ybal4bd7szmgncyruucpgfkqahzddi37ktceo3ah7ngmcopnpyyd"
GARLIC = "566niximlxdzpanmn4qouucvua3k7neniwss47li5r6ugoertzuq"
ports = st.integers(1, 65535)
locators = st.one_of(
    st.builds(NodeLocator, st.just("onion3"), st.binary(min_size=32, max_size=32), ports),
    st.builds(NodeLocator, st.just("garlic32"), st.binary(min_size=32, max_size=32)),
    st.builds(NodeLocator, st.just("garlic32"), st.binary(min_size=35, max_size=63)),
    st.builds(NodeLocator, st.just("ip4"), st.binary(min_size=4, max_size=4), ports),
    st.builds(NodeLocator, st.just("ip6"), st.binary(min_size=16, max_size=16), ports),
    st.builds(memory_locator, st.integers(0, 2**64 - 1)),
)

SECRET = NodeSecret.from_bytes(bytes(range(64)))
OTHER = NodeSecret.from_bytes(bytes(64))
NOW = 1_750_000_000


def vectors(kind: str) -> list[dict[str, Any]]:
    if not VECTORS.exists():
        pytest.skip("the public vectors are not part of the distribution")
    found: list[dict[str, Any]] = [v for v in json.loads(VECTORS.read_text("utf-8")) if v["format"] == kind]
    assert found
    return found


# --- locators


def test_multiaddr_vectors() -> None:
    for vector in vectors("multiaddr"):
        locator = parse_locator(vector["name"])
        assert str(locator) == vector["name"]
        assert locator.to_bytes().hex() == vector["hex"]
        assert NodeLocator.from_bytes(bytes.fromhex(vector["hex"])) == locator


def test_bip155_vectors() -> None:
    """The same keys, in the wire form of Bitcoin: network number, length, key."""
    protocols = {4: "onion3", 5: "garlic32"}
    for vector in vectors("bip155"):
        wire = bytes.fromhex(vector["wire"])
        protocol = protocols[wire[0]]
        locator = NodeLocator(protocol, wire[2:], 8333 if protocol == "onion3" else 0)
        assert locator.host == vector["text"]
        typed = f"{vector['text']}:8333" if protocol == "onion3" else vector["text"]
        assert parse_locator(typed) == locator


# From the tests of go-multiaddr and py-multiaddr, for the forms that are known here.
@pytest.mark.parametrize(
    "text",
    [
        "/onion3/9ww6ybal4bd7szmgncyruucpgfkqahzddi37ktceo3ah7ngmcopnpyyd:80",
        f"/onion3/{ONION}7:80",
        f"/onion3/{ONION}:0",
        f"/onion3/{ONION}:-1",
        f"/onion3/{ONION}",
        "/onion3/vww6ybal4bd7szmgncyruucpgfkqahzddi37ktceo3ah7ngmcopnpyy@:666",
        "/garlic32/566niximlxdzpanmn4qouucvua3k7neniwss47li5r6ugoertzu",
        "/garlic32/566niximlxdzpanmn4qouucvua3k7neniwss47li5r6ugoertzu77",
        "/garlic32/566niximlxdzpanmn4qouucvua3k7neniwss47li5r6ugoertzu:80",
        f"/garlic32/{GARLIC}:-1",
        "/garlic32/566niximlxdzpanmn4qouucvua3k7neniwss47li5r6ugoertzu@",
        "/garlic64/jT~",
        "/onion/timaq4ygg2iegci7:80",
        "/ip4",
        "/ip4/::1",
        "/ip4/fdpsofodsajfdoisa",
        "/ip4/127.0.0.1/tcp",
        "/ip4/127.0.0.1/tcp/jfodsajfidosajfoidsa",
        "/ip4/127.0.0.1/udp/1234",
        "/ip4/1.2.3.4/tcp/80/unix",
        "/ip6",
        "/ip6/fe80::9700:803e:ca65:66e8:c21/ip6zone",
        "/tcp/65536",
        "/",
        "",
    ],
)
def test_bad_multiaddrs_are_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_locator(text)


@pytest.mark.parametrize(
    "text",
    [
        "example.com:80",
        "localhost",
        "127.0.0.1",
        "127.0.0.1:",
        ":80",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:+80",
        "127.0.0.1: 80",
        "127.1:80",
        "127.0.0.01:80",
        "0x7f000001:80",
        "2130706433:80",
        "256.0.0.1:80",
        "::1:80",
        "[::1]",
        "[::1]80",
        "[fe80::1%eth0]:80",
        "[127.0.0.1]:80x",
        f"{ONION}.onion",
        f"{ONION[:-1]}.onion:80",
        f"x{ONION[1:]}.onion:80",  # the checksum
        f"www.{ONION}.onion:80",
        f"http://{ONION}.onion:80",
        "facebookcorewwwi.onion:80",  # version 2
        f"{GARLIC}.b32.i2p:80",
        f"{GARLIC[:-1]}.b32.i2p",
        f"{GARLIC[:-1]}r.b32.i2p",  # bits left over
        f"{GARLIC}a.b32.i2p",
        "stats.i2p",
        "/memory/-1",
        "/memory/18446744073709551616",
        "/memory/1/tcp/1",
        "\u0661.2.3.4:80",  # digits of other scripts
        "1.2.3.4:\uff18\uff10",
        "127.0.0.1:80\x00",
        "\ud800:80",
        "\x1b[31m:80",
    ],
)
def test_bad_input_of_people_is_refused(text: str) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_locator(text)
    assert str(caught.value).isprintable()  # whatever was typed: it goes to a terminal


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (f"{ONION}.onion:1234", f"/onion3/{ONION}:1234"),
        (f"{ONION.upper()}.ONION:1234", f"/onion3/{ONION}:1234"),
        (f"  /onion3/{ONION}:01234\n", f"/onion3/{ONION}:1234"),
        (f"{GARLIC}.b32.i2p", f"/garlic32/{GARLIC}"),
        (f"{GARLIC.upper()}.B32.I2P", f"/garlic32/{GARLIC}"),
        ("127.0.0.1:80", "/ip4/127.0.0.1/tcp/80"),
        ("localhost:80", "/ip4/127.0.0.1/tcp/80"),
        ("[::1]:80", "/ip6/::1/tcp/80"),
        ("/ip6/0:0::0:1/tcp/65535", "/ip6/::1/tcp/65535"),
        ("/memory/7", "/memory/7"),
    ],
)
def test_forms_that_people_type(text: str, canonical: str) -> None:
    assert str(parse_locator(text)) == canonical


@given(locators)
def test_both_forms_round_trip(locator: NodeLocator) -> None:
    assert parse_locator(str(locator)) == locator
    assert NodeLocator.from_bytes(locator.to_bytes()) == locator


@given(locators.filter(lambda locator: locator.protocol != "memory"))
def test_the_form_of_its_network_is_read_too(locator: NodeLocator) -> None:
    host = f"[{locator.host}]" if locator.protocol == "ip6" else locator.host
    assert parse_locator(f"{host}:{locator.port}" if locator.port else host) == locator


@given(
    st.text(max_size=80)
    | st.from_regex(r"\A/(onion3|garlic32|ip4|ip6|memory)/[a-z2-7.:]{0,110}(/tcp)?[:/]?[0-9]{0,6}\Z")
    | st.from_regex(r"\A\[?[0-9a-f.:]{0,50}\]?:[0-9]{0,6}\Z")
)
def test_any_text_is_a_locator_or_malformed(text: str) -> None:
    try:
        locator = parse_locator(text)
    except MalformedError:
        return
    assert parse_locator(str(locator)) == locator


@given(st.binary(max_size=100), locators, st.data())
def test_any_bytes_are_a_locator_or_malformed(
    noise: bytes, locator: NodeLocator, data: st.DataObject
) -> None:
    valid = locator.to_bytes()
    at = data.draw(st.integers(0, len(valid)))
    change = data.draw(st.binary(max_size=4))
    for case in (
        noise,
        valid[:at],
        valid[:at] + change + valid[at + len(change) :],
        valid[:at] + change + valid[at:],
    ):
        try:
            read = NodeLocator.from_bytes(case)
        except MalformedError:
            continue
        assert read.to_bytes() == case  # one locator has one binary form


@pytest.mark.parametrize(
    "data",
    [
        "",
        "80",
        "8400",  # code 4 in two bytes
        "047f00000106",
        "047f0000010610e100",
        "047f000001060000",  # port 0
        "047f000001910204d2",  # udp
        "bf031f" + "00" * 31,
        "bf0321" + "00" * 33,
        "bf0320" + "00" * 33,
        "bf03a000" + "00" * 32,  # length 32 in two bytes
        "bd03" + "00" * 32 + "0000" + "03" + "0050",  # checksum of the onion address
        "8906" + "00" * 7,
        "a503" + "00" * 34,  # p2p, not known here
        "ff" * 600,
    ],
)
def test_bad_bytes_are_refused(data: str) -> None:
    with pytest.raises(MalformedError):
        NodeLocator.from_bytes(bytes.fromhex(data))


@pytest.mark.parametrize(
    ("protocol", "address", "port"),
    [
        ("onion3", bytes(31), 1),
        ("onion3", bytes(32), 0),
        ("garlic32", bytes(33), 0),
        ("garlic32", bytes(64), 0),
        ("garlic32", bytes(32), 1),
        ("ip4", bytes(4), 65536),
        ("ip4", bytes(4), -1),
        ("ip6", bytes(4), 1),
        ("memory", bytes(8), 1),
        ("udp", bytes(4), 1),
    ],
)
def test_what_no_form_stands_for_is_refused(protocol: str, address: bytes, port: int) -> None:
    with pytest.raises(MalformedError):
        NodeLocator(protocol, address, port)


# --- records


def body(**changes: object) -> dict[str, object]:
    return {
        "key": SECRET.public.to_bytes(),
        "number": 1,
        "issued": NOW,
        "expires": NOW + 3600,
        "locators": [memory_locator(1).to_bytes()],
        "roles": [],
    } | changes


def signed(
    content: Mapping[str, object] | bytes, secret: NodeSecret = SECRET, context: str = "locator-record"
) -> bytes:
    data = content if isinstance(content, bytes) else encode(content)
    return encode({"body": data, "signature": secret.signing.sign(context, data)})


@given(
    st.lists(locators, max_size=MAX_LOCATORS),
    st.integers(0, 2**63 - 1),
    st.integers(1, MAX_RECORD_LIFETIME),
    st.lists(st.text(max_size=32), max_size=8),
)
def test_record_round_trips(
    addresses: list[NodeLocator], number: int, lifetime: int, roles: list[str]
) -> None:
    record = LocatorRecord.sign(
        SECRET, addresses, number=number, now=NOW + 0.9, lifetime=lifetime, roles=roles
    )
    assert len(record.encoded) <= MAX_RECORD_BYTES
    assert record == LocatorRecord.verify(record.encoded, now=NOW) == LocatorRecord.from_store(record.encoded)
    assert record.identifier == SECRET.identifier
    assert record.locators == tuple(addresses)
    assert (record.number, record.issued, record.expires) == (number, NOW, NOW + lifetime)
    assert record.roles == frozenset(roles)


def test_a_record_can_be_neither_too_full_nor_too_long() -> None:
    with pytest.raises(MalformedError):
        LocatorRecord.sign(SECRET, [memory_locator(n) for n in range(9)], number=1, now=NOW)
    with pytest.raises(MalformedError):
        LocatorRecord.sign(SECRET, [], number=1, now=NOW, lifetime=MAX_RECORD_LIFETIME + 1)
    with pytest.raises(MalformedError):
        LocatorRecord.sign(SECRET, [], number=-1, now=NOW)
    with pytest.raises(MalformedError):
        LocatorRecord.sign(SECRET, [], number=1, now=NOW, roles=["x" * 33])


def test_a_record_is_valid_from_its_issue_less_the_skew_until_it_expires() -> None:
    record = LocatorRecord.sign(SECRET, [], number=1, now=NOW)
    for now in (NOW - MAX_CLOCK_SKEW, NOW, NOW + RECORD_LIFETIME - 0.1):
        assert LocatorRecord.verify(record.encoded, now=now) == record
    with pytest.raises(VerificationError, match="future"):
        LocatorRecord.verify(record.encoded, now=NOW - MAX_CLOCK_SKEW - 1)
    with pytest.raises(VerificationError, match="expired"):
        LocatorRecord.verify(record.encoded, now=NOW + RECORD_LIFETIME)
    assert LocatorRecord.from_store(record.encoded) == record


@pytest.mark.parametrize("expires", [NOW - 1, NOW + MAX_RECORD_LIFETIME + 1, 2**53 - 1])
def test_times_that_make_no_sense_are_refused(expires: int) -> None:
    with pytest.raises(VerificationError):
        LocatorRecord.verify(signed(body(expires=expires)), now=NOW)


def test_forged_signatures_are_refused() -> None:
    good = signed(body())
    assert LocatorRecord.verify(good, now=NOW).identifier == SECRET.identifier
    other_key = encode(body(key=OTHER.public.to_bytes()))
    forged = [
        signed(body(), OTHER),  # signed by another
        signed(body(key=OTHER.public.to_bytes())),  # another's key
        signed(body(), context="chat-event"),  # a signature made for something else
        good.replace(encode(body()), other_key),
        encode({"body": encode(body()), "signature": bytes(64)}),
    ]
    for data in forged:
        with pytest.raises(VerificationError):
            LocatorRecord.verify(data, now=NOW)
        with pytest.raises(VerificationError):
            LocatorRecord.from_store(data)


@given(st.data())
def test_a_changed_byte_is_refused(data: st.DataObject) -> None:
    good = signed(body())
    at = data.draw(st.integers(0, len(good) - 1))
    change = data.draw(st.integers(1, 255))
    bad = bytearray(good)
    bad[at] ^= change
    with pytest.raises((MalformedError, VerificationError)):
        LocatorRecord.verify(bytes(bad), now=NOW)


def test_a_key_of_which_one_half_is_another_gives_another_identifier() -> None:
    """The static half is not checked by the signature's key, but it is signed and makes the identifier."""
    mixed = SECRET.public.signing + OTHER.public.static
    record = LocatorRecord.verify(signed(body(key=mixed)), now=NOW)
    assert record.identifier not in {SECRET.identifier, OTHER.identifier}


def test_unknown_fields_are_kept_and_still_verify() -> None:
    data = signed(body(added=[1, {"by": "a newer version"}]))
    record = LocatorRecord.verify(data, now=NOW)
    assert record.encoded == data
    assert LocatorRecord.verify(record.encoded, now=NOW) == record


def test_unknown_kinds_of_locators_are_left_out() -> None:
    known = parse_locator("127.0.0.1:80")
    addresses = [b"\xa5\x03unknown", known.to_bytes(), b"", b"\xff" * 512]
    assert LocatorRecord.verify(signed(body(locators=addresses)), now=NOW).locators == (known,)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": bytes(63)},
        {"number": -1},
        {"number": 2**63},
        {"issued": -1},
        {"issued": 2**53},
        {"issued": 1.5},
        {"expires": "tomorrow"},
        {"locators": [b""] * 9},
        {"locators": [bytes(513)]},
        {"locators": ["127.0.0.1:80"]},
        {"roles": ["r"] * 9},
        {"roles": ["r" * 33]},
        {"roles": [1]},
    ],
)
def test_a_body_out_of_bounds_is_malformed_although_it_is_signed(changes: dict[str, object]) -> None:
    with pytest.raises(MalformedError):
        LocatorRecord.verify(signed(body(**changes)), now=NOW)


def test_a_record_that_is_too_long_is_malformed() -> None:
    with pytest.raises(MalformedError, match="longer than"):
        LocatorRecord.verify(signed(body(padding=bytes(MAX_RECORD_BYTES))), now=NOW)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80", b"\xc0", encode({"body": b""}), signed(b""), signed(b"\x80"), signed(body()) + b"\0"],
)
def test_what_is_not_a_record_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        LocatorRecord.verify(data, now=NOW)


@given(st.binary(max_size=200), st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused(outer: bytes, inner: bytes, wrapped: bool) -> None:  # noqa: FBT001 - drawn
    with pytest.raises((MalformedError, VerificationError)):
        LocatorRecord.verify(signed(inner) if wrapped else outer, now=NOW)


@given(st.data())
def test_a_mutated_body_is_a_record_or_refused(data: st.DataObject) -> None:
    """Signed by its own key, as a peer with ill intent does."""
    valid = encode(body())
    at = data.draw(st.integers(0, len(valid)))
    change = data.draw(st.binary(min_size=1, max_size=8))
    mutated = valid[:at] + change + valid[at + data.draw(st.integers(0, 8)) :]
    assume(mutated != valid)
    try:
        record = LocatorRecord.verify(signed(mutated), now=NOW)
    except (MalformedError, VerificationError):
        return
    assert record.public.signing == SECRET.public.signing


# --- the specification


def example(name: str) -> str:
    found = re.search(rf"```{name}\n(.*?)```", SPECIFICATION.read_text("utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_worked_example_of_the_specification() -> None:
    record = LocatorRecord.sign(
        SECRET,
        [parse_locator(f"/onion3/{ONION}:1234"), parse_locator("127.0.0.1:4321")],
        number=7,
        now=NOW,
        roles=[DIRECTORY_ROLE],
    )
    lines = [line.split("#")[0] for line in example("example-record").splitlines()]
    assert bytes.fromhex("".join(lines)) == record.encoded
    assert example("example-identifier").split() == [record.identifier.value.hex(), str(record.identifier)]


def test_every_code_block_of_locators_in_the_specification() -> None:
    for line in example("example-locators").splitlines():
        text, data = line.split()
        assert parse_locator(text).to_bytes().hex() == data


def test_the_destination_of_the_specification() -> None:
    data = bytes(index % 256 for index in range(384)) + bytes.fromhex("05 0004 0007 0000")
    locator = parse_locator(example("example-destination"))
    assert locator == NodeLocator("garlic32", hashlib.sha256(data).digest())


def test_the_token_of_the_specification() -> None:
    text = example("example-token").strip()
    assert format_token("ovt1", b"hello") == text
    assert parse_token("ovt1", text, limit=5) == b"hello"
