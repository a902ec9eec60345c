"""Going once through a folder: files about which the same is to be done are brought in one transfer.

Several are open at once. Each is compared, or fetched and finished, by itself, and goes on where an earlier
attempt ended.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from functools import partial
from typing import ClassVar

from anyio import to_thread

from overlay.errors import NotFoundError, UnreachableError, VerificationError
from overlay.files.disk.partial import Details
from overlay.files.disk.target import open_target
from overlay.files.fetching.gathering import Report, Supply
from overlay.files.fetching.together import Start, together
from overlay.files.folders.bundle import Bundle
from overlay.files.folders.inventory import File, Inventory, Need
from overlay.files.folders.missing import Meeting, Missing, give_up_absent, try_alone
from overlay.files.folders.standing import Standing
from overlay.files.manifest.codec import Entry

MAX_OPEN_FILES = 32
"""Files compared or fetched at once. One that is fetched has four descriptors, of its two hidden files and
twice of the folder that it is in. Over Tor a small one takes two round trips, a second."""

MAX_OPEN_BYTES = 64 << 20
"""Bytes that the files begun so far may lack when another one is begun: twice what all circuits have under
way. It bounds what the trees of many large files take in memory; a single file may be larger."""


class Pass(ABC):
    """One way through the files of one need whose chunks have one size.

    Args:
        inventory: says which these are.
        supply: brings what they lack.
        bundle: what they are brought in.
        missing: told which of them are not to be had.
        report: told how the transfer stands.
    """

    need: ClassVar[Need]

    def __init__(
        self, inventory: Inventory, supply: Supply, bundle: Bundle, missing: Missing, report: Report
    ) -> None:
        self._inventory = inventory
        self._landing = inventory.landing
        self._supply = supply
        self._bundle = bundle
        self._missing = missing
        self._report = report
        self._count = 0  # files that are open

    async def run(self) -> None:
        """Go through all of them.

        Raises:
            OverlayError: any that `FolderFetch.run` raises, but for files that are not to be had.
        """
        async with together() as start:
            start(partial(self._feed, start))
            start(self._bring)

    @abstractmethod
    def _open(self, entry: Entry) -> int:
        """Open what the work on a file needs; blocks.

        Returns:
            a descriptor.
        """

    @abstractmethod
    async def _work(self, file: File, handle: int) -> None:
        """Compare or fetch a file; the descriptor is closed then."""

    async def _feed(self, start: Start) -> None:
        bundle, chosen = self._bundle, self._inventory.choose(self.need, self._bundle.block_size)
        while (files := await chosen.next()) is not None:
            for file in files:
                await self._wait_for_room()
                handle = await to_thread.run_sync(self._open, file.entry)
                bundle.announce(file.path, file.entry.size)
                self._count += 1
                start(partial(self._take, file, handle))
        bundle.end()

    async def _wait_for_room(self) -> None:
        bundle = self._bundle
        while self._count and (self._count >= MAX_OPEN_FILES or bundle.begun_bytes >= MAX_OPEN_BYTES):
            await bundle.bell.next.wait()

    async def _take(self, file: File, handle: int) -> None:
        try:
            await self._work(file, handle)
        finally:
            os.close(handle)
            self._count -= 1
            self._bundle.bell.ring()

    async def _bring(self) -> None:
        """Bring all files that are to be had.

        Raises:
            NotFoundError: nobody is known who may have them.
            UnreachableError: not one of those was reached.
            OverlayError: any other that `Supply.bring` raises, but `VerificationError`.
        """
        bundle = self._bundle
        await bundle.begun.wait()
        while not bundle.finished:
            meeting = Meeting(self._report)
            try:
                await self._supply.bring(bundle, meeting, bundle.bell)
                continue
            except VerificationError as error:  # of whom was met, now or in an earlier transfer
                self._missing.judge(error)
                all_answered = True
            except (NotFoundError, UnreachableError) as error:
                if not meeting.met:
                    raise
                all_answered = isinstance(error, NotFoundError)
            if not (all_answered and await give_up_absent(bundle, meeting.absent)):
                await try_alone(bundle, self._missing, self._supply.bring, self._report)


class Comparing(Pass):
    """Compares files that are there with what they should be; others are fetched later, if they may be."""

    need = Need.COMPARE

    def _open(self, entry: Entry) -> int:
        return self._landing.open(entry)

    async def _work(self, file: File, handle: int) -> None:
        standing = Standing(file.path, handle, file.capability, file.entry.size)
        await standing.flush()
        await self._supply.take_own(standing)
        if not await self._bundle.bring(standing):
            self._missing.add(file.entry, file.entry.size)
        elif standing.differs:
            self._inventory.replace(file)


class Fetching(Pass):
    """Fetches files, and gives each its name when it is whole."""

    need = Need.FETCH

    def _open(self, entry: Entry) -> int:
        return self._landing.enter(entry.path[:-1])

    async def _work(self, file: File, handle: int) -> None:
        entry, overwrite = file.entry, self._inventory.order.overwrite
        async with open_target(
            file.path, file.capability, size=entry.size, overwrite=overwrite, folder=handle
        ) as target:
            await self._supply.take_own(target)
            if await self._bundle.bring(target):
                await target.finish(Details(entry.modified, entry.executable))
            else:
                left = target.tree.missing
                self._missing.add(entry, entry.size if left is None else left)
