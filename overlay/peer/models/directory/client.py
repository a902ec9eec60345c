"""A node's side of the central-directory model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from overlay.errors import MalformedError, NotFoundError, OverlayError, RefusedError, VerificationError
from overlay.identity import NodeIdentifier
from overlay.locators import LocatorRecord
from overlay.peer.accept import Accept, Delivery
from overlay.peer.announcement import Announcement
from overlay.peer.links import Lane
from overlay.peer.locator_manager import MAX_RECORDS, LocatorManager
from overlay.peer.messages import MAX_PART_BYTES
from overlay.peer.models.base import Model, Registration
from overlay.peer.models.directory.messages import (
    ANNOUNCE,
    FIND_NODE,
    FIND_UNIT,
    LIST,
    NEW_NODE,
    NEW_UNIT,
    PAGE,
    REGISTER,
    Confirmation,
    Find,
    ListRequest,
    NodePage,
    UnitPage,
)
from overlay.peer.pull import Pull
from overlay.peer.push import Push
from overlay.units.identifiers import UnitIdentifier
from overlay.wire.codec import decode, encode

logger = logging.getLogger(__name__)

MAX_UNITS = 20_000
"""Announcements kept in memory, about 10 MiB; the directory is asked for what is not among them."""


class DirectoryClient(Model):
    """Registers at one directory, asks it, and hears its news.

    Args:
        record: the directory's, as a ticket brought it.
        push, pull, accept, locators: blocks of this node.
        clock: seconds since 1970.
        hidden: whether this node hides where it is. Then an address that the directory told it by name, and
            perhaps nobody else, is not called where a link names the directory with another one.

    Attributes:
        directory: its identifier.
        units: every announcement that was heard, the newest of each unit.
        observers: each is told of every announcement that is new or newer.
    """

    def __init__(
        self,
        record: LocatorRecord,
        *,
        push: Push,
        pull: Pull,
        accept: Accept,
        locators: LocatorManager,
        clock: Callable[[], float],
        hidden: bool,
    ) -> None:
        self.directory = record.identifier
        self._hidden = hidden
        self._push = push
        self._pull = pull
        self._locators = locators
        self._clock = clock
        self.units: dict[UnitIdentifier, Announcement] = {}
        self.observers: list[Callable[[Announcement], None]] = []
        accept.register(NEW_NODE, self._hear_of_node)
        accept.register(NEW_UNIT, self._hear_of_unit)

    async def register(self) -> Registration:
        """Register, then take the list of nodes and of units."""
        answer = await self._push(self.directory, REGISTER, self._locators.own.encoded)
        confirmation = decode(Confirmation, answer, limit=256)
        await self._take_nodes()
        await self._take_units()
        return Registration(confirmation.number, confirmation.nodes)

    async def find_node(self, node: NodeIdentifier) -> bytes | None:
        """Ask the directory for a node's record; its own is the one that it told last, if that may be used.

        It is asked without showing who asks: it could tell by that who talks to whom.
        """
        if node == self.directory:
            known = None if self._hidden else self._locators.known(node)
            return None if known is None else known.encoded
        try:
            request = encode(Find(identifier=node.value))
            return await self._pull(self.directory, FIND_NODE, request, lane=Lane.ANONYMOUS)
        except OverlayError as error:
            logger.debug("the directory did not help to find a node: %s", error.code)
            return None

    async def announce(self, announcement: Announcement) -> None:
        """Tell the directory, which tells every node."""
        await self._push(self.directory, ANNOUNCE, announcement.encoded)

    async def find_unit(self, unit: UnitIdentifier) -> Sequence[Announcement]:
        """Ask the directory, without showing who asks; when it is not reached, what was heard has to do."""
        try:
            request = encode(Find(identifier=unit.value))
            answer = await self._pull(self.directory, FIND_UNIT, request, lane=Lane.ANONYMOUS)
            self._keep_unit(answer)
        except NotFoundError:
            return []
        known = self.units.get(unit)
        return [] if known is None else [known]

    async def _take_nodes(self) -> None:
        after, last, pages = bytes(32), None, 0
        # A page that brings nothing new is the end, and so is more than is kept, whatever the directory says.
        while after != last and pages * PAGE < MAX_RECORDS:
            last, pages = after, pages + 1
            request = encode(ListRequest(what="nodes", after=after))
            page = decode(NodePage, await self._pull(self.directory, LIST, request), limit=MAX_PART_BYTES)
            for encoded in page.records:
                try:
                    record = await self._locators.learn(encoded)
                except (MalformedError, VerificationError):
                    continue  # what does not verify is as if it were not listed
                after = max(after, record.identifier.value)
            if len(page.records) < PAGE:
                return

    async def _take_units(self) -> None:
        after, last, pages = bytes(32), None, 0
        while after != last and pages * PAGE < MAX_UNITS:
            last, pages = after, pages + 1
            request = encode(ListRequest(what="units", after=after))
            page = decode(UnitPage, await self._pull(self.directory, LIST, request), limit=MAX_PART_BYTES)
            for encoded in page.announcements:
                try:
                    after = max(after, self._keep_unit(encoded).value)
                except (MalformedError, VerificationError):
                    continue
            if len(page.announcements) < PAGE:
                return

    def _keep_unit(self, encoded: bytes) -> UnitIdentifier:
        announcement = Announcement.verify(encoded, now=self._clock())
        known = self.units.get(announcement.unit)
        if known is None and len(self.units) >= MAX_UNITS:
            del self.units[next(iter(self.units))]
        if known is None or known.number < announcement.number:
            self.units[announcement.unit] = announcement
            for observer in self.observers:
                observer(announcement)
        return announcement.unit

    async def _hear_of_node(self, delivery: Delivery) -> None:
        self._check_source(delivery)
        await self._locators.learn(delivery.body)

    async def _hear_of_unit(self, delivery: Delivery) -> None:
        self._check_source(delivery)
        self._keep_unit(delivery.body)

    def _check_source(self, delivery: Delivery) -> None:
        if delivery.sender != self.directory:
            raise RefusedError("only this node's directory tells it news")
