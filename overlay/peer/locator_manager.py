"""The building block *locator manager*: who is reached where, by the signed word of each node itself.

It signs and renews this node's own record, keeps the newest record of each node that was heard of, and asks
a model (`resolvers`) about nodes that it does not know. An expired record is never passed on; its locators
are still tried, since a handshake proves who answers anyway.

Dials that do not show who dials must leave no trace in what this node does under its name, and the other way
round: whoever made up a node for one reader, or told each node another address of it, would recognise who it
was. So records that came with what is fetched are only *lent* to such dials: they are never kept, told to
anybody or chosen, and as long as one is lent, no other of that node is used but what the model says.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import apsw

from overlay.database import Database, Schema
from overlay.errors import MalformedError, NotFoundError, VerificationError
from overlay.identity import NodeIdentifier, NodeSecret
from overlay.locators import MAX_RECORD_LIFETIME, RECORD_LIFETIME, LocatorRecord, NodeLocator

MAX_RECORDS = 20_000
"""Records kept, about 10 MiB; beyond it those that this node cannot reach are forgotten, then those that
expire first."""

RENEWAL_AGE = RECORD_LIFETIME / 2 - 600
"""Seconds after which the own record is signed anew; ten minutes before the node registers again."""

KEPT_AFTER_EXPIRY = MAX_RECORD_LIFETIME
"""Seconds that an expired record is still tried for, before it is forgotten."""

LOCATOR_SCHEMA = Schema(
    "locators",
    (
        """CREATE TABLE locator_records (
            node BLOB PRIMARY KEY, number INTEGER NOT NULL, expires INTEGER NOT NULL, record BLOB NOT NULL
        ) WITHOUT ROWID""",
    ),
)

Resolver = Callable[[NodeIdentifier], Awaitable[bytes | None]]
"""Asks a model for a node's record; `None` when the model does not know it."""


@dataclass(frozen=True, slots=True)
class _Own:
    locators: tuple[NodeLocator, ...]
    roles: tuple[str, ...]


@dataclass(slots=True)
class _Lent:
    record: LocatorRecord
    borrowers: int = 0


class LocatorManager:
    """Keeps locator records. `load` once before use.

    Args:
        secret: this node's keys.
        database: opened with `LOCATOR_SCHEMA`.
        clock: seconds since 1970.
        reaches: tells whether this node may dial a locator. Nodes that it cannot reach are known all the
            same, and the first to be forgotten.

    Attributes:
        resolvers: models to ask about nodes that are not known here.
        observers: each is told of every record that is new or newer.
        pinned: nodes whose records are never forgotten for want of room: without its directory's a node is
            lost, and whoever makes up enough nodes could push it out.
    """

    def __init__(
        self,
        secret: NodeSecret,
        database: Database,
        clock: Callable[[], float],
        *,
        reaches: Callable[[NodeLocator], bool] = lambda _: True,
    ) -> None:
        self._secret = secret
        self._reaches = reaches
        self._database = database
        self._clock = clock
        self._records: dict[NodeIdentifier, LocatorRecord] = {}
        self._lent: dict[NodeIdentifier, _Lent] = {}
        self._own = _Own((), ())
        self._own_record: LocatorRecord | None = None
        self.resolvers: list[Resolver] = []
        self.observers: list[Callable[[LocatorRecord], None]] = []
        self.pinned: set[NodeIdentifier] = set()

    async def load(self) -> None:
        """Read what was kept; records too old to be tried are forgotten."""
        oldest = int(self._clock() - KEPT_AFTER_EXPIRY)

        def read(connection: apsw.Connection) -> list[bytes]:
            connection.execute("DELETE FROM locator_records WHERE expires < ?", (oldest,))
            return [bytes(row[0]) for row in connection.execute("SELECT record FROM locator_records")]

        for encoded in await self._database.write(read):
            record = LocatorRecord.from_store(encoded)
            self._records[record.identifier] = record

    # --- this node's own record

    def serve(self, locators: Sequence[NodeLocator], *, roles: Sequence[str] = ()) -> LocatorRecord:
        """Say where this node is reached from now on, and sign it."""
        self._own = _Own(tuple(locators), tuple(roles))
        return self.renew()

    def renew(self) -> LocatorRecord:
        """Sign the own record anew, with a higher number than any before, across restarts too."""
        now = self._clock()
        # Numbers are milliseconds, so that no restart and no lost database falls behind an older record.
        number = max(int(now * 1000), self._own_record.number + 1 if self._own_record else 0)
        record = LocatorRecord.sign(
            self._secret, self._own.locators, number=number, now=now, roles=self._own.roles
        )
        self._own_record = record
        return record

    @property
    def own(self) -> LocatorRecord:
        """This node's current record, signed anew when half of its life is over."""
        if self._own_record is None or self._clock() - self._own_record.issued > RENEWAL_AGE:
            return self.renew()
        return self._own_record

    # --- those of others

    async def learn(self, encoded: bytes) -> LocatorRecord:
        """Keep a record if it is newer than what is known.

        Returns:
            the newest record of that node, which may be one that was known before.

        Raises:
            MalformedError: not a record.
            VerificationError: its signature or its times do not hold; nothing was kept.
        """
        record = LocatorRecord.verify(encoded, now=self._clock())
        return await self.keep(record)

    async def keep(self, record: LocatorRecord) -> LocatorRecord:
        """Keep a record that is verified already, expired or not, if it is newer than what is known."""
        known = self._records.get(record.identifier)
        if record.identifier == self._secret.identifier or (known and known.number >= record.number):
            return known or record
        self._records[record.identifier] = record
        forgotten = self._forget_surplus()

        def write(connection: apsw.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO locator_records VALUES (?, ?, ?, ?)",
                (record.identifier.value, record.number, record.expires, record.encoded),
            )
            connection.executemany("DELETE FROM locator_records WHERE node = ?", forgotten)

        await self._database.write(write)
        for observer in self.observers:
            observer(record)
        return record

    def known(self, identifier: NodeIdentifier) -> LocatorRecord | None:
        """The newest record that is here, expired or not."""
        return self._records.get(identifier)

    @contextmanager
    def lend(self, records: Iterable[LocatorRecord]) -> Iterator[None]:
        """Let anonymous dials use records for the length of a block; nothing else hears of them.

        Args:
            records: verified, expired or not; of several of one node, also those of others who lend, the
                newest is used.
        """
        given = list(records)
        for record in given:
            lent = self._lent.setdefault(record.identifier, _Lent(record))
            lent.borrowers += 1
            if record.number > lent.record.number:
                lent.record = record
        try:
            yield
        finally:
            for record in given:
                lent = self._lent[record.identifier]
                lent.borrowers -= 1
                if not lent.borrowers:
                    del self._lent[record.identifier]

    def current(self) -> list[LocatorRecord]:
        """Every record of another node that has not expired: those that may be passed on."""
        now = self._clock()
        return [record for record in self._records.values() if record.expires > now]

    def reachable(self) -> list[LocatorRecord]:
        """Those of `current` that this node may dial: another network's nodes are only passed on."""
        return [record for record in self.current() if self.leads_anywhere(record)]

    async def resolve(self, identifier: NodeIdentifier, *, anonymous: bool = False) -> LocatorRecord:
        """Find a node's record: here if it is current, else by asking the model, else an expired one.

        Args:
            identifier: whose.
            anonymous: for a dial that does not show who dials. Then a record that is lent is used, also this
                node's own is found, and nothing that the model says is kept.

        Raises:
            NotFoundError: neither this node nor the model knows it.
        """
        known = self._at_hand(identifier, anonymous=anonymous)
        if known is not None and known.expires > self._clock():
            return known
        return await self.refresh(identifier, anonymous=anonymous)

    async def refresh(self, identifier: NodeIdentifier, *, anonymous: bool = False) -> LocatorRecord:
        """Ask the model even though a record is here: that one did not work.

        Args:
            identifier: see `resolve`.
            anonymous: see `resolve`.

        Raises:
            NotFoundError: nobody knows the node.
        """
        for resolver in self.resolvers:
            encoded = await resolver(identifier)
            if encoded is not None:
                found = await self._hear_about(identifier, encoded, anonymous=anonymous)
                if found is not None:
                    return found
        known = self._at_hand(identifier, anonymous=anonymous)
        if known is None:
            raise NotFoundError("nobody who was asked knows where that node is reached")
        return known

    def _at_hand(self, identifier: NodeIdentifier, *, anonymous: bool) -> LocatorRecord | None:
        if anonymous and identifier in self._lent:
            return self._lent[identifier].record
        if anonymous and identifier == self._secret.identifier:
            return self.own
        return self._records.get(identifier)

    async def _hear_about(
        self, identifier: NodeIdentifier, encoded: bytes, *, anonymous: bool
    ) -> LocatorRecord | None:
        """The record that a model gives of a node; None, as for no answer, where that does not hold."""
        try:
            if not anonymous:
                record = await self.learn(encoded)
            else:
                record = LocatorRecord.verify(encoded, now=self._clock())
        except (MalformedError, VerificationError):
            return None
        if record.identifier != identifier:
            return None
        lent = self._lent.get(identifier) if anonymous else None
        if lent is not None and record.number > lent.record.number:
            lent.record = record
        return record

    def _forget_surplus(self) -> Iterable[tuple[bytes]]:
        surplus = len(self._records) - MAX_RECORDS
        if surplus <= 0:
            return []
        others = (record for record in self._records.values() if record.identifier not in self.pinned)
        oldest = sorted(others, key=lambda record: (self.leads_anywhere(record), record.expires))[:surplus]
        for record in oldest:
            del self._records[record.identifier]
        return [(record.identifier.value,) for record in oldest]

    def leads_anywhere(self, record: LocatorRecord) -> bool:
        """Tell whether this node may dial one of a record's locators."""
        return any(self._reaches(locator) for locator in record.locators)
