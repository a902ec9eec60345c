"""A value that must not be read in a log line.

The house rule: keys, message text and file names are never logged at all; addresses and identifiers
are logged at debug level only, and wrapped in `Sensitive` wherever a line could end up at a higher one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sensitive(Generic[T]):
    """Holds a value whose text form is always `[hidden]`; the value itself is in `.value`."""

    value: T = field(repr=False)

    def __repr__(self) -> str:
        """Hide the value."""
        return "[hidden]"

    __str__ = __repr__
