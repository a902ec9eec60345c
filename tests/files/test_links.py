from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import MalformedError
from overlay.files.links import (
    MAX_CONTENT_BYTES,
    MAX_DETAILS_BYTES,
    MAX_LINK_CHARACTERS,
    MAX_PROVIDERS,
    FileLink,
    _checksum,
)
from overlay.identity import NodeSecret
from overlay.locators import MAX_RECORD_BYTES, LocatorRecord, memory_locator
from overlay.units.capability import LARGE_BLOCK, SMALL_BLOCK, ReadCapability, tree_shape
from overlay.wire.codec import encode
from overlay.wire.filenames import MAX_NAME_BYTES, safe_basename
from overlay.wire.tokens import base32

VECTORS = sorted((Path(__file__).parents[1] / "vectors" / "eris").glob("*positive*.json"))
SPECIFICATION = Path(__file__).parents[2] / "docs" / "spec" / "files.md"

sizes = st.integers(0, 200_000) | st.integers(0, MAX_CONTENT_BYTES)
keys = st.binary(min_size=32, max_size=32)
RECORD = LocatorRecord.sign(
    NodeSecret.from_bytes(bytes(range(64))), [memory_locator(1)], number=1, now=1_800_000_000
)
CAPABILITY = ReadCapability(SMALL_BLOCK, 1, b"R" * 32, b"K" * 32)
LINK = FileLink(CAPABILITY, (RECORD.encoded,), "Tea ☕.txt", 5000)
DETAILS = LINK.urn.split("?+from=")[1]


def capability_of(size: int, block_size: int, reference: bytes, key: bytes) -> ReadCapability:
    return ReadCapability(block_size, tree_shape(size, block_size)[1], reference, key)


def is_safe(name: str) -> bool:
    try:
        return safe_basename(name) == name
    except MalformedError:
        return False


@st.composite
def links(draw: st.DrawFn) -> FileLink:
    size = draw(sizes)
    capability = capability_of(
        size, draw(st.sampled_from([SMALL_BLOCK, LARGE_BLOCK])), draw(keys), draw(keys)
    )
    providers = draw(st.lists(st.binary(min_size=1, max_size=60), max_size=MAX_PROVIDERS))
    name = draw(st.just("") | st.text(max_size=20).filter(is_safe))
    shown = draw(st.none() | st.just(size))
    return FileLink(capability, tuple(providers), name, shown, draw(st.sampled_from(["file", "folder"])))


def with_details(payload: bytes, capability: ReadCapability = CAPABILITY) -> str:
    return f"{capability.urn}?+from={base32(payload + _checksum(capability, payload))}"


@given(links(), st.randoms(use_true_random=False))
def test_a_link_survives_being_pasted(link: FileLink, rng: random.Random) -> None:
    text = link.urn
    assert FileLink.parse(text) == link
    at = rng.randrange(len(text))
    assert FileLink.parse(f" \t{text[:at]}\r\n{text[at:]}\n") == link
    assert FileLink.parse(text.upper()) == FileLink.parse(text.lower()) == link


@given(links())
def test_the_urn_in_front_is_the_plain_one(link: FileLink) -> None:
    assert link.urn.partition("?+")[0] == link.capability.urn


def test_a_plain_urn_is_a_link_and_stays_one() -> None:
    link = FileLink.parse(CAPABILITY.urn)
    assert link == FileLink(CAPABILITY)
    assert link.urn == CAPABILITY.urn
    assert (link.providers, link.name, link.size, link.kind) == ((), "", None, "file")


@pytest.mark.parametrize("vector", VECTORS, ids=lambda path: path.stem[-2:])
def test_a_urn_of_the_public_vectors_is_a_link(vector: Path) -> None:
    urn = json.loads(vector.read_text("utf-8"))["urn"]
    assert FileLink.parse(urn).urn == urn


def test_a_folder_without_providers_says_so() -> None:
    link = FileLink(CAPABILITY, kind="folder")
    assert link.urn != CAPABILITY.urn
    assert FileLink.parse(link.urn) == link


def test_a_link_keeps_the_records_as_they_were_signed() -> None:
    (record,) = FileLink.parse(LINK.urn).providers
    assert LocatorRecord.verify(record, now=1_800_000_000) == RECORD


def test_a_link_shows_neither_its_secret_nor_name_nor_providers() -> None:
    for text in (repr(LINK), str(LINK)):
        assert "K" * 8 not in text
        assert "Tea" not in text
        assert "urn" not in text
        assert "providers" not in text


def test_the_longest_link_fits() -> None:
    capability = capability_of(MAX_CONTENT_BYTES, LARGE_BLOCK, bytes(32), bytes(32))
    name = "é" * (MAX_NAME_BYTES // 2)
    longest = FileLink(
        capability, (bytes(MAX_RECORD_BYTES),) * MAX_PROVIDERS, name, MAX_CONTENT_BYTES, "folder"
    )
    text = "\n".join(re.findall(r".{1,72}", longest.urn))
    assert MAX_LINK_CHARACTERS * 0.8 < len(text) <= MAX_LINK_CHARACTERS
    assert FileLink.parse(text) == longest


def test_hints_for_other_programs_are_passed_over() -> None:
    for hints in ("x=1", "x=1&y=", "X-Pull=http%3A%2F%2Fa/b?c"):
        assert FileLink.parse(f"{CAPABILITY.urn}?+{hints}") == FileLink(CAPABILITY)
        assert FileLink.parse(f"{CAPABILITY.urn}?+{hints}&from={DETAILS}&z=2") == LINK


def test_fields_of_a_newer_version_are_passed_over() -> None:
    text = with_details(encode({"name": "a.txt", "later": [1, 2]}))
    assert FileLink.parse(text) == FileLink(CAPABILITY, name="a.txt")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "urn:eris:",
        LINK.urn + "a",
        LINK.urn + "?=part",
        LINK.urn + "#page=2",
        CAPABILITY.urn + "?=part",
        CAPABILITY.urn + "#2",
        CAPABILITY.urn + "?+x=1?=part",
        CAPABILITY.urn + "?+x=1#2",
        CAPABILITY.urn + "?",
        CAPABILITY.urn + "?+",
        CAPABILITY.urn + "?+fro",
        CAPABILITY.urn + "?+from",
        CAPABILITY.urn + "?+from=",
        CAPABILITY.urn + "?+=x",
        CAPABILITY.urn + "?+x=1&",
        CAPABILITY.urn + "&from=" + DETAILS,
        f"{LINK.urn}&from={DETAILS}",
        LINK.urn.replace("urn:eris", "urn:isbn"),
        "x" + LINK.urn,
    ],
)
def test_bad_text_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        FileLink.parse(text)


def test_an_endless_link_is_refused() -> None:
    with pytest.raises(MalformedError, match="long"):
        FileLink.parse(LINK.urn + "&x=" + "a" * MAX_LINK_CHARACTERS)
    with pytest.raises(MalformedError, match="long"):
        FileLink.parse(LINK.urn + " " * MAX_LINK_CHARACTERS)


@given(st.data())
def test_a_mistyped_or_cut_link_is_malformed(data: st.DataObject) -> None:
    text = LINK.urn.lower()
    at = data.draw(st.integers(len("urn:eris:"), len(text) - 1))
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567").filter(lambda x: x != text[at]))
    mistyped = text[:at] + letter + text[at + 1 :]
    if at not in range(text.index("?+from="), text.index("?+from=") + len("?+from=")):
        with pytest.raises(MalformedError):
            FileLink.parse(mistyped)
    # Cut between URN and hints a plain link is left, which is right as it stands.
    if at != len(CAPABILITY.urn):
        with pytest.raises(MalformedError):
            FileLink.parse(text[:at])


def test_details_of_another_capability_are_refused() -> None:
    other = dataclasses.replace(CAPABILITY, key=b"L" * 32)
    with pytest.raises(MalformedError, match="damaged"):
        FileLink.parse(f"{other.urn}?+from={DETAILS}")


@pytest.mark.parametrize(
    "details",
    [
        {"providers": [b""]},
        {"providers": [bytes(MAX_RECORD_BYTES + 1)]},
        {"providers": [b"r"] * (MAX_PROVIDERS + 1)},
        {"providers": "record"},
        {"name": "../up"},
        {"name": "/etc/passwd"},
        {"name": ".hidden"},
        {"name": "con"},
        {"name": "a\u202etxt.exe"},
        {"name": "a" * (MAX_NAME_BYTES + 1)},
        {"name": "é" * MAX_NAME_BYTES},
        {"size": -1},
        {"size": 2**63},
        {"size": 10},  # one chunk, but the capability is one of a tree
        {"size": 2.0},
        {"kind": "link"},
        {"kind": ""},
        [],
        {"x": bytes(MAX_DETAILS_BYTES)},
    ],
    ids=lambda details: repr(details)[:30],
)
def test_details_out_of_bounds_are_refused(details: dict[str, Any] | list[Any]) -> None:
    with pytest.raises(MalformedError):
        FileLink.parse(with_details(encode(details)))


@pytest.mark.parametrize(
    "change",
    [
        {"providers": (b"r",) * (MAX_PROVIDERS + 1)},
        {"providers": (b"",)},
        {"providers": (bytes(MAX_RECORD_BYTES + 1),)},
        {"name": "a/b"},
        {"name": "-rf"},
        {"size": -1},
        {"size": 2**63},
        {"size": 1023},
        {"kind": "socket"},
    ],
    ids=lambda change: repr(change)[:30],
)
def test_no_link_is_made_that_nobody_could_read(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        dataclasses.replace(LINK, **change)


@given(st.binary(max_size=300))
def test_any_details_are_a_link_or_malformed(payload: bytes) -> None:
    try:
        link = FileLink.parse(with_details(payload))
    except MalformedError:
        return
    assert FileLink.parse(link.urn) == link


@given(
    st.text()
    | st.text("abz27AZ=?+&#from %/", max_size=80).map(CAPABILITY.urn.__add__)
    | st.text("ab27=&?", max_size=300).map((CAPABILITY.urn + "?+from=").__add__)
)
def test_any_text_is_a_link_or_malformed(text: str) -> None:
    try:
        link = FileLink.parse(text)
    except MalformedError:
        return
    assert FileLink.parse(link.urn) == link


def test_the_example_of_the_specification() -> None:
    block = SPECIFICATION.read_text("utf-8").split("```example-link\n", 1)[1].split("```", 1)[0]
    example = FileLink(CAPABILITY, (b"\1\2\3",), "tea.txt", 5000)
    parts = (encode({"providers": [b"\1\2\3"], "name": "tea.txt", "size": 5000}).hex(), example.urn)
    assert block.split("\n\n") == [parts[0], "\n".join(re.findall(r".{1,100}", parts[1])) + "\n"], parts
    assert FileLink.parse(block.split("\n\n")[1]) == example


@pytest.mark.parametrize("text", ["foo", "http://example.org/", "", "urn:uuid:1"])
def test_what_is_no_link_is_told_how_one_begins(text: str) -> None:
    with pytest.raises(MalformedError, match="begins with 'urn:eris:'"):
        FileLink.parse(text)


@pytest.mark.parametrize("text", ["urn:eris:", "URN:ERIS:BIAD", "urn:eris:" + "!" * 106])
def test_a_link_that_was_cut_within_its_first_part_is_damaged(text: str) -> None:
    with pytest.raises(MalformedError, match="damaged: copy it again"):
        FileLink.parse(text)
