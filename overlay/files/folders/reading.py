"""Reading a manifest that was fetched, from the disk and piece by piece."""

from __future__ import annotations

from collections.abc import Callable

from anyio import to_thread

from overlay.files.disk.target import Target
from overlay.files.manifest.codec import Entry, ManifestReader

PIECE_BYTES = 65_536
"""Bytes of a manifest that are read in one step of a thread: some 500 entries."""


class Reading:
    """Goes through a manifest once, a few hundred entries at a time.

    Args:
        manifest: all of it was fetched.
        is_wanted: says which entries to give; None for all.
    """

    def __init__(self, manifest: Target, is_wanted: Callable[[Entry], bool] | None) -> None:
        self._manifest = manifest
        self._is_wanted = is_wanted
        self._reader = ManifestReader()
        self._offset = 0

    async def next(self) -> list[Entry] | None:
        """Give the next entries, perhaps none; None at the end.

        Raises:
            MalformedError: the manifest is not as it must be.
            StorageError: the disk fails.
        """
        left = self._manifest.tree.present - self._offset
        if not left:
            self._reader.finish()
            return None
        piece = await self._manifest.read(self._offset, min(PIECE_BYTES, left))
        self._offset += len(piece)
        return await to_thread.run_sync(self._parse, piece)

    def _parse(self, piece: bytes) -> list[Entry]:
        entries = self._reader.feed(piece)
        return entries if self._is_wanted is None else [entry for entry in entries if self._is_wanted(entry)]
