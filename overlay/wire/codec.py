"""The message codec: MessagePack of typed structures, every length checked before memory is taken.

A structure is a `msgspec.Struct` whose fields carry their bounds (`Annotated[bytes, Meta(max_length=32)]`).
Fields that a newer peer added are ignored here and kept by whoever keeps the bytes: what is signed is
stored and passed on as the bytes that came, never encoded again.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from overlay.errors import MalformedError

T = TypeVar("T")

Key32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
"""A hash, an identifier or a key: 32 bytes."""

Signature64 = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
"""An Ed25519 signature."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A number that is never negative and that SQLite and every MessagePack reader can hold."""

Timestamp = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
"""Whole seconds since 1970, UTC."""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """The base of every structure that crosses the wire: a map by field name, defaults left out.

    Subclasses say `frozen=True` again, because type checkers do not inherit it.
    """


def encode(value: object) -> bytes:
    """Encode one structure, or a list or map of plain values.

    Raises:
        MalformedError: a text in it is not Unicode: it holds half of a surrogate pair.
    """
    try:
        return msgspec.msgpack.encode(value)
    except UnicodeEncodeError as error:
        raise MalformedError("a text holds characters that are no characters: type it again") from error


def decode(kind: type[T], data: bytes | bytearray | memoryview, *, limit: int) -> T:
    """Decode exactly one structure of type `kind`.

    Args:
        kind: the structure's type, with its bounds.
        data: the encoded bytes, all of them.
        limit: the most bytes that the largest legitimate value takes.

    Returns:
        the structure.

    Raises:
        MalformedError: too long, not MessagePack, nested absurdly, a field missing, of the wrong type or
            out of its bounds, or bytes left over.
    """
    if len(data) > limit:
        raise MalformedError(f"{kind.__name__} of {len(data)} bytes is longer than the {limit} allowed")
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedError(f"not a valid {kind.__name__}: {error}") from error
