"""The ERIS encoder: content in, encrypted chunks of one size out, and at the end the read capability.

Content is padded, cut into blocks and each block encrypted with a key that is its own hash, keyed by the
convergence secret. References and keys of the blocks fill nodes, nodes are encrypted the same way, until one
is left: the root. The encoder holds one unfinished block and one unfinished node for each level, whatever
the length of the content.

Source: ERIS 1.0.0, http://purl.org/eris, section "Encoding".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from overlay.errors import MalformedError
from overlay.units.capability import (
    HASH_BYTES,
    PAIR_BYTES,
    SECRET_BYTES,
    Chunk,
    ReadCapability,
    apply_cipher,
    choose_block_size,
    chunk_reference,
    valid_chunk_size,
)

_PADDING = b"\x80"


class Encoder:
    """Encodes one content, fed piece by piece.

    Args:
        block_size: bytes of a chunk; see `choose_block_size`.
        secret: the convergence secret, 32 bytes: random, or shared by those among whom equal content may
            be recognised. `NULL_SECRET` lets everybody recognise content that they have already.
        tell_key: told the key of each leaf, in the order of the content.

    Raises:
        MalformedError: an unknown block size, or a secret of another length.
    """

    def __init__(
        self, block_size: int, secret: bytes, tell_key: Callable[[bytes], object] = lambda _: None
    ) -> None:
        if not valid_chunk_size(block_size):
            raise MalformedError(f"{block_size} is not a block size of ERIS: 1024 or 32768")
        if len(secret) != SECRET_BYTES:
            raise MalformedError(f"a convergence secret has {SECRET_BYTES} bytes, not {len(secret)}")
        self._block_size = block_size
        self._secret = secret
        self._tell_key = tell_key
        self._rest = bytearray()
        self._nodes: list[bytearray] = [bytearray()]
        """The unfinished node of each level, from level 1 upwards."""
        self._finished = False

    def feed(self, data: bytes | bytearray | memoryview) -> list[Chunk]:
        """Take the next piece of content, of any length.

        Returns:
            the chunks that it completes: about as many bytes as were fed, so feed a stream in pieces.

        Raises:
            ValueError: the encoder has finished.
        """
        if self._finished:
            raise ValueError("this encoder has finished; each content needs one of its own")
        chunks: list[Chunk] = []
        with memoryview(data) as view, view.cast("B") as piece:
            start = 0
            if self._rest:
                start = min(self._block_size - len(self._rest), len(piece))
                self._rest += piece[:start]
                if len(self._rest) == self._block_size:
                    self._add_leaf(self._rest, chunks)
                    self._rest.clear()
            # Whole blocks are read where they lie: copying them would cost a tenth of the speed.
            last = len(piece) - self._block_size
            while start <= last:
                self._add_leaf(piece[start : start + self._block_size], chunks)
                start += self._block_size
            self._rest += piece[start:]
        return chunks

    def finish(self) -> tuple[list[Chunk], ReadCapability]:
        """End the content.

        Returns:
            the last chunks, and the capability that reads the whole.

        Raises:
            ValueError: the encoder has finished before.
        """
        chunks = self.feed(_PADDING)
        self._finished = True
        # The padding itself may have filled a block; otherwise zeros fill it.
        if self._rest:
            self._add_leaf(self._rest.ljust(self._block_size, b"\0"), chunks)
        level = 0
        while level + 1 < len(self._nodes) or len(self._nodes[level]) > PAIR_BYTES:
            if self._nodes[level]:
                self._add_node(level, chunks)
            level += 1
        root = bytes(self._nodes[level])
        return chunks, ReadCapability(self._block_size, level, root[:HASH_BYTES], root[HASH_BYTES:])

    def _add_leaf(self, block: bytearray | memoryview, chunks: list[Chunk]) -> None:
        key = _leaf_key(block, self._secret)
        self._tell_key(key)
        self._add_pair(0, key, block, chunks)

    def _add_node(self, level: int, chunks: list[Chunk]) -> None:
        """Close the unfinished node that holds pairs of `level`."""
        node = self._nodes[level].ljust(self._block_size, b"\0")
        self._nodes[level].clear()
        key = hashlib.blake2b(node, digest_size=HASH_BYTES).digest()
        self._add_pair(level + 1, key, node, chunks)

    def _add_pair(self, level: int, key: bytes, block: bytearray | memoryview, chunks: list[Chunk]) -> None:
        data = apply_cipher(key, level, block)
        reference = chunk_reference(data)
        chunks.append(Chunk(reference, data))
        if level == len(self._nodes):
            self._nodes.append(bytearray())
        self._nodes[level] += reference + key
        if len(self._nodes[level]) == self._block_size:
            self._add_node(level, chunks)


def encode_leaf(block: bytes, block_size: int, secret: bytes, *, key: bytes | None = None) -> Chunk:
    """Encode one block of a content alone, as an `Encoder` does.

    Args:
        block: at most `block_size` bytes; fewer, or none, are the last of the content.
        block_size: bytes of the chunk.
        secret: the convergence secret.
        key: what is remembered of the block's key, which saves a hash. Of another block it gives a chunk that
            nobody may have, since two contents would be encrypted with one key: compare the reference.
    """
    if len(block) < block_size:
        block = (block + _PADDING).ljust(block_size, b"\0")
    data = apply_cipher(key or _leaf_key(block, secret), 0, block)
    return Chunk(chunk_reference(data), data)


def _leaf_key(block: bytes | bytearray | memoryview, secret: bytes) -> bytes:
    return hashlib.blake2b(block, digest_size=HASH_BYTES, key=secret).digest()


def encode_content(content: bytes, *, secret: bytes) -> tuple[list[Chunk], ReadCapability]:
    """Encode content that is in memory as a whole, with the block size that fits it.

    Raises:
        MalformedError: the secret has not 32 bytes.
    """
    encoder = Encoder(choose_block_size(len(content)), secret)
    chunks = encoder.feed(content)
    last, capability = encoder.finish()
    return chunks + last, capability
