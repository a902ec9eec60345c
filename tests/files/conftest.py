"""What the tests of files have in common."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from overlay.units.capability import PAIR_BYTES, ReadCapability, apply_cipher, chunk_reference

Repeating = tuple[dict[bytes, bytes], ReadCapability]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Real clocks: files are read and written by threads."""
    return request.param, {}


@pytest.fixture(params=[b"a", b"\0"], ids=["letters", "zeros"])
def endless(request: pytest.FixtureRequest) -> Repeating:
    """Make content of 2^46 bytes of five chunks: every node has the same child over and over."""
    block = 32_768
    plain, chunks = request.param * block, {}
    for level in range(5):
        key = hashlib.blake2b(plain, digest_size=32).digest()
        data = apply_cipher(key, level, plain)
        chunks[chunk_reference(data)] = data
        capability = ReadCapability(block, level, chunk_reference(data), key)
        plain = (capability.reference + key) * (block // PAIR_BYTES)
    return chunks, capability
