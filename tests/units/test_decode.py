from __future__ import annotations

import hashlib
import random
import tracemalloc

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from overlay.errors import MalformedError, VerificationError
from overlay.units.capability import (
    LARGE_BLOCK,
    SMALL_BLOCK,
    Chunk,
    ReadCapability,
    apply_cipher,
    chunk_reference,
)
from overlay.units.decode import Decoder
from overlay.units.encode import Encoder

SECRET = bytes(range(32))
KEY = b"k" * 32

contents = (
    st.builds(
        lambda seed, size: hashlib.shake_128(seed).digest(size), st.binary(max_size=4), st.integers(0, 60_000)
    )
    | st.integers(0, 300).map(lambda blocks: bytes(blocks * SMALL_BLOCK))
    | st.binary(max_size=100)
)


def encode(content: bytes, block_size: int = SMALL_BLOCK) -> tuple[dict[bytes, bytes], ReadCapability]:
    encoder = Encoder(block_size, SECRET)
    chunks = encoder.feed(content)
    last, capability = encoder.finish()
    return dict(chunks + last), capability


def decode_all(decoder: Decoder, chunks: dict[bytes, bytes], limit: int = 8) -> bytes:
    content = bytearray()
    while not decoder.finished:
        for reference in decoder.wanted(limit):
            assert decoder.receive(reference, chunks[reference])
        content += decoder.read()
    return bytes(content)


@given(
    contents,
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from([SMALL_BLOCK, LARGE_BLOCK]),
)
def test_round_trip(content: bytes, window: int, limit: int, sized: bool, block_size: int) -> None:  # noqa: FBT001 - drawn
    chunks, capability = encode(content, block_size)
    decoder = Decoder(capability, size=len(content) if sized else None, window=window)
    assert decode_all(decoder, chunks, limit) == content
    assert decoder.position == len(content)
    assert decoder.wanted(1) == []
    assert decoder.read() == b""


@given(contents, st.integers(1, 30), st.randoms(use_true_random=False))
def test_any_order_of_arrival(content: bytes, window: int, rng: random.Random) -> None:
    chunks, capability = encode(content)
    decoder = Decoder(capability, window=window)
    read = b""
    while not decoder.finished:
        wanted = decoder.wanted(window + 1)
        for reference in rng.sample(wanted, rng.randint(1, len(wanted)) if wanted else 0):
            assert decoder.receive(reference, chunks[reference])
        if not wanted or rng.random() < 0.5:
            read += decoder.read()
        assert content.startswith(read)
    assert read == content


@given(st.binary(min_size=1, max_size=6000), st.randoms(use_true_random=False))
def test_a_corrupted_chunk_is_refused_and_nothing_is_lost(content: bytes, rng: random.Random) -> None:
    chunks, capability = encode(content)
    decoder, read = Decoder(capability), b""
    while not decoder.finished:
        wanted = decoder.wanted(4)
        for reference in wanted:
            good = bytearray(chunks[reference])
            good[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
            for bad in (bytes(good), b"", chunks[reference][:-1], chunks[reference] + b"\0"):
                with pytest.raises(VerificationError):
                    decoder.receive(reference, bad)
        assert decoder.wanted(4) == wanted
        assert decoder.read() == b""
        for reference in wanted:
            decoder.receive(reference, chunks[reference])
        read += decoder.read()
    assert read == content


def test_what_was_not_asked_for_is_not_kept() -> None:
    chunks, capability = encode(b"content")
    decoder = Decoder(capability)
    other = bytes(SMALL_BLOCK)
    assert not decoder.receive(chunk_reference(other), other)
    assert decoder.receive(capability.reference, chunks[capability.reference])
    assert not decoder.receive(capability.reference, chunks[capability.reference])
    assert decoder.read() == b"content"


def test_asked_references_are_left_out() -> None:
    chunks, capability = encode(hashlib.shake_128(b"").digest(10_000))
    decoder = Decoder(capability)
    assert decoder.wanted(0) == []
    assert decoder.wanted(9) == [capability.reference]
    assert decoder.wanted(9, asked={capability.reference}) == []
    decoder.receive(capability.reference, chunks[capability.reference])
    leaves = decoder.wanted(9)
    assert len(leaves) == 9
    assert decoder.wanted(3, asked=set(leaves[:2])) == leaves[2:5]
    assert decoder.wanted(0) == []


def test_the_window_bounds_what_is_asked_for() -> None:
    chunks, capability = encode(hashlib.shake_128(b"").digest(14 * SMALL_BLOCK))
    decoder = Decoder(capability, window=3)
    decoder.receive(capability.reference, chunks[capability.reference])
    assert len(decoder.wanted(100)) == 3
    for reference in decoder.wanted(100):
        decoder.receive(reference, chunks[reference])
    assert decoder.wanted(100) == []
    assert len(decoder.read()) == 3 * SMALL_BLOCK
    assert len(decoder.wanted(100)) == 3


def test_one_chunk_in_many_places_is_asked_for_once_a_window() -> None:
    content = bytes(SMALL_BLOCK) * 15
    chunks, capability = encode(content)
    decoder = Decoder(capability, size=len(content))
    decoder.receive(capability.reference, chunks[capability.reference])
    assert len(decoder.wanted(100)) == 2  # the zeros, and the padding
    assert decode_all(decoder, chunks) == content


@given(contents, st.integers(0, 70_000))
def test_content_of_another_size_is_refused_before_more_is_read(content: bytes, size: int) -> None:
    assume(size != len(content))
    chunks, capability = encode(content)
    with pytest.raises(MalformedError):
        decode_all(Decoder(capability, size=size), chunks)


def node(level: int, pairs: bytes) -> tuple[Chunk, bytes]:
    """Make a node as an encoder with ill intent could: its chunk, and its pair."""
    plain = pairs.ljust(SMALL_BLOCK, b"\0")
    key = hashlib.blake2b(plain, digest_size=32).digest()
    data = apply_cipher(key, level, plain)
    return Chunk(chunk_reference(data), data), chunk_reference(data) + key


def leaf(content: bytes) -> tuple[Chunk, bytes]:
    data = apply_cipher(KEY, 0, content.ljust(SMALL_BLOCK, b"\0"))
    return Chunk(chunk_reference(data), data), chunk_reference(data) + KEY


def test_a_tree_that_repeats_itself_cannot_exceed_the_size_that_was_said() -> None:
    chunk, pair = leaf(b"\x80".rjust(SMALL_BLOCK, b"x"))
    chunks = dict([chunk])
    for level in range(1, 8):  # 8 chunks that stand for 16^7 KiB
        branch, pair = node(level, pair * 16)
        chunks.update([branch])
    capability = ReadCapability(SMALL_BLOCK, 7, pair[:32], pair[32:])
    with pytest.raises(MalformedError, match="does not fit"):
        Decoder(capability, size=40_000)
    decoder = Decoder(capability, size=16**6 * SMALL_BLOCK)  # the least that needs this level
    read = 0
    for _ in range(40):
        for reference in decoder.wanted(8):
            decoder.receive(reference, chunks[reference])
        read += len(decoder.read())
    assert read == decoder.position < 40 * 128 * SMALL_BLOCK


def test_a_tree_longer_than_said_is_stopped() -> None:
    full, full_pair = leaf(b"x" * SMALL_BLOCK)
    end, end_pair = leaf(b"\x80")
    root, root_pair = node(1, full_pair * 5 + end_pair)
    chunks = dict([full, end, root])
    capability = ReadCapability(SMALL_BLOCK, 1, root_pair[:32], root_pair[32:])
    assert len(decode_all(Decoder(capability), chunks)) == 5 * SMALL_BLOCK
    decoder = Decoder(capability, size=4 * SMALL_BLOCK, window=1)
    with pytest.raises(MalformedError, match="said to have"):
        decode_all(decoder, chunks)
    assert decoder.position <= 4 * SMALL_BLOCK


@pytest.mark.parametrize("pairs", [b"", bytes(64) + b"x" * 64, b"x" * 64 + bytes(64) + b"y" * 64])
def test_a_node_without_children_or_with_a_gap_is_refused(pairs: bytes) -> None:
    root, pair = node(1, pairs)
    decoder = Decoder(ReadCapability(SMALL_BLOCK, 1, pair[:32], pair[32:]))
    with pytest.raises(MalformedError, match="gap"):
        decoder.receive(*root)


def test_a_leaf_in_two_places_with_two_keys() -> None:
    """An encoder never does this, but a chunk must be opened by the key of each place it stands in."""
    plain = b"\x80".ljust(SMALL_BLOCK, b"\0")
    chunk, pair = leaf(plain)
    other = bytes(32)
    root, root_pair = node(1, pair[:32] + other + pair)
    decoder = Decoder(ReadCapability(SMALL_BLOCK, 1, root_pair[:32], root_pair[32:]))
    decoder.receive(*root)
    assert decoder.receive(*chunk)
    assert decoder.read() == apply_cipher(other, 0, chunk.data)
    assert decoder.finished


def test_memory_does_not_grow_with_content() -> None:
    """32 MiB, encoded and decoded as it comes, because the chunks themselves would fill the memory."""
    piece = hashlib.shake_128(b"piece").digest(1 << 20)
    encoder = Encoder(LARGE_BLOCK, SECRET)
    chunks = dict(encoder.feed(piece))
    for _ in range(31):
        chunks.update(encoder.feed(piece))
    last, capability = encoder.finish()
    chunks.update(last)

    digest, expected = hashlib.blake2b(), hashlib.blake2b(piece * 32)
    tracemalloc.start()
    try:
        decoder = Decoder(capability, size=32 << 20, window=16)
        while not decoder.finished:
            for reference in decoder.wanted(16):
                decoder.receive(reference, chunks[reference])
            digest.update(decoder.read())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert digest.digest() == expected.digest()
    assert peak < 4 << 20  # the window twice (held and joined), and the nodes
