"""One session at this node: its history in memory, its events in the database, its participants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import anyio

from overlay.chat.events import Content, Created, Event, Joined, Left
from overlay.chat.history import MAX_MEMBERS, Accepted, History, Position, Waiting
from overlay.chat.keys import SessionKeys
from overlay.chat.messages import MAX_PAGE_EVENTS, PAGE_BYTES
from overlay.chat.store import ChatStore, SessionRow
from overlay.errors import MalformedError, NotFoundError, RefusedError, VerificationError
from overlay.identity import NodeIdentifier, SigningSecret
from overlay.units.locators import UnitLocator


@dataclass(frozen=True, slots=True)
class Participant:
    """Somebody who takes part.

    Attributes:
        author: the participant's public key.
        name: what it calls itself.
        node: the node through which it is reached.
        place: where in that node, sealed by it.
        joined: when, by its own clock.
        position: of the event by which it joined.
        left: it has left.
    """

    author: bytes
    name: str
    node: NodeIdentifier
    place: bytes
    joined: int
    position: Position
    left: bool = False

    @property
    def locator(self) -> UnitLocator:
        """Where it is reached."""
        return UnitLocator(self.node, self.place)


@dataclass(slots=True)
class _State:
    """What is in memory; read again from the database when a write has failed in between."""

    history: History
    root: Event
    own: bytes
    people: dict[bytes, Participant] = field(default_factory=dict)

    def note(self, event: Event) -> None:
        known = self.people.get(event.author)
        match event.content:
            # In branches any number may join. Those who came first keep their places, as they are in use.
            case Joined() if known is None and len(self.people) >= MAX_MEMBERS and event.author != self.own:
                pass
            case Joined(name=name, node=node, place=place):
                # Only a participant that signs branches joins twice: the earlier one counts, everywhere.
                if known is None or event.position < known.position:
                    left = known is not None and known.left
                    self.people[event.author] = Participant(
                        event.author, name, NodeIdentifier(node), place, event.at, event.position, left
                    )
            case Left() if known is not None:
                self.people[event.author] = replace(known, left=True)
            case _:
                pass


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of events that another brought.

    Attributes:
        events: those that are new, and stored now.
        waiting: some wait for others that are not here.
    """

    events: tuple[Event, ...]
    waiting: bool


class Session:
    """A session that this node takes part in.

    Whatever is accepted is durable before anybody sees it: memory and database change together, one
    change at a time.

    Args:
        row: what is kept of the session.
        store: where its events are.

    Attributes:
        public: the session's public key.
        keys: what follows from its secret.
        closed: it was left, and nothing of it is here any more.
    """

    def __init__(self, row: SessionRow, store: ChatStore) -> None:
        self.row = row
        self.public = row.session
        self.keys = SessionKeys(row.secret, row.session)
        self.closed = False
        self._author = SigningSecret(row.participant)
        self._store = store
        self._lock = anyio.Lock()
        self._state: _State | None = None
        self._changed = anyio.Event()

    @property
    def author(self) -> bytes:
        """The public key of this node's own participant."""
        return self._author.public

    @property
    def changed(self) -> anyio.Event:
        """Set at the next change; take it before reading what could change."""
        return self._changed

    async def root(self) -> Event:
        """The session's first event."""
        async with self._lock:
            return (await self._ready()).root

    async def title(self) -> str:
        """What the creator called the session."""
        content = (await self.root()).content
        return content.title if isinstance(content, Created) else ""

    async def people(self) -> dict[bytes, Participant]:
        """All participants by public key, those who left included, in the order of joining.

        Beyond `MAX_MEMBERS`, which only branches that do not know of each other can have, these are the ones
        who came to be known here first, and this node's own.
        """
        async with self._lock:
            found = (await self._ready()).people.values()
            return {each.author: each for each in sorted(found, key=lambda each: each.position)}

    async def strangers(self, event: Event) -> list[Participant]:
        """Those who take part, and whom the author of an event did not know when it signed."""
        async with self._lock:
            state = await self._ready()
            people = [each for each in state.people.values() if not each.left]
            return [each for each in people if not state.history.knows(event.id, each.author)]

    async def size(self) -> int:
        """How many events there are."""
        async with self._lock:
            return len((await self._ready()).history)

    async def summary(self) -> tuple[bytes, ...]:
        """See `History.summary`."""
        async with self._lock:
            return (await self._ready()).history.summary()

    async def missing_from(
        self, summary: Sequence[bytes], after: Position | None
    ) -> tuple[list[bytes], Position | None]:
        """One page of what another lacks.

        Returns:
            encoded events in causal order, and where the next page begins; None after the last.
        """
        async with self._lock:
            history = (await self._ready()).history
            found = history.missing_from(summary, after=after, limit=MAX_PAGE_EVENTS + 1)
            positions = [history.position(event_id) for event_id in found]
            encoded = await self._store.encoded(self.public, positions[:MAX_PAGE_EVENTS], PAGE_BYTES)
        complete = len(encoded) == len(found)
        return encoded, None if complete or not encoded else positions[len(encoded) - 1]

    async def say(
        self,
        content: Content,
        at: float,
        *,
        signed: Callable[[Event, Sequence[Participant]], None] | None = None,
    ) -> Event:
        """Sign an event of this node's participant, behind all that is known; durable when this returns.

        Args:
            content: what happened.
            at: seconds since 1970.
            signed: told of the event, and of all participants that it knows, before it is stored, so that
                it travels while the disk is at work. What others got and this node could not store comes
                back from them.

        Raises:
            MalformedError: the content is out of its bounds.
            RefusedError: the session is full.
            NotFoundError: it was left meanwhile.
            StorageError: the disk is full; nothing is kept here.
        """
        async with self._lock:
            state = await self._ready()
            clock, parents = state.history.next_parents(self.author)
            event = Event.sign(
                self._author, session=self.public, clock=clock, parents=parents, at=at, content=content
            )
            outcome = state.history.add(event)
            if signed is not None:
                signed(event, list(state.people.values()))
            await self._keep(outcome)
            return event

    async def take(self, encoded: Sequence[bytes], sender: NodeIdentifier) -> Taken:
        """Take in events that `sender` brought; durable when this returns.

        Raises:
            MalformedError, VerificationError: one of them cannot be accepted by anybody; those before it
                were taken nevertheless.
            RefusedError: the session is full.
            NotFoundError: it was left meanwhile.
            StorageError: the disk is full; nothing was taken.
        """
        taken: list[Event] = []
        waiting = False
        async with self._lock:
            history = (await self._ready()).history
            failure: MalformedError | VerificationError | RefusedError | None = None
            for data in encoded:
                try:
                    outcome = _add(history, data, sender)
                except (MalformedError, VerificationError, RefusedError) as error:
                    failure = error
                    break
                waiting = waiting or isinstance(outcome, Waiting)
                taken += outcome.events if isinstance(outcome, Accepted) else ()
            if taken:
                await self._keep(Accepted(tuple(taken)))
        if failure is not None:
            raise failure
        return Taken(tuple(taken), waiting)

    async def close(self) -> None:
        """Forget the session: its secret, keys and events leave the database."""
        async with self._lock:
            await self._store.remove(self.public)
            self.closed = True
            self._tell()

    async def _ready(self) -> _State:
        if self.closed:
            raise NotFoundError("this session was left")
        if self._state is None:
            self._state = await self._load()
        return self._state

    async def _load(self) -> _State:
        arrivals = await self._store.arrived(self.public, 0)
        root = arrivals[0].event
        state = _State(History(root, self.keys), root, self.author)
        while arrivals:
            for event in (arrival.event for arrival in arrivals):
                if event.id != root.id:
                    state.history.restore(event)
                state.note(event)
            arrivals = await self._store.arrived(self.public, arrivals[-1].number)
        return state

    async def _keep(self, outcome: object) -> None:
        """Store what the history has accepted; if that fails, what is in memory counts no more."""
        state, self._state = self._state, None
        if isinstance(outcome, Accepted) and state is not None:
            await self._store.append(outcome.events)
            for event in outcome.events:
                state.note(event)
        self._state = state
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def _add(history: History, data: bytes, sender: NodeIdentifier) -> object:
    if Event.restore(data).id in history:  # spares the signature, whose check is most of the work
        return None
    return history.add(Event.verify(data), sender.value)
