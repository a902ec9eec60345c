from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import anyio
import pytest

from overlay.chat.service import Chat
from overlay.chat.store import CHAT_SCHEMA
from overlay.connection import TransportStatus
from overlay.control.runtime import Runtime, Services
from overlay.errors import TransportUnavailableError
from overlay.files.service import Files
from overlay.locators import LocatorRecord
from overlay.peer.node import NodeOptions
from overlay.testing.nodes import World
from overlay.transports.memory import MEMORY_PROPERTIES, MemoryNetwork, MemoryTransport


def idle_transport() -> MemoryTransport:
    return World().network.transport(properties=MEMORY_PROPERTIES, number=1)


@asynccontextmanager
async def services(
    world: World, options: NodeOptions | None = None
) -> AsyncIterator[tuple[Services, MemoryTransport]]:
    """A node with its only transport, which it has started."""
    transport = world.network.transport(number=1)
    async with (
        world.database(CHAT_SCHEMA) as database,
        world.node("ann", database, options=options, transports=[transport]) as node,
    ):
        yield Services(node, Chat(node, database), Files(node, database)), transport


async def test_before_the_node_it_says_what_it_waits_for() -> None:
    transport = idle_transport()
    runtime = Runtime(World().secret("ann").identifier, "Ann", [transport])
    assert runtime.status.state == "starting"
    assert "memory 0%" in runtime.status.detail
    assert runtime.found is None
    with pytest.raises(TransportUnavailableError, match="memory"):
        _ = runtime.services
    async with transport:
        assert "about to listen" in runtime.status.detail


async def test_a_transport_that_gets_on_is_a_change() -> None:
    transport = idle_transport()
    runtime = Runtime(World().secret("ann").identifier, "Ann", [transport])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.wait_changed)
        await anyio.wait_all_tasks_blocked()
        await transport.__aenter__()
    await transport.__aexit__(None, None, None)


async def test_with_the_node_it_is_ready_and_when_told_to_it_stops() -> None:
    async with services(World()) as (found, transport):
        runtime = Runtime(found.node.identifier, "Ann", [transport])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.wait_ready, 3600)
            await anyio.wait_all_tasks_blocked()
            runtime.started(found)
        ready = runtime.status
        assert (ready.state, ready.locators) == ("ready", found.node.record.locators)
        assert runtime.services is found
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.wait_stop)
            tasks.start_soon(runtime.wait_changed)
            await anyio.wait_all_tasks_blocked()
            runtime.stop()
        assert runtime.status.state == "stopping"
        with pytest.raises(TransportUnavailableError):
            _ = runtime.services
        await runtime.wait_ready(3600)


class Late(MemoryTransport):
    """A transport that is told when to fail at starting."""

    def __init__(self, network: MemoryNetwork) -> None:
        super().__init__(network)
        self.fail = anyio.Event()

    async def __aenter__(self) -> Self:
        self._report(TransportStatus("starting", "on its way", 50))
        await self.fail.wait()
        self._report(TransportStatus("failed", "no router"))
        raise TransportUnavailableError("no router")


async def test_it_is_ready_when_every_transport_was_tried_once() -> None:
    world = World()
    late = Late(MemoryNetwork(protocol="garlic32"))
    transports = [world.network.transport(number=1), late]
    async with (
        world.database(CHAT_SCHEMA) as database,
        world.node("ann", database, transports=transports) as node,
    ):
        runtime = Runtime(node.identifier, "Ann", transports)
        runtime.started(Services(node, Chat(node, database), Files(node, database)))
        await runtime.wait_ready(0.1)
        assert (runtime.status.state, "on its way" in runtime.status.detail) == ("joining", True)
        assert runtime.found is not None
        late.fail.set()
        with anyio.fail_after(5):
            await runtime.wait_ready(3600)
        assert (runtime.status.state, "no router" in runtime.status.detail) == ("ready", True)


async def test_a_node_whose_only_transport_is_lost_is_not_ready_until_it_is_back() -> None:
    async with services(World()) as (found, transport):
        runtime = Runtime(found.node.identifier, "Ann", [transport])
        runtime.started(found)
        assert runtime.status.state == "ready"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.wait_changed)
            await anyio.wait_all_tasks_blocked()
            transport._report(TransportStatus("starting", "its router is gone", 10))
        lost = runtime.status
        assert (lost.state, lost.detail) == ("starting", "waiting for memory 10% its router is gone")
        assert lost.locators == found.node.record.locators
        assert runtime.found is found  # what needs no network goes on
        transport._report(TransportStatus("ready", progress=100))
        assert runtime.status.state == "ready"


async def test_of_two_transports_the_lost_one_is_named() -> None:
    world = World()
    kept, lost = world.network.transport(number=1), MemoryTransport(MemoryNetwork(protocol="garlic32"))
    async with (
        world.database(CHAT_SCHEMA) as database,
        world.node("ann", database, transports=[kept, lost]) as node,
    ):
        runtime = Runtime(node.identifier, "Ann", [kept, lost])
        runtime.started(Services(node, Chat(node, database), Files(node, database)))
        await runtime.wait_ready(5)
        assert runtime.status.detail == "ready"
        lost._report(TransportStatus("starting", "its router is gone"))
        assert runtime.status.state == "ready"
        assert "garlic32 does not work: starting: its router is gone" in runtime.status.detail


async def test_a_node_that_no_longer_listens_is_ending() -> None:
    async with services(World()) as (found, transport):
        runtime = Runtime(found.node.identifier, "Ann", [transport])
        runtime.started(found)
    assert runtime.status.state == "stopping"


async def test_changes_of_the_node_are_changes_and_each_wakes_once() -> None:
    world = World()
    async with services(world, NodeOptions(join=lost_directory(world))) as (found, transport):
        runtime = Runtime(found.node.identifier, "Ann", [transport])
        runtime.started(found)
        changes = 0
        with anyio.move_on_after(3):
            while runtime.status.state != "no-directory":
                await runtime.wait_changed()
                changes += 1
        assert runtime.status.state == "no-directory"
        assert 1 <= changes < 10


async def test_waiting_ends_with_its_time() -> None:
    world = World()
    async with services(world, NodeOptions(join=lost_directory(world))) as (found, transport):
        runtime = Runtime(found.node.identifier, "Ann", [transport])
        runtime.started(found)
        await runtime.wait_ready(0.1)
        assert runtime.status.state != "ready"


def lost_directory(world: World) -> LocatorRecord:
    """The record of a directory that nobody runs."""
    return LocatorRecord.sign(world.secret("lost"), [], number=1, now=1_800_000_000, roles=["directory"])
