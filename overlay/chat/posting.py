"""Posting a file: its chunks are stored at other nodes before anybody is told of it."""

from __future__ import annotations

from pathlib import Path

from overlay.chat.events import MAX_HOLDERS, File
from overlay.chat.texts import check_file_name
from overlay.files.sharing.shares import Progress
from overlay.files.storing import store_file
from overlay.peer.node import Node


async def post_file(node: Node, path: Path, progress: Progress | None = None) -> File:
    """Store a file's chunks at other nodes.

    Args:
        node: whose peers keep the chunks, never itself.
        path: a regular file.
        progress: told after each batch.

    Returns:
        what the session's participants need to know; every chunk is on the holders' disks.

    Raises:
        MalformedError: its name cannot be told to others.
        OverlayError: see `store_file`; nothing is posted.
    """
    check_file_name(path.name)
    stored = await store_file(node, path, progress, most=MAX_HOLDERS)
    return File(
        name=path.name,
        size=stored.size,
        capability=stored.capability.to_bytes(),
        holders=tuple(holder.value for holder in stored.holders),
    )
