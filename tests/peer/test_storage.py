"""The storage manager: whole batches, a quota that holds, expiry, and never a chunk that does not fit."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.database import Database, room
from overlay.errors import MalformedError, RefusedError, StorageError
from overlay.peer.storage import MAX_BATCH_CHUNKS, STORAGE_SCHEMA, StorageManager, Usage
from overlay.units.eris import chunk_reference

SMALL, LARGE = 1024, 32_768
QUOTA = 10 * SMALL
RETENTION = 100.0
ONE_BYTE = "CAST(x'ff' || substr(content, 2) AS BLOB)"


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    async with await Database.open(None, [STORAGE_SCHEMA]) as database:
        yield database


@pytest.fixture
def storage(database: Database) -> StorageManager:
    return StorageManager(database, quota=QUOTA, retention=RETENTION)


def small(number: int) -> bytes:
    return number.to_bytes(4, "big") * (SMALL // 4)


def reference(chunk: bytes) -> bytes:
    return hashlib.blake2b(chunk, digest_size=32).digest()


async def damage(database: Database, change: str = ONE_BYTE, where: str = "own IN (0, 1)") -> None:
    sql = f"UPDATE chunks SET content = {change} WHERE {where}"  # noqa: S608 - the tests' own words
    await database.write(lambda connection: connection.execute(sql).fetchall())


async def test_what_was_put_is_got_in_order(database: Database) -> None:
    storage = StorageManager(database)
    chunks = [small(1), bytes(LARGE), small(2)]
    references = await storage.put(chunks, now=0)
    assert references == [reference(chunk) for chunk in chunks]
    missing = reference(b"missing")
    assert await storage.get([references[2], missing, references[1], b"short"]) == [
        small(2),
        None,
        chunks[1],
        None,
    ]
    assert await storage.has([missing, references[0]]) == [False, True]
    assert await storage.usage() == Usage(LARGE + 2 * SMALL, 3)


@pytest.mark.parametrize("size", [0, 1, SMALL - 1, SMALL + 1, LARGE - 1, LARGE + 1, 2 * LARGE])
async def test_only_sizes_that_chunks_have(storage: StorageManager, size: int) -> None:
    with pytest.raises(MalformedError, match="1024 or 32768"):
        await storage.put([small(1), bytes(size)], now=0)
    assert await storage.usage() == Usage(0, 0)


async def test_batches_are_bounded(storage: StorageManager) -> None:
    too_many = MAX_BATCH_CHUNKS + 1
    with pytest.raises(MalformedError, match="at most 256 chunks"):
        await storage.put([small(1)] * too_many, now=0)
    for use in (storage.get, storage.has, storage.discard):
        with pytest.raises(MalformedError, match="at most 256 chunks"):
            await use([bytes(32)] * too_many)


async def test_nothing_is_kept_of_a_batch_that_exceeds_the_quota(storage: StorageManager) -> None:
    first = await storage.put([small(n) for n in range(9)], now=0)
    with pytest.raises(RefusedError, match="no room"):
        await storage.put([small(9), small(10)], now=0)
    assert await storage.has([reference(small(9))]) == [False]
    assert await storage.get(first) == [small(n) for n in range(9)]
    await storage.put([small(9)], now=0)
    assert await storage.usage() == Usage(QUOTA, 10)


async def test_what_is_there_already_takes_no_more_room(storage: StorageManager) -> None:
    chunks = [small(n) for n in range(10)]
    await storage.put(chunks, now=0)
    await storage.put([*chunks, *chunks], now=1)
    assert await storage.usage() == Usage(QUOTA, 10)


async def test_expired_chunks_make_room(storage: StorageManager) -> None:
    await storage.put([small(n) for n in range(10)], now=0)
    await storage.put([small(10)], now=RETENTION)
    assert await storage.usage() == Usage(SMALL, 1)


async def test_a_lowered_quota_still_renews(database: Database, storage: StorageManager) -> None:
    chunks = [small(n) for n in range(10)]
    await storage.put(chunks, now=0)
    lowered = StorageManager(database, quota=SMALL, retention=RETENTION)
    await lowered.put(chunks, now=1)
    with pytest.raises(RefusedError):
        await lowered.put([small(11)], now=1)


async def test_a_quota_that_is_raised_holds_at_once(storage: StorageManager) -> None:
    chunks = [small(n) for n in range(11)]
    with pytest.raises(RefusedError):
        await storage.put(chunks, now=0)
    assert await storage.resize(11 * SMALL) == 0
    await storage.put(chunks, now=0)
    assert await storage.usage() == Usage(11 * SMALL, 11)


async def test_a_quota_that_is_lowered_costs_others_what_expires_first(
    storage: StorageManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overlay.peer.storage._PURGE_CHUNKS", 2)
    late = await storage.put([small(1)], now=9)
    early = [(await storage.put([small(n)], now=n - 10))[0] for n in range(2, 8)]
    own = await storage.put([small(8), small(9)], now=0, own=True)
    assert await storage.resize(5 * SMALL) == 4 * SMALL
    assert await storage.has([*late, *early]) == [True, False, False, False, False, True, True]
    assert await storage.owned(own) == [True, True]
    with pytest.raises(RefusedError, match="no room"):
        await storage.put([small(10)], now=0)
    assert await storage.resize(5 * SMALL) == 0


async def test_what_is_the_nodes_own_stays_under_any_quota(storage: StorageManager) -> None:
    own = await storage.put([small(n) for n in range(4)], now=0, own=True)
    await storage.put([small(4)], now=0)
    assert await storage.resize(0) == SMALL
    assert await storage.get(own, own=True) == [small(n) for n in range(4)]
    assert await storage.usage() == Usage(0, 0)
    with pytest.raises(StorageError, match="allow more with 'overlay file limit --disk'"):
        await storage.put([small(5)], now=0, own=True)


@pytest.mark.parametrize("quota", [-1, (1 << 40) + 1])
async def test_what_no_quota_can_be(storage: StorageManager, quota: int) -> None:
    with pytest.raises(MalformedError, match="a limit of the disk"):
        await storage.resize(quota)
    assert storage.quota == QUOTA


async def test_purge_and_renewal(storage: StorageManager) -> None:
    old, renewed = await storage.put([small(1), small(2)], now=0)
    await storage.put([small(2)], now=50)
    assert await storage.purge(RETENTION - 1) == 0
    assert await storage.purge(RETENTION) == 1
    assert await storage.has([old, renewed]) == [False, True]
    assert await storage.purge(RETENTION + 50) == 1
    assert await storage.usage() == Usage(0, 0)


async def test_a_purge_of_many(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay.peer.storage._PURGE_CHUNKS", 4)
    storage = StorageManager(database, retention=RETENTION)
    await storage.put([small(n) for n in range(10)], now=0)
    await storage.put([small(10)], now=50)
    assert await storage.purge(RETENTION) == 10
    assert await storage.usage() == Usage(SMALL, 1)


async def test_own_chunks_do_not_expire(storage: StorageManager) -> None:
    chunks = [small(n) for n in range(10)]
    references = await storage.put(chunks, now=0, own=True)
    assert await storage.purge(1e12) == 0
    assert await storage.get(references, own=True) == chunks
    assert (await storage.usage(own=True), await storage.usage()) == (Usage(10 * SMALL, 10), Usage(0, 0))
    await storage.discard(references)
    assert await storage.usage(own=True) == Usage(0, 0)


async def test_nothing_is_kept_of_own_chunks_that_exceed_the_quota(storage: StorageManager) -> None:
    first = await storage.put([small(n) for n in range(9)], now=0, own=True)
    with pytest.raises(StorageError, match="quota of this node, 0 MiB, is used up: unpin"):
        await storage.put([small(9), small(10)], now=0, own=True)
    assert await storage.usage(own=True) == Usage(9 * SMALL, 9)
    await storage.put([small(0), small(9)], now=0, own=True)
    storage.quota = 0
    await storage.put([small(0)], now=0, own=True)  # renewed: takes no more room
    storage.quota = 11 * SMALL
    await storage.put([small(10)], now=0, own=True)
    assert await storage.get(first, own=True) == [small(n) for n in range(9)]


async def test_own_chunks_come_first_and_others_have_the_rest(storage: StorageManager) -> None:
    others = [small(n) for n in range(8)]
    await storage.put(others, now=0)
    own = await storage.put([small(n) for n in range(10, 15)], now=0, own=True)
    with pytest.raises(RefusedError, match="no room"):
        await storage.put([small(8)], now=1)
    await storage.put(others, now=1)
    assert await storage.usage() == Usage(8 * SMALL, 8)
    await storage.purge(1 + RETENTION)
    await storage.put(others[:5], now=2)
    with pytest.raises(RefusedError, match="no room"):
        await storage.put([others[5]], now=2)
    await storage.discard(own)
    await storage.put([others[5]], now=2)


async def test_what_is_owned_is_told_from_what_others_brought(storage: StorageManager) -> None:
    mine, theirs, both = await storage.put([small(1), small(2), small(3)], now=0)
    await storage.purge(RETENTION)
    await storage.put([small(2), small(3)], now=0)
    await storage.put([small(1), small(3)], now=0, own=True)
    assert await storage.owned([mine, theirs, both, bytes(32)]) == [True, False, True, False]
    with pytest.raises(MalformedError, match="at most 256 chunks"):
        await storage.owned([bytes(32)] * (MAX_BATCH_CHUNKS + 1))


async def test_nobody_else_learns_what_the_node_keeps_for_itself(storage: StorageManager) -> None:
    references = await storage.put([small(1)], now=0, own=True)
    assert await storage.get(references) == [None]
    assert await storage.has(references) == [False]


async def test_what_is_kept_for_others_outlives_what_is_kept_for_oneself(storage: StorageManager) -> None:
    references = await storage.put([small(1)], now=0)
    await storage.put([small(1)], now=0, own=True)
    await storage.discard(references)
    assert await storage.get(references) == [small(1)]
    await storage.put([small(1)], now=0, own=True)
    await storage.purge(RETENTION)
    assert (await storage.get(references), await storage.get(references, own=True)) == ([None], [small(1)])


@pytest.mark.parametrize(
    "change", [ONE_BYTE, "zeroblob(1024)", "zeroblob(32768)", "substr(content, 1, 1023)", "x''"]
)
async def test_a_damaged_chunk_is_never_served(
    database: Database, storage: StorageManager, change: str
) -> None:
    references = await storage.put([small(1), small(2)], now=0)
    await damage(database, change, f"reference = x'{references[0].hex()}'")
    assert await storage.get(references) == [None, small(2)]
    assert await storage.has(references) == [False, True]
    assert await storage.usage() == Usage(SMALL, 1)


async def test_a_damaged_chunk_is_mended_by_the_next_put(database: Database, storage: StorageManager) -> None:
    references = await storage.put([small(1)], now=0)
    await damage(database)
    await storage.put([small(1)], now=0)
    assert await storage.get(references) == [small(1)]


async def test_a_damaged_copy_does_not_hide_an_intact_one(
    database: Database, storage: StorageManager
) -> None:
    references = await storage.put([small(1)], now=0)
    await storage.put([small(1)], now=0, own=True)
    await damage(database, where="own = 1")
    assert await storage.get(references, own=True) == [small(1)]
    assert (await storage.usage(own=True), await storage.usage()) == (Usage(0, 0), Usage(SMALL, 1))


async def test_a_full_disk_leaves_earlier_chunks_intact(database: Database) -> None:
    storage = StorageManager(database)
    earlier = await storage.put([bytes(LARGE), small(1)], now=0)
    usage = await storage.usage()

    def no_more_room(connection: apsw.Connection) -> None:
        connection.pragma("max_page_count", connection.pragma("page_count"))

    await database.write(no_more_room)
    with pytest.raises(StorageError, match="the disk is full"):
        await storage.put([n.to_bytes(1, "big") * LARGE for n in range(1, 9)], now=0)
    assert await storage.get(earlier) == [bytes(LARGE), small(1)]
    assert await storage.usage() == usage


operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(st.integers(0, 15), max_size=6), st.booleans()),
        st.tuples(st.just("discard"), st.lists(st.integers(0, 15), max_size=6), st.just(True)),
        st.tuples(st.sampled_from(["purge", "wait", "damage"]), st.just([]), st.just(False)),
    ),
    max_size=20,
)


class Model:
    """What a storage manager must do, in a few lines: chunks as numbers."""

    def __init__(self) -> None:
        self.own: set[int] = set()
        self.expiries: dict[int, float] = {}

    def put(self, numbers: list[int], now: float) -> bool:
        kept = self.expiries | dict.fromkeys(numbers, now + RETENTION)
        allowed = max(QUOTA - SMALL * len(self.own), SMALL * len(self.expiries))
        if SMALL * len(kept) > allowed:
            kept = {number: expiry for number, expiry in kept.items() if expiry > now}
        accepted = SMALL * len(kept) <= allowed
        if accepted:
            self.expiries = kept
        return accepted

    def put_own(self, numbers: list[int]) -> bool:
        kept = self.own | set(numbers)
        accepted = SMALL * len(kept) <= QUOTA
        if accepted:
            self.own = kept
        return accepted

    def purge(self, now: float) -> None:
        self.expiries = {number: expiry for number, expiry in self.expiries.items() if expiry > now}


async def step(
    storage: StorageManager,
    database: Database,
    model: Model,
    operation: tuple[str, list[int], bool],
    now: float,
) -> None:
    name, numbers, own = operation
    chunks = [small(number) for number in numbers]
    match name:
        case "put" if own and model.put_own(numbers):
            await storage.put(chunks, now=now, own=True)
        case "put" if own:
            with pytest.raises(StorageError):
                await storage.put(chunks, now=now, own=True)
        case "put" if model.put(numbers, now):
            await storage.put(chunks, now=now)
        case "put":
            with pytest.raises(RefusedError):
                await storage.put(chunks, now=now)
        case "discard":
            await storage.discard([reference(chunk) for chunk in chunks])
            model.own -= set(numbers)
        case "damage":
            await damage(database)
            await storage.get([reference(small(number)) for number in range(16)], own=True)
            model.own, model.expiries = set(), {}
        case "purge":
            await storage.purge(now)
            model.purge(now)


@given(operations)
def test_accounts_agree_with_a_simple_model(operations: list[tuple[str, list[int], bool]]) -> None:
    """Usage is what is there, never above the quota, and exactly what a dictionary would hold."""

    async def check() -> None:
        async with await Database.open(None, [STORAGE_SCHEMA]) as database:
            storage, model, now = StorageManager(database, quota=QUOTA, retention=RETENTION), Model(), 0.0
            everything = [reference(small(number)) for number in range(16)]
            for operation in operations:
                now += RETENTION / 3 if operation[0] == "wait" else 1
                await step(storage, database, model, operation, now)
                assert await storage.has(everything) == [number in model.expiries for number in range(16)]
                usage, own_usage = await storage.usage(), await storage.usage(own=True)
                assert usage == Usage(SMALL * len(model.expiries), len(model.expiries))
                assert own_usage == Usage(SMALL * len(model.own), len(model.own))
                assert max(usage.bytes, own_usage.bytes) <= QUOTA

    anyio.run(check)


class TestOnDisk:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
        """Real clocks: files are used from threads."""
        return request.param, {}

    async def test_chunks_survive_a_restart(self, tmp_path: Path) -> None:
        chunks = [bytes([n]) * LARGE for n in range(32)]
        async with await Database.open(tmp_path / "overlay.db", [STORAGE_SCHEMA]) as database:
            references = await StorageManager(database).put(chunks, now=0)
        async with await Database.open(tmp_path / "overlay.db", [STORAGE_SCHEMA]) as database:
            assert await StorageManager(database).get(references) == chunks

    async def test_the_quota_holds_against_many_at_once(self, tmp_path: Path) -> None:
        refused = 0

        async with await Database.open(tmp_path / "overlay.db", [STORAGE_SCHEMA]) as database:
            storage = StorageManager(database, quota=QUOTA)

            async def put(number: int) -> None:
                nonlocal refused
                try:
                    await storage.put([small(2 * number), small(2 * number + 1)], now=0)
                except RefusedError:
                    refused += 1

            async with anyio.create_task_group() as group:
                for number in range(8):
                    group.start_soon(put, number)
            assert (refused, await storage.usage()) == (3, Usage(QUOTA, 10))

    async def test_bits_that_flip_on_the_disk_are_never_served(self, tmp_path: Path) -> None:
        file = anyio.Path(tmp_path / "overlay.db")
        chunk = b"\xa5" * LARGE
        async with await Database.open(tmp_path / "overlay.db", [STORAGE_SCHEMA]) as database:
            references = await StorageManager(database).put([chunk], now=0)
        content = bytearray(await file.read_bytes())
        content[content.index(chunk[:2000]) + 1000] ^= 1
        await file.write_bytes(content)
        async with await Database.open(tmp_path / "overlay.db", [STORAGE_SCHEMA]) as database:
            storage = StorageManager(database)
            assert await storage.get(references) == [None]
            assert await storage.usage() == Usage(0, 0)


async def test_what_a_disk_has_no_room_for_is_refused_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await Database.open(tmp_path / "overlay.db", [STORAGE_SCHEMA]) as database:
        storage = StorageManager(database)
        kept = await storage.put([bytes([8]) * 32768, bytes([9]) * 32768], now=0.0, own=True)
        monkeypatch.setattr(room, "free_bytes", lambda _: 40_000)
        more = [bytes([number]) * 32768 for number in (1, 2)]
        with pytest.raises(StorageError, match="the disk of this node has no room"):
            await storage.put(more, now=0.0, own=True)
        with pytest.raises(RefusedError, match="no room for more chunks"):
            await storage.put(more, now=0.0)
        await storage.put(more[:1], now=0.0)
        monkeypatch.setattr(room, "free_bytes", lambda _: -1)
        await storage.discard(kept)
        await storage.put(more[1:], now=0.0, own=True)  # where something was deleted
        assert await storage.get([chunk_reference(each) for each in more], own=True) == more


async def test_a_disk_that_does_not_answer_is_an_error_of_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> int:
        raise OSError(5, "Input/output error")

    async with await Database.open(tmp_path / "overlay.db", [STORAGE_SCHEMA]) as database:
        monkeypatch.setattr(room, "free_bytes", fail)
        with pytest.raises(StorageError, match="Input/output error"):
            await StorageManager(database).put([bytes(1024)], now=0.0)
