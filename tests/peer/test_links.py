from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from overlay.channel.driver import Channel
from overlay.identity import NodeIdentifier
from overlay.peer.links import Lane, Link, Links

NODE = NodeIdentifier(bytes(32))
INTERACTIVE = Lane.INTERACTIVE


@dataclass
class FakeChannel:
    closed: bool = False
    quiet: bool = False


def link(*, closed: bool = False, quiet: bool = False, network: str = "tor") -> Link:
    return Link(cast("Channel", FakeChannel(closed, quiet)), network)


def kept(*links: Link) -> Links:
    found = Links()
    for each in links:
        found.add(each, NODE, INTERACTIVE)
    return found


def test_the_newest_is_next() -> None:
    old, new = link(), link()
    assert kept(old, new).next(NODE, INTERACTIVE) is new
    assert kept(old, new).next(NODE, Lane.BULK) is None


def test_a_quiet_one_is_next_only_where_all_are() -> None:
    heard, quiet = link(), link(quiet=True)
    assert kept(heard, quiet).next(NODE, INTERACTIVE) is heard
    assert kept(link(quiet=True), quiet).next(NODE, INTERACTIVE) is quiet


def test_one_is_removed_once() -> None:
    one, other = link(closed=True), link()
    links = kept(one, other)
    assert links.ended(NODE, INTERACTIVE) == [one]
    assert links.remove(one, NODE, INTERACTIVE)
    assert not links.remove(one, NODE, INTERACTIVE)
    assert links.remove(other, NODE, INTERACTIVE)
    assert links.next(NODE, INTERACTIVE) is None


def test_a_network_carries_what_is_neither_closed_nor_quiet() -> None:
    links = kept(link(closed=True), link(quiet=True), link(network="i2p"))
    assert not links.carries("tor")
    assert links.carries("i2p")
