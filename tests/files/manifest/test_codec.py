from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
import tracemalloc
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import MalformedError
from overlay.files.manifest import codec as manifest
from overlay.files.manifest.codec import (
    HEADER,
    MAX_ENTRY_BYTES,
    MAX_TOTAL_BYTES,
    Entry,
    ManifestReader,
    write_manifest,
)
from overlay.files.manifest.paths import MAX_DEPTH, MAX_NAME_BYTES, MAX_PATH_BYTES, check_path
from overlay.units.capability import LARGE_BLOCK, SMALL_BLOCK, ReadCapability, choose_block_size, tree_shape
from overlay.wire.codec import encode

SPECIFICATION = Path(__file__).parents[3] / "docs" / "spec" / "files.md"


def capability(size: int, block_size: int | None = None, seed: str = "") -> ReadCapability:
    block_size = block_size or choose_block_size(size)
    secret = hashlib.shake_128(f"{size} {seed}".encode()).digest(64)
    return ReadCapability(block_size, tree_shape(size, block_size)[1], secret[:32], secret[32:])


def file(text: str, size: int = 5) -> Entry:
    return Entry(tuple(text.split("/")), capability(size), size)


def folder(text: str) -> Entry:
    return Entry(tuple(text.split("/")))


def write(*entries: Entry) -> bytes:
    return b"".join(write_manifest(entries))


def read(data: bytes) -> list[Entry]:
    reader = ManifestReader()
    entries = reader.feed(data)
    reader.finish()
    return entries


def frame(*bodies: bytes, entries: int = 1, total: int = 0) -> bytes:
    """A manifest as somebody writes it who checks nothing."""
    framed = b"".join(len(body).to_bytes(2) + body for body in bodies)
    return HEADER + framed + bytes(2) + entries.to_bytes(8) + total.to_bytes(8)


def frame_files(*paths: str) -> bytes:
    bodies = [
        encode({"path": path.split("/"), "size": 5, "capability": capability(5).to_bytes()}) for path in paths
    ]
    return frame(*bodies, entries=len(paths), total=5 * len(paths))


def is_good(name: str) -> bool:
    try:
        check_path((name,))
    except MalformedError:
        return False
    return True


names = st.sampled_from(
    ["a", "b.txt", ".git", "-rf", "aux.c", "é", "e\u0301x", "日本", "a b", "Z", "~"]
) | st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(is_good)


@st.composite
def trees(draw: st.DrawFn) -> list[Entry]:
    """Entries of a folder as it can stand on a disk, in order."""
    tree: dict[str, Any] = {}
    for path in draw(st.lists(st.lists(names, min_size=1, max_size=4), max_size=12)):
        here = tree
        for name in path[:-1]:
            here = here.setdefault(fold(name), (name, {}))[1] or here
        here.setdefault(fold(path[-1]), (path[-1], draw(st.none() | st.just({}))))
    return [
        Entry(path)
        if empty
        else Entry(
            path,
            capability(
                size := draw(st.integers(0, 2**40)), draw(st.sampled_from([SMALL_BLOCK, LARGE_BLOCK]))
            ),
            size,
            draw(st.integers(0, 2**53 - 1)),
            draw(st.booleans()),
        )
        for path, empty in sorted(walk(tree, ()))
    ]


def fold(name: str) -> str:
    decomposed = unicodedata.normalize("NFD", name.rstrip(" ."))
    return unicodedata.normalize("NFD", decomposed.casefold())


def walk(tree: dict[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], bool]]:
    for name, below in tree.values():
        if below:
            yield from walk(below, (*above, name))
        else:
            yield (*above, name), below is not None


@given(trees())
def test_round_trip(entries: list[Entry]) -> None:
    data = write(*entries)
    assert read(data) == entries
    assert write(*read(data)) == data
    assert data.endswith(len(entries).to_bytes(8) + sum(entry.size for entry in entries).to_bytes(8))


@given(trees(), st.lists(st.integers(1, 40), min_size=1))
def test_a_manifest_can_arrive_in_pieces_of_any_length(entries: list[Entry], lengths: list[int]) -> None:
    data = write(*entries)
    reader, found = ManifestReader(), []
    for length in itertools.cycle(lengths):
        with pytest.raises(MalformedError, match="short"):
            reader.finish()
        found += reader.feed(data[:length])
        data = data[length:]
        if not data:
            break
    reader.finish()
    assert found == entries


@given(trees(), st.data())
def test_a_changed_manifest_is_another_one_or_malformed(entries: list[Entry], data: st.DataObject) -> None:
    good = write(*entries)
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + bytes([good[at] ^ 1 << data.draw(st.integers(0, 7))]) + good[at + 1 :]
    for hostile in (bad, good[:at]):
        try:
            found = read(hostile)
        except MalformedError:
            continue
        assert write(*found) == hostile


@given(
    st.binary(max_size=200)
    | st.binary(max_size=200).map(HEADER.__add__)
    | st.lists(st.binary(min_size=1, max_size=60), max_size=4).map(lambda bodies: frame(*bodies))
    | st.lists(
        st.fixed_dictionaries(
            {"path": st.lists(st.text("aA./\\:é ", max_size=3), max_size=3)},
            optional={
                "size": st.integers(-1, 9),
                "modified": st.integers(-1, 9),
                "executable": st.booleans(),
                "capability": st.sampled_from([b"", b"x", bytes(66), capability(5).to_bytes()]),
                "x": st.none(),
            },
        ).map(encode),
        max_size=4,
    ).flatmap(
        lambda bodies: st.integers(0, 40).map(lambda total: frame(*bodies, entries=len(bodies), total=total))
    )
)
def test_any_bytes_are_a_manifest_or_malformed(data: bytes) -> None:
    try:
        found = read(data)
    except MalformedError:
        return
    assert write(*found) == data


@given(st.permutations(["B", "a-b", "a.txt", "a/x", "c/a/x", "é"]), st.integers(2, 6))
def test_only_one_order_is_read(shuffled: list[str], count: int) -> None:
    paths = shuffled[:count]
    if paths == sorted(paths, key=lambda path: path.split("/")):
        assert [entry.text for entry in read(frame_files(*paths))] == paths
    else:
        with pytest.raises(MalformedError, match="order"):
            read(frame_files(*paths))


def test_a_folder_comes_before_what_is_called_like_it_and_more() -> None:
    entries = [file("a/z"), folder("a/é"), file("a-b"), file("a.txt"), file("b")]
    assert read(write(*entries)) == entries


BAD_NAMES = [
    "",
    ".",
    "..",
    "...",
    ".. ",
    " ",
    "a/b",
    "/",
    "/etc",
    "a\\b",
    "..\\up",
    "C:",
    "c:evil",
    "a\0",
    "a\n",
    "a\x7f",
    "a\x85",
    "a\u202etxt",
    "a\u200f",
    "\ufeffa",
    "a\u2028",
    "a\u200c",
    "..\u200c",
    "a\u200db",
    "\u200d",
    "é\u200d\u200dé",
    "é\u200c.txt",
    "a\u00adb",
    "\u180e..",
    "a\u2060",
    "a\U000e0041",
    "a" * (MAX_NAME_BYTES + 1),
    "é" * (MAX_NAME_BYTES // 2 + 1),
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
@pytest.mark.parametrize("shape", [(), ("a",), ("a", "b")])
def test_names_that_leave_the_folder_or_deceive_are_refused(name: str, shape: tuple[str, ...]) -> None:
    for path in ((*shape, name), (name, *shape)):
        with pytest.raises(MalformedError):
            Entry(path)
        with pytest.raises(MalformedError):
            read(frame(encode({"path": path})))


def test_a_name_that_is_not_unicode_is_refused_with_its_path() -> None:
    with pytest.raises(MalformedError, match=r"docs/caf.udce9"):
        check_path(("docs", "caf\udce9"))
    with pytest.raises(MalformedError):
        read(frame(b"\x81\xa4path\x91\xa2\xff\xfe"))


@pytest.mark.parametrize(
    "name",
    [".gitignore", "..a", "a..", "-rf", "aux.c", "ab:c", "1:2", "*?", "می\u200cروم", "👩\u200d💻.png", "ñ"],
)
def test_names_that_only_look_odd_are_carried(name: str) -> None:
    assert read(write(file(name)))[0].path == (name,)


def test_errors_escape_what_they_show_and_cut_it() -> None:
    with pytest.raises(MalformedError) as caught:
        check_path(("a\x1b[31m\u202e" + "b" * 9999,))
    assert str(caught.value).isascii() or "…" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert "\u202e" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "paths",
    [
        ["A", "a"],
        ["A/x", "a/y"],
        ["d/Makefile", "d/b", "d/makefile"],
        ["STRASSE", "straße"],
        ["caf\u0065\u0301", "café"],
        ["É", "é"],
        ["E\u0301", "é"],
        [
            "\u03b1\u0345\u0301",
            "\u1fb4",
        ],  # folded before it is decomposed, the first would have its marks turned
        ["a", "a."],
        ["a", "a "],
        ["\uff21", "\uff41"],  # full-width A and a
    ],
    ids=repr,
)
def test_names_that_other_systems_take_for_one_are_refused(paths: list[str]) -> None:
    with pytest.raises(MalformedError):
        read(frame_files(*paths))
    with pytest.raises(MalformedError):
        write(*map(file, paths))


def test_an_entry_that_is_there_twice_is_refused() -> None:
    for paths in (["a", "a"], ["a/b", "a/b"]):
        with pytest.raises(MalformedError, match="twice"):
            read(frame_files(*paths))


def test_the_same_name_in_two_folders_is_none() -> None:
    entries = [file("A/x"), file("b/X"), file("b/c/x"), file("x")]
    assert read(write(*entries)) == entries


@pytest.mark.parametrize("first", [file("a"), folder("a")])
def test_what_is_a_file_or_empty_holds_nothing(first: Entry) -> None:
    for below in (file("a/b"), folder("a/b/c")):
        with pytest.raises(MalformedError, match="lies in"):
            write(first, below)
    with pytest.raises(MalformedError, match="lies in"):
        read(frame_files("a", "a/b"))


@pytest.mark.parametrize(
    "body",
    [
        {"path": ["a"], "size": 1},
        {"path": ["a"], "modified": 1},
        {"path": ["a"], "executable": True},
        {"path": ["a"], "executable": 493, "capability": capability(0).to_bytes()},
        {"path": ["a"], "capability": b"x"},
        {"path": ["a"], "capability": bytes(66)},
        {"path": ["a"], "size": 5000, "capability": capability(5).to_bytes()},
        {"path": ["a"], "size": -1, "capability": capability(0).to_bytes()},
        {"path": ["a"], "size": 2**63, "capability": capability(0).to_bytes()},
        {"path": ["a"], "modified": 2**53, "capability": capability(0).to_bytes()},
        {"path": ["a"], "modified": -1, "capability": capability(0).to_bytes()},
        {"path": []},
        {"path": "a"},
        {"path": ["a"] * (MAX_DEPTH + 1)},
        {"path": ["é" * 120] * (MAX_PATH_BYTES // 240 + 1)},
        {"size": 1},
        # What says the same as another manifest in other bytes:
        {"path": ["a"], "size": 0},
        {"path": ["a"], "capability": b""},
        {"path": ["a"], "later": 1},
        {"capability": capability(0).to_bytes(), "path": ["a"]},
        ["a"],
    ],
    ids=lambda body: repr(body)[:40],
)
def test_a_bad_entry_is_refused(body: object) -> None:
    with pytest.raises(MalformedError):
        read(frame(encode(body)))


@pytest.mark.parametrize(
    "change",
    [
        {"size": 2**63},
        {"size": -1},
        {"size": 5000},
        {"modified": -1},
        {"modified": 2**53},
        {"capability": None},
    ],
)
def test_no_entry_is_made_that_nobody_could_read(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        dataclasses.replace(file("a"), **change)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEADER,
        HEADER.replace(b"1", b"2"),
        b"PK\x03\x04",
        frame_files("a")[:-1],
        frame_files("a")[:-18],
        frame_files("a") + b"\0",
        frame_files("a") + frame_files("b"),
        frame(encode({"path": ["a"]}), entries=2),
        frame(encode({"path": ["a"]}), total=1),
        HEADER + (MAX_ENTRY_BYTES + 1).to_bytes(2),
    ],
    ids=lambda data: repr(data)[:30],
)
def test_a_manifest_without_its_frame_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        read(data)


def test_what_is_no_manifest_is_refused_at_its_first_byte() -> None:
    with pytest.raises(MalformedError, match="not the manifest"):
        ManifestReader().feed(b"P")
    with pytest.raises(MalformedError, match="longer"):
        ManifestReader().feed(HEADER + b"\xff\xff")


def test_the_longest_entry_fits() -> None:
    name = "a" * (MAX_PATH_BYTES // MAX_DEPTH - 1)
    path = (name,) * (MAX_DEPTH - 1) + (name + "b",)
    entry = Entry(path, capability(2**63 - 1), 2**63 - 1, 2**53 - 1, executable=True)
    assert len(entry.text) == MAX_PATH_BYTES
    data = write(entry)
    assert MAX_ENTRY_BYTES * 0.9 < len(data) - len(HEADER) - 20 <= MAX_ENTRY_BYTES
    assert read(data) == [entry]


def test_sizes_may_not_overflow_together() -> None:
    half = MAX_TOTAL_BYTES // 2 + 1
    write(file("a", half), file("b", half - 1))
    with pytest.raises(MalformedError, match="together"):
        write(file("a", half), file("b", half))
    body = {"size": half, "capability": capability(half).to_bytes()}
    bodies = [encode({"path": [name], **body}) for name in "ab"]
    with pytest.raises(MalformedError, match="together"):
        read(frame(*bodies, entries=2, total=2 * half))


def test_a_folder_has_so_many_entries_and_bytes_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(folder("a"), folder("b"))
    monkeypatch.setattr(manifest, "MAX_ENTRIES", 2)
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", len(data))
    assert len(read(data)) == 2
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", len(data) - 1)
    for refused in (lambda: read(data), lambda: write(folder("a"), folder("b"))):
        with pytest.raises(MalformedError, match="bytes"):
            refused()
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", len(data))
    monkeypatch.setattr(manifest, "MAX_ENTRIES", 1)
    for refused in (lambda: read(data), lambda: write(folder("a"), folder("b"))):
        with pytest.raises(MalformedError, match="more than 1 files and folders"):
            refused()


def test_folders_on_the_way_count_as_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAX_ENTRIES", 9)
    few = [folder("a/b/c/d"), folder("a/b/e"), folder("f/g/h/i")]  # makes four, one and four
    data = write(*few)
    assert len(read(data)) == 3
    assert len(read(write(*few[:2], folder("f/g/h")))) == 3
    with pytest.raises(MalformedError, match="more than 9 files and folders"):
        write(*few, folder("j"))
    monkeypatch.setattr(manifest, "MAX_ENTRIES", 8)
    with pytest.raises(MalformedError, match="more than 8 files and folders"):
        read(data)


def endless() -> Iterator[Entry]:
    shared = capability(5)
    for number in itertools.count():
        yield Entry((f"{number // 100:05}", "files", f"{number % 100:02}"), shared, 5)


def peak(entries: Iterable[Entry]) -> int:
    tracemalloc.start()
    try:
        reader = ManifestReader()
        for piece in write_manifest(entries):
            reader.feed(piece)
        reader.finish()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_folder() -> None:
    peak(itertools.islice(endless(), 100))
    few, many = (peak(itertools.islice(endless(), count)) for count in (2_000, 10_000))
    # Only the names of the 80 additional folders at the top are remembered, twice.
    assert many - few < 80 * 2 * 100 + 4096


def test_no_secret_and_no_name_in_repr() -> None:
    entry = file("holiday.jpg")
    assert entry.capability
    for text in (repr(entry), str(entry)):
        assert "holiday" not in text
        assert repr(entry.capability.key) not in text


def test_the_example_of_the_specification() -> None:
    block = SPECIFICATION.read_text("utf-8").split("```example-manifest\n", 1)[1].split("```", 1)[0]
    secret = ReadCapability(SMALL_BLOCK, 0, b"R" * 32, b"K" * 32)
    entries = [
        Entry(("bin", "run"), secret, 300, 1_800_000_000, executable=True),
        Entry(("empty",)),
        Entry(("read me.txt",), secret),
    ]
    data = write(*entries)
    assert "".join(block.split()) == data.hex(), "\n".join(re.findall(r".{1,100}", data.hex()))
    assert read(bytes.fromhex(block)) == entries
