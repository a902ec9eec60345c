"""The reputation manager: the order of scores, what is distrusted and for how long, what is forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.database import Database
from overlay.errors import StorageError
from overlay.identity import NodeIdentifier
from overlay.peer.reputation import (
    FAULT_LIMIT,
    MAX_PEERS,
    PERFORMANCE_LIMIT,
    REPUTATION_SCHEMA,
    Deed,
    ReputationManager,
    Standing,
)

HOUR, DAY = 3600.0, 86_400.0
NOW = 1.8e9

honest: st.SearchStrategy[Deed] = st.sampled_from(["answered", "refused", "unreachable"])
any_deed: st.SearchStrategy[Deed] = st.one_of(honest, st.just("violation"))


def histories(deeds: st.SearchStrategy[Deed]) -> st.SearchStrategy[list[tuple[Deed, float]]]:
    """Deeds, each with the seconds that pass before it."""
    return st.lists(st.tuples(deeds, st.floats(0, 3 * DAY)), max_size=40)


def standing_after(history: list[tuple[Deed, float]]) -> Standing:
    standing = Standing(0.0, 0.0, NOW)
    for deed, pause in history:
        standing = standing.after(deed, standing.at + pause)
    return standing


def node(number: int) -> NodeIdentifier:
    return NodeIdentifier(number.to_bytes(32, "big"))


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    async with await Database.open(None, [REPUTATION_SCHEMA]) as database:
        yield database


@pytest.fixture
def manager(database: Database) -> ReputationManager:
    return ReputationManager(database)


def times(count: int, deed: Deed) -> list[Deed]:
    return [deed] * count


def note_all(manager: ReputationManager, number: int, *deeds: Deed) -> None:
    for deed in deeds:
        manager.note(node(number), deed, NOW)


# --- the scoring core


@given(histories(any_deed), st.floats(0, 400 * DAY))
def test_scores_are_bounded_and_fade_towards_unknown(history: list[tuple[Deed, float]], later: float) -> None:
    standing = standing_after(history)
    assert -PERFORMANCE_LIMIT - FAULT_LIMIT <= standing.score(standing.at) <= PERFORMANCE_LIMIT
    assert standing.faded(standing.at + later).weight <= standing.weight
    assert abs(standing.score(standing.at + 3650 * DAY)) < 1e-6


@given(histories(any_deed), st.sampled_from(["refused", "unreachable", "violation"]))
def test_good_deeds_never_lower_and_bad_ones_never_raise(
    history: list[tuple[Deed, float]], worse: Deed
) -> None:
    standing = standing_after(history)
    score = standing.score(standing.at)
    assert standing.after("answered", standing.at).score(standing.at) >= score
    assert standing.after(worse, standing.at).score(standing.at) <= score


@given(histories(any_deed), histories(honest))
def test_whoever_just_broke_the_protocol_three_times_is_below_whoever_never_did(
    history: list[tuple[Deed, float]], others: list[tuple[Deed, float]]
) -> None:
    faults: list[tuple[Deed, float]] = [("violation", 0)] * 3
    faulty, other = standing_after([*history, *faults]), standing_after(others)
    assert faulty.score(faulty.at) < other.score(other.at)


@given(histories(any_deed), any_deed, st.floats(0, DAY))
def test_a_clock_that_was_set_back_changes_nothing(
    history: list[tuple[Deed, float]], deed: Deed, back: float
) -> None:
    standing = standing_after(history)
    assert standing.score(standing.at - back) == standing.score(standing.at)
    assert standing.after(deed, standing.at - back).weight == standing.after(deed, standing.at).weight


# --- trust and order


async def test_who_is_not_known_is_neutral(manager: ReputationManager) -> None:
    assert manager.score(node(1), NOW) == 0
    assert manager.trusted(node(1), NOW)


async def test_three_violations_are_enough_whatever_went_before(manager: ReputationManager) -> None:
    note_all(manager, 1, *times(100, "answered"), *times(3, "violation"))
    assert not manager.trusted(node(1), NOW)
    note_all(manager, 1, *times(100, "answered"))
    assert not manager.trusted(node(1), NOW)


async def test_failing_for_ever_is_not_distrusted(manager: ReputationManager) -> None:
    note_all(manager, 1, *times(1000, "unreachable"), *times(1000, "refused"))
    assert manager.trusted(node(1), NOW)


async def test_it_takes_two_violations(manager: ReputationManager) -> None:
    note_all(manager, 1, "violation")
    assert manager.trusted(node(1), NOW)
    note_all(manager, 1, "violation")
    assert not manager.trusted(node(1), NOW)


async def test_faults_are_forgiven_after_weeks(manager: ReputationManager) -> None:
    note_all(manager, 1, *times(4, "violation"))
    assert not manager.trusted(node(1), NOW + 14 * DAY)
    assert manager.trusted(node(1), NOW + 28 * DAY)
    note_all(manager, 2, *times(1000, "violation"))
    assert manager.trusted(node(2), NOW + 60 * DAY)


async def test_failures_are_forgotten_within_a_day(manager: ReputationManager) -> None:
    note_all(manager, 1, *times(10, "unreachable"))
    assert manager.score(node(1), NOW) == -PERFORMANCE_LIMIT
    assert -1 <= manager.score(node(1), NOW + 24 * HOUR) < 0


async def test_the_best_come_first_and_who_broke_the_protocol_not_at_all(manager: ReputationManager) -> None:
    note_all(manager, 1, "unreachable")
    note_all(manager, 2, "answered")
    note_all(manager, 3, "violation", "violation")
    note_all(manager, 4, "answered", "answered")
    note_all(manager, 5, "answered", "refused")
    given = [node(number) for number in (1, 7, 3, 2, 6, 4, 5)]
    # To have been reached, and to have refused, is worse than not to be known.
    assert manager.rank(given, NOW) == [node(number) for number in (4, 2, 7, 6, 5, 1)]


@given(st.lists(st.tuples(st.integers(0, 9), any_deed), max_size=60), st.permutations(range(12)))
def test_rank_is_by_score_stable_and_complete(deeds: list[tuple[int, Deed]], order: list[int]) -> None:
    manager = ReputationManager.__new__(ReputationManager)
    manager._standings, manager._changed = {}, set()
    for number, deed in deeds:
        manager.note(node(number), deed, NOW)
    given = [node(number) for number in order]
    ranked = manager.rank(given, NOW)
    assert sorted(ranked) == sorted(one for one in given if manager.trusted(one, NOW))
    keys = [(-manager.score(one, NOW), given.index(one)) for one in ranked]
    assert keys == sorted(keys)


# --- memory


def flood(manager: ReputationManager, count: int, *deeds: Deed) -> None:
    for number in range(1000, 1000 + count):
        note_all(manager, number, *deeds)


@pytest.mark.parametrize("deed", ["answered", "refused", "unreachable", "violation"])
async def test_a_flood_of_identifiers_does_not_push_out_what_matters(
    manager: ReputationManager, deed: Deed
) -> None:
    note_all(manager, 1, *times(16, "answered"))
    note_all(manager, 2, *times(8, "violation"))
    flood(manager, 2 * MAX_PEERS, deed)
    assert len(manager._standings) <= MAX_PEERS
    assert manager.score(node(1), NOW) == PERFORMANCE_LIMIT
    assert not manager.trusted(node(2), NOW)


async def test_those_of_whom_least_is_known_are_forgotten(manager: ReputationManager) -> None:
    note_all(manager, 1, "answered")
    flood(manager, MAX_PEERS, "answered", "answered")
    assert manager.score(node(1), NOW) == 0
    assert len(manager._standings) > MAX_PEERS // 2


async def test_what_was_flushed_is_loaded(database: Database, manager: ReputationManager) -> None:
    note_all(manager, 1, "answered", "answered")
    note_all(manager, 2, *times(4, "violation"))
    await manager.flush()
    note_all(manager, 1, "answered", "answered")
    note_all(manager, 3, "answered")
    await manager.flush()
    note_all(manager, 4, "answered")
    after_restart = ReputationManager(database)
    await after_restart.load()
    assert [after_restart.score(node(number), NOW) for number in (1, 2, 3, 4)] == [4, -64, 1, 0]


async def test_what_was_forgotten_is_gone_from_the_database(
    database: Database, manager: ReputationManager
) -> None:
    note_all(manager, 1, "answered")
    await manager.flush()
    flood(manager, MAX_PEERS, "answered", "answered")
    await manager.flush()
    after_restart = ReputationManager(database)
    await after_restart.load()
    assert after_restart._standings == manager._standings
    assert node(1) not in after_restart._standings


async def test_a_flush_that_failed_is_made_up_for(database: Database, manager: ReputationManager) -> None:
    pages = await database.read(lambda connection: connection.pragma("page_count"))
    await database.write(lambda connection: connection.pragma("max_page_count", pages))
    flood(manager, 500, "answered")
    with pytest.raises(StorageError, match="the disk is full"):
        await manager.flush()
    note_all(manager, 1, "answered")
    await database.write(lambda connection: connection.pragma("max_page_count", 10_000))
    await manager.flush()
    after_restart = ReputationManager(database)
    await after_restart.load()
    assert after_restart._standings == manager._standings


async def test_a_flush_without_changes_writes_nothing(database: Database, manager: ReputationManager) -> None:
    note_all(manager, 1, "answered")
    await manager.flush()
    before = await database.read(lambda connection: connection.total_changes())
    await manager.flush()
    assert await database.read(lambda connection: connection.total_changes()) == before
