"""The meeting place: numbers, listeners, refusals, and connections that are cut."""

from __future__ import annotations

import math

import anyio
import pytest

from overlay.errors import TransportUnavailableError, UnreachableError
from overlay.transports.memory.conditions import PerfectConditions
from overlay.transports.memory.network import MAX_WAITING, MemoryNetwork


class DialTakes(PerfectConditions):
    def __init__(self, delay: float | None) -> None:
        self.delay = delay

    def dial(self) -> float | None:  # type: ignore[override]
        return self.delay


def test_numbers_are_new() -> None:
    network = MemoryNetwork()
    assert [network.new_number(), network.new_number()] == [1, 2]


async def test_number_has_one_listener_at_a_time() -> None:
    network = MemoryNetwork()
    backlog = network.listen(7)
    with pytest.raises(TransportUnavailableError, match="taken"):
        network.listen(7)
    backlog.close()
    backlog.close()
    network.listen(7)


async def test_two_networks_know_nothing_of_each_other() -> None:
    MemoryNetwork().listen(7)
    with pytest.raises(UnreachableError, match="nobody"):
        await MemoryNetwork().dial(1, 7, timeout=1)


@pytest.mark.parametrize(
    ("delay", "says"), [(None, "cannot be reached"), (math.inf, "did not answer"), (0.02, "did not answer")]
)
async def test_dial_fails_as_the_conditions_say(delay: float | None, says: str) -> None:
    network = MemoryNetwork(DialTakes(delay))
    network.listen(7)
    with pytest.raises(UnreachableError, match=says):
        await network.dial(1, 7, timeout=0.01)
    assert network.open_connections == 0


async def test_dial_that_is_cancelled_leaves_nothing() -> None:
    network = MemoryNetwork(DialTakes(math.inf))
    network.listen(7)
    with anyio.move_on_after(0.01):
        await network.dial(1, 7, timeout=1000)
    assert network.open_connections == 0


async def test_listener_that_nobody_empties_refuses() -> None:
    network = MemoryNetwork()
    backlog = network.listen(7)
    waiting = [await network.dial(1, 7, timeout=1) for _ in range(MAX_WAITING)]
    with pytest.raises(UnreachableError, match="nobody takes"):
        await network.dial(1, 7, timeout=1)
    backlog.close()
    for stream in waiting:
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
        await stream.aclose()
    assert network.open_connections == 0


async def test_sever_kills_the_chosen_connections_only() -> None:
    network = MemoryNetwork()
    backlog = network.listen(7)
    doomed = await network.dial(1, 7, timeout=1)
    spared = await network.dial(2, 7, timeout=1)
    doomed_end, spared_end = await backlog.accept(), await backlog.accept()
    network.sever(lambda caller, called: (caller, called) == (1, 7))
    for end in (doomed, doomed_end):
        with pytest.raises(anyio.BrokenResourceError):
            await end.receive()
    await spared.send(b"hello")
    assert await spared_end.receive() == b"hello"
