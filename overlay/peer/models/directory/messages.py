"""What nodes and their directory say to each other: docs/spec/messages.md, section "Directory". Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

from overlay.locators import MAX_RECORD_BYTES
from overlay.peer.announcement import MAX_ANNOUNCEMENT_BYTES
from overlay.wire.codec import Count, Key32, Message

REGISTER = "directory.register"
LIST = "directory.list"
FIND_NODE = "directory.find-node"
ANNOUNCE = "directory.announce"
FIND_UNIT = "directory.find-unit"
NEW_NODE = "directory.new-node"
NEW_UNIT = "directory.new-unit"

PAGE = 24
"""Entries in one answer: 24 records of the largest size fill 48 KiB of the 63 that an answer carries."""

Record = Annotated[bytes, msgspec.Meta(max_length=MAX_RECORD_BYTES)]
Encoded = Annotated[bytes, msgspec.Meta(max_length=MAX_ANNOUNCEMENT_BYTES)]


class Confirmation(Message, frozen=True):
    """The answer to a registration: the node's number, and how many there are."""

    number: Count
    nodes: Count


class ListRequest(Message, frozen=True):
    """Asks for the entries after `after`, in the order of identifiers; 32 zero bytes for the first page."""

    what: Annotated[str, msgspec.Meta(pattern="^(nodes|units)$")]
    after: Key32


class NodePage(Message, frozen=True):
    """Records of nodes; a page that is not full is the last."""

    records: Annotated[tuple[Record, ...], msgspec.Meta(max_length=PAGE)] = ()


class UnitPage(Message, frozen=True):
    """Announcements of units; a page that is not full is the last."""

    announcements: Annotated[tuple[Encoded, ...], msgspec.Meta(max_length=PAGE)] = ()


class Find(Message, frozen=True):
    """Asks for one node or unit."""

    identifier: Key32
