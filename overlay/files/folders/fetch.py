"""Fetching a folder, or a part of it.

The manifest is fetched first, into a hidden file beside the folder, and read through completely before
anything is created. Then files come, several at once, each as a fetch of its own that goes on where an
earlier one ended: those of small chunks, then those of large ones, each kind in one transfer.

A file that is there with the size that the manifest says is compared first, see `standing`, and counts as
fetched only if its content is right. That too is done before anything is created.

The hidden file stays locked as long as the fetch goes on, so two of one folder to one place never meet. The
next fetch verifies it anew, by the capability.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from anyio import to_thread

from overlay.errors import MalformedError, NotFoundError, RefusedError
from overlay.files.disk.target import Target, open_target
from overlay.files.engine.actions import Snapshot
from overlay.files.engine.providers import Candidates
from overlay.files.fetching.gathering import Supply
from overlay.files.fetching.here import is_folder_here
from overlay.files.fetching.keeper import CircuitKeeper, open_keeper
from overlay.files.fetching.pace import Pace
from overlay.files.fetching.sink import ManifestSink
from overlay.files.folders.bundle import Bundle
from overlay.files.folders.inventory import Inventory
from overlay.files.folders.landing import Landing
from overlay.files.folders.missing import Missing
from overlay.files.folders.order import Found, Order
from overlay.files.folders.passes import Comparing, Fetching, Pass
from overlay.files.manifest.codec import check_manifest_bytes
from overlay.files.manifest.selection import select
from overlay.peer.node import Node

Watch = Callable[["FolderFetch"], None]
"""Told how it stands."""


class FolderFetch:
    """Fetches one folder, once.

    Args:
        node: who asks.
        order: what is asked for.
        candidates: nodes that may have it.
        watch: told after each step.
        pace: how fast it may be.

    Attributes:
        found: what the manifest asks for; None until it was read.
        snapshot: how the transfer stands that goes on; None between two.
        missing: files that are not to be had.

    Raises:
        MalformedError: a pattern is not one.
    """

    def __init__(
        self,
        node: Node,
        order: Order,
        candidates: Candidates,
        watch: Watch | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.found: Found | None = None
        self.snapshot: Snapshot | None = None
        self.missing = Missing()
        self._node = node
        self._order = order
        self._candidates = candidates
        self._watch = watch
        self._pace = pace
        self._is_wanted = select(order.only) if order.only else None
        self._bundle: Bundle | None = None  # what is being brought

    @property
    def size(self) -> int | None:
        """Bytes of all files that are wanted; None until the manifest was read."""
        return None if self.found is None else self.found.size

    @property
    def files(self) -> int:
        """Files that are wanted; 0 until the manifest was read."""
        return 0 if self.found is None else self.found.files

    @property
    def present(self) -> int:
        """Bytes of them that are there."""
        if self.found is None:
            return 0
        later = self.found.standing.total() + self.found.lacking.total()
        return self.found.size - later - self.missing.bytes - (self._bundle.missing if self._bundle else 0)

    async def run(self) -> Found:
        """Fetch it; what an earlier attempt left is gone on with.

        Returns:
            what was asked for; all of it is there.

        Raises:
            RefusedError: a file is there already, something stands in the way, or the same is being fetched.
                What can be seen is told before anything is created.
            MalformedError: the manifest, or what it leads to, is not what it should be.
            NotFoundError: nothing in it is wanted, there is no such destination, or nobody has all of it.
                Files that can be had are there then.
            UnreachableError: nobody who may have the rest was reached; the same.
            VerificationError: those who answered sent something else.
            StorageError: the disk is full or fails.
            Failed or cancelled, files that are whole stay, what came of others is kept, and the next attempt
            goes on.
        """
        order = self._order
        check_manifest_bytes(order.link.size or 0)
        async with (
            open_keeper(self._node) as circuits,
            _landing(order) as landing,
            open_target(
                order.path,  # as errors should name it; its hidden files are those of the manifest alone
                order.link.capability,
                size=order.link.size,
                nameless=True,
            ) as manifest,
        ):
            inventory = Inventory(manifest, landing, order, self._is_wanted)
            supply = await self._find_supply(landing, circuits)
            found = await self._read(manifest, inventory, supply)
            self._tell(None)
            await to_thread.run_sync(landing.check_room, found.lacking.total() - found.kept)
            await inventory.make_folders()
            try:
                await self._go_through(Fetching, found.lacking, inventory, supply)
            except MalformedError:  # one of its files is no content: nobody can fetch all of it
                await manifest.discard()
                raise
            if self.missing.files:
                raise self.missing.error(found.files, self._candidates.past.accusation)
            await manifest.discard()
        return found

    async def _find_supply(self, landing: Landing, circuits: CircuitKeeper) -> Supply:
        link = self._order.link
        self._tell(None)  # a large folder takes a while to be looked through
        room = await to_thread.run_sync(landing.room)
        is_here = await is_folder_here(
            self._node, link.capability, link.size, room=room, is_wanted=self._is_wanted
        )
        return Supply(self._node, self._candidates, self._pace, circuits, is_here)

    async def _read(self, manifest: Target, inventory: Inventory, supply: Supply) -> Found:
        """Fetch the manifest, and look at all of it; what is of no more use is removed.

        Raises:
            MalformedError: see `run`.
            NotFoundError: see `run`.
            RefusedError: see `run`.
            OverlayError: any other that `run` raises.
        """
        sink = ManifestSink(manifest)
        try:
            await supply.take_own(sink)
            await supply.bring(sink, self._tell)
            await inventory.take()
            self.found = inventory.found
            await self._go_through(Comparing, inventory.found.standing, inventory, supply)
        except (MalformedError, NotFoundError, RefusedError) as error:
            if manifest.tree.finished or isinstance(error, MalformedError):
                await manifest.discard()
            raise
        return inventory.found

    async def _go_through(
        self, kind: type[Pass], sizes: Counter[int], inventory: Inventory, supply: Supply
    ) -> None:
        """Compare or fetch files; `sizes` are their bytes by the size of their chunks, and are used up.

        Raises:
            OverlayError: any that `Pass.run` raises.
        """
        for block_size in sorted(sizes):
            self._bundle = Bundle(block_size, sizes.pop(block_size))
            await kind(inventory, supply, self._bundle, self.missing, self._tell).run()

    def _tell(self, snapshot: Snapshot | None) -> None:
        self.snapshot = snapshot
        if self._watch is not None:
            self._watch(self)


@asynccontextmanager
async def _landing(order: Order) -> AsyncIterator[Landing]:
    landing = await to_thread.run_sync(Landing, order.path)
    try:
        yield landing
    finally:
        landing.close()
