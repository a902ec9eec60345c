"""The directory's side of the central-directory model."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

import anyio
import apsw

from overlay.database import Database, Schema
from overlay.errors import NotFoundError, OverlayError, RefusedError
from overlay.identity import NodeIdentifier
from overlay.locators import MAX_RECORD_BYTES, LocatorRecord
from overlay.peer.accept import Accept, Delivery
from overlay.peer.announcement import MAX_ANNOUNCEMENT_BYTES, Announcement
from overlay.peer.locator_manager import LocatorManager
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
from overlay.peer.push import Push
from overlay.wire.codec import decode, encode

logger = logging.getLogger(__name__)

MAX_NODES = 10_000
MAX_UNITS_PER_NODE = 256
"""A chat user has tens of sessions; the limit keeps one node from filling the directory."""

MAX_NEWS = 4_096
"""Notices that wait to be told; older ones are dropped, because every registration brings the whole list."""

TELLERS = 16
"""Nodes that are told at the same time; each may take a dial over Tor."""

DIRECTORY_SCHEMA = Schema(
    "directory",
    (
        """
        CREATE TABLE directory_nodes (
            node BLOB PRIMARY KEY, number INTEGER NOT NULL, expires INTEGER NOT NULL, record BLOB NOT NULL
        ) WITHOUT ROWID;
        CREATE TABLE directory_units (
            unit BLOB PRIMARY KEY, node BLOB NOT NULL, number INTEGER NOT NULL, expires INTEGER NOT NULL,
            announcement BLOB NOT NULL
        ) WITHOUT ROWID;
        CREATE INDEX directory_units_by_node ON directory_units (node);
        """,
    ),
)


class Directory:
    """Keeps nodes and units, answers questions about them, and tells every node of new ones.

    Args:
        database: opened with `DIRECTORY_SCHEMA`.
        accept: gets the receivers registered.
        locators: learns the records, so that nodes can be reached to be told.
        push: tells them.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        *,
        database: Database,
        accept: Accept,
        locators: LocatorManager,
        push: Push,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._locators = locators
        self._push = push
        self._clock = clock
        self._news: OrderedDict[tuple[str, bytes], tuple[bytes, NodeIdentifier]] = OrderedDict()
        self._has_news = anyio.Event()
        accept.register(REGISTER, self._register)
        accept.register(ANNOUNCE, self._announce)
        accept.register(LIST, self._list)
        accept.register(FIND_NODE, self._find_node, anonymous=True)
        accept.register(FIND_UNIT, self._find_unit, anonymous=True)

    async def run(self) -> None:
        """Tell nodes the news, until cancelled. What was not told by then, the next registration brings.

        The first news is that this directory is here: it may have come back at another address.
        """
        self.tell_own()
        while True:
            if not self._news:
                self._has_news = anyio.Event()
                await self._has_news.wait()
            (kind, _), (body, subject) = self._news.popitem(last=False)
            await self._tell_all(kind, body, subject)

    def tell_own(self) -> None:
        """Have every node told where this directory is reached, now that this has changed."""
        own = self._locators.own
        self._add_news(NEW_NODE, own.identifier.value, own.encoded, own.identifier)

    async def _tell_all(self, kind: str, body: bytes, subject: NodeIdentifier) -> None:
        places = anyio.CapacityLimiter(TELLERS)
        now = int(self._clock())
        nodes = await self._database.read(
            lambda db: [
                NodeIdentifier(bytes(row[0]))
                for row in db.execute("SELECT node FROM directory_nodes WHERE expires > ?", (now,))
            ]
        )
        async with anyio.create_task_group() as group:
            for node in nodes:
                if node != subject:
                    group.start_soon(self._tell, places, node, kind, body)

    async def _tell(
        self, places: anyio.CapacityLimiter, node: NodeIdentifier, kind: str, body: bytes
    ) -> None:
        async with places:
            try:
                await self._push(node, kind, body)
            except OverlayError as error:  # it registers again when it is back, and gets the list
                logger.debug("a node could not be told the news: %s", error.code)

    def _add_news(self, kind: str, name: bytes, body: bytes, subject: NodeIdentifier) -> None:
        """Have it told; a later word on the same node or unit takes the place of one that waits.

        So a node that registers over and over has one place here, and pushes out nobody else's news.
        """
        self._news[kind, name] = (body, subject)
        if len(self._news) > MAX_NEWS:
            self._news.popitem(last=False)
        self._has_news.set()

    # --- receivers

    async def _register(self, delivery: Delivery) -> bytes:
        record = LocatorRecord.verify(delivery.body[:MAX_RECORD_BYTES], now=self._clock())
        if record.identifier != delivery.sender:
            raise RefusedError("a node registers itself and nobody else")
        await self._locators.learn(record.encoded)
        now = int(self._clock())

        def write(db: apsw.Connection) -> tuple[int, bool]:
            db.execute("DELETE FROM directory_nodes WHERE expires <= ?", (now,))
            known = db.execute(
                "SELECT number FROM directory_nodes WHERE node = ?", (record.identifier.value,)
            ).get
            count = _count(db, "SELECT count(*) FROM directory_nodes")
            if known is None and count >= MAX_NODES:
                raise RefusedError("this directory is full")
            db.execute(
                "INSERT OR REPLACE INTO directory_nodes VALUES (?, ?, ?, ?)",
                (record.identifier.value, record.number, record.expires, record.encoded),
            )
            return count + (known is None), known is None or int(known) < record.number

        nodes, news = await self._database.write(write)
        if news:
            self._add_news(NEW_NODE, record.identifier.value, record.encoded, record.identifier)
        return encode(Confirmation(number=record.number, nodes=nodes))

    async def _announce(self, delivery: Delivery) -> None:
        announcement = Announcement.verify(delivery.body[:MAX_ANNOUNCEMENT_BYTES], now=self._clock())
        node = announcement.locator.node
        if node != delivery.sender:
            raise RefusedError("a node announces the units that it holds itself")
        now = int(self._clock())

        def write(db: apsw.Connection) -> bool:
            db.execute("DELETE FROM directory_units WHERE expires <= ?", (now,))
            unit = announcement.unit.value
            known = db.execute("SELECT number FROM directory_units WHERE unit = ?", (unit,)).get
            if known is not None and int(known) >= announcement.number:
                return False
            of_node = "SELECT count(*) FROM directory_units WHERE node = ? AND unit != ?"
            if _count(db, of_node, (node.value, unit)) >= MAX_UNITS_PER_NODE:
                raise RefusedError(f"a node announces at most {MAX_UNITS_PER_NODE} units here")
            db.execute(
                "INSERT OR REPLACE INTO directory_units VALUES (?, ?, ?, ?, ?)",
                (unit, node.value, announcement.number, announcement.expires, announcement.encoded),
            )
            return True

        if await self._database.write(write):
            self._add_news(NEW_UNIT, announcement.unit.value, announcement.encoded, node)

    async def _list(self, delivery: Delivery) -> bytes:
        request = decode(ListRequest, delivery.body, limit=256)
        table, column, key = (
            ("directory_nodes", "record", "node")
            if request.what == "nodes"
            else ("directory_units", "announcement", "unit")
        )
        query = f"SELECT {column} FROM {table} WHERE {key} > ? AND expires > ? ORDER BY {key} LIMIT {PAGE}"  # noqa: S608 - names from the two lines above
        entries = await self._entries(query, (request.after, int(self._clock())))
        return encode(
            NodePage(records=entries) if request.what == "nodes" else UnitPage(announcements=entries)
        )

    async def _find_node(self, delivery: Delivery) -> bytes:
        query = "SELECT record FROM directory_nodes WHERE node = ? AND expires > ?"
        return await self._find(query, delivery)

    async def _find_unit(self, delivery: Delivery) -> bytes:
        query = "SELECT announcement FROM directory_units WHERE unit = ? AND expires > ?"
        return await self._find(query, delivery)

    async def _find(self, query: str, delivery: Delivery) -> bytes:
        wanted = decode(Find, delivery.body, limit=128)
        entries = await self._entries(query, (wanted.identifier, int(self._clock())))
        if not entries:
            raise NotFoundError("this directory does not know it")
        return entries[0]

    async def _entries(self, query: str, arguments: tuple[bytes, int]) -> tuple[bytes, ...]:
        return await self._database.read(
            lambda db: tuple(bytes(row[0]) for row in db.execute(query, arguments))
        )


def _count(db: apsw.Connection, query: str, arguments: tuple[bytes, ...] = ()) -> int:
    return int(db.execute(query, arguments).get)
