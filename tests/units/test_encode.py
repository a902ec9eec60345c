from __future__ import annotations

import hashlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import MalformedError
from overlay.units.capability import LARGE_BLOCK, NULL_SECRET, SMALL_BLOCK, chunk_reference
from overlay.units.encode import Encoder, encode_content, encode_leaf

SECRET = bytes(range(32))

contents = st.builds(
    lambda seed, size: hashlib.shake_128(seed).digest(size), st.binary(max_size=4), st.integers(0, 70_000)
) | st.integers(0, 40).map(lambda blocks: bytes(blocks * SMALL_BLOCK))


@given(contents, st.sampled_from([SMALL_BLOCK, LARGE_BLOCK]), st.data())
def test_how_content_is_cut_makes_no_difference(content: bytes, block_size: int, data: st.DataObject) -> None:
    whole = Encoder(block_size, SECRET)
    expected = whole.feed(content)
    last, capability = whole.finish()

    pieces = Encoder(block_size, SECRET)
    chunks, start = [], 0
    while start < len(content):
        size = data.draw(st.integers(0, 3000) | st.integers(1, 70_000))
        chunks += pieces.feed(memoryview(content)[start : start + size])
        start += size
    tail, same = pieces.finish()
    assert chunks + tail == expected + last
    assert same == capability


@given(contents)
def test_each_chunk_is_named_by_its_hash_and_has_one_size(content: bytes) -> None:
    chunks, capability = encode_content(content, secret=SECRET)
    assert {len(data) for _, data in chunks} == {capability.block_size}
    assert all(chunk_reference(data) == reference for reference, data in chunks)
    assert chunks[-1].reference == capability.reference


def test_content_goes_out_as_soon_as_a_block_is_full() -> None:
    encoder = Encoder(SMALL_BLOCK, SECRET)
    assert encoder.feed(bytes(1023)) == []
    assert len(encoder.feed(b"1")) == 1
    assert len(encoder.feed(bytes(1024))) == 1
    assert len(encoder.feed(bytes(2047))) == 1


def test_another_secret_gives_other_chunks() -> None:
    first, _ = encode_content(b"the same", secret=NULL_SECRET)
    second, _ = encode_content(b"the same", secret=SECRET)
    assert not {chunk.reference for chunk in first} & {chunk.reference for chunk in second}


def test_fed_buffer_can_be_used_again() -> None:
    buffer = bytearray(b"a" * 1500)
    encoder = Encoder(SMALL_BLOCK, SECRET)
    chunks = encoder.feed(buffer)
    buffer[:] = b"b" * 1500
    chunks += encoder.feed(buffer)
    buffer.clear()  # a view that was kept would refuse this
    tail, capability = encoder.finish()
    assert (chunks + tail, capability) == encode_content(b"a" * 1500 + b"b" * 1500, secret=SECRET)


@given(st.binary(max_size=5000))
def test_a_leaf_alone_is_encoded_as_within_its_content_with_its_key_or_without(content: bytes) -> None:
    keys: list[bytes] = []
    encoder = Encoder(1024, SECRET, keys.append)
    chunks = encoder.feed(content) + encoder.finish()[0]
    assert len(keys) == len(content) // 1024 + 1
    for number, key in enumerate(keys):
        block = content[1024 * number : 1024 * (number + 1)]
        leaf = encode_leaf(block, 1024, SECRET)
        assert leaf in chunks
        assert encode_leaf(block, 1024, SECRET, key=key) == leaf
        assert encode_leaf(block + b"!" if len(block) < 1023 else b"!", 1024, SECRET, key=key) not in chunks


def test_a_finished_encoder_takes_nothing_more() -> None:
    encoder = Encoder(SMALL_BLOCK, SECRET)
    encoder.finish()
    with pytest.raises(ValueError, match="finished"):
        encoder.feed(b"more")
    with pytest.raises(ValueError, match="finished"):
        encoder.finish()


@pytest.mark.parametrize(
    ("block_size", "secret"), [(2048, SECRET), (0, SECRET), (1024, b""), (1024, bytes(33))]
)
def test_bad_arguments_are_refused(block_size: int, secret: bytes) -> None:
    with pytest.raises(MalformedError):
        Encoder(block_size, secret)


def test_the_secret_is_not_in_repr() -> None:
    assert repr(SECRET)[2:-1] not in repr(Encoder(SMALL_BLOCK, SECRET))


def test_memory_does_not_grow_with_content() -> None:
    piece = hashlib.shake_128(b"piece").digest(1 << 20)
    encoder = Encoder(LARGE_BLOCK, SECRET)
    tracemalloc.start()
    try:
        for _ in range(64):  # 64 MiB
            encoder.feed(piece)
        encoder.finish()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20  # the chunks of one piece, one block, one node a level
