"""Bringing histories together: what participants' nodes ask and tell each other about a session."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from overlay.chat.events import Event, Joined
from overlay.chat.history import Position
from overlay.chat.keys import SALT_BYTES, BoxContext, Purpose
from overlay.chat.messages import (
    EVENTS_KIND,
    MAX_PLAIN_BYTES,
    SYNC_KIND,
    Envelope,
    EventBatch,
    SyncPage,
    SyncRequest,
    decode_envelope,
)
from overlay.chat.session import Session, Taken
from overlay.errors import MalformedError, NotFoundError, RefusedError, VerificationError
from overlay.identity import NodeIdentifier
from overlay.peer.accept import Delivery
from overlay.peer.node import Node
from overlay.units.locators import UnitLocator
from overlay.wire.codec import decode, encode

logger = logging.getLogger(__name__)

MAX_ROUND_PAGES = 64
"""Pages in one direction of one exchange, about 3 MiB; then both look anew at what is missing."""

_PLACE_PREFIX = b"chat-session/"

Finder = Callable[[bytes], Session]
"""Finds the session with a public key, or raises `NotFoundError`."""

Behind = Callable[[Session, UnitLocator], Awaitable[None]]
"""Told that a node has events whose predecessors are not here."""

Heard = Callable[[Session, Sequence[Event], NodeIdentifier], Awaitable[None]]
"""Told of events that are new here, and which node brought them."""


def session_place(node: Node, session: bytes) -> UnitLocator:
    """The locator by which others reach a session at this node; each call gives another that is as good."""
    return node.seal_place(_PLACE_PREFIX + session)


class Sync:
    """The two requests about sessions, from both sides.

    Args:
        node: carries them.
        find: finds the session that a request is about.
        behind: told who to ask when events came without their predecessors.
        heard: told of what is new.
    """

    def __init__(self, node: Node, *, find: Finder, behind: Behind, heard: Heard) -> None:
        self._node = node
        self._find = find
        self._behind = behind
        self._heard = heard
        node.accept.register(EVENTS_KIND, self._receive_events)
        node.accept.register(SYNC_KIND, self._receive_sync)

    async def exchange(self, session: Session, other: UnitLocator) -> bool:
        """Bring both histories together, both ways: first what is missing here, then what is missing there.

        Returns:
            whether all was said; otherwise another exchange goes on where this one ended.

        Raises:
            RefusedError: the other does not hold this session's secret, or says no.
            NotFoundError: it has left the session, or nobody knows where it is.
            UnreachableError: it was not reached, or went away in the middle.
            VerificationError, MalformedError: it broke the rules; its reputation suffered.
            StorageError: the disk is full.
        """
        mine = await session.summary()
        after: Position | None = None
        for _ in range(MAX_ROUND_PAGES):
            page = await self._ask(session, other, mine, after)
            taken = await self._take(session, page.events, other.node)
            if not page.more:
                return await self._push_missing(session, other, page.summary)
            after = self._next_position(page, after, other.node)
            if not taken.events and taken.waiting:
                break  # nothing fits: start again from what is here
        return False

    async def push(self, session: Session, other: UnitLocator, events: Sequence[bytes]) -> None:
        """Bring events, at most one page, to another participant; when this returns they are stored there.

        Raises:
            RefusedError, NotFoundError, UnreachableError, VerificationError: see `exchange`.
        """
        place = session_place(self._node, session.public).place
        plain = encode(EventBatch(events=tuple(events), place=place))
        body, _ = self._seal(session, other, "events", plain)
        await self._node.push(other.node, EVENTS_KIND, body)

    async def _ask(
        self, session: Session, other: UnitLocator, summary: tuple[bytes, ...], after: Position | None
    ) -> SyncPage:
        place = session_place(self._node, session.public).place
        clock, identifier = after or (0, b"")
        request = SyncRequest(summary=summary, place=place, clock=clock, id=identifier)
        body, salt = self._seal(session, other, "sync", encode(request))
        box = await self._node.pull(other.node, SYNC_KIND, body)
        context = BoxContext("page", other.node, self._node.identifier, salt)
        try:
            return decode(SyncPage, session.keys.open(box, context), limit=MAX_PLAIN_BYTES)
        except (MalformedError, VerificationError):
            self._blame(other.node)
            raise

    async def _push_missing(self, session: Session, other: UnitLocator, summary: Sequence[bytes]) -> bool:
        after: Position | None = None
        for _ in range(MAX_ROUND_PAGES):
            events, after = await session.missing_from(summary, after)
            if events:
                await self.push(session, other, events)
            if after is None:
                return True
        return False

    async def _take(self, session: Session, events: Sequence[bytes], sender: NodeIdentifier) -> Taken:
        try:
            taken = await session.take(events, sender)
        except (MalformedError, VerificationError):
            self._blame(sender)
            raise
        await self._learn_records(taken.events)
        await self._heard(session, taken.events, sender)
        return taken

    async def _learn_records(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event.content, Joined) and event.content.record:
                with suppress(MalformedError, VerificationError):  # a hint; expired ones are common
                    await self._node.locators.learn(event.content.record)

    def _next_position(self, page: SyncPage, after: Position | None, node: NodeIdentifier) -> Position:
        position = Event.restore(page.events[-1]).position if page.events else None
        if position is None or (after is not None and position <= after):
            self._blame(node)
            raise VerificationError("the other node sends pages without an end")
        return position

    def _blame(self, node: NodeIdentifier) -> None:
        self._node.reputation.note(node, "violation", self._node.clock())

    def _seal(
        self, session: Session, other: UnitLocator, purpose: Purpose, plain: bytes
    ) -> tuple[bytes, bytes]:
        context = BoxContext(purpose, self._node.identifier, other.node)
        box = session.keys.seal(plain, context, self._node.entropy)
        return encode(Envelope(place=other.place, box=box)), box[:SALT_BYTES]

    # --- what others ask here

    async def _receive_events(self, delivery: Delivery) -> None:
        session, sender, plain, _ = self._open(delivery, "events")
        batch = decode(EventBatch, plain, limit=MAX_PLAIN_BYTES)
        taken = await self._take(session, batch.events, sender)
        if taken.waiting:
            await self._behind(session, UnitLocator(sender, batch.place))

    async def _receive_sync(self, delivery: Delivery) -> bytes:
        session, sender, plain, salt = self._open(delivery, "sync")
        request = decode(SyncRequest, plain, limit=MAX_PLAIN_BYTES)
        after = (request.clock, request.id) if request.clock else None
        events, following = await session.missing_from(request.summary, after)
        page = SyncPage(events=tuple(events), summary=await session.summary(), more=following is not None)
        context = BoxContext("page", self._node.identifier, sender, salt)
        return session.keys.seal(encode(page), context, self._node.entropy)

    def _open(self, delivery: Delivery, purpose: Purpose) -> tuple[Session, NodeIdentifier, bytes, bytes]:
        if delivery.sender is None:
            raise RefusedError("participants show their nodes to each other")
        envelope = decode_envelope(delivery.body)
        place = self._node.open_place(envelope.place)
        if not place.startswith(_PLACE_PREFIX):
            raise NotFoundError("there is no session at this place")
        session = self._find(place.removeprefix(_PLACE_PREFIX))
        context = BoxContext(purpose, delivery.sender, self._node.identifier)
        plain = session.keys.open(envelope.box, context)
        return session, delivery.sender, plain, envelope.box[:SALT_BYTES]
