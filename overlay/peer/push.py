"""The building block *push*: bring something to a node, and have it accepted."""

from __future__ import annotations

from overlay.channel.streams import Exchange
from overlay.identity import NodeIdentifier
from overlay.peer.channels import ChannelPool
from overlay.peer.links import Lane
from overlay.peer.messages import Request
from overlay.peer.requests import Parts, converse, on_exchange


class Push:
    """Sends requests that bring something and need no more than its acceptance."""

    def __init__(self, channels: ChannelPool) -> None:
        self._channels = channels

    async def __call__(
        self,
        node: NodeIdentifier,
        kind: str,
        body: bytes = b"",
        *,
        lane: Lane = Lane.INTERACTIVE,
        parts: Parts | None = None,
    ) -> bytes:
        """Push one request and wait until it is accepted.

        It may arrive several times, when channels die in between; receivers tell by content.

        Args:
            node: to whom.
            kind: which receiver is meant.
            body: at most `MAX_BODY_BYTES`.
            lane: what it shares a channel with.
            parts: makes what follows, each at most 64 KiB, taken only as fast as the other side consumes it.

        Returns:
            what the receiver says to it, empty for most kinds.

        Raises:
            RefusedError: the node, or a policy of this one, does not accept it.
            NotFoundError: nobody knows where the node is, or it does not know what this is about.
            UnreachableError: it was not reached or did not answer in time. Then, as after cancellation,
                it may have taken the request nevertheless.
            VerificationError: somebody else answers in its place.
        """
        request = Request(kind=kind, body=body)

        async def use(exchange: Exchange) -> bytes:
            return await converse(exchange, request, parts)

        return await on_exchange(self._channels, node, lane, use)
