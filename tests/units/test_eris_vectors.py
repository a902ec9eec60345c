"""The vectors of the ERIS specification (CC0): equal chunk sets, and each negative one fails as it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from overlay.errors import MalformedError, VerificationError
from overlay.units.capability import ReadCapability
from overlay.units.decode import Decoder
from overlay.units.encode import Encoder
from overlay.wire.tokens import unbase32

HERE = Path(__file__).resolve().parents[1] / "vectors" / "eris"
LARGE = (
    Path(__file__).resolve().parents[3] / "shared" / "vectors" / "eris" / "eris-test-vector-positive-12.json"
)


def load(path: Path) -> dict[str, Any]:
    vector: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return vector


POSITIVE = [load(path) for path in sorted(HERE.glob("*-positive-*.json"))]
NEGATIVE = {vector["id"]: vector for vector in map(load, sorted(HERE.glob("*-negative-*.json")))}

NEVER_FINISHES = None
FAILURES: dict[int, type[Exception] | None] = {
    13: NEVER_FINISHES,  # no chunks
    14: VerificationError,  # a chunk that does not fit its reference
    15: NEVER_FINISHES,  # a missing chunk
    16: VerificationError,  # a corrupted chunk
    17: MalformedError,  # another level
    18: MalformedError,  # another key, several levels
    19: MalformedError,  # another key, one level
    20: MalformedError,  # a larger block size: the chunk is right, the capability is not
    21: MalformedError,  # a smaller block size
    22: MalformedError,  # no padding
    23: MalformedError,  # wrong padding
    24: MalformedError,  # random bytes behind the children of a node
}


def chunks_of(vector: dict[str, Any]) -> dict[bytes, bytes]:
    return {unbase32(reference): unbase32(data) for reference, data in vector["blocks"].items()}


def decode(capability: ReadCapability, chunks: dict[bytes, bytes]) -> bytes | None:
    """Decode as far as the chunks go; None where one is missing."""
    decoder, content = Decoder(capability), b""
    while not decoder.finished:
        held = [reference for reference in decoder.wanted(16) if reference in chunks]
        if not held:
            return None
        for reference in held:
            decoder.receive(reference, chunks[reference])
        content += decoder.read()
    return content


def check_positive(vector: dict[str, Any]) -> None:
    content, chunks = unbase32(vector["content"]), chunks_of(vector)
    encoder = Encoder(vector["block-size"], unbase32(vector["convergence-secret"]))
    first = encoder.feed(content)
    last, capability = encoder.finish()
    assert dict(first + last) == chunks
    assert capability.urn == vector["urn"]
    assert ReadCapability.parse(vector["urn"]) == capability
    assert decode(capability, chunks) == content


def test_all_vectors_are_here() -> None:
    assert len(POSITIVE) == 9
    assert NEGATIVE.keys() == FAILURES.keys()


@pytest.mark.parametrize("vector", POSITIVE, ids=lambda vector: vector["name"])
def test_positive(vector: dict[str, Any]) -> None:
    check_positive(vector)


def test_positive_one_megabyte() -> None:
    if not LARGE.exists():
        pytest.skip("the 3 MB vector is not part of the distribution")
    check_positive(load(LARGE))


@pytest.mark.parametrize("number", FAILURES)
def test_negative(number: int) -> None:
    vector = NEGATIVE[number]
    capability, chunks = ReadCapability.parse(vector["urn"]), chunks_of(vector)
    failure = FAILURES[number]
    if failure is None:
        assert decode(capability, chunks) is None
    else:
        with pytest.raises(failure):
            decode(capability, chunks)
