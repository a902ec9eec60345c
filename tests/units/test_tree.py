from __future__ import annotations

import hashlib
import json
import random
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from overlay.errors import MalformedError, VerificationError
from overlay.units.capability import (
    LARGE_BLOCK,
    MAX_LEVEL,
    SMALL_BLOCK,
    Chunk,
    ReadCapability,
    apply_cipher,
    chunk_reference,
    tree_shape,
)
from overlay.units.decode import read_pairs
from overlay.units.encode import Encoder
from overlay.units.tree import Piece, Place, TreeReader
from overlay.wire.tokens import unbase32

SECRET = bytes(range(32))
KEY = b"k" * 32
VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "eris"

contents = (
    st.builds(
        lambda seed, size: hashlib.shake_128(seed).digest(size), st.binary(max_size=4), st.integers(0, 60_000)
    )
    | st.integers(0, 300).map(lambda blocks: bytes(blocks * SMALL_BLOCK))
    | st.builds(  # many leaves, few of them different
        lambda picks, tail: b"".join(bytes([pick]) * SMALL_BLOCK for pick in picks) + tail,
        st.lists(st.sampled_from([0, 0x80]), max_size=60),
        st.binary(max_size=20),
    )
    | st.binary(max_size=100)
)
windows = st.integers(1, 40) | st.sampled_from([256, 4096])


def encode(content: bytes, block_size: int = SMALL_BLOCK) -> tuple[dict[bytes, bytes], ReadCapability]:
    encoder = Encoder(block_size, SECRET)
    chunks = encoder.feed(content)
    last, capability = encoder.finish()
    return dict(chunks + last), capability


class Sheet:
    """Where pieces are written: each byte at most once."""

    def __init__(self) -> None:
        self.pieces: dict[int, bytes] = {}

    def add(self, pieces: list[Piece]) -> None:
        for offset, content in pieces:
            assert offset not in self.pieces
            self.pieces[offset] = content

    @property
    def content(self) -> bytes:
        whole = b""
        for offset in sorted(self.pieces):
            assert offset == len(whole)
            whole += self.pieces[offset]
        return whole


def read_all(reader: TreeReader, chunks: Mapping[bytes, bytes], rng: random.Random | None = None) -> bytes:
    sheet = Sheet()
    while not reader.finished:
        wanted = reader.wanted(8)
        if rng is not None:
            wanted = reader.wanted(rng.randint(1, 40))
            wanted = rng.sample(wanted, rng.randint(1, len(wanted)))
        for reference in wanted:
            sheet.add(reader.receive(reference, chunks[reference]))
    return sheet.content


@given(
    contents,
    windows,
    st.booleans(),
    st.sampled_from([SMALL_BLOCK, LARGE_BLOCK]),
    st.randoms(use_true_random=False),
)
def test_any_order_of_arrival(
    content: bytes,
    window: int,
    sized: bool,  # noqa: FBT001 - drawn
    block_size: int,
    rng: random.Random,
) -> None:
    chunks, capability = encode(content, block_size)
    size = len(content) if sized else None
    reader = TreeReader(capability, size=size, window=window)
    assert reader.size == size
    assert reader.missing == size
    assert read_all(reader, chunks, rng) == content
    assert reader.size == reader.present == len(content)
    assert reader.missing == 0
    assert reader.wanted(1) == []


@given(st.binary(min_size=1, max_size=6000), st.randoms(use_true_random=False))
def test_a_corrupted_chunk_is_refused_and_nothing_is_lost(content: bytes, rng: random.Random) -> None:
    chunks, capability = encode(content)
    reader, sheet = TreeReader(capability), Sheet()
    while not reader.finished:
        wanted = reader.wanted(4)
        present = reader.present
        for reference in wanted:
            good = bytearray(chunks[reference])
            good[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
            for bad in (bytes(good), b"", chunks[reference][:-1], chunks[reference] + b"\0"):
                with pytest.raises(VerificationError):
                    reader.receive(reference, bad)
        assert reader.wanted(4) == wanted
        assert reader.present == present
        for reference in wanted:
            sheet.add(reader.receive(reference, chunks[reference]))
    assert sheet.content == content


def vectors(kind: str) -> list[Path]:
    return sorted(VECTORS.glob(f"*-{kind}-*.json"))


@pytest.mark.parametrize("path", vectors("positive"), ids=lambda path: path.stem[-2:])
def test_positive_vectors(path: Path) -> None:
    vector = json.loads(path.read_text("utf-8"))
    chunks = {unbase32(name): unbase32(data) for name, data in vector["blocks"].items()}
    content = unbase32(vector["content"])
    for size in (None, len(content)):
        assert read_all(TreeReader(ReadCapability.parse(vector["urn"]), size=size), chunks) == content


NEVER_FINISHES = {13, 15}  # no chunks, a missing chunk
WRONG_CHUNK = {14, 16}  # the others are wrong trees: test_eris_vectors.py says how


@pytest.mark.parametrize("path", vectors("negative"), ids=lambda path: path.stem[-2:])
def test_negative_vectors(path: Path) -> None:
    vector = json.loads(path.read_text("utf-8"))
    chunks = {unbase32(name): unbase32(data) for name, data in vector["blocks"].items()}
    capability = ReadCapability.parse(vector["urn"])
    if vector["id"] in NEVER_FINISHES:
        with pytest.raises(KeyError):
            read_all(TreeReader(capability), chunks)
    else:
        with pytest.raises(VerificationError if vector["id"] in WRONG_CHUNK else MalformedError):
            read_all(TreeReader(capability), chunks)


def test_what_is_not_needed_is_not_kept() -> None:
    chunks, capability = encode(b"content")
    reader = TreeReader(capability)
    other = bytes(SMALL_BLOCK)
    assert reader.receive(chunk_reference(other), other) == []
    assert reader.receive(capability.reference, chunks[capability.reference]) == [Piece(0, b"content")]
    assert reader.receive(capability.reference, chunks[capability.reference]) == []


def test_asked_references_are_left_out() -> None:
    chunks, capability = encode(hashlib.shake_128(b"").digest(10_000))
    reader = TreeReader(capability)
    assert reader.wanted(0) == []
    assert reader.wanted(9) == [capability.reference]
    assert reader.wanted(9, asked={capability.reference}) == []
    reader.receive(capability.reference, chunks[capability.reference])
    leaves = reader.wanted(9)
    assert len(leaves) == 9
    assert reader.wanted(3, asked=set(leaves[:2])) == leaves[2:5]


def test_nodes_come_first_then_leaves_in_order_of_the_content() -> None:
    content = hashlib.shake_128(b"").digest(5 * 16 * SMALL_BLOCK - 1)
    chunks, capability = encode(content)
    reader = TreeReader(capability, window=64)
    reader.receive(capability.reference, chunks[capability.reference])
    nodes = reader.wanted(100)
    assert len(nodes) == 4  # a fifth would open more leaves than the window has
    reader.receive(nodes[2], chunks[nodes[2]])
    reader.receive(nodes[0], chunks[nodes[0]])
    wanted = reader.wanted(100)
    assert wanted[:2] == [nodes[1], nodes[3]]
    offsets = [reader.receive(reference, chunks[reference])[0].offset for reference in wanted[2:]]
    assert offsets == [number * SMALL_BLOCK for number in (*range(16), *range(32, 48))]
    assert len(reader.wanted(100)) == 3  # room for the fifth


def test_a_node_above_the_window_is_asked_for_while_leaves_are_open() -> None:
    """Otherwise all that travels would have to arrive before the next part of a long content is begun."""
    content = hashlib.shake_128(b"").digest(300 * SMALL_BLOCK)
    chunks, capability = encode(content)
    root = apply_cipher(capability.key, capability.level, chunks[capability.reference])
    second = read_pairs(root)[0].reference  # stands for leaves 256 to 300
    reader = TreeReader(capability, window=64)
    while second not in (wanted := reader.wanted(100)):
        reader.receive(wanted[0], chunks[wanted[0]])
    assert second in wanted[:2]
    assert len(wanted) > 40  # leaves that are still open
    assert reader.present < 220 * SMALL_BLOCK


@given(contents, st.integers(1, 300))
def test_the_window_bounds_what_is_open(content: bytes, window: int) -> None:
    chunks, capability = encode(content)
    reader = TreeReader(capability, window=window)
    while not reader.finished:
        wanted = reader.wanted(10_000)
        leaves = [place for reference in wanted for place in reader.places(reference) if not place.level]
        assert len(leaves) <= window
        reader.receive(wanted[-1], chunks[wanted[-1]])


@given(contents, st.integers(0, 70_000))
def test_content_of_another_size_is_refused(content: bytes, size: int) -> None:
    assume(size != len(content))
    chunks, capability = encode(content)
    with pytest.raises(MalformedError):
        read_all(TreeReader(capability, size=size), chunks)


@given(contents, windows, st.randoms(use_true_random=False), st.booleans())
def test_what_is_there_already_is_not_wanted(
    content: bytes,
    window: int,
    rng: random.Random,
    sized: bool,  # noqa: FBT001 - drawn
) -> None:
    chunks, capability = encode(content)
    reader = TreeReader(capability, size=len(content) if sized else None, window=window, resume=True)
    sheet, settled = Sheet(), set()
    while not reader.finished:
        for place in reader.planned(rng.randint(1, 20)):
            settled.add((place.level, place.first))
            held = rng.random() < 0.5 and not place.level and (sized or not place.last)
            if held:
                start = place.first * SMALL_BLOCK
                sheet.add([Piece(start, content[start : start + SMALL_BLOCK])])
            reader.settle(place, held=held)
        for reference in reader.wanted(5):
            assert all((place.level, place.first) in settled for place in reader.places(reference))
            sheet.add(reader.receive(reference, chunks[reference]))
    assert sheet.content == content
    assert reader.missing == 0
    assert len(settled) == tree_shape(len(content), SMALL_BLOCK)[0]


def test_settling_is_refused_where_it_has_no_meaning() -> None:
    _, capability = encode(b"content")
    reader = TreeReader(capability, resume=True)
    assert reader.wanted(9) == []
    [place] = reader.planned(9)
    with pytest.raises(ValueError, match="unknown length"):
        reader.settle(place, held=True)
    reader.settle(place, held=False)
    assert reader.planned(9) == []
    assert reader.wanted(9) == [capability.reference]
    with pytest.raises(ValueError, match="once"):
        reader.settle(place, held=False)


@given(st.integers(0, 600), windows)
def test_nodes_are_numbered_without_a_gap(leaves: int, window: int) -> None:
    chunks, capability = encode(b"".join(n.to_bytes(SMALL_BLOCK, "big") for n in range(leaves)))
    reader = TreeReader(capability, window=window)
    numbers = []
    while not reader.finished:
        for reference in reader.wanted(50):
            numbers += [reader.number(place) for place in reader.places(reference) if place.level]
            reader.receive(reference, chunks[reference])
    assert sorted(numbers) == list(range(len(chunks) - leaves - 1))


def node(level: int, pairs: bytes) -> tuple[Chunk, bytes]:
    """Make a node as an encoder with ill intent could: its chunk, and its pair."""
    plain = pairs.ljust(SMALL_BLOCK, b"\0")
    key = hashlib.blake2b(plain, digest_size=32).digest()
    data = apply_cipher(key, level, plain)
    return Chunk(chunk_reference(data), data), chunk_reference(data) + key


def leaf(content: bytes, block_size: int = SMALL_BLOCK) -> tuple[Chunk, bytes]:
    data = apply_cipher(KEY, 0, content.ljust(block_size, b"\0"))
    return Chunk(chunk_reference(data), data), chunk_reference(data) + KEY


FULL, FULL_PAIR = leaf(b"x" * SMALL_BLOCK)
END, END_PAIR = leaf(b"\x80")


@pytest.mark.parametrize("pairs", [b"", bytes(64) + b"x" * 64, b"x" * 64 + bytes(64) + b"y" * 64])
def test_a_node_without_children_or_with_a_gap_is_refused(pairs: bytes) -> None:
    root, pair = node(1, pairs)
    reader = TreeReader(ReadCapability(SMALL_BLOCK, 1, pair[:32], pair[32:]))
    with pytest.raises(MalformedError, match="gap"):
        reader.receive(*root)


@pytest.mark.parametrize("sized", [False, True])
def test_only_the_right_edge_may_have_nodes_that_are_not_full(*, sized: bool) -> None:
    short, short_pair = node(1, FULL_PAIR * 15)
    right, right_pair = node(1, FULL_PAIR * 3 + END_PAIR)
    root, pair = node(2, short_pair + right_pair)
    size = 19 * SMALL_BLOCK if sized else None
    reader = TreeReader(ReadCapability(SMALL_BLOCK, 2, pair[:32], pair[32:]), size=size)
    with pytest.raises(MalformedError, match="children"):
        read_all(reader, dict([short, right, root, FULL, END]))


def test_a_tree_longer_than_said_is_refused_before_its_leaves_are_read() -> None:
    root, pair = node(1, FULL_PAIR * 5 + END_PAIR)
    capability = ReadCapability(SMALL_BLOCK, 1, pair[:32], pair[32:])
    assert len(read_all(TreeReader(capability), dict([FULL, END, root]))) == 5 * SMALL_BLOCK
    with pytest.raises(MalformedError, match="children"):
        TreeReader(capability, size=4 * SMALL_BLOCK).receive(*root)


def test_a_tree_that_repeats_itself_takes_no_memory() -> None:
    chunks, pair = dict([FULL]), FULL_PAIR
    for level in range(1, MAX_LEVEL + 1):  # 15 chunks that stand for 2^66 bytes
        chunk, pair = node(level, pair * 16)
        chunks.update([chunk])
    capability = ReadCapability(SMALL_BLOCK, MAX_LEVEL, pair[:32], pair[32:])
    with pytest.raises(MalformedError, match="does not fit"):
        TreeReader(capability, size=40_000)
    with pytest.raises(MalformedError, match="children"):  # no content is as long as that
        TreeReader(capability).receive(capability.reference, chunks[capability.reference])
    chunk, pair = node(MAX_LEVEL, chunk_pair(chunks, MAX_LEVEL - 1))
    chunks.update([chunk])
    tracemalloc.start()
    try:
        reader = TreeReader(ReadCapability(SMALL_BLOCK, MAX_LEVEL, pair[:32], pair[32:]))
        while reader.present < 32 << 20:
            for reference in reader.wanted(8):
                reader.receive(reference, chunks[reference])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20


def chunk_pair(chunks: Mapping[bytes, bytes], level: int) -> bytes:
    """Make the pair of the node of this level again, from the chunks of the repeating tree."""
    pair = FULL_PAIR
    for below in range(1, level + 1):
        chunk, pair = node(below, pair * 16)
        assert chunk.reference in chunks
    return pair


def test_a_node_that_stands_at_another_level_is_refused() -> None:
    inner, inner_pair = node(1, FULL_PAIR * 16)
    root, pair = node(3, inner_pair * 2)  # a node of level 1 where one of level 2 belongs: as in a loop
    reader = TreeReader(ReadCapability(SMALL_BLOCK, 3, pair[:32], pair[32:]))
    reader.receive(*root)
    with pytest.raises(MalformedError, match="key"):
        reader.receive(*inner)


def test_a_chunk_with_many_keys_gives_one_content_at_a_time() -> None:
    """No encoder makes it: unbounded, one chunk would become a window of different contents."""
    keys = [bytes([number]) * 32 for number in range(3)]
    root, pair = node(1, b"".join(FULL.reference + key for key in keys * 2) + END_PAIR)
    reader = TreeReader(ReadCapability(SMALL_BLOCK, 1, pair[:32], pair[32:]))
    reader.receive(*root)
    for count, key in enumerate(keys):
        assert reader.wanted(9).count(FULL.reference) == 1
        plain = apply_cipher(key, 0, FULL.data)
        assert reader.receive(*FULL) == [Piece(n * SMALL_BLOCK, plain) for n in (count, count + 3)]
    assert reader.wanted(9) == [END.reference]


def test_a_chunk_that_is_both_leaf_and_node() -> None:
    inner, inner_pair = node(1, FULL_PAIR * 16)
    left, left_pair = node(1, inner_pair * 16)  # its leaves are the chunk that is a node beside it
    right, right_pair = node(1, END_PAIR)
    root, pair = node(2, inner_pair + left_pair + right_pair)
    chunks = dict([inner, left, right, root, FULL, END])
    reader = TreeReader(ReadCapability(SMALL_BLOCK, 2, pair[:32], pair[32:]))
    for reference in (root.reference, left.reference):
        reader.receive(reference, chunks[reference])
    assert reader.wanted(9).count(inner.reference) == 1
    content = read_all(reader, chunks)
    assert content == b"x" * 16 * SMALL_BLOCK + apply_cipher(inner_pair[32:], 0, inner.data) * 16


def zeros(gigabytes: int) -> tuple[dict[bytes, bytes], ReadCapability]:
    """Encode so many GiB of zeros without having them: one chunk for each level, and the right edge."""
    chunks: dict[bytes, bytes] = {}

    def pair(level: int, plain: bytes) -> bytes:
        plain = plain.ljust(LARGE_BLOCK, b"\0")
        key = hashlib.blake2b(plain, digest_size=32, key=b"" if level else SECRET).digest()
        data = apply_cipher(key, level, plain)
        chunks[chunk_reference(data)] = data
        return chunk_reference(data) + key

    full, count, end, level = pair(0, b""), gigabytes << 15, pair(0, b"\x80"), 0
    while count:
        level += 1
        end = pair(level, full * (count % 512) + end)
        full, count = pair(level, full * 512), count // 512
    return chunks, ReadCapability(LARGE_BLOCK, level, end[:32], end[32:])


def test_memory_does_not_grow_with_content() -> None:
    size = 1 << 30
    chunks, capability = zeros(1)
    received, total = 0, 0
    tracemalloc.start()
    try:
        reader = TreeReader(capability, size=size)
        while not reader.finished:
            for reference in reader.wanted(64):
                total += sum(len(content) for _, content in reader.receive(reference, chunks[reference]))
                received += 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == size
    assert received < 40  # a chunk once a window
    assert peak < 4 << 20


@given(
    st.binary(max_size=4 * SMALL_BLOCK)
    | st.lists(st.just(bytes(64)) | st.binary(min_size=64, max_size=64)).map(b"".join)
)
def test_fuzz_nodes_are_read_as_they_are_or_refused(data: bytes) -> None:
    plain = data[:SMALL_BLOCK].ljust(SMALL_BLOCK, b"\0")
    try:
        pairs = read_pairs(plain)
    except MalformedError:
        return
    assert b"".join(reference + key for reference, key in reversed(pairs)).ljust(SMALL_BLOCK, b"\0") == plain


@given(
    st.lists(st.sampled_from([FULL_PAIR, END_PAIR, bytes(64), b"x" * 64]), max_size=16),
    st.integers(1, MAX_LEVEL),
    st.none() | st.integers(0, 1 << 64),
)
def test_fuzz_trees_are_read_or_refused(pairs: list[bytes], level: int, size: int | None) -> None:
    """Whatever stands in a node that fits its reference: content, or `MalformedError`."""
    root, pair = node(level, b"".join(pairs))
    chunks = dict([root, FULL, END])
    capability = ReadCapability(SMALL_BLOCK, level, pair[:32], pair[32:])
    try:
        reader = TreeReader(capability, size=size)
        while not reader.finished:
            held = [reference for reference in reader.wanted(99) if reference in chunks]
            if not held:
                return
            for reference in held:
                for offset, content in reader.receive(reference, chunks[reference]):
                    assert len(content) <= SMALL_BLOCK
                    assert offset + len(content) <= (size if size is not None else 16 * SMALL_BLOCK)
    except MalformedError:
        return
    assert reader.missing == 0


def test_places_say_what_a_chunk_is() -> None:
    chunks, capability = encode(bytes(2 * SMALL_BLOCK))
    reader = TreeReader(capability)
    assert reader.places(capability.reference) == [
        Place(1, 0, capability.reference, capability.key, last=True)
    ]
    reader.receive(capability.reference, chunks[capability.reference])
    equal, end = (reader.places(reference) for reference in reader.wanted(9))
    assert [(place.level, place.first, place.last) for place in equal] == [(0, 0, False), (0, 1, False)]
    assert [(place.level, place.first, place.last) for place in end] == [(0, 2, True)]
    assert reader.places(bytes(32)) == []


@pytest.mark.parametrize(("blocks", "level"), [(0, 0), (15, 1), (16, 2), (300, 3)])
def test_only_a_root_above_further_nodes_unfolds_and_only_until_it_came(blocks: int, level: int) -> None:
    chunks, capability = encode(random.Random(1).randbytes(blocks * SMALL_BLOCK))
    reader = TreeReader(capability)
    assert capability.level == level
    assert [each for each in chunks if reader.unfolds(each)] == [capability.reference] * (level > 1)
    reader.receive(capability.reference, chunks[capability.reference])
    assert not any(reader.unfolds(each) for each in chunks)
