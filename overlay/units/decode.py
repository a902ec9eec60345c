"""The ERIS decoder: says which chunks it needs, takes them in any order, gives out content in order.

Each chunk is verified by itself before anything of it is used, so chunks may come from anywhere. The decoder
looks ahead over a window of leaves and holds one node for each level, whatever the length of the content.

Two failures are told apart, because different things can be done: a chunk that is not what was asked for is
a `VerificationError`, and another holder may have the right one; a tree that is wrong although each chunk is
the right one is a `MalformedError`, and nobody can have a better copy.

Source: ERIS 1.0.0, http://purl.org/eris, section "Decoding".
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Container
from typing import NamedTuple

from overlay.errors import MalformedError, VerificationError
from overlay.units.capability import (
    HASH_BYTES,
    PAIR_BYTES,
    ReadCapability,
    apply_cipher,
    chunk_reference,
    tree_shape,
)

DEFAULT_WINDOW = 128
"""Leaves held ahead of what was read: 4 MiB of large blocks, enough for 2 MB/s at a round trip of 2 s."""

_NO_CHILD = bytes(PAIR_BYTES)


class Pair(NamedTuple):
    """A child as its node names it."""

    reference: bytes
    key: bytes


class _Leaf:
    """A place in the window: where a leaf belongs, and its content once it is here."""

    __slots__ = ("content", "key", "last", "start")

    def __init__(self, key: bytes, start: int, *, last: bool) -> None:
        self.key = key
        self.start = start
        self.last = last
        self.content: bytes | None = None


class Decoder:
    """Decodes one content.

    Args:
        capability: what to read.
        size: bytes that the content is said to have. Content of any other length is refused, and before
            more than that is read: a tree that repeats one chunk can be far longer than all its chunks.
        window: leaves that may be held ahead of what was read.

    Raises:
        MalformedError: content of `size` bytes never has a capability of this level.
    """

    def __init__(
        self, capability: ReadCapability, *, size: int | None = None, window: int = DEFAULT_WINDOW
    ) -> None:
        if size is not None and tree_shape(size, capability.block_size)[1] != capability.level:
            raise MalformedError(f"content of {size} bytes does not fit its read capability")
        self._block_size = capability.block_size
        self._size = size
        self._window = window
        # Children still to be planned, last first, with their level; a node leaves as soon as it is used up,
        # so that an empty path means that nothing follows.
        self._path: list[tuple[int, list[Pair]]] = [
            (capability.level, [Pair(capability.reference, capability.key)])
        ]
        self._branch: tuple[int, Pair] | None = None  # the node without which planning cannot go on
        self._leaves: deque[_Leaf] = deque()
        self._waiting: dict[bytes, list[_Leaf]] = {}  # in the order of the content
        self._planned = 0
        self._position = 0
        self._plan()

    @property
    def position(self) -> int:
        """Bytes of content that were read so far."""
        return self._position

    @property
    def finished(self) -> bool:
        """Whether all content was read, to the last byte."""
        return not (self._leaves or self._path or self._branch)

    def wanted(self, limit: int, asked: Container[bytes] = ()) -> list[bytes]:
        """Name the chunks that are needed next, most urgent first.

        Args:
            limit: the most references to return.
            asked: references that are on their way already.

        Returns:
            references, each once; none when the window is full of content: then `read`.
        """
        # A node comes first: without it the window runs empty, and it stands for many leaves.
        first = self._branch[1].reference if self._branch else b""
        found = [first] if first and first not in asked else []
        for reference in self._waiting:
            if len(found) >= limit:
                break
            if reference != first and reference not in asked:
                found.append(reference)
        return found[:limit]

    def receive(self, reference: bytes, data: bytes) -> bool:
        """Take a chunk.

        Returns:
            False if it is not needed (now, or any more): nothing of it was kept.

        Raises:
            VerificationError: the bytes are not the chunk of this reference; nothing of it was kept, and it
                can be had from elsewhere.
            MalformedError: it is the right chunk, but of ill-formed content; nobody has a better one.
        """
        branch = self._branch if self._branch and self._branch[1].reference == reference else None
        if branch is None and reference not in self._waiting:
            return False
        if chunk_reference(data) != reference:
            raise VerificationError("a chunk does not fit its reference: ask another holder for it")
        if len(data) != self._block_size:
            raise MalformedError("the read capability names another size of chunks than it leads to")
        if reference in self._waiting:
            contents = [self._open_leaf(leaf, data) for leaf in self._waiting[reference]]
            for leaf, content in zip(self._waiting.pop(reference), contents, strict=True):
                leaf.content = content
        if branch:
            self._enter(*branch, data)
        return True

    def read(self) -> bytes:
        """Take the content that is ready: what follows the last read, possibly nothing."""
        ready = []
        while self._leaves and (content := self._leaves[0].content) is not None:
            self._leaves.popleft()
            ready.append(content)
        self._plan()
        content = b"".join(ready)
        self._position += len(content)
        return content

    def _plan(self) -> None:
        """Walk on through the tree, until the window is full or a node is missing."""
        while self._path and self._branch is None and len(self._leaves) < self._window:
            level, pairs = self._path[-1]
            pair = pairs.pop()
            if not pairs:
                self._path.pop()
            if level:
                self._branch = (level, pair)
                return
            leaf = _Leaf(pair.key, self._planned, last=not self._path)
            self._planned += self._block_size
            self._leaves.append(leaf)
            self._waiting.setdefault(pair.reference, []).append(leaf)

    def _open_leaf(self, leaf: _Leaf, data: bytes) -> bytes:
        content = apply_cipher(leaf.key, 0, data)
        if leaf.last:
            content = unpad(content)
        if self._size is not None:
            end = leaf.start + len(content)
            if end > self._size or (leaf.last and end < self._size):
                raise MalformedError(f"the content has not the {self._size} bytes that it is said to have")
        return content

    def _enter(self, level: int, pair: Pair, data: bytes) -> None:
        node = apply_cipher(pair.key, level, data)
        if hashlib.blake2b(node, digest_size=HASH_BYTES).digest() != pair.key:
            raise MalformedError("a node of the content does not fit its key: the read capability is wrong")
        self._path.append((level - 1, read_pairs(node)))
        self._branch = None
        self._plan()


def read_pairs(node: bytes) -> list[Pair]:
    """List the children of a node, last first.

    Raises:
        MalformedError: no child at all, or a gap between two.
    """
    end = len(node)
    while end and node[end - PAIR_BYTES : end] == _NO_CHILD:
        end -= PAIR_BYTES
    pairs = [
        Pair(node[start : start + HASH_BYTES], node[start + HASH_BYTES : start + PAIR_BYTES])
        for start in range(end - PAIR_BYTES, -1, -PAIR_BYTES)
    ]
    if not pairs or (bytes(HASH_BYTES), bytes(HASH_BYTES)) in pairs:
        raise MalformedError("a node of the content has a gap where a child belongs")
    return pairs


def unpad(block: bytes) -> bytes:
    """Take the padding off the last leaf.

    Raises:
        MalformedError: there is none.
    """
    content = block.rstrip(b"\0")
    if not content.endswith(b"\x80"):
        raise MalformedError("the content does not end as it must: the read capability is wrong")
    return content[:-1]
