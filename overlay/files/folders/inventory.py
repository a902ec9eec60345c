"""What is wanted of a folder, and what of it is on disk: found out before anything is created.

Entries are not kept, since there may be a million: the manifest is read anew each time they are needed. Of
each there is one byte, which says what is to be done about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import NamedTuple

from anyio import to_thread

from overlay.errors import MalformedError, NotFoundError, RefusedError
from overlay.files.disk.hidden import is_unfinished
from overlay.files.disk.target import Target
from overlay.files.folders.landing import Landing
from overlay.files.folders.order import Found, Order
from overlay.files.folders.reading import Reading
from overlay.files.manifest.codec import Entry
from overlay.units.capability import ReadCapability


class Need(IntEnum):
    """What is to be done about an entry."""

    NOTHING = 0
    COMPARE = 1
    """A file is there that may be the right one."""
    FETCH = 2


class File(NamedTuple):
    """A file that is wanted.

    Attributes:
        number: among the entries that are wanted.
        entry: what it is.
        path: where it is, or will be.
        capability: reads it.
    """

    number: int
    entry: Entry
    path: Path
    capability: ReadCapability


class Inventory:
    """The entries of a manifest that are wanted.

    Args:
        manifest: all of it was fetched.
        landing: where they come.
        order: what may be replaced.
        is_wanted: says which these are; None for all.

    Attributes:
        found: what they are together, once `take` has looked.
        landing, order: as given.
    """

    def __init__(
        self, manifest: Target, landing: Landing, order: Order, is_wanted: Callable[[Entry], bool] | None
    ) -> None:
        self.found = Found()
        self.landing = landing
        self.order = order
        self._manifest = manifest
        self._is_wanted = is_wanted
        self._needs = bytearray()  # of each entry, in their order

    async def take(self) -> None:
        """Read the whole manifest, and look at what is there; call it once, before all else.

        Raises:
            NotFoundError: nothing in it is wanted.
            MalformedError: it is not as it must be, or a name in it is one that fetches use for themselves.
            RefusedError: a file is there already that may not be replaced, or something stands in the way.
            StorageError: the disk fails.
        """
        reading = self._read()
        while (entries := await reading.next()) is not None:
            await to_thread.run_sync(self._count, entries)
        if self._is_wanted is not None and not self.found.files and not self.found.folders:
            raise NotFoundError("nothing in this folder is called like that: see the patterns after --only")

    async def make_folders(self) -> None:
        """Make the folder itself, and those in it in which nothing is.

        Raises:
            RefusedError: something stands in the way.
            StorageError: one cannot be made.
        """

        def make(entries: Sequence[Entry]) -> None:
            for entry in entries:
                if entry.capability is None:
                    self.landing.make(entry.path)

        reading = self._read()
        await to_thread.run_sync(self.landing.make, ())
        while (entries := await reading.next()) is not None:
            await to_thread.run_sync(make, entries)

    def choose(self, need: Need, block_size: int) -> Chosen:
        """Go through the files of one need whose chunks have one size."""
        return Chosen(self._read(), partial(self._choose, need, block_size))

    def replace(self, file: File) -> None:
        """Note that another file is there, so that this one has to be fetched.

        Raises:
            RefusedError: it may not be replaced.
        """
        self._check_replaceable(file.path)
        self.found.lacking[file.capability.block_size] += file.entry.size
        self._needs[file.number] = Need.FETCH

    def _read(self) -> Reading:
        return Reading(self._manifest, self._is_wanted)

    def _count(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if any(map(is_unfinished, entry.path)):
                raise MalformedError("a file of this folder is called as files are that are not whole yet")
            self._needs.append(self._look(entry))

    def _look(self, entry: Entry) -> Need:
        found, state = self.found, self.landing.look(entry)
        if entry.capability is None:
            found.folders += 1
            return Need.NOTHING
        if state == "other":
            self._check_replaceable(self.landing.path.joinpath(*entry.path))
        found.files += 1
        found.size += entry.size
        if state == "there":
            found.standing[entry.capability.block_size] += entry.size
            return Need.COMPARE
        found.lacking[entry.capability.block_size] += entry.size
        found.kept += min(entry.size, self.landing.kept(entry))
        return Need.FETCH

    def _check_replaceable(self, path: Path) -> None:
        if not self.order.overwrite:
            raise RefusedError(
                f"{path} exists already, and is another file: "
                "name another place, or replace what is there with --force"
            )

    def _choose(self, need: Need, block_size: int, entries: Sequence[Entry], first: int) -> list[File]:
        return [
            File(number, entry, self.landing.path.joinpath(*entry.path), entry.capability)
            for number, entry in enumerate(entries, first)
            if entry.capability is not None
            and entry.capability.block_size == block_size
            and self._needs[number] == need
        ]


class Chosen:
    """Some of the files of an inventory, gone through once; `Inventory.choose` makes it.

    Args:
        reading: gives all entries.
        choose: given some of them and the number of the first, gives the files.
    """

    def __init__(self, reading: Reading, choose: Callable[[Sequence[Entry], int], list[File]]) -> None:
        self._reading = reading
        self._choose = choose
        self._count = 0

    async def next(self) -> list[File] | None:
        """Give the next files, perhaps none; None at the end.

        Raises:
            MalformedError, StorageError: see `Reading.next`.
        """
        entries = await self._reading.next()
        if entries is None:
            return None
        first, self._count = self._count, self._count + len(entries)
        return self._choose(entries, first)
