"""The history of a session: a graph of events, the order that is the same everywhere, what others lack.

Every rule by which an event is accepted depends on the event and its ancestors alone, never on the time or
on what else has arrived. So any two participants who have the same events, however they came by them,
accept the same ones and show them in the same order: by clock, then by identifier.

`MAX_EVENTS` and `MAX_BYTES` are the exception: at them a history ends, and what came last may differ.

Pure. Only the graph is kept in memory; whoever owns a history stores the events themselves.

Source: docs/spec/chat.md, sections "Acceptance" and "Exchange".
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from overlay.chat.events import MAX_PARENTS, Created, Event, Joined, Left
from overlay.chat.keys import SessionKeys
from overlay.chat.pending import Pending
from overlay.chat.roster import Members, Roster
from overlay.errors import RefusedError, VerificationError

MAX_EVENTS = 100_000
"""Years of a lively session; about 40 MiB of graph. A session that is full accepts nothing more."""
MAX_BYTES = 64 << 20
"""Bytes that a session makes each participant keep: its events on disk, and rosters in memory. All 100,000
events fit if they have an ordinary length, and any disk bears it, whoever got hold of an invite."""
MAX_MEMBERS = 1024
"""Participants that ever joined, as one event knows them; each costs its share of every delivery."""
MAX_SUMMARY = 128
"""Identifiers in a summary: heads, and about 17 at growing distances."""
_MAX_SUMMARY_HEADS = 96

Position = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class _Link:
    position: Position
    parents: tuple[bytes, ...]
    roster: Roster


@dataclass(frozen=True, slots=True)
class Accepted:
    """The event now belongs to the history, and so do those that waited for it.

    Attributes:
        events: in causal order, the added one first; to be stored.
    """

    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The event was there, or waits already: nothing happened."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The event waits for parents that are not known here: ask the sender for what is missing."""


Outcome = Accepted | Duplicate | Waiting


class History:
    """The events of one session that one participant has accepted.

    Args:
        root: the session's first event, as its invite has it; it is accepted from the start.
        keys: the session's keys, which check the proofs of those who join.
    """

    def __init__(self, root: Event, keys: SessionKeys) -> None:
        self._root = root
        self._keys = keys
        self._links: dict[bytes, _Link] = {root.id: _Link(root.position, (), Roster())}
        self._members = Members()
        self._bytes = len(root.encoded)
        self._order: list[Position] = [root.position]
        self._heads: set[bytes] = {root.id}
        self._pending = Pending()
        self._answered: tuple[tuple[bytes, ...], int, list[bytes]] | None = None

    def __len__(self) -> int:
        """How many events are accepted."""
        return len(self._links)

    def __contains__(self, event_id: bytes) -> bool:
        """Whether an event is accepted."""
        return event_id in self._links

    @property
    def waiting(self) -> int:
        """How many events wait for their parents."""
        return len(self._pending)

    @property
    def order(self) -> tuple[bytes, ...]:
        """The identifiers of all events, in the order that is the same everywhere."""
        return tuple(event_id for _, event_id in self._order)

    @property
    def heads(self) -> tuple[bytes, ...]:
        """The events that no other names as its parent, latest first."""
        return tuple(sorted(self._heads, key=self.position, reverse=True))

    def add(self, event: Event, sender: bytes = b"") -> Outcome:
        """Take in an event whose signature was verified.

        Args:
            event: the event.
            sender: who passed it on; each has room of its own for events that must wait.

        Returns:
            what became of it.

        Raises:
            VerificationError: the event breaks a rule, so that no participant will ever accept it.
            RefusedError: the session is full.
        """
        if event.id in self._links or event.id in self._pending:
            return Duplicate()
        if event.session != self._root.session or isinstance(event.content, Created):
            raise VerificationError("this event belongs to another session")
        if not self._links.keys() >= set(event.parents):
            self._pending.add(event, sender)
            return Waiting()
        self._accept(event)
        return Accepted((event, *self._accept_waiting(event)))

    def restore(self, event: Event) -> None:
        """Take in an event that was accepted, and stored, before; its parents were restored before it.

        No limit applies: one that is lowered some day must not make a session unreadable.
        """
        self._link(event, self._judge(event))

    def next_parents(self, author: bytes) -> tuple[int, tuple[bytes, ...]]:
        """Choose the parents of `author`'s next event: its clock, and the heads that it names.

        Of more heads than an event may name, the latest are chosen, and one that descends from the
        author's joining, since nobody would accept the event otherwise.
        """
        heads = self.heads
        chosen = heads[:MAX_PARENTS]
        own = [head for head in heads if self.knows(head, author)]
        if own and own[0] not in chosen:
            chosen = (*chosen[:-1], own[0])
        return 1 + max(self.position(head)[0] for head in chosen), tuple(sorted(chosen))

    def summary(self) -> tuple[bytes, ...]:
        """What another needs to tell what this history lacks.

        The heads, and the events at distances 1, 2, 4, … back in the order, from which the other finds
        common ground where it does not know the heads.
        """
        distances = (1 << power for power in range(len(self._order).bit_length()))
        back = [self._order[-distance][1] for distance in distances]
        return tuple(dict.fromkeys((*self.heads[:_MAX_SUMMARY_HEADS], *back)))

    def missing_from(self, summary: Sequence[bytes], *, after: Position | None, limit: int) -> list[bytes]:
        """Tell what another lacks.

        Args:
            summary: the other's `summary()`; what is not known here is passed over.
            after: only events behind this position: the last one of the previous page.
            limit: the most identifiers to return.

        Returns:
            identifiers in causal order. All that the other lacks is among them, page by page; where it has
            much that is not known here, also some that it has.
        """
        lacking = self._all_missing(tuple(summary))
        start = 0 if after is None else bisect_right(lacking, after, key=self.position)
        return lacking[start : start + limit]

    def _all_missing(self, summary: tuple[bytes, ...]) -> list[bytes]:
        # One newcomer asks for page after page of a long history with the same summary.
        if self._answered is None or self._answered[:2] != (summary, len(self)):
            self._answered = (summary, len(self), self._find_missing(summary))
        return self._answered[2]

    def _find_missing(self, summary: Iterable[bytes]) -> list[bytes]:
        """Walk back from the heads, latest first, until everything in sight is the other's.

        Whoever has an event has its ancestors, so the other's share spreads from child to parent, and
        children are always met before their parents.
        """
        owned = {event_id for event_id in summary if event_id in self._links}
        seen = set(self._heads)
        lacking: list[bytes] = []
        unowned = len(seen - owned)
        heap = [self._backwards(head) for head in seen]
        heapify(heap)
        while unowned:
            event_id = heappop(heap)[2]
            is_owned = event_id in owned
            if not is_owned:
                lacking.append(event_id)
                unowned -= 1
            for parent in self._links[event_id].parents:
                counted = parent in seen and parent not in owned
                if is_owned:
                    owned.add(parent)
                if parent not in seen:
                    seen.add(parent)
                    heappush(heap, self._backwards(parent))
                unowned += (parent not in owned) - counted
        lacking.reverse()
        return lacking

    def _backwards(self, event_id: bytes) -> tuple[int, int, bytes]:
        clock, identifier = self.position(event_id)
        return -clock, -int.from_bytes(identifier, "big"), event_id

    def knows(self, event_id: bytes, author: bytes) -> bool:
        """Whether whoever signed an accepted event knew `author` as a participant then."""
        return bool(self._links[event_id].roster.joined & self._members.bit(author))

    def position(self, event_id: bytes) -> Position:
        """Where an accepted event stands in the order."""
        return self._links[event_id].position

    def _accept(self, event: Event) -> None:
        roster = self._judge(event)
        if len(self._links) >= MAX_EVENTS or self._bytes + len(event.encoded) > MAX_BYTES:
            raise RefusedError("this session is full: it takes no more events, create a new one")
        self._link(event, roster)

    def _link(self, event: Event, before: Roster) -> None:
        parents = [self._links[parent] for parent in event.parents]
        roster = self._after(event, before)
        if all(roster is not parent.roster for parent in parents):
            self._bytes += roster.size
        self._bytes += len(event.encoded)
        names = tuple(parent.position[1] for parent in parents)  # shared, to spare memory
        self._links[event.id] = _Link(event.position, names, roster)
        insort(self._order, event.position)
        self._heads.difference_update(names)
        self._heads.add(event.id)

    def _after(self, event: Event, roster: Roster) -> Roster:
        match event.content:
            case Joined():
                return self._members.join(roster, event.author)
            case Left():
                return self._members.leave(roster, event.author)
            case _:
                return roster

    def _judge(self, event: Event) -> Roster:
        links = [self._links[parent] for parent in event.parents]
        if event.clock != 1 + max(link.position[0] for link in links):
            raise VerificationError("an event's clock does not follow from its parents")
        roster = links[0].roster
        for link in links[1:]:
            roster = roster.merge(link.roster)
        author = self._members.bit(event.author)
        if roster.left & author:
            raise VerificationError("an event by somebody who had left the session")
        if isinstance(event.content, Joined):
            self._judge_joining(event.author, event.content, roster)
        elif not roster.joined & author:
            raise VerificationError("an event by somebody who had not joined the session")
        return roster

    def _judge_joining(self, author: bytes, content: Joined, roster: Roster) -> None:
        if roster.joined & self._members.bit(author):
            raise VerificationError("a participant joins only once")
        if roster.count >= MAX_MEMBERS:
            raise VerificationError(f"a session has at most {MAX_MEMBERS} participants")
        if not self._keys.proves(author, content.proof):
            raise VerificationError("somebody joined who does not hold the session's secret")

    def _accept_waiting(self, event: Event) -> list[Event]:
        released: list[Event] = []
        ready = [event]
        while ready:
            for child in self._pending.children(ready.pop(0).id):
                if self._links.keys() >= set(child.parents):
                    self._pending.remove(child)
                    if self._fits(child):
                        released.append(child)
                        ready.append(child)
        return released

    def _fits(self, event: Event) -> bool:
        try:
            self._accept(event)
        except (VerificationError, RefusedError):  # whoever sent it is not there any more to be told
            return False
        return True
