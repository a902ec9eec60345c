"""The channels that a node keeps, by whom they lead to and what shares them; and which is used next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from overlay.channel.driver import Channel
from overlay.identity import NodeIdentifier
from overlay.locators import NodeLocator


class Lane(StrEnum):
    """What shares a channel."""

    INTERACTIVE = "interactive"
    BULK = "bulk"
    ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Link:
    """A channel, the network that carries it, and where it was dialled: nowhere if the peer called."""

    channel: Channel
    network: str
    locator: NodeLocator | None = None


class Links:
    """Those that are kept, in the order of their beginning."""

    def __init__(self) -> None:
        self._links: dict[tuple[NodeIdentifier, Lane], list[Link]] = {}

    def add(self, link: Link, node: NodeIdentifier, lane: Lane) -> None:
        """Keep one."""
        self._links.setdefault((node, lane), []).append(link)

    def remove(self, link: Link, node: NodeIdentifier, lane: Lane) -> bool:
        """Forget one; tells whether it was kept."""
        links = self._links.get((node, lane), [])
        if link not in links:
            return False
        links.remove(link)
        if not links:
            del self._links[node, lane]
        return True

    def ended(self, node: NodeIdentifier, lane: Lane) -> list[Link]:
        """Those whose channel has ended; it may be some moments until they are removed."""
        return [link for link in self._links.get((node, lane), []) if link.channel.closed]

    def next(self, node: NodeIdentifier, lane: Lane) -> Link | None:
        """The newest that is not quiet: who calls again has reason to; older ones may be dead unnoticed."""
        links = self._links.get((node, lane), [])
        return next(_alive(reversed(links)), links[-1] if links else None)

    def carries(self, network: str) -> bool:
        """Whether some channel over this network is alive, as far as is known."""
        links = (link for links in self._links.values() for link in links if link.network == network)
        return any(True for _ in _alive(links))


def _alive(links: Iterator[Link]) -> Iterator[Link]:
    return (link for link in links if not link.channel.closed and not link.channel.quiet)
