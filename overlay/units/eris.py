"""ERIS 1.0.0 in one place: every name that encoding, storing and decoding content takes.

`Encoder` turns a stream into chunks and a `ReadCapability`; `Decoder` says which chunks it needs and turns
them into content again, in order, `TreeReader` in any order; what stores chunks needs `chunk_reference` and
`valid_chunk_size` only.
Rules of this project on top of the specification: docs/spec/units.md.
"""

from overlay.units.capability import (
    CAPABILITY_BYTES,
    HASH_BYTES,
    LARGE_BLOCK,
    MAX_LEVEL,
    NULL_SECRET,
    SECRET_BYTES,
    SMALL_BLOCK,
    Chunk,
    ReadCapability,
    choose_block_size,
    chunk_reference,
    tree_shape,
    valid_chunk_size,
)
from overlay.units.decode import DEFAULT_WINDOW, Decoder
from overlay.units.encode import Encoder, encode_content, encode_leaf
from overlay.units.tree import WINDOW_LEAVES, Piece, Place, TreeReader

__all__ = [
    "CAPABILITY_BYTES",
    "DEFAULT_WINDOW",
    "HASH_BYTES",
    "LARGE_BLOCK",
    "MAX_LEVEL",
    "NULL_SECRET",
    "SECRET_BYTES",
    "SMALL_BLOCK",
    "WINDOW_LEAVES",
    "Chunk",
    "Decoder",
    "Encoder",
    "Piece",
    "Place",
    "ReadCapability",
    "TreeReader",
    "choose_block_size",
    "chunk_reference",
    "encode_content",
    "encode_leaf",
    "tree_shape",
    "valid_chunk_size",
]
