"""How a node that runs on a home stands, from its first moment to its last.

The control socket answers before the node does: transports may take a minute to start. Until then verbs
that need the node say what it waits for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import anyio

from overlay.chat.service import Chat
from overlay.connection import Transport
from overlay.errors import TransportUnavailableError
from overlay.files.service import Files
from overlay.identity import NodeIdentifier
from overlay.locators import NodeLocator
from overlay.peer.node import Node

State = Literal["starting", "joining", "ready", "no-directory", "stopping"]


@dataclass(frozen=True, slots=True)
class RuntimeStatus:
    """How it stands: `NodeStatus`, and `stopping` once the node was told to end."""

    state: State
    detail: str
    locators: tuple[NodeLocator, ...]


@dataclass(frozen=True, slots=True)
class Services:
    """What runs on a node that has started."""

    node: Node
    chat: Chat
    files: Files


class Runtime:
    """One run of a node.

    Args:
        identifier: the node's.
        name: how its user is called where no other name is given.
        transports: those that were chosen.
    """

    def __init__(self, identifier: NodeIdentifier, name: str, transports: Sequence[Transport]) -> None:
        self.identifier = identifier
        self.name = name
        self.transports = tuple(transports)
        self._services: Services | None = None
        self._stop = anyio.Event()
        self._changed = anyio.Event()
        for transport in self.transports:
            transport.observe(lambda _: self._tell_changed())

    @property
    def status(self) -> RuntimeStatus:
        """How it stands now."""
        node = None if self._services is None else self._services.node.status
        if self._stop.is_set() or (node is not None and node.state == "starting"):
            # A node that has listened and listens no more is about to end.
            return RuntimeStatus("stopping", "the node is ending", ())
        if node is None:
            return RuntimeStatus("starting", self._waiting_for(), ())
        if all(each.status.state != "ready" for each in self.transports):
            return RuntimeStatus("starting", self._waiting_for(), node.locators)
        return RuntimeStatus(node.state, node.detail, node.locators)

    @property
    def found(self) -> Services | None:
        """The node and what runs on it, once it has started and until it is told to end."""
        return None if self._stop.is_set() else self._services

    @property
    def services(self) -> Services:
        """The node and what runs on it.

        Raises:
            TransportUnavailableError: it has not started yet, or is ending.
        """
        if self.found is None:
            raise TransportUnavailableError(f"the node is not ready: {self.status.detail}")
        return self.found

    def started(self, services: Services) -> None:
        """Take note of the node once it listens."""
        self._services = services
        self._tell_changed()

    def stop(self) -> None:
        """Tell the node to end."""
        self._stop.set()
        self._tell_changed()

    async def wait_stop(self) -> None:
        """Wait until the node was told to end."""
        await self._stop.wait()

    async def wait_changed(self) -> None:
        """Wait until `status` may have changed."""
        changed = self._changed
        if self._services is None:
            await changed.wait()
            return
        async with anyio.create_task_group() as tasks:

            async def wait_node(node: Node) -> None:
                await node.wait_changed()
                self._tell_changed()

            tasks.start_soon(wait_node, self._services.node)
            await changed.wait()
            tasks.cancel_scope.cancel()

    async def wait_ready(self, seconds: float) -> None:
        """Wait until the state is `ready` or `stopping`, or the seconds have passed."""
        with anyio.move_on_after(seconds):
            while self.status.state not in {"ready", "stopping"}:
                await self.wait_changed()

    def _waiting_for(self) -> str:
        late = [each for each in self.transports if each.status.state != "ready"]
        parts = [f"{each.name} {each.status.progress}% {each.status.detail}".strip() for each in late]
        return "waiting for " + "; ".join(parts) if parts else "the node is about to listen"

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
