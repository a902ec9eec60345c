"""What a node asks of whatever model finds nodes and units for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from overlay.identity import NodeIdentifier
from overlay.peer.announcement import Announcement
from overlay.units.identifiers import UnitIdentifier


@dataclass(frozen=True, slots=True)
class Registration:
    """The confirmation of a registration.

    Attributes:
        number: how many nodes had registered before, a number for people.
        nodes: how many are registered now.
    """

    number: int
    nodes: int


class Model(ABC):
    """A way to make this node known, and to find others and their units."""

    @abstractmethod
    async def register(self) -> Registration:
        """Make this node known, with its current record, and learn of others.

        Raises:
            UnreachableError: nobody of the model's nodes was reached.
            RefusedError: they do not take this node.
        """

    @abstractmethod
    async def find_node(self, node: NodeIdentifier) -> bytes | None:
        """Ask for a node's record, not yet verified; None when nobody knows it or nobody was reached."""

    @abstractmethod
    async def announce(self, announcement: Announcement) -> None:
        """Make a unit known.

        Raises:
            UnreachableError, RefusedError: as for `register`.
        """

    @abstractmethod
    async def find_unit(self, unit: UnitIdentifier) -> Sequence[Announcement]:
        """Ask who holds a unit; verified, newest first, perhaps none.

        Raises:
            UnreachableError: nobody was reached.
        """
