"""Events that came before their parents: kept for a while, a bounded number for each sender. Pure."""

from __future__ import annotations

from collections import OrderedDict

from overlay.chat.events import Event

MAX_PENDING_PER_SENDER = 64
"""Events that arrive early wait for one exchange of histories; one page has about as many."""
MAX_PENDING = 512
"""For a session, so that many senders together take at most about 20 MiB of the longest events."""


class Pending:
    """The waiting events of one session; each new one over a limit pushes out an old one."""

    def __init__(self) -> None:
        self._events: OrderedDict[bytes, tuple[Event, bytes]] = OrderedDict()
        self._children: dict[bytes, set[bytes]] = {}
        self._counts: dict[bytes, int] = {}

    def __len__(self) -> int:
        """How many events wait."""
        return len(self._events)

    def __contains__(self, event_id: bytes) -> bool:
        """Whether an event waits already."""
        return event_id in self._events

    def add(self, event: Event, sender: bytes) -> None:
        """Let `event`, which `sender` passed on, wait; the oldest of the sender, or of all, makes room."""
        if self._counts.get(sender, 0) >= MAX_PENDING_PER_SENDER:
            self._remove(next(key for key, (_, other) in self._events.items() if other == sender))
        elif len(self._events) >= MAX_PENDING:
            self._remove(next(iter(self._events)))
        self._events[event.id] = (event, sender)
        self._counts[sender] = self._counts.get(sender, 0) + 1
        for parent in event.parents:
            self._children.setdefault(parent, set()).add(event.id)

    def children(self, parent: bytes) -> list[Event]:
        """The waiting events that name `parent`, in their order."""
        waiting = [self._events[child][0] for child in self._children.get(parent, ())]
        return sorted(waiting, key=lambda event: event.position)

    def remove(self, event: Event) -> None:
        """Let `event` wait no longer."""
        self._remove(event.id)

    def _remove(self, event_id: bytes) -> None:
        event, sender = self._events.pop(event_id)
        self._counts[sender] -= 1
        if not self._counts[sender]:
            del self._counts[sender]
        for parent in event.parents:
            self._children[parent].discard(event_id)
            if not self._children[parent]:
                del self._children[parent]
