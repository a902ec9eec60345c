from __future__ import annotations

import hashlib
import random

from overlay.units import eris


def test_every_public_name_is_there() -> None:
    assert [name for name in eris.__all__ if not hasattr(eris, name)] == []


def test_content_from_one_end_to_the_other() -> None:
    """As a program uses it: chunks go to a store that knows nothing, and come back through the capability."""
    content = hashlib.shake_128(b"content").digest(100_000)
    encoder = eris.Encoder(eris.choose_block_size(len(content)), random.Random(1).randbytes(32))
    store = dict(encoder.feed(content))
    last, capability = encoder.finish()
    store.update(last)
    assert all(eris.valid_chunk_size(len(data)) for data in store.values())
    assert all(eris.chunk_reference(data) == reference for reference, data in store.items())

    decoder = eris.Decoder(eris.ReadCapability.parse(capability.urn), size=len(content))
    read = b""
    while not decoder.finished:
        for reference in decoder.wanted(2):
            decoder.receive(reference, store[reference])
        read += decoder.read()
    assert read == content
