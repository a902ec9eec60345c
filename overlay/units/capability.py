"""What names and opens content that was encoded with ERIS: references, block sizes and the read capability.

Source: ERIS 1.0.0, http://purl.org/eris: sections "Block Size", "Read Capability" and "URN".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from overlay.errors import MalformedError
from overlay.wire.tokens import base32, unbase32

SMALL_BLOCK = 1024
"""Bytes of a chunk of small content."""
LARGE_BLOCK = 32768
"""Bytes of a chunk of everything else."""
SMALL_CONTENT = 16384
"""Bytes from which content is cut into large blocks: as the specification recommends."""

HASH_BYTES = 32
PAIR_BYTES = 2 * HASH_BYTES
"""A child in an internal node: its reference, then its key."""
SECRET_BYTES = 32
CAPABILITY_BYTES = 66
NULL_SECRET = bytes(SECRET_BYTES)
"""The convergence secret that everybody knows: equal content gives equal chunks, and so can be recognised."""

MAX_LEVEL = 14
"""The highest tree that is read: with 1 KiB blocks it holds 2^66 bytes, and no length exceeds 2^63 here."""

_SIZE_CODES = {SMALL_BLOCK: 0x0A, LARGE_BLOCK: 0x0F}
_SIZES_BY_CODE = {code: size for size, code in _SIZE_CODES.items()}
_URN = "urn:eris:"
_URN_LENGTH = len(_URN) + 106


class Chunk(NamedTuple):
    """One encrypted block as it is stored and sent: `data`, and its hash, by which it is asked for."""

    reference: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class ReadCapability:
    """All that is needed to find and read one content. It is a secret: whoever has it can read.

    Attributes:
        block_size: bytes of each chunk, 1024 or 32768.
        level: height of the tree; 0 where the content fits one chunk.
        reference: hash of the root chunk, 32 bytes.
        key: key of the root chunk, 32 bytes.
    """

    block_size: int
    level: int
    reference: bytes = field(repr=False)
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse what no capability can say.

        Raises:
            MalformedError: an unknown block size, a level above `MAX_LEVEL`, or a wrong length.
        """
        if not valid_chunk_size(self.block_size):
            raise MalformedError(f"{self.block_size} is not a block size of ERIS: 1024 or 32768")
        if not 0 <= self.level <= MAX_LEVEL:
            raise MalformedError(f"a read capability of level {self.level} is above the {MAX_LEVEL} allowed")
        if len(self.reference) != HASH_BYTES or len(self.key) != HASH_BYTES:
            raise MalformedError(f"reference and key of a read capability have {HASH_BYTES} bytes each")

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the 66-byte form.

        Raises:
            MalformedError: not 66 bytes, an unknown block size, or an absurd level.
        """
        if len(data) != CAPABILITY_BYTES:
            raise MalformedError(f"a read capability has {CAPABILITY_BYTES} bytes, not {len(data)}")
        return cls(_SIZES_BY_CODE.get(data[0], 0), data[1], data[2:34], data[34:])

    def to_bytes(self) -> bytes:
        """Code of the block size, level, reference, key: 66 bytes."""
        return bytes((_SIZE_CODES[self.block_size], self.level)) + self.reference + self.key

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form, `urn:eris:` and 106 base32 characters.

        Raises:
            MalformedError: another kind of text, or a damaged one.
        """
        compact = text.strip()
        if len(compact) != _URN_LENGTH or compact[: len(_URN)].lower() != _URN:
            raise MalformedError(f"a read capability begins with '{_URN}' and has {_URN_LENGTH} characters")
        return cls.from_bytes(unbase32(compact[len(_URN) :]))

    @property
    def urn(self) -> str:
        """The text form. There is no `str()` of it, so that it gets into no log by accident."""
        return _URN + base32(self.to_bytes()).upper()


def valid_chunk_size(size: int) -> bool:
    """Whether a chunk can have `size` bytes."""
    return size in _SIZE_CODES


def choose_block_size(size: int | None) -> int:
    """The block size for content of `size` bytes; None where the size is not known beforehand."""
    return SMALL_BLOCK if size is not None and size < SMALL_CONTENT else LARGE_BLOCK


def tree_shape(size: int, block_size: int) -> tuple[int, int]:
    """Count the chunks that content of `size` bytes is encoded into.

    Returns:
        the number of chunks, equal ones counted each time, and the level of the tree.
    """
    arity = block_size // PAIR_BYTES
    row = size // block_size + 1
    chunks, level = row, 0
    while row > 1:
        row = -(-row // arity)
        chunks += row
        level += 1
    return chunks, level


def chunk_reference(data: bytes | memoryview) -> bytes:
    """The name of a chunk: the BLAKE2b-256 hash of its bytes as they are stored."""
    return hashlib.blake2b(data, digest_size=HASH_BYTES).digest()


def apply_cipher(key: bytes, level: int, data: bytes | bytearray | memoryview) -> bytes:
    """Encrypt or decrypt one block: ChaCha20 (RFC 8439), counter 0, the level as first byte of the nonce.

    Each key is a hash of what it encrypts, so the fixed nonce meets no two contents with one key.
    """
    # The first four bytes are the block counter: this library's way to take it.
    counter_and_nonce = bytes((0, 0, 0, 0, level)) + bytes(11)
    return Cipher(ChaCha20(key, counter_and_nonce), None).encryptor().update(data)
