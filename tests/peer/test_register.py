"""The block register, with a model that does as it is told: when it tries again, and what it tells."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from overlay.errors import OverlayError, RefusedError, UnreachableError
from overlay.identity import NodeIdentifier, SigningSecret
from overlay.peer.announcement import Announcement
from overlay.peer.models.base import Model, Registration
from overlay.peer.register import FIRST_PAUSE, LAST_PAUSE, REGISTRATION_INTERVAL, Register
from overlay.testing.nodes import World
from overlay.units.identifiers import UnitIdentifier
from overlay.units.locators import SEALED_PLACE_BYTES, UnitLocator

pytestmark = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)  # hours of virtual time


class Script(Model):
    """Fails as often as it is told, and notes when it was asked."""

    def __init__(self, failure: OverlayError | None = None) -> None:
        self.failure = failure
        self.asked: list[float] = []
        self.announced: list[Announcement] = []
        self.nodes = 3

    async def register(self) -> Registration:
        self.asked.append(anyio.current_time())
        await anyio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        return Registration(1, self.nodes)

    async def find_node(self, _node: NodeIdentifier) -> bytes | None:
        return None

    async def announce(self, announcement: Announcement) -> None:
        await anyio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        self.announced.append(announcement)

    async def find_unit(self, _unit: UnitIdentifier) -> Sequence[Announcement]:
        return []

    @property
    def pauses(self) -> list[float]:
        return [after - before for before, after in zip(self.asked, self.asked[1:], strict=False)]


@asynccontextmanager
async def running(model: Script) -> AsyncIterator[tuple[Register, list[str]]]:
    """A running register, and the states that it told of."""
    world = World(4)
    told: list[str] = []
    register = Register(
        model, clock=world.clock, entropy=world.entropy, changed=lambda: told.append(register.status.state)
    )
    assert register.status.state == "registering"
    async with anyio.create_task_group() as group:
        group.start_soon(register.run)
        yield register, told
        group.cancel_scope.cancel()


@pytest.mark.parametrize("failure", [UnreachableError("nobody is there"), RefusedError("it is full")])
async def test_pauses_double_up_to_a_limit_with_some_chance(failure: OverlayError) -> None:
    model = Script(failure)
    async with running(model) as (register, told):
        await anyio.sleep(3 * 3600)
        assert register.status.state == "retrying"
        assert str(failure) in register.status.detail
        assert "trying again in" in register.status.detail
    assert set(told) == {"retrying"}
    for number, pause in enumerate(model.pauses):
        expected = min(FIRST_PAUSE * 2**number, LAST_PAUSE)
        assert 0.75 * expected <= pause <= 1.25 * expected
    assert len({round(pause, 3) for pause in model.pauses[-10:]}) > 5  # they do not all come back at once
    assert len(model.asked) < 60


async def test_after_a_success_it_rests_and_after_a_failure_begins_with_short_pauses() -> None:
    model = Script(UnreachableError("nobody is there"))
    async with running(model) as (register, told):
        await anyio.sleep(2 * 3600)
        model.failure = None
        await anyio.sleep(2 * LAST_PAUSE)
        assert (register.status.state, register.status.nodes) == ("registered", 3)
        count = len(model.asked)
        await anyio.sleep(REGISTRATION_INTERVAL - 3 * LAST_PAUSE)
        assert len(model.asked) == count
        model.failure = UnreachableError("gone")
        await anyio.sleep(3 * LAST_PAUSE)
        assert (register.status.state, register.status.nodes) == ("retrying", 3)
        assert model.pauses[count] <= 1.25 * FIRST_PAUSE
    assert told.count("registered") == 1


async def test_soon_is_now() -> None:
    model = Script()
    async with running(model) as (register, _):
        await anyio.sleep(10)
        assert len(model.asked) == 1
        register.soon()
        await anyio.sleep(1)
        assert len(model.asked) == 2
        await anyio.sleep(10)
        assert len(model.asked) == 2


async def test_units_are_announced_with_each_registration_until_withdrawn() -> None:
    model = Script()
    async with running(model) as (register, _):
        await anyio.sleep(1)
        world = World(4)
        secret = SigningSecret(world.entropy(32))
        locator = UnitLocator(world.secret("alice").identifier, bytes(SEALED_PLACE_BYTES))
        await register.announce(secret, locator)
        assert [each.locator for each in model.announced] == [locator]
        await anyio.sleep(REGISTRATION_INTERVAL + 1)
        assert [each.unit for each in model.announced] == [UnitIdentifier.of_key(secret.public)] * 2
        assert model.announced[0].number < model.announced[1].number
        register.withdraw(UnitIdentifier.of_key(secret.public))
        await anyio.sleep(REGISTRATION_INTERVAL + 1)
        assert len(model.announced) == 2
        assert len(model.asked) == 3


async def test_what_could_not_be_announced_comes_with_the_next_registration() -> None:
    model = Script()
    async with running(model) as (register, _):
        await anyio.sleep(1)
        model.failure = UnreachableError("gone")
        secret = SigningSecret(World(4).entropy(32))
        with pytest.raises(UnreachableError):
            await register.announce(
                secret, UnitLocator(World(4).secret("alice").identifier, bytes(SEALED_PLACE_BYTES))
            )
        model.failure = None
        register.soon()
        await anyio.sleep(1)
        assert [each.key for each in model.announced] == [secret.public]
