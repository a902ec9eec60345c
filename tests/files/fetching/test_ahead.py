from __future__ import annotations

from collections.abc import Container

from overlay.files.fetching.ahead import Ahead
from overlay.files.fetching.sink import ChunkTree
from overlay.peer.chunks import MAX_UNFOLDED

ROOT, LEAF = b"root", b"leaf"


class Tree(ChunkTree):
    block_size = 32768
    finished = False
    missing = 1 << 30

    def __init__(self, waited_for: bytes) -> None:
        self.waited_for = waited_for

    def wanted(self, limit: int, asked: Container[bytes] = ()) -> list[bytes]:
        return [it for it in (self.waited_for,) if it not in asked][:limit]

    def unfolds(self, reference: bytes) -> bool:
        return reference == ROOT == self.waited_for


def test_each_circuit_but_the_first_is_asked_for_another_node() -> None:
    ahead = Ahead(Tree(ROOT))
    chosen = [ahead.choose() for _ in range(MAX_UNFOLDED + 2)]
    assert chosen == [None, *((ROOT, number) for number in range(1, MAX_UNFOLDED)), None, None]


def test_nothing_is_asked_for_ahead_once_the_root_is_here_nor_where_it_has_only_leaves() -> None:
    ahead = Ahead(Tree(LEAF))
    assert [ahead.choose(), ahead.choose()] == [None, None]


def test_what_came_is_handed_out_once() -> None:
    ahead = Ahead(Tree(ROOT))
    ahead.keep(b"one")
    ahead.keep(b"two")
    assert ahead.take() == [b"one", b"two"]
    assert ahead.take() == []
