"""The locator manager: newest wins, nothing forged is kept, models are asked, restarts forget nothing."""

from __future__ import annotations

import random

import pytest

from overlay.database import Database
from overlay.errors import NotFoundError, VerificationError
from overlay.identity import NodeIdentifier, NodeSecret
from overlay.locators import RECORD_LIFETIME, LocatorRecord, NodeLocator, memory_locator
from overlay.peer import locator_manager
from overlay.peer.locator_manager import LOCATOR_SCHEMA, RENEWAL_AGE, LocatorManager

ENTROPY = random.Random(2).randbytes
ME = NodeSecret.generate(ENTROPY)
BOB = NodeSecret.generate(ENTROPY)


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def record(number: int, now: float, secret: NodeSecret = BOB) -> LocatorRecord:
    return LocatorRecord.sign(secret, [memory_locator(number)], number=number, now=now)


async def manager(clock: Clock, database: Database | None = None) -> LocatorManager:
    made = LocatorManager(ME, database or await Database.open(None, [LOCATOR_SCHEMA]), clock)
    await made.load()
    return made


async def test_the_newest_record_counts_whatever_the_order_of_arrival() -> None:
    clock = Clock()
    locators = await manager(clock)
    newer, older = record(2, clock.now), record(1, clock.now)
    assert await locators.learn(newer.encoded) == newer
    assert await locators.learn(older.encoded) == newer
    assert locators.known(BOB.identifier) == newer


async def test_a_forged_record_is_refused_and_the_true_one_kept() -> None:
    clock = Clock()
    locators = await manager(clock)
    true = record(1, clock.now)
    await locators.learn(true.encoded)
    forged = bytearray(record(2, clock.now).encoded)
    forged[-1] ^= 1
    with pytest.raises(VerificationError):
        await locators.learn(bytes(forged))
    assert locators.known(BOB.identifier) == true


async def test_records_survive_a_restart() -> None:
    clock = Clock()
    async with await Database.open(None, [LOCATOR_SCHEMA]) as database:
        before = await manager(clock, database)
        kept = record(1, clock.now)
        await before.learn(kept.encoded)
        assert (await manager(clock, database)).known(BOB.identifier) == kept


async def test_an_expired_record_is_tried_but_not_passed_on_and_at_last_forgotten() -> None:
    clock = Clock()
    async with await Database.open(None, [LOCATOR_SCHEMA]) as database:
        locators = await manager(clock, database)
        await locators.learn(record(1, clock.now).encoded)
        clock.now += RECORD_LIFETIME + 1
        assert locators.current() == []
        assert (await locators.resolve(BOB.identifier)).identifier == BOB.identifier
        clock.now += locator_manager.KEPT_AFTER_EXPIRY
        assert (await manager(clock, database)).known(BOB.identifier) is None


async def test_models_are_asked_and_not_believed() -> None:
    clock = Clock()
    locators = await manager(clock)
    other = record(1, clock.now, NodeSecret.generate(ENTROPY))
    answers = [b"nonsense", other.encoded, record(1, clock.now).encoded]
    asked: list[NodeIdentifier] = []

    async def model(node: NodeIdentifier) -> bytes | None:
        asked.append(node)
        return answers.pop(0)

    locators.resolvers += [model] * 3
    assert (await locators.resolve(BOB.identifier)).identifier == BOB.identifier
    assert asked == [BOB.identifier] * 3


async def test_what_is_lent_is_for_anonymous_dials_and_for_nothing_else() -> None:
    clock = Clock()
    locators = await manager(clock)
    heard: list[LocatorRecord] = []
    locators.observers.append(heard.append)
    lent = record(1, clock.now)
    with locators.lend([lent]):
        assert await locators.resolve(BOB.identifier, anonymous=True) == lent
        with pytest.raises(NotFoundError):
            await locators.resolve(BOB.identifier)
        assert (locators.known(BOB.identifier), locators.current(), locators.reachable()) == (None, [], [])
    with pytest.raises(NotFoundError):
        await locators.resolve(BOB.identifier, anonymous=True)
    assert heard == []


async def test_an_address_that_was_told_to_this_node_alone_is_not_dialled_while_one_is_lent() -> None:
    clock = Clock()
    locators = await manager(clock)
    told = await locators.learn(record(2, clock.now).encoded)
    lent = record(1, clock.now)
    with locators.lend([lent]):
        for find in (locators.resolve, locators.refresh):
            assert await find(BOB.identifier, anonymous=True) == lent
            assert await find(BOB.identifier) == told
    assert await locators.resolve(BOB.identifier, anonymous=True) == told


async def test_of_several_that_are_lent_the_newest_is_used_until_the_last_is_given_back() -> None:
    clock = Clock()
    locators = await manager(clock)
    one, two = record(1, clock.now), record(2, clock.now)
    with locators.lend([one]):
        with locators.lend([two, two]), locators.lend([one]):
            assert await locators.resolve(BOB.identifier, anonymous=True) == two
        assert (await locators.resolve(BOB.identifier, anonymous=True)).identifier == BOB.identifier
    with pytest.raises(NotFoundError):
        await locators.resolve(BOB.identifier, anonymous=True)


async def test_what_a_model_says_for_an_anonymous_dial_is_not_kept_but_used_as_long_as_one_is_lent() -> None:
    clock = Clock()
    locators = await manager(clock)
    old, new = record(1, clock.now), record(2, clock.now + RECORD_LIFETIME)
    clock.now += RECORD_LIFETIME + 1
    asked: list[NodeIdentifier] = []

    async def model(node: NodeIdentifier) -> bytes | None:
        asked.append(node)
        return new.encoded

    locators.resolvers.append(model)
    with locators.lend([old]):
        for _ in range(3):
            assert await locators.resolve(BOB.identifier, anonymous=True) == new
        assert asked == [BOB.identifier]
        assert locators.reachable() == []
    assert await locators.resolve(BOB.identifier, anonymous=True) == new
    assert (locators.known(BOB.identifier), len(asked)) == (None, 2)


async def test_this_node_finds_itself_for_an_anonymous_dial_only() -> None:
    locators = await manager(Clock())
    own = locators.serve([memory_locator(7)])
    assert await locators.resolve(ME.identifier, anonymous=True) == own
    with pytest.raises(NotFoundError):
        await locators.resolve(ME.identifier)


async def test_a_node_that_nobody_knows_is_not_found() -> None:
    locators = await manager(Clock())
    with pytest.raises(NotFoundError):
        await locators.resolve(BOB.identifier)


async def test_the_own_record_is_renewed_in_time_with_growing_numbers() -> None:
    clock = Clock()
    locators = await manager(clock)
    first = locators.serve([memory_locator(1)])
    assert locators.own == first
    second = locators.renew()
    assert second.number > first.number
    clock.now += RENEWAL_AGE + 1
    third = locators.own
    assert third.number > second.number
    assert third.expires > clock.now + RECORD_LIFETIME - 60
    assert third.locators == first.locators


async def test_nobody_else_can_change_the_own_record() -> None:
    clock = Clock()
    locators = await manager(clock)
    own = locators.serve([memory_locator(1)])
    stolen = record(own.number + 1, clock.now, ME)
    await locators.learn(stolen.encoded)
    assert locators.own == own
    assert locators.known(ME.identifier) is None


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locator_manager, "MAX_RECORDS", 3)
    clock = Clock()
    locators = await manager(clock)
    secrets = [NodeSecret.generate(ENTROPY) for _ in range(5)]
    for age, secret in enumerate(secrets):
        await locators.learn(record(1, clock.now + age, secret).encoded)
    assert [r.identifier for r in locators.current()] == [s.identifier for s in secrets[2:]]


async def test_a_crowd_of_records_pushes_out_no_pinned_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locator_manager, "MAX_RECORDS", 3)
    clock = Clock()
    locators = await manager(clock)
    directory, *crowd = [NodeSecret.generate(ENTROPY) for _ in range(6)]
    locators.pinned.add(directory.identifier)
    await locators.learn(record(1, clock.now, directory).encoded)
    for age, secret in enumerate(crowd, start=1):
        await locators.learn(record(1, clock.now + age, secret).encoded)
    known = {each.identifier for each in locators.current()}
    assert known == {directory.identifier, *(secret.identifier for secret in crowd[-2:])}


async def test_what_cannot_be_reached_is_listed_apart_and_forgotten_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(locator_manager, "MAX_RECORDS", 3)
    clock = Clock()
    database = await Database.open(None, [LOCATOR_SCHEMA])
    locators = LocatorManager(ME, database, clock, reaches=lambda locator: locator.protocol == "memory")
    await locators.load()
    near, far = ([NodeSecret.generate(ENTROPY) for _ in range(3)] for _ in range(2))
    for age, (one, other) in enumerate(zip(near, far, strict=True)):
        await locators.learn(record(1, clock.now + age, one).encoded)
        elsewhere = LocatorRecord.sign(
            other, [NodeLocator("garlic32", bytes(32))], number=1, now=clock.now + 60, roles=["directory"]
        )
        await locators.learn(elsewhere.encoded)
        assert {each.identifier for each in locators.reachable()} == {
            secret.identifier for secret in near[: age + 1]
        }
    assert {each.identifier for each in locators.current()} == {secret.identifier for secret in near}
    async with database:
        kept = await database.read(lambda db: db.execute("SELECT count(*) FROM locator_records").get)
    assert kept == 3


async def test_observers_hear_of_news_only() -> None:
    clock = Clock()
    locators = await manager(clock)
    heard: list[int] = []
    locators.observers.append(lambda found: heard.append(found.number))
    for number in (1, 1, 3, 2):
        await locators.learn(record(number, clock.now).encoded)
    assert heard == [1, 3]
