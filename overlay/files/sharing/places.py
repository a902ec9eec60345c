"""Looking up chunks of what is offered: from which file a leaf is made, and what is kept of the trees.

It reads the tables of `index`. Used by `chunks` only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import apsw

from overlay.files.sharing.records import Place, Stamp
from overlay.units.capability import HASH_BYTES, PAIR_BYTES, ReadCapability, apply_cipher, chunk_reference

MAX_PLACES = 8
"""Shares that one leaf is looked for in until one has it unchanged: equal files of a folder, some of which
may be gone. The next request tries others."""

MIN_UNFOLDED_LEVEL = 2
"""Level of the root from which on those beneath it are nodes and not leaves."""


def places(connection: apsw.Connection, references: Iterable[bytes]) -> dict[bytes, tuple[Place, ...]]:
    """Say of each reference where such a leaf is made from; of nodes, and what is not known, nothing."""
    origins: dict[int, Place] = {}
    return {reference: _places(connection, reference, origins) for reference in references}


def nodes(connection: apsw.Connection, references: Iterable[bytes]) -> dict[bytes, bytes | None]:
    """Give the chunks that are kept because they cannot be made anew, each verified."""
    return {reference: _chunk(connection, reference) for reference in references}


def unfold(connection: apsw.Connection, root: bytes, number: int) -> bytes | None:
    """Find a node by its number beneath the root of its tree, see `overlay.peer.chunks.Unfold`.

    Anybody may ask for it as often as they like, so that it is no more than two chunks to look up.
    """
    rows = connection.execute(
        "SELECT capability FROM share_chunks JOIN shares ON id = share"
        " WHERE reference = ? AND state = 'offered'",
        (root,),
    )
    capabilities = [ReadCapability.from_bytes(capability) for (capability,) in rows]
    found = next((each for each in capabilities if each.reference == root), None)
    if found is None or found.level < MIN_UNFOLDED_LEVEL:
        return None
    chunk = _chunk(connection, root)
    if chunk is None:
        return None
    pairs = apply_cipher(found.key, found.level, chunk)
    reference = pairs[(number - 1) * PAIR_BYTES :][:HASH_BYTES]
    return _chunk(connection, reference)  # where there are fewer, zeros, which no chunk has for its hash


def _places(connection: apsw.Connection, reference: bytes, origins: dict[int, Place]) -> tuple[Place, ...]:
    """Look up a leaf; most leaves of a request are of one share, which is then read once."""
    # What is known to have a problem is tried only where nothing better is left; it may be well again.
    for condition in ("problem IS NULL", "problem IS NOT NULL"):
        found: list[Any] = connection.execute(
            "SELECT share, number, key FROM share_leaves JOIN shares ON id = share"  # noqa: S608 - words of this module
            f" WHERE reference = ? AND state = 'offered' AND {condition} LIMIT {MAX_PLACES}",
            (reference,),
        ).fetchall()
        if found:
            break
    places: list[Place] = []
    for share, number, key in found:
        if share not in origins:
            origins[share] = _origin(connection, share)
        places.append(origins[share]._replace(number=number, key=key))
    return tuple(places)


def _origin(connection: apsw.Connection, share: int) -> Place:
    """What all leaves of a share have in common, as the place of the first."""
    path, *stamp, secret, capability, problem = connection.execute(
        "SELECT path, size, modified, touched, secret, capability, problem FROM shares WHERE id = ?", (share,)
    ).get
    block_size = ReadCapability.from_bytes(capability).block_size
    return Place(share, Path(os.fsdecode(path)), Stamp(*stamp), secret, block_size, 0, None, problem)


def _chunk(connection: apsw.Connection, reference: bytes) -> bytes | None:
    content = connection.execute(
        "SELECT content FROM share_chunks JOIN shares ON id = share"
        " WHERE reference = ? AND state = 'offered' LIMIT 1",
        (reference,),
    ).get
    return content if isinstance(content, bytes) and chunk_reference(content) == reference else None
