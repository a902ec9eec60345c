"""This node on each of its networks: every transport is started, listened on and kept by a task of its own.

A node is there as soon as one transport is. The others join when they can; one that does not work is tried
again and holds nothing up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext

import anyio
from anyio.abc import TaskStatus

from overlay.connection import ConnectionLayer, Listener, Transport
from overlay.errors import OverlayError, TransportUnavailableError
from overlay.identity import Entropy
from overlay.locators import NodeLocator

FIRST_PAUSE = 2.0
LAST_PAUSE = 60.0
"""Seconds between tries of a transport that does not work: doubled each time, up to a minute, so that whoever
starts the missing program does not wait long."""

Serve = Callable[[Listener, str], Awaitable[None]]
"""Takes the connections of a listener, of the network with this name, until cancelled."""


class Presence:
    """Enters transports, listens on them and tells where.

    Args:
        layer: the transports, in the user's order. One that is started already belongs to somebody else too:
            it is listened on, and left running.
        serve: takes connections.
        published: told of all locators that may be published, in the order of the transports, whenever they
            change: the first time when the first transport listens.
        changed: called when `waiting` or `failing` may have changed, or the status of a transport.
        entropy: jitter.
    """

    def __init__(
        self,
        layer: ConnectionLayer,
        *,
        serve: Serve,
        published: Callable[[list[NodeLocator]], None],
        changed: Callable[[], None],
        entropy: Entropy,
    ) -> None:
        self._layer = layer
        self._serve = serve
        self._published = published
        self._changed = changed
        self._entropy = entropy
        self._locators: dict[Transport, tuple[NodeLocator, ...]] = {}
        self._failures: dict[Transport, OverlayError] = {}
        for transport in layer.transports:
            transport.observe(lambda _: changed())

    @property
    def waiting(self) -> list[Transport]:
        """The transports whose first attempt is not over."""
        return [each for each in self._layer.transports if not self._tried(each)]

    @property
    def failing(self) -> dict[str, str]:
        """Why transports do not work that were tried, by name."""
        failing = {each.name: str(error) for each, error in self._failures.items()}
        for each in self._locators:
            if each not in self._failures and each.status.state != "ready":
                failing[each.name] = _how(each)
        return failing

    def check(self) -> None:
        """Make sure that some transport works.

        Raises:
            TransportUnavailableError: none does at the moment, and why.
        """
        late = [each for each in self._layer.transports if each.status.state != "ready"]
        if late and len(late) == len(self._layer.transports):
            reasons = "; ".join(f"{each.name} is {_how(each)}" for each in late)
            raise TransportUnavailableError(f"this node is on no network at the moment: {reasons}")

    async def run(self, *, task_status: TaskStatus[OverlayError | None]) -> None:
        """Be there until cancelled, or until the first attempt of every transport has failed.

        `task_status` tells None as soon as one transport listens, or, when none does, why the first does not.
        Afterwards, also after cancellation, every transport has been left.
        """
        self._locators.clear()
        self._failures.clear()
        async with anyio.create_task_group() as group:
            started = anyio.Event()
            for transport in self._layer.transports:
                group.start_soon(self._keep, transport, started)
            if self._layer.transports:
                await started.wait()
            if self._failures and not self._locators:
                group.cancel_scope.cancel()
                task_status.started(self._failures[self._layer.transports[0]])
                return
            task_status.started(None)

    async def _keep(self, transport: Transport, started: anyio.Event) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                async with _started(transport), await transport.listen() as listener:
                    self._listens(transport, listener)
                    started.set()
                    await self._serve(listener, transport.name)
            except OverlayError as error:
                self._fails(transport, error)
            if not self._locators and not self.waiting:
                started.set()
            await anyio.sleep(pause * (0.75 + self._entropy(1)[0] / 510))
            pause = min(pause * 2, LAST_PAUSE)

    def _listens(self, transport: Transport, listener: Listener) -> None:
        self._failures.pop(transport, None)
        self._locators[transport] = tuple(listener.locators)
        published: list[NodeLocator] = []
        for each in self._layer.transports:
            if self._layer.may_publish(each):
                published += self._locators.get(each, ())
        self._published(published)
        self._changed()

    def _fails(self, transport: Transport, error: OverlayError) -> None:
        self._failures[transport] = error
        self._changed()

    def _tried(self, transport: Transport) -> bool:
        return transport in self._locators or transport in self._failures


def _how(transport: Transport) -> str:
    status = transport.status
    return f"{status.state}: {status.detail}" if status.detail else status.state


def _started(transport: Transport) -> AbstractAsyncContextManager[object, bool | None]:
    idle = transport.status.state in {"stopped", "failed"}
    return transport if idle else nullcontext()
