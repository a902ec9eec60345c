"""The driver of a transfer: opens the circuits, asks for the chunks, and hands them to the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from overlay.errors import (
    MalformedError,
    NotFoundError,
    OverlayError,
    RefusedError,
    StorageError,
    UnreachableError,
    VerificationError,
)
from overlay.files.engine.actions import Ask, Close, Open, Snapshot
from overlay.files.engine.providers import Candidates, Reason
from overlay.files.engine.transfer import MAX_CIRCUITS, Transfer
from overlay.files.fetching.ahead import Ahead
from overlay.files.fetching.bell import Bell
from overlay.files.fetching.keeper import FreshCircuits, Lender, Loan
from overlay.files.fetching.pace import Pace
from overlay.files.fetching.sink import Sink
from overlay.identity import NodeIdentifier
from overlay.peer.node import Node
from overlay.units.eris import chunk_reference

FLUSH_CHUNKS = 16
"""Chunks of one request that are written together: half a MiB, so that steps of threads are not felt."""

Report = Callable[[Snapshot], None]
"""Told now and then how far a transfer is."""

_FAILURES: dict[Reason, OverlayError] = {
    Reason.UNREACHABLE: UnreachableError("nobody who may have what is missing was reached: try again later"),
    Reason.ABSENT: NotFoundError("nobody has all of this any more: ask for it to be shared again"),
    Reason.NOBODY: NotFoundError("nobody is known who has this: ask for a link that names a provider"),
}


async def fetch(
    node: Node,
    target: Sink,
    candidates: Candidates,
    report: Report | None = None,
    *,
    max_circuits: int = MAX_CIRCUITS,
    pace: Pace | None = None,
    circuits: Lender | None = None,
    bell: Bell | None = None,
) -> None:
    """Bring all that a target lacks, over several anonymous circuits at once; in the end it is flushed.

    Args:
        node: opens the circuits.
        target: what is fetched; not finished here.
        candidates: nodes that may have it.
        report: told after each step.
        max_circuits: circuits at once.
        pace: how fast it may be.
        circuits: where they come from, if not each is opened anew.
        bell: rung when something came or failed; whoever adds to what the target wants rings it too.

    Raises:
        UnreachableError: nobody who may have the rest is reached.
        NotFoundError: nobody is known, or everybody says that some of it is not there.
        VerificationError: those who are said to have it, and answered, sent something else.
        MalformedError: the capability is wrong: what it leads to is no content.
        StorageError: the disk is full or fails.
        Failed or cancelled, the target has all that came.
    """
    transfer = Transfer(
        target.tree, candidates, chunk_bytes=target.tree.block_size, max_circuits=max_circuits
    )
    driver = _Driver(node, target, transfer, report, pace or Pace(shared=node.chunks.down))
    driver.lender = circuits or driver.lender
    driver.bell = bell or driver.bell
    async with anyio.create_task_group() as tasks:
        await driver.run(tasks)
        tasks.cancel_scope.cancel()
    if driver.error is not None:
        raise driver.error
    if transfer.failure is not None:
        raise driver.why(transfer.failure, candidates)
    await target.flush()  # whoever was writing the last chunks ended with the transfer


@dataclass(slots=True)
class _Circuit:
    provider: NodeIdentifier
    scope: anyio.CancelScope
    loan: Loan | None = None


class _Driver:
    def __init__(
        self, node: Node, target: Sink, transfer: Transfer, report: Report | None, pace: Pace
    ) -> None:
        self.error: OverlayError | None = None
        self._node = node
        self._target = target
        self._transfer = transfer
        self._report = report
        self._pace = pace
        self._circuits: dict[int, _Circuit] = {}
        self._refusals: dict[NodeIdentifier, RefusedError] = {}
        self._ahead = Ahead(target.tree)
        self.lender: Lender = FreshCircuits(node)
        self.bell = Bell()

    async def run(self, tasks: TaskGroup) -> None:
        """Do what the engine says until it is done or has failed, or the target has."""
        while True:
            changed = self.bell.next
            self._transfer.limit_outstanding(self._pace.outstanding)
            for action in self._transfer.next_actions(anyio.current_time()):
                self._do(action, tasks)
            if self._report is not None:
                self._report(self._transfer.snapshot(anyio.current_time()))
            if self.error is not None or self._transfer.done or self._transfer.failure is not None:
                return
            with anyio.CancelScope(deadline=self._transfer.deadline()):
                await changed.wait()

    def why(self, reason: Reason, candidates: Candidates) -> OverlayError:
        """Say why the transfer failed, as far as that helps whoever wanted it."""
        lie = candidates.past.accusation
        if reason is Reason.LIED:
            return VerificationError(f"{lie} than was asked for: ask for another link")
        refusals = [self._refusals.get(node) for node in candidates.named]
        if reason is Reason.UNREACHABLE and refusals and all(refusals):  # no later time helps
            return UnreachableError(str(refusals[0]))
        failure = _FAILURES[reason]
        return type(failure)(f"{failure}; {lie}") if lie else failure

    def _do(self, action: Open | Ask | Close, tasks: TaskGroup) -> None:
        match action:
            case Open(number, provider):
                circuit = self._circuits[number] = _Circuit(provider, anyio.CancelScope())
                tasks.start_soon(self._keep, number, circuit)
            case Ask(number, request, references):
                circuit = self._circuits[number]
                if circuit.loan is not None:
                    tasks.start_soon(self._ask, circuit.loan, request, references)
            case Close(number):
                if number in self._circuits:
                    self._close(self._circuits.pop(number))

    def _close(self, circuit: _Circuit) -> None:
        if circuit.loan is not None:  # before it is done, only those are closed that do not pay
            circuit.loan.keep = self._transfer.done
        circuit.scope.cancel()

    async def _keep(self, number: int, circuit: _Circuit) -> None:
        """Open a circuit, and keep it until it dies or is closed."""
        with circuit.scope:
            try:
                async with self.lender.lend(circuit.provider) as loan:
                    circuit.loan = loan
                    self._transfer.opened(number, anyio.current_time())
                    self.bell.ring()
                    await self._ask_ahead(loan)
                    await loan.channel.wait_closed()
                self._transfer.lost(number, anyio.current_time())
            except OverlayError as error:
                if isinstance(error, RefusedError):
                    self._refusals[circuit.provider] = error
                permanent = isinstance(error, RefusedError | NotFoundError | VerificationError)
                self._transfer.open_failed(number, anyio.current_time(), permanent=permanent)
            self._circuits.pop(number, None)
            self.bell.ring()

    async def _ask(self, loan: Loan, request: int, references: Sequence[bytes]) -> None:
        taken = 0

        async def take(reference: bytes, chunk: bytes) -> None:
            nonlocal taken
            await self._pace.pass_on(len(chunk))
            taken += 1
            self._take(request, reference, chunk)
            if taken % FLUSH_CHUNKS == 0:
                await self._flush()

        with suppress(StorageError, MalformedError):  # noted; the run ends with it
            try:
                await self._node.chunks.fetch_over(loan.channel, references, take)
            except OverlayError as error:
                lied = isinstance(error, VerificationError)
                self._transfer.failed(request, anyio.current_time(), lied=lied)
            await self._flush()
            self._transfer.answered(request, (), anyio.current_time())
        self.bell.ring()

    async def _ask_ahead(self, loan: Loan) -> None:
        chosen = self._ahead.choose()
        if chosen is None:
            return
        root, number = chosen
        with suppress(OverlayError):  # a courtesy, which nobody owes
            chunk = await self._node.chunks.unfold_over(loan.channel, root, number)
            await self._pace.pass_on(len(chunk))
            self._ahead.keep(chunk)
        if not self._target.tree.unfolds(root):
            with suppress(StorageError, MalformedError):  # noted; the run ends with it
                self._take_ahead()
                await self._flush()  # what is beneath is looked for on disk before it is wanted
            self.bell.ring()

    def _take_ahead(self) -> None:
        """Hand the target what came ahead of a root that is here.

        Raises:
            MalformedError: see `_take`.
        """
        for chunk in self._ahead.take():
            self._take(0, chunk_reference(chunk), chunk)

    def _take(self, request: int, reference: bytes, chunk: bytes) -> None:
        """Hand a chunk to the target.

        Raises:
            MalformedError: it is the right chunk of a wrong tree; nobody has a better one.
        """
        try:
            self._target.take(reference, chunk)
        except MalformedError as error:
            self.error = error
            raise
        self._take_ahead()
        if self._transfer.progressed(request, reference, anyio.current_time()):
            self.bell.ring()

    async def _flush(self) -> None:
        """Write what came.

        Raises:
            StorageError: the disk is full or fails.
            MalformedError: ill-formed content was on disk.
        """
        try:
            await self._target.flush()
        except (StorageError, MalformedError) as error:
            self.error = error
            raise
        finally:
            self.bell.ring()
