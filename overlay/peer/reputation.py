"""The building block *reputation manager*: a local record of what each node did, asked when one is chosen.

It is this node's own experience only: hearsay could be made up, since identifiers cost nothing. For the
same reason a node that is unknown counts as neutral, never as good, and what can be forged cheaply (faults
of throw-away identifiers) can never push out what cannot (a good name of long standing).

Only deeds count that a node did to this one under its name. Whatever a node does to an anonymous caller, good
or bad, leaves no mark: a node that was made up for one link could see from being preferred, or shunned, who
had used the link. A transfer sees for itself who is of use to it and who lies, and forgets it at its end.
Nor does it earn anything to take what is to be stored: whether it is kept shows only to who fetches it, and a
node that takes all and keeps nothing would be the first that is chosen.

A score is the sum of two memories. *Performance* tells whether a node is of use now; it fades within hours,
because nodes behind onion services come and go, and it is bounded both ways, so that no merit pays for
faults and no absence looks like one. *Faults* are what no honest node does; they fade within weeks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import apsw

from overlay.database import Database, Schema
from overlay.identity import NodeIdentifier

Deed = Literal["answered", "refused", "unreachable", "violation"]
"""What a node did: answered a call, refused to store something, could not be reached or was too slow, broke
the protocol, also by sending what does not verify."""

PERFORMANCE: dict[Deed, float] = {"answered": 1.0, "refused": -2.0, "unreachable": -2.0}
"""A failure outweighs an answer, because it costs its timeout: tens of seconds against a few. A refusal is
a node's right; it outweighs the answer to the call before it, so that next time others are asked first."""

FAULTS: dict[Deed, float] = {"violation": 16.0}
"""A violation can be another version's mistake, so it takes two of them to be distrusted."""

PERFORMANCE_HALF_LIFE = 6 * 3600.0
"""Seconds: what happened this morning says something about tonight, what happened last week does not."""

FAULT_HALF_LIFE = 14 * 24 * 3600.0
"""Seconds: a node that broke the protocol four times is tried again after three weeks: it may be mended."""

PERFORMANCE_LIMIT = 16.0
"""The most that performance counts, either way: reached by 16 answers or eight failures in a row."""

FAULT_LIMIT = 256.0
"""The most that faults count: nobody is distrusted for more than about two months after the last one."""

TRUST_THRESHOLD = -24.0
"""Below it a node is not chosen at all: failures alone end at -16, three violations of the best node begin at
-32."""

MAX_PEERS = 4096
"""Nodes remembered, about 1 MiB of memory; a node deals with some hundreds in the weeks that count."""

_FORGOTTEN_AT_ONCE = MAX_PEERS // 8
"""Nodes forgotten when there are too many: many at once, so that it is rare to look through all of them."""

REPUTATION_SCHEMA = Schema(
    "reputation",
    (
        """
        CREATE TABLE reputation (
            node BLOB PRIMARY KEY,
            performance REAL NOT NULL,
            faults REAL NOT NULL,
            at REAL NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
    ),
)


@dataclass(frozen=True, slots=True)
class Standing:
    """What is remembered of one node, as it was at time `at` (seconds since 1970)."""

    performance: float
    faults: float
    at: float

    def faded(self, now: float) -> Standing:
        """The same standing at `now`; a clock that was set back lets nothing fade and nothing grow."""
        elapsed = max(0.0, now - self.at)
        return Standing(
            self.performance * 2.0 ** (-elapsed / PERFORMANCE_HALF_LIFE),
            self.faults * 2.0 ** (-elapsed / FAULT_HALF_LIFE),
            now,
        )

    def after(self, deed: Deed, now: float) -> Standing:
        """The standing after one more deed."""
        faded = self.faded(now)
        performance = faded.performance + PERFORMANCE.get(deed, 0.0)
        return Standing(
            max(-PERFORMANCE_LIMIT, min(PERFORMANCE_LIMIT, performance)),
            min(FAULT_LIMIT, faded.faults + FAULTS.get(deed, 0.0)),
            now,
        )

    def score(self, now: float) -> float:
        """Performance less faults: above 0 better than unknown, below worse."""
        faded = self.faded(now)
        return faded.performance - faded.faults

    @property
    def weight(self) -> float:
        """How much is remembered, good or bad."""
        return abs(self.performance) + self.faults


class ReputationManager:
    """Remembers deeds in memory, and in the database whenever `flush` is called. `load` once before use.

    Args:
        database: opened with `REPUTATION_SCHEMA`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._standings: dict[NodeIdentifier, Standing] = {}
        self._changed: set[NodeIdentifier] = set()

    async def load(self) -> None:
        """Read what was flushed.

        Raises:
            StorageError: the database is damaged, or the disk does not work.
        """
        self._standings = await self._database.read(_load)

    def note(self, identifier: NodeIdentifier, deed: Deed, now: float) -> None:
        """Remember that a node did something at `now`, seconds since 1970."""
        standing = self._standings.get(identifier, Standing(0.0, 0.0, now))
        self._standings[identifier] = standing.after(deed, now)
        self._changed.add(identifier)
        if len(self._standings) > MAX_PEERS:
            self._forget(now)

    def score(self, identifier: NodeIdentifier, now: float) -> float:
        """Tell how good a node is, from -272 to 16; 0 for one that is not known."""
        standing = self._standings.get(identifier)
        return 0.0 if standing is None else standing.score(now)

    def trusted(self, identifier: NodeIdentifier, now: float) -> bool:
        """Tell whether a node may be chosen at all."""
        return self.score(identifier, now) >= TRUST_THRESHOLD

    def rank(self, identifiers: Iterable[NodeIdentifier], now: float) -> list[NodeIdentifier]:
        """Order nodes by score, best first and equal ones as given; those not trusted are left out."""
        scored = [(self.score(identifier, now), identifier) for identifier in identifiers]
        trusted = [pair for pair in scored if pair[0] >= TRUST_THRESHOLD]
        return [identifier for _, identifier in sorted(trusted, key=lambda pair: -pair[0])]

    async def flush(self) -> None:
        """Write what changed since the last time.

        Raises:
            StorageError: the disk is full or does not work; the next flush writes it.
            After cancellation the next flush writes what this one may not have written.
        """
        if not self._changed:
            return
        changed, self._changed = self._changed, set()
        standings = [(identifier, self._standings.get(identifier)) for identifier in changed]
        try:
            await self._database.write(partial(_save, standings=standings))
        except BaseException:  # failed or cancelled: it may not be on disk, so the next flush writes it
            self._changed |= changed
            raise

    def _forget(self, now: float) -> None:
        """Forget those of whom least is known, among the good or the bad, whichever are more.

        Taken from the larger half, a flood of identifiers that misbehave cannot push out the good ones, nor a
        flood of obliging ones the faulty.
        """
        faded = {identifier: standing.faded(now) for identifier, standing in self._standings.items()}
        bad = [identifier for identifier, standing in faded.items() if standing.score(now) < 0]
        good = [identifier for identifier, standing in faded.items() if standing.score(now) >= 0]
        larger = good if len(good) >= len(bad) else bad
        larger.sort(key=lambda identifier: faded[identifier].weight)
        for identifier in larger[:_FORGOTTEN_AT_ONCE]:
            del self._standings[identifier]
            self._changed.add(identifier)


def _load(connection: apsw.Connection) -> dict[NodeIdentifier, Standing]:
    rows = connection.execute("SELECT node, performance, faults, at FROM reputation")
    return {NodeIdentifier(node): Standing(performance, faults, at) for node, performance, faults, at in rows}


def _save(connection: apsw.Connection, standings: Iterable[tuple[NodeIdentifier, Standing | None]]) -> None:
    for identifier, standing in standings:
        if standing is None:
            connection.execute("DELETE FROM reputation WHERE node = ?", (identifier.value,))
        else:
            connection.execute(
                "INSERT OR REPLACE INTO reputation (node, performance, faults, at) VALUES (?, ?, ?, ?)",
                (identifier.value, standing.performance, standing.faults, standing.at),
            )
