"""What an in-memory network does to traffic: the contract for policies, and the policy that does nothing.

Transports are named by their numbers, the ones in their memory locators. A delay is in seconds;
`math.inf` means never, as when packets vanish; `None` means that the connection ends, at once.
"""

from __future__ import annotations

from typing import Protocol, Self


class LinkConditions(Protocol):
    """What happens to one connection. Asked once for the dial, then once for each piece that is sent."""

    def dial(self) -> float | None:
        """Seconds that the dial takes, or None when it is refused."""

    def carry(self, size: int, *, outward: bool) -> float | None:
        """Decide on `size` bytes; 0 bytes are the end of the stream.

        Args:
            size: length of the piece.
            outward: from the caller to the called; otherwise the way back.

        Returns:
            seconds until they arrive (pieces never overtake each other), or None when the connection dies.
        """


class Conditions(Protocol):
    """What happens in a network."""

    def between(self, caller: int, called: int) -> LinkConditions:
        """Give the conditions of a new connection, before it is dialled."""


class PerfectConditions:
    """Every dial gets through, and every byte arrives at once."""

    def between(self, caller: int, called: int) -> Self:  # noqa: ARG002 - the protocol's signature
        """Give the same conditions for every connection."""
        return self

    def dial(self) -> float:
        """Take no time."""
        return 0.0

    def carry(self, size: int, *, outward: bool) -> float:  # noqa: ARG002 - the protocol's signature
        """Take no time."""
        return 0.0
