"""Nodes on two networks: which is dialled first, when the other is started beside it, and what stays open."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import anyio
import pytest

from overlay.channel.driver import Channel
from overlay.channel.opening import call
from overlay.connection import Connection, Properties, Transport, TransportStatus
from overlay.errors import RefusedError, TransportUnavailableError, UnreachableError
from overlay.identity import NodeIdentifier
from overlay.locators import NodeLocator
from overlay.peer import dialling, routes
from overlay.peer.accept import Delivery
from overlay.peer.channels import REOPEN_PAUSE
from overlay.peer.dialling import (
    ANONYMOUS_IDLE,
    DIAL_ATTEMPTS,
    DIAL_PAUSE,
    LEAST_PATIENCE,
    Dialled,
    InconclusiveError,
)
from overlay.peer.links import Lane
from overlay.peer.node import Node, NodeOptions, PeerStatus
from overlay.peer.routes import LEAST_HEAD_START, MOST_HEAD_START, Way
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Latency, SimulatedNetwork
from overlay.transports.memory import MEMORY_PROPERTIES, MemoryTransport

pytestmark = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)  # minutes of virtual time

FAST = Latency(median=0.01, sigma=0.0)
HIDING = replace(MEMORY_PROPERTIES, hides_sender=True, hides_receiver=True)
SLOW_TO_ISOLATE = replace(MEMORY_PROPERTIES, isolation_delay=20.0)


@dataclass
class Two:
    """Alice and Bob, each on both networks; `transports` are Alice's."""

    world: World
    tor: SimulatedNetwork
    i2p: SimulatedNetwork
    alice: Node
    bob: Node
    transports: list[MemoryTransport]

    async def push(self, lane: Lane = Lane.INTERACTIVE) -> float:
        """Seconds that a push takes."""
        began = anyio.current_time()
        await self.alice.push(self.bob.identifier, "note", lane=lane)
        return anyio.current_time() - began

    def peer(self, node: Node, other: Node) -> PeerStatus:
        (found,) = [peer for peer in node.peers() if peer.identifier == other.identifier]
        return found

    @property
    def over(self) -> str:
        return self.peer(self.alice, self.bob).over

    @property
    def open(self) -> tuple[int, int]:
        return self.tor.memory.open_connections, self.i2p.memory.open_connections

    @property
    def score(self) -> float:
        """What Alice thinks of Bob."""
        return self.alice.reputation.score(self.bob.identifier, self.alice.clock())

    def blamed(self, network: str) -> bool:
        """Whether Alice would rather reach Bob over a network that she knows nothing of."""
        ways = [Way(name, ready=True, seconds=1) for name in (network, "unknown")]
        best, _ = self.alice.channels._book.rank(self.bob.identifier, ways, anyio.current_time())
        return best.network == "unknown"

    async def forget(self) -> None:
        """Close every channel in good order."""
        for links in list(self.alice.channels._links._links.values()):
            for link in list(links):
                await link.channel.aclose()
        await anyio.wait_all_tasks_blocked()
        assert self.open == (0, 0)

    async def prove(self) -> None:
        """Reach Bob over either network, so that both are known to work."""
        for network, over in ((self.i2p, "onion3"), (self.tor, "garlic32")):
            network.take_down(2)
            await self.push()
            assert self.over == over
            await self.forget()
            network.bring_up(2)
        self.tor._dials.clear()
        self.i2p._dials.clear()


async def note(_: Delivery) -> None:
    pass


@asynccontextmanager
async def two(
    *, tor: Latency = FAST, i2p: Latency = FAST, anonymous: bool = False, **properties: Properties
) -> AsyncIterator[Two]:
    world = World(4)
    onion, garlic = (
        world.further_network("onion3", latency=tor),
        world.further_network("garlic32", latency=i2p),
    )
    async with AsyncExitStack() as stack:
        nodes: dict[str, Node] = {}
        transports: dict[str, list[MemoryTransport]] = {}
        for name in ("alice", "bob"):
            number = world.number(name)
            transports[name] = [
                onion.transport(number=number, properties=properties.get("onion", MEMORY_PROPERTIES)),
                garlic.transport(number=number, properties=properties.get("garlic", MEMORY_PROPERTIES)),
            ]
            database = await stack.enter_async_context(world.database())
            nodes[name] = await stack.enter_async_context(
                world.node(
                    name,
                    database,
                    transports=transports[name],
                    anonymous=anonymous and name == "alice",
                    options=NodeOptions(),
                )
            )
        await introduce(list(nodes.values()))
        nodes["bob"].accept.register("note", note)
        nodes["bob"].accept.register("secret note", note, anonymous=True)
        yield Two(world, onion, garlic, nodes["alice"], nodes["bob"], transports["alice"])


async def test_the_users_first_network_is_dialled_and_the_other_not_touched() -> None:
    async with two() as both:
        await both.push()
        assert both.open == (1, 0)
        assert not both.i2p._dials
        mine, theirs = both.peer(both.alice, both.bob), both.peer(both.bob, both.alice)
        assert (mine.connected, mine.over, mine.via) == (True, "onion3", both.tor.memory.locator(2))
        assert (theirs.connected, theirs.over, theirs.via) == (True, "onion3", None)


async def test_nobody_is_connected_over_nothing() -> None:
    async with two() as both:
        status = both.peer(both.alice, both.bob)
        assert (status.connected, status.over, status.via) == (False, "", None)


async def test_a_network_that_refuses_hands_over_at_once() -> None:
    async with two() as both:
        both.tor.take_down(2)
        assert await both.push() < LEAST_HEAD_START
        assert both.over == "garlic32"
        await both.forget()
        both.tor.bring_up(2)
        await both.push()
        assert both.over == "garlic32"  # it answered, and the other failed lately


async def test_beside_a_slow_network_the_next_is_started_and_the_first_to_answer_stays() -> None:
    async with two(tor=Latency(median=2.0, sigma=0.0)) as both:
        assert LEAST_HEAD_START < await both.push() < LEAST_HEAD_START + 0.2
        assert both.over == "garlic32"
        assert both.open == (0, 1)
        await anyio.sleep(30)
        assert both.open == (0, 1)  # the loser was cancelled for good
        await both.forget()
        assert await both.push() < LEAST_HEAD_START  # what was fast is dialled first now


async def test_a_network_that_has_become_slow_gives_way_to_the_one_that_overtook_it() -> None:
    async with two() as both:
        await both.push()
        assert both.over == "onion3"
        await both.forget()
        both.tor._latency = Latency(median=2.0, sigma=0.0)
        assert await both.push() > LEAST_HEAD_START
        assert both.over == "garlic32"
        await both.forget()
        assert await both.push() < LEAST_HEAD_START  # although the other has answered too


async def test_a_slow_network_wins_if_the_other_fails() -> None:
    async with two(tor=Latency(median=1.0, sigma=0.0)) as both:
        both.i2p.take_down(2)
        await both.push()
        assert (both.over, both.open) == ("onion3", (1, 0))


async def test_of_two_channels_at_the_same_moment_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "LEAST_HEAD_START", 0.0)
    monkeypatch.setattr(routes, "MOST_HEAD_START", 0.0)
    shake_hands: Callable[..., Awaitable[Channel]] = call
    channels: list[Channel] = []
    ready = anyio.Event()

    async def together(*to: object, **details: object) -> Channel:
        channel = await shake_hands(*to, **details)
        channels.append(channel)
        if len(channels) == 2:
            ready.set()
        with anyio.CancelScope(shield=True):  # the one that comes second has its channel already
            await ready.wait()
        return channel

    monkeypatch.setattr(dialling, "call", together)
    async with two() as both:
        await both.push()
        await anyio.sleep(1)
        assert len(channels) == 2
        assert sum(both.open) == 1
        assert both.open == ((1, 0) if both.over == "onion3" else (0, 1))


async def test_a_dial_that_is_given_up_at_any_moment_leaves_nothing_open() -> None:
    async with two(tor=Latency(median=0.15, sigma=0.0), i2p=Latency(median=0.05, sigma=0.0)) as both:
        dialler, opened = both.alice.channels._dialler, 0
        for moment in range(60):
            with anyio.move_on_after(moment * 0.01):
                dialled = await dialler.dial(both.bob.identifier, anonymous=False)
                opened += 1
                await dialled.channel.aclose()
            assert not dialler._runs
            await anyio.sleep(5)  # Bob's ends learn of it
            assert both.open == (0, 0)
        assert 0 < opened < 60


async def test_a_dial_that_is_given_up_in_the_moment_in_which_it_was_won_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as both:
        dialler = both.alice.channels._dialler
        with anyio.CancelScope() as scope:
            monkeypatch.setattr(dialler._book, "answered", lambda *_: scope.cancel())
            await dialler.dial(both.bob.identifier, anonymous=False)
        assert scope.cancelled_caught
        await anyio.sleep(5)  # Bob's end learns of it
        assert both.open == (0, 0)
        assert not dialler._runs


async def test_a_transport_that_is_not_ready_is_dialled_last() -> None:
    async with two() as both:
        both.transports[0]._report(TransportStatus("starting", "tor ended, starting it again"))
        await both.push()
        assert both.over == "garlic32"
        assert not both.tor._dials


async def test_nobody_waits_for_a_transport_that_stops_to_work_during_the_dial() -> None:
    far = replace(MEMORY_PROPERTIES, round_trip=10.0)
    async with two(onion=far) as both:
        both.tor.silence()
        async with anyio.create_task_group() as group:
            group.start_soon(both.push)
            await anyio.sleep(1)
            assert not both.i2p._dials
            both.transports[0]._report(TransportStatus("failed", "tor ended"))
            await anyio.sleep(0.5)
            assert both.over == "garlic32"


async def test_without_any_network_that_answers_the_node_is_unreachable() -> None:
    async with two() as both:
        await both.prove()
        before = both.score
        both.tor.take_down(2)
        both.i2p.silence()
        with pytest.raises(UnreachableError, match="did not answer in time; it may be offline"):
            await both.push()
        assert both.tor._dials == {(1, 2): DIAL_ATTEMPTS}
        assert both.i2p._dials == {(1, 2): DIAL_ATTEMPTS}
        assert both.score < before - 1


async def test_a_dial_that_hangs_over_a_network_that_has_carried_none_yet_proves_nothing_of_the_node() -> (
    None
):
    async with two() as both:
        both.tor.take_down(2)
        both.i2p.silence()
        with pytest.raises(InconclusiveError, match="nor lately anybody over garlic32"):
            await both.push()
        assert both.i2p._dials == {(1, 2): DIAL_ATTEMPTS}
        assert both.score == 0
        assert both.blamed("garlic32")  # the next dial begins elsewhere


async def test_a_network_has_to_prove_itself_anew_when_its_transport_has_stopped_to_work() -> None:
    async with two() as both:
        await both.prove()
        before = both.score
        both.transports[1]._report(TransportStatus("starting", "the router ended"))
        both.transports[1]._report(TransportStatus("ready"))
        both.tor.take_down(2)
        both.i2p.silence()
        with pytest.raises(InconclusiveError):
            await both.push()
        assert both.score == pytest.approx(before, abs=0.1)


@pytest.mark.parametrize("proven", [True, False])
async def test_whoever_waits_for_a_node_is_told_after_two_minutes_however_slow_its_networks(
    proven: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    slow = replace(MEMORY_PROPERTIES, round_trip=10.0, dial_timeout=600.0)
    async with two(onion=slow, garlic=slow) as both:
        if proven:
            await both.prove()
        before = both.score
        both.tor.silence()
        both.i2p.silence()
        began = anyio.current_time()
        with pytest.raises(UnreachableError, match="not answer in time" if proven else "nor lately anybody"):
            await both.push()
        assert anyio.current_time() - began == pytest.approx(120)
        assert (both.score < before - 1) == proven
        assert not both.alice.channels._dialler._runs


async def test_a_transport_that_stops_during_the_dial_is_blamed_when_two_minutes_are_over() -> None:
    slow = replace(MEMORY_PROPERTIES, round_trip=10.0, dial_timeout=600.0)
    async with two(onion=slow) as both:
        await both.prove()
        before = both.score
        both.tor.silence()
        both.i2p.take_down(2)
        async with anyio.create_task_group() as group:
            group.start_soon(told, both)
            await anyio.sleep(1)
            both.transports[0]._report(TransportStatus("starting", "tor ended"))
        assert both.score == pytest.approx(before, abs=0.1)


async def told(both: Two) -> None:
    with pytest.raises(TransportUnavailableError, match="onion3 is not ready: tor ended"):
        await both.push()


async def test_what_is_wrong_on_this_side_is_told_first_but_the_other_network_is_tried_as_often() -> None:
    async with two() as both:
        both.i2p.take_down(2)
        both.transports[0]._report(TransportStatus("failed", "tor is not installed"))
        with pytest.raises(TransportUnavailableError):
            await both.push()
        assert both.i2p._dials == {(1, 2): DIAL_ATTEMPTS}
        assert both.alice.reputation.score(both.bob.identifier, both.alice.clock()) == 0


async def test_a_dial_that_waits_in_vain_for_its_transport_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two() as both:
        both.i2p.take_down(2)
        tor = both.transports[0]

        async def wait(_: NodeLocator, *, isolation: bytes = b"") -> Connection:  # noqa: ARG001
            await anyio.sleep_forever()
            raise AssertionError

        monkeypatch.setattr(tor, "connect", wait)
        tor._report(TransportStatus("starting", "tor ended, starting it again"))
        with pytest.raises(TransportUnavailableError, match="onion3 is not ready: tor ended"):
            await both.push()
        assert both.blamed("garlic32")
        assert not both.blamed("onion3")  # what is wrong on this side says nothing of Bob


async def test_a_node_is_dialled_again_when_its_only_transport_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as both:
        await both.alice.locators.learn(both.bob.locators.serve([both.tor.memory.locator(2)]).encoded)
        tor = both.transports[0]

        async def wait(_: NodeLocator, *, isolation: bytes = b"") -> Connection:  # noqa: ARG001
            monkeypatch.undo()
            await anyio.sleep_forever()
            raise AssertionError

        monkeypatch.setattr(tor, "connect", wait)
        tor._report(TransportStatus("starting", "tor ended, starting it again"))
        async with anyio.create_task_group() as group:
            group.start_soon(both.push)
            await anyio.sleep(LEAST_PATIENCE + DIAL_PAUSE / 2)
            tor._report(TransportStatus("ready"))
        assert both.over == "onion3"


async def test_a_network_that_had_failed_on_this_side_was_not_outrun(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(i2p=Latency(median=0.5, sigma=0.0)) as both:
        tried: list[bytes] = []
        recorded(both.transports[0], tried, monkeypatch)
        both.transports[0]._report(TransportStatus("failed", "tor ended"))
        await both.push()
        assert (both.over, len(tried)) == ("garlic32", 1)
        assert not both.blamed("onion3")


@pytest.mark.parametrize(("kept", "left"), [("onion3", "garlic32"), ("garlic32", "onion3")])
async def test_a_node_of_one_network_is_reached_without_touching_the_other(kept: str, left: str) -> None:
    async with two() as both:
        networks = {"onion3": both.tor, "garlic32": both.i2p}
        record = both.bob.locators.serve([networks[kept].memory.locator(2)])
        await both.alice.locators.learn(record.encoded)
        for lane in Lane:
            await both.alice.push(both.bob.identifier, "secret note", lane=lane)
        networks[kept].take_down(2)
        with pytest.raises(UnreachableError):
            await both.push()
        assert not networks[left]._dials


async def test_who_hides_never_dials_a_network_that_would_show_where_it_is() -> None:
    async with two(anonymous=True, garlic=HIDING) as both:
        assert both.alice.record.locators == (both.i2p.memory.locator(1),)
        await both.push()
        assert (both.over, both.open) == ("garlic32", (0, 1))
        both.i2p.take_down(2)
        with pytest.raises(UnreachableError):
            await both.push()
        assert not both.tor._dials
        record = both.bob.locators.serve([both.tor.memory.locator(2)])
        await both.alice.locators.learn(record.encoded)
        with pytest.raises(RefusedError, match="no address that this node may dial"):
            await both.push()
        assert not both.tor._dials


def recorded(transport: Transport, tokens: list[bytes], patch: pytest.MonkeyPatch) -> None:
    connect: Callable[..., object] = transport.connect

    async def record(locator: NodeLocator, *, isolation: bytes = b"") -> Connection:
        tokens.append(isolation)
        return await connect(locator, isolation=isolation)  # type: ignore[misc,no-any-return]

    patch.setattr(transport, "connect", record)


async def test_each_dial_has_a_token_of_its_own_where_tokens_are_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as both:
        tokens: list[bytes] = []
        recorded(both.transports[0], tokens, monkeypatch)
        both.i2p.take_down(2)
        both.tor.take_down(2)
        for lane in Lane:
            with pytest.raises(UnreachableError):
                await both.push(lane)
        assert len(set(tokens)) == len(tokens) == len(Lane) * DIAL_ATTEMPTS
        assert b"" not in tokens


async def test_where_tokens_cost_time_only_who_hides_its_name_uses_one_for_each_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two(garlic=SLOW_TO_ISOLATE) as both:
        tokens: list[bytes] = []
        recorded(both.transports[1], tokens, monkeypatch)
        both.i2p.take_down(2)
        both.tor.take_down(2)
        for lane in (Lane.INTERACTIVE, Lane.BULK):
            with pytest.raises(UnreachableError):
                await both.push(lane)
        assert tokens == [b""] * 2 * DIAL_ATTEMPTS
        tokens.clear()
        for _ in range(2):
            with pytest.raises(UnreachableError):
                await both.push(Lane.ANONYMOUS)
        assert b"" not in tokens
        assert [tokens.count(token) for token in dict.fromkeys(tokens)] == [DIAL_ATTEMPTS] * 2


async def test_a_dial_with_a_token_of_its_own_is_given_the_time_that_it_costs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two(garlic=SLOW_TO_ISOLATE) as both:
        connect = both.transports[1].connect

        async def slowly(locator: NodeLocator, *, isolation: bytes = b"") -> Connection:
            await anyio.sleep(SLOW_TO_ISOLATE.isolation_delay if isolation else 0)
            return await connect(locator, isolation=isolation)

        monkeypatch.setattr(both.transports[1], "connect", slowly)
        both.tor.take_down(2)
        began = anyio.current_time()
        await both.alice.push(both.bob.identifier, "secret note", lane=Lane.ANONYMOUS)
        assert 20 <= anyio.current_time() - began < 21
        assert sum(both.i2p._dials.values()) == 1
        assert MOST_HEAD_START < 20  # so another network would have had its turn meanwhile


@pytest.mark.parametrize("caller", ["alice", "bob"])
@pytest.mark.parametrize("noticed", [-1.0, 1.0])
async def test_who_loses_a_transport_reaches_its_peers_over_another_unasked(
    caller: str,
    noticed: float,
) -> None:
    async with two() as both:
        both.alice.accept.register("note", note)
        callers = {"alice": (both.alice, both.bob), "bob": (both.bob, both.alice)}
        calling, called = callers[caller]
        await calling.push(called.identifier, "note")
        assert both.over == "onion3"
        if noticed < 0:
            both.transports[0]._report(TransportStatus("starting", "tor ended"))
        both.tor.memory.sever(lambda _caller, _called: True)
        if noticed > 0:  # the channels' death comes first
            await anyio.sleep(noticed)
            both.transports[0]._report(TransportStatus("starting", "tor ended"))
        await anyio.sleep(REOPEN_PAUSE + 1)
        assert both.over == both.peer(both.bob, both.alice).over == "garlic32"
        assert both.open == (0, 1)


async def test_a_peer_that_went_away_while_the_transport_works_is_not_called_back() -> None:
    async with two() as both:
        await both.push()
        both.tor.memory.sever(lambda _caller, _called: True)
        await anyio.sleep(60)
        assert both.open == (0, 0)
        assert sum(both.tor._dials.values()) == 1
        assert not both.i2p._dials


@pytest.mark.parametrize("parted", ["it has no other network", "in good order"])
async def test_a_peer_is_not_called_back_in_vain(parted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two() as both:
        await both.push()
        both.transports[0]._report(TransportStatus("starting", "tor ended"))
        dialled: list[NodeIdentifier] = []

        async def dial(node: NodeIdentifier, *, anonymous: bool) -> Dialled:  # noqa: ARG001
            dialled.append(node)
            raise UnreachableError

        monkeypatch.setattr(both.alice.channels._dialler, "dial", dial)
        if parted == "in good order":
            await both.forget()
        else:
            await both.alice.locators.learn(both.bob.locators.serve([both.tor.memory.locator(2)]).encoded)
            both.tor.memory.sever(lambda _caller, _called: True)
        await anyio.sleep(60)
        assert both.open == (0, 0)
        assert dialled == []


async def test_a_new_channel_is_used_instead_of_one_whose_peer_has_fallen_silent() -> None:
    async with two() as both:
        both.alice.accept.register("note", note)
        await both.push()
        both.tor.silence()
        await anyio.sleep(40)  # Bob has asked for a sign of life and got none
        assert both.peer(both.bob, both.alice).over == "onion3"
        both.alice.channels._book.lost(both.bob.identifier, "onion3", anyio.current_time(), dialled=True)
        both.alice.channels._links._links.clear()  # Alice knows already
        await both.push()
        began = anyio.current_time()
        await both.bob.push(both.alice.identifier, "note")
        assert anyio.current_time() - began < 1
        assert both.peer(both.bob, both.alice).over == "garlic32"


async def test_a_second_channel_of_a_peer_is_kept_for_when_the_first_ends() -> None:
    async with two() as both:
        left: list[bytes] = []
        both.bob.channels.departures.append(lambda node: left.append(node.value))
        await both.push()
        await both.push(Lane.BULK)
        await both.alice.channels._links._links[both.bob.identifier, Lane.INTERACTIVE][0].channel.aclose()
        await anyio.sleep(1)
        assert both.bob.channels.connected(both.alice.identifier)
        assert left == []
        await both.forget()
        await anyio.sleep(1)
        assert left == [both.alice.identifier.value]


async def test_an_end_in_good_order_says_nothing_against_a_network() -> None:
    async with two() as both:
        await both.push()
        await both.forget()
        await both.push()
        assert both.over == "onion3"
        both.tor.memory.sever(lambda _caller, _called: True)
        await anyio.sleep(1)
        await both.push()
        assert both.over == "garlic32"


async def test_a_locator_that_a_record_repeats_is_dialled_once() -> None:
    async with two() as both:
        both.bob.locators.serve([both.tor.memory.locator(9)] * 8)
        await both.alice.locators.learn(both.bob.record.encoded)
        with pytest.raises(UnreachableError):
            await both.push()
        assert sum(both.tor._dials.values()) == DIAL_ATTEMPTS


async def test_a_record_does_not_make_others_dial_whoever_it_names() -> None:
    async with two() as both:
        both.bob.locators.serve([both.tor.memory.locator(10 + number) for number in range(8)])
        await both.alice.locators.learn(both.bob.record.encoded)
        with pytest.raises(UnreachableError):
            await both.push()
        assert both.tor._dials == {(1, 10): DIAL_ATTEMPTS, (1, 11): DIAL_ATTEMPTS}


async def test_two_nodes_that_hang_up_do_not_decide_over_a_network_that_lives() -> None:
    async with two() as both:
        await both.push()
        for number in (8, 9):
            both.alice.channels._book.lost(
                NodeIdentifier(bytes([number]) * 32), "onion3", anyio.current_time(), dialled=True
            )
        await both.push(lane=Lane.BULK)
        assert both.open == (2, 0)


async def test_an_anonymous_channel_is_kept_for_one_task_only() -> None:
    async with two() as both:
        await both.push()
        await both.alice.push(both.bob.identifier, "secret note", lane=Lane.ANONYMOUS)
        assert both.open == (2, 0)
        await anyio.sleep(ANONYMOUS_IDLE + 5.0)
        assert both.open == (1, 0)  # that in which it shows who it is stays
