"""A reader of ERIS content at any place: says which chunks it needs, gives out what each of them holds.

Where `Decoder` gives out content in order and holds what came too early, a `TreeReader` gives every leaf out
as soon as it is here, together with its place in the content. So nothing waits for a slow chunk, and nothing
but the tree is held: one node for each level, and a window of places that are open.

Nodes lead to leaves, so a reader asks for them before it asks for leaves, for as many at once as fit the
window: with small blocks a node stands for 16 KiB only, and fetching one after the other would cost a round
trip for each. That takes a tree whose shape is known before it is read: each node is full, but for those at
the right edge. Every encoder makes such trees, and others are refused.

Failures are told apart as by `Decoder`: a wrong chunk is a `VerificationError`, a wrong tree a
`MalformedError`.

Source: ERIS 1.0.0, http://purl.org/eris, section "Decoding".
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Sequence
from itertools import chain
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
from overlay.units.decode import Pair, read_pairs, unpad

WINDOW_LEAVES = 4096
"""Leaves open at once: 128 MiB of large blocks, eight nodes fetched beside each other, 3 MiB of memory."""

MAX_CONTENT = (1 << 63) - 1
"""Bytes of the longest content: no file system addresses more."""


class Piece(NamedTuple):
    """Verified content, and where it belongs.

    Attributes:
        offset: bytes of content before it.
        content: a leaf, without padding; the last may be empty. Equal pieces share one object.
    """

    offset: int
    content: bytes


class Place(NamedTuple):
    """A place in the tree, where one chunk belongs.

    Attributes:
        level: 0 for a leaf.
        first: number of the first leaf below it; its own number for a leaf.
        reference: of the chunk that belongs here.
        key: that opens it.
        last: whether no content follows it.
    """

    level: int
    first: int
    reference: bytes
    key: bytes
    last: bool


class TreeReader:
    """Reads one content.

    Args:
        capability: what to read.
        size: bytes that the content is said to have; content of any other length is refused, and before more
            than that is read: a tree that repeats one chunk can be far longer than all its chunks.
        window: leaves that may be open at once.
        resume: whether places have to be settled before their chunks are wanted; see `planned`.

    Attributes:
        capability: as given.
        block_size: bytes of each chunk.

    Raises:
        MalformedError: content of `size` bytes never has a capability of this level.
    """

    def __init__(
        self,
        capability: ReadCapability,
        *,
        size: int | None = None,
        window: int = WINDOW_LEAVES,
        resume: bool = False,
    ) -> None:
        if size is not None and tree_shape(size, capability.block_size)[1] != capability.level:
            raise MalformedError(f"content of {size} bytes does not fit its read capability")
        self.capability = capability
        self.block_size = capability.block_size
        self._arity = capability.block_size // PAIR_BYTES
        self._top = capability.level
        self._size = size
        self._leaves = None if size is None else size // capability.block_size + 1
        self._window = window
        self._resume = resume
        self._present = 0
        self._open = 0  # leaves that are open, and those below nodes that are
        # Children still to be planned, last first, of each node that has more leaves than the window.
        self._path = [[Place(capability.level, 0, capability.reference, capability.key, last=True)]]
        self._gate: Place | None = None  # such a node while it is open: planning cannot go on without it
        self._unsettled: dict[Place, None] = {}
        self._waiting: dict[bytes, list[Place]] = {}
        self._nodes: dict[tuple[int, int], bytes] = {}  # those waited for, by level and first leaf
        self._rows: dict[int, dict[int, bytes]] = {}  # leaves waited for, by the node they are of
        self._plan()

    @property
    def size(self) -> int | None:
        """Bytes of the content; None until the last leaf was seen, where they were not told beforehand."""
        return self._size

    @property
    def present(self) -> int:
        """Bytes of content that were given out, or were there already."""
        return self._present

    @property
    def missing(self) -> int | None:
        """Bytes of content still to come; None while the size is not known."""
        return None if self._size is None else self._size - self._present

    @property
    def finished(self) -> bool:
        """Whether all content was given out, or was there already."""
        return not (self._waiting or self._unsettled or self._path)

    def wanted(self, limit: int, asked: Container[bytes] = ()) -> list[bytes]:
        """Name the chunks that are needed next: nodes, then leaves in the order of the content.

        Args:
            limit: the most references to return.
            asked: references that are on their way already.

        Returns:
            references, each once.
        """
        rows = chain.from_iterable(self._rows[row].values() for row in sorted(self._rows))
        found: dict[bytes, None] = {}
        for reference in chain(self._nodes.values(), rows):
            if len(found) >= limit:
                break
            if reference not in asked:
                found[reference] = None
        return list(found)

    def places(self, reference: bytes) -> Sequence[Place]:
        """Tell where this chunk is waited for: what `receive` would fill, none if it is not needed."""
        places = self._waiting.get(reference, [])
        # No encoder uses a chunk with two keys. Where an ill-meant tree does, the chunk is asked for once for
        # each: so that one chunk never becomes more than one content, and the window bounds what that takes.
        return [place for place in places if place.key == places[0].key and place.level == places[0].level]

    def unfolds(self, reference: bytes) -> bool:
        """Whether this is a root that is waited for, above further nodes: who has it has those as well."""
        return self._top > 1 and any(place.level == self._top for place in self.places(reference))

    def receive(self, reference: bytes, data: bytes) -> list[Piece]:
        """Take a chunk.

        Returns:
            a piece for each place where it is a leaf; none for a node, or if it is not needed (any more).

        Raises:
            VerificationError: the bytes are not the chunk of this reference; nothing of it was kept, and it
                can be had from elsewhere.
            MalformedError: it is the right chunk, but of ill-formed content: nobody has a better one, and
                this reader is of no more use.
        """
        places = self.places(reference)
        if not places:
            return []
        if chunk_reference(data) != reference:
            raise VerificationError("a chunk does not fit its reference: ask another holder for it")
        if len(data) != self.block_size:
            raise MalformedError("the read capability names another size of chunks than it leads to")
        level, key = places[0].level, places[0].key
        plain = apply_cipher(key, level, data)
        pieces: list[Piece] = []
        if level:
            pairs = _read_node(plain, key)
            for place in places:
                self._forget(place)
                self._enter(place, pairs)
        else:
            pieces = [self._close(place, plain) for place in places]
        self._plan()
        return pieces

    def planned(self, limit: int) -> list[Place]:
        """List places that wait to be settled, with `resume` only: what is open and was not looked for yet.

        A caller who may have some of the content looks for it and settles each; the chunk of a node that is
        found is received like any other, after its place was settled as not held.

        Returns:
            at most `limit`, those that were listed before again until they are settled.
        """
        return [place for place, _ in zip(self._unsettled, range(limit), strict=False)]

    def settle(self, place: Place, *, held: bool) -> None:
        """Say whether a planned leaf is there already: it is not wanted then. A node is never held.

        Raises:
            ValueError: the place was not planned, or is held as a node or as the end of unknown length.
        """
        if place not in self._unsettled:
            raise ValueError("a place can be settled once, after it was planned")
        if held and (place.level or (place.last and self._size is None)):
            raise ValueError("a node, and the end of content of unknown length, have to be received")
        del self._unsettled[place]
        if held:
            end = MAX_CONTENT if self._size is None else self._size
            self._add_present(min(self.block_size, end - place.first * self.block_size))
        else:
            self._await(place)
        self._plan()

    def number(self, place: Place) -> int:
        """Count the nodes before this one, parents before children: no content leaves out a number."""
        below = [(self._arity**level - 1) // (self._arity - 1) for level in range(place.level, self._top)]
        return sum(
            1 + place.first // self._arity**level % self._arity * nodes
            for level, nodes in enumerate(below, start=place.level)
        )

    def _plan(self) -> None:
        """Walk on through the tree, until the window is full or a node is missing."""
        while self._path and self._gate is None:
            place = self._path[-1][-1]
            if self._open + self._leaves_of(place) > self._window:
                return
            self._path[-1].pop()
            if not self._path[-1]:
                self._path.pop()
            self._add(place)

    def _leaves_of(self, place: Place) -> int:
        """Count what a place takes of the window; a node with more than all of it takes none: see `_gate`."""
        leaves = int(self._arity**place.level)
        return leaves if leaves <= self._window else 0

    def _add(self, place: Place) -> None:
        leaves = self._leaves_of(place)
        self._open += leaves
        if not leaves:
            self._gate = place
        if self._resume:
            self._unsettled[place] = None
        else:
            self._await(place)

    def _await(self, place: Place) -> None:
        self._waiting.setdefault(place.reference, []).append(place)
        if place.level:
            self._nodes[place.level, place.first] = place.reference
        else:
            self._rows.setdefault(place.first // self._arity, {})[place.first] = place.reference

    def _forget(self, place: Place) -> None:
        places = self._waiting[place.reference]
        places.remove(place)
        if not places:
            del self._waiting[place.reference]
        if place.level:
            del self._nodes[place.level, place.first]
        else:
            row = self._rows[place.first // self._arity]
            del row[place.first]
            if not row:
                del self._rows[place.first // self._arity]

    def _close(self, place: Place, plain: bytes) -> Piece:
        start = place.first * self.block_size
        content = unpad(plain) if place.last else plain
        if place.last:
            if self._size is not None and start + len(content) != self._size:
                raise MalformedError(f"the content has not the {self._size} bytes that it is said to have")
            self._size = start + len(content)
        self._forget(place)
        self._add_present(len(content))
        return Piece(start, content)

    def _add_present(self, count: int) -> None:
        self._open -= 1
        self._present += count

    def _enter(self, place: Place, pairs: Sequence[Pair]) -> None:
        """Open a node: its children are planned at once where it had its share of the window."""
        self._check_children(place, len(pairs))
        step = self._arity ** (place.level - 1)
        children = [
            Place(
                place.level - 1,
                place.first + step * child,
                *pair,
                last=place.last and child == len(pairs) - 1,
            )
            for child, pair in enumerate(pairs)
        ]
        if place == self._gate:
            self._gate = None
            self._path.append(children[::-1])
        else:
            self._open -= self._leaves_of(place)
            for child in children:
                self._add(child)

    def _check_children(self, place: Place, count: int) -> None:
        step = self._arity ** (place.level - 1)
        if self._leaves is not None:
            right = count == min(self._arity, -(-(self._leaves - place.first) // step))
        else:
            start = (place.first + (count - 1) * step) * self.block_size
            right = start < MAX_CONTENT - self.block_size and (place.last or count == self._arity)
        if not right:
            raise MalformedError(
                "a node of the content has not as many children as its place in the tree asks"
            )


def _read_node(node: bytes, key: bytes) -> list[Pair]:
    if hashlib.blake2b(node, digest_size=HASH_BYTES).digest() != key:
        raise MalformedError("a node of the content does not fit its key: the read capability is wrong")
    return read_pairs(node)[::-1]
