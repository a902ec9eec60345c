"""A node that starts with those of its transports that work, and takes in the others when they come."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

import anyio
import pytest

from overlay.connection import ConnectionLayer, Listener, TransportStatus
from overlay.errors import MalformedError, OverlayError, TransportUnavailableError
from overlay.peer import presence
from overlay.peer.node import Node, NodeOptions
from overlay.testing.nodes import World
from overlay.testing.simulation import Latency, SimulatedNetwork
from overlay.transports.memory import MemoryTransport

VIRTUAL = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)  # minutes of virtual time


class Late(MemoryTransport):
    """Takes a while to start, and fails some times before it works; counts its tries."""

    def __init__(
        self, network: SimulatedNetwork, number: int, *, seconds: float = 0.0, failures: float = 0
    ) -> None:
        super().__init__(network.memory, number=number)
        self.seconds = seconds
        self.failures = failures
        self.tries: list[float] = []
        self.at_listen: OverlayError | None = None

    async def __aenter__(self) -> Self:
        self._report(TransportStatus("starting", "looking for its router"))
        self.tries.append(anyio.current_time())
        await anyio.sleep(self.seconds)
        if len(self.tries) <= self.failures:
            self._report(TransportStatus("failed", "no router"))
            raise TransportUnavailableError(f"{self.name}: there is no router")
        return await super().__aenter__()

    async def listen(self) -> Listener:
        if self.at_listen is not None:
            raise self.at_listen
        return await super().listen()


class Place:
    def __init__(self) -> None:
        self.world = World(9, latency=Latency(0.001))
        self.tor = self.world.further_network("onion3")
        self.i2p = self.world.further_network("garlic32")

    def late(self, name: str, network: SimulatedNetwork, **how: Any) -> Late:  # noqa: ANN401 - as Late has it
        return Late(network, self.world.number(name), **how)

    @asynccontextmanager
    async def node(
        self, name: str, *transports: Late, options: NodeOptions | None = None
    ) -> AsyncIterator[Node]:
        async with (
            self.world.database() as database,
            self.world.node(name, database, transports=transports, options=options) as node,
        ):
            yield node


@asynccontextmanager
async def failing(expected: str, kind: type[OverlayError] = TransportUnavailableError) -> AsyncIterator[None]:
    """The one error of a node that does not start."""
    with pytest.RaisesGroup(pytest.RaisesExc(kind, match=expected), flatten_subgroups=True):
        yield


async def until(node: Node, condition: Callable[[], bool]) -> None:
    with anyio.fail_after(3600):
        while not condition():
            await node.wait_changed()


async def test_the_only_transport_that_does_not_work_ends_the_node() -> None:
    place = Place()
    alone = place.late("alice", place.tor, failures=1)
    async with failing("onion3: there is no router"), place.node("alice", alone):
        pytest.fail("it started")
    assert len(alone.tries) == 1
    alone.at_listen = MalformedError("the key file is damaged")
    async with failing("the key file is damaged", MalformedError), place.node("alice", alone):
        pytest.fail("it started")
    assert alone.status.state == "stopped"


async def test_the_error_of_run_is_the_transports_own() -> None:
    place = Place()
    alone = place.late("alice", place.tor, failures=1)
    async with place.world.database() as database:
        node = Node(
            secret=place.world.secret("alice"),
            layer=ConnectionLayer([alone], anonymous=False),
            database=database,
            clock=place.world.clock,
            entropy=place.world.entropy,
            options=NodeOptions(),
        )
        with pytest.raises(TransportUnavailableError, match="there is no router"):
            await node.run()
        assert node.status.state == "starting"


async def test_when_none_works_the_first_is_blamed_and_all_are_left() -> None:
    place = Place()
    first = place.late("alice", place.tor, failures=9, seconds=0.02)
    second = place.late("alice", place.i2p, failures=9)
    async with failing("onion3: there is no router"), place.node("alice", first, second):
        pytest.fail("it started")
    assert (first.status.state, second.status.state) == ("failed", "failed")
    assert len(first.tries) == 1


@VIRTUAL
async def test_a_node_runs_with_the_first_that_listens_and_tells_of_the_second_when_it_comes() -> None:
    place = Place()
    tor, i2p = place.late("alice", place.tor, seconds=30), place.late("alice", place.i2p)
    async with place.node("alice", tor, i2p) as alice:
        assert anyio.current_time() < 1
        assert (alice.status.state, alice.status.detail) == (
            "joining",
            "waiting for onion3: looking for its router",
        )
        assert list(alice.status.locators) == [place.i2p.memory.locator(1)]
        before = alice.record.number
        await until(alice, lambda: alice.status.state == "ready")
        assert anyio.current_time() == pytest.approx(30, abs=1)
        assert list(alice.status.locators) == [place.tor.memory.locator(1), place.i2p.memory.locator(1)]
        assert alice.record.number > before
    assert (tor.status.state, i2p.status.state) == ("stopped", "stopped")


@VIRTUAL
async def test_one_that_never_works_is_tried_again_ever_more_rarely_and_said_to_be_missing() -> None:
    place = Place()
    tor, i2p = place.late("alice", place.tor), place.late("alice", place.i2p, failures=1e9, seconds=1)
    async with place.node("alice", tor, i2p) as alice:
        await until(alice, lambda: alice.status.state == "ready")
        assert alice.status.detail == "ready; garlic32 does not work: garlic32: there is no router"
        assert alice.status.locators == (place.tor.memory.locator(1),)
        await anyio.sleep(3600)
        pauses = [later - earlier for earlier, later in zip(i2p.tries, i2p.tries[1:], strict=False)]
        assert presence.FIRST_PAUSE * 0.75 <= pauses[0] <= presence.FIRST_PAUSE * 1.25 + 1
        assert max(pauses) <= presence.LAST_PAUSE * 1.25 + 1
        assert 3600 / (presence.LAST_PAUSE * 1.25 + 1) < len(i2p.tries) < 120
        assert alice.status.state == "ready"


@VIRTUAL
async def test_one_that_works_at_last_is_taken_in_and_no_longer_blamed() -> None:
    place = Place()
    tor, i2p = place.late("alice", place.tor), place.late("alice", place.i2p, failures=3)
    async with place.node("alice", tor, i2p) as alice:
        await until(alice, lambda: len(alice.status.locators) == 2)
        assert (alice.status.state, alice.status.detail) == ("ready", "ready")
        assert len(i2p.tries) == 4


@VIRTUAL
async def test_a_transport_that_stops_to_work_later_leaves_the_node_ready() -> None:
    place = Place()
    tor, i2p = place.late("alice", place.tor), place.late("alice", place.i2p)
    async with place.node("alice", tor, i2p) as alice:
        await until(alice, lambda: alice.status.state == "ready")
        tor._report(TransportStatus("starting", "tor ended, starting it again"))
        assert alice.status.state == "ready"
        assert len(alice.status.locators) == 2


async def test_a_transport_that_somebody_else_started_is_left_running() -> None:
    place = Place()
    async with place.late("alice", place.tor) as shared:
        async with place.node("alice", shared) as alice:
            assert alice.status.locators == (place.tor.memory.locator(1),)
        assert (shared.status.state, len(shared.tries)) == ("ready", 1)


@VIRTUAL
async def test_a_node_that_ends_while_a_transport_starts_leaves_it() -> None:
    place = Place()
    tor, i2p = place.late("alice", place.tor, seconds=1e9), place.late("alice", place.i2p)
    async with place.node("alice", tor, i2p):
        await anyio.sleep(10)
    assert anyio.current_time() < 20
    assert i2p.status.state == "stopped"


@VIRTUAL
@pytest.mark.parametrize("who", ["hub", "alice"])
async def test_directory_and_members_learn_of_a_second_network(who: str) -> None:
    place = Place()
    async with AsyncExitStack() as stack:
        nodes: dict[str, Node] = {}
        for name in ("hub", "alice", "bob"):
            transports = [place.late(name, place.tor)]
            if name == who:
                transports.append(place.late(name, place.i2p, failures=5))
            options = NodeOptions(directory=name == "hub", join=nodes["hub"].record if nodes else None)
            node = nodes[name] = await stack.enter_async_context(
                place.node(name, *transports, options=options)
            )
            await until(node, lambda node=node: node.status.state == "ready")  # type: ignore[misc]
        everybody = [node for name, node in nodes.items() if name != who]
        late = nodes[who]

        def knows(node: Node) -> bool:
            record = node.locators.known(late.identifier)
            return record is not None and len(record.locators) == 2

        assert not any(knows(node) for node in everybody)
        for node in everybody:
            await until(node, lambda node=node: knows(node))  # type: ignore[misc]
        assert anyio.current_time() < 120


@VIRTUAL
async def test_records_of_two_networks_are_renewed_before_they_expire_and_all_learn_of_it() -> None:
    place = Place()
    async with (
        place.node("hub", place.late("hub", place.tor), options=NodeOptions(directory=True)) as hub,
        place.node(
            "alice",
            place.late("alice", place.tor),
            place.late("alice", place.i2p),
            options=NodeOptions(join=hub.record),
        ) as alice,
    ):
        await until(alice, lambda: alice.status.state == "ready")
        for _ in range(30):
            await anyio.sleep(3600)
            known = hub.locators.known(alice.identifier)
            assert known is not None
            assert len(known.locators) == 2
            assert known.expires > place.world.clock()
