"""Who takes part, as of an event: small enough to be kept for every event of a long history. Pure.

Whoever has an invite can sign any number of branches in each of which somebody else joins, so rosters cannot
be counted on to be few, nor to be alike. Participants are numbered as they come to be known here, and a
roster is a bit for each of them: 128 bytes where 1024 have joined.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Roster:
    """Who has joined and who has left, as of one event and all its ancestors; each is a set of bits."""

    joined: int = 0
    left: int = 0

    @property
    def size(self) -> int:
        """About how many bytes it takes in memory."""
        return _OBJECT_BYTES + (self.joined.bit_length() + self.left.bit_length()) // 8

    @property
    def count(self) -> int:
        """How many have joined."""
        return self.joined.bit_count()

    def merge(self, other: Roster) -> Roster:
        """Both together; the same object where one says it all, so that a long history shares few."""
        joined, left = _union(self.joined, other.joined), _union(self.left, other.left)
        for roster in (self, other):
            if joined is roster.joined and left is roster.left:
                return roster
        return Roster(joined, left)


_OBJECT_BYTES = 128
"""A roster and its two numbers when there is nothing in them."""


class Members:
    """The number of each key that has joined in some branch, in the order in which they came to be known."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def bit(self, author: bytes) -> int:
        """The bit that stands for `author` in a roster; none for a key that has joined nowhere."""
        number = self._numbers.get(author)
        return 0 if number is None else 1 << number

    def join(self, roster: Roster, author: bytes) -> Roster:
        """The roster once `author` has joined."""
        self._numbers.setdefault(author, len(self._numbers))
        return Roster(roster.joined | self.bit(author), roster.left)

    def leave(self, roster: Roster, author: bytes) -> Roster:
        """The roster once `author` has left."""
        return Roster(roster.joined, roster.left | self.bit(author))


def _union(one: int, other: int) -> int:
    """The bits of both; one of the two objects where it has them all."""
    both = one | other
    if both == one:
        return one
    return other if both == other else both
