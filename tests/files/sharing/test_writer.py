"""Adding to what is offered: read once, all or nothing, also when it is cancelled or the file changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.from_thread
import apsw
import pytest

from overlay.database import Database
from overlay.errors import MalformedError, NotFoundError, OverlayError, RefusedError
from overlay.files.sharing import index as share_index
from overlay.files.sharing import shared_file
from overlay.files.sharing import writer as share_writer
from overlay.files.sharing.records import Leaf, NewShare, Share, Stamp
from overlay.files.sharing.shared_file import FileEncoding, locate
from overlay.files.sharing.shares import Shares
from overlay.units.eris import LARGE_BLOCK, NULL_SECRET, Chunk, ReadCapability, encode_content
from tests.files.sharing.conftest import (
    SECRET,
    content,
    fetched,
    grown,
    moved,
    open_convergent,
    open_shares,
    read,
    references,
    replaced_by_folder,
    replaced_by_link,
    replaced_by_pipe,
    rows,
    same_size_and_time,
    touched,
    truncated,
    under_a_file,
    vanished,
    write,
)


async def forget_touch(database: Database, path: Path) -> None:
    """Note the present time of change of a file's entry, which no program can set back."""
    now = locate(path)[1].touched
    await database.write(
        lambda connection: connection.execute("UPDATE shares SET touched = ?", (now,)).fetchall()
    )


# --- reading a file


async def test_long_files_are_noted_in_batches_and_progress_is_told(
    offers: Shares, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_writer, "BATCH_LEAVES", 40)
    batches: list[int] = []
    extend = share_index.extend

    def counted(connection: apsw.Connection, share: int, leaves: list[Leaf], nodes: list[Chunk]) -> None:
        batches.append(len(leaves))
        extend(connection, share, leaves, nodes)

    monkeypatch.setattr(share_index, "extend", counted)
    monkeypatch.setattr(shared_file, "STEP_BYTES", 20 * LARGE_BLOCK)
    data = content(1000 * LARGE_BLOCK + 5)
    told: list[tuple[int, int]] = []
    share = await offers.add(write(tmp_path / "long", data), lambda *done: told.append(done))
    assert await fetched(offers, share.capability) == data
    assert told[0] == (20 * LARGE_BLOCK, len(data))
    assert told[-1] == (len(data), len(data))
    assert len(told) == 51
    assert batches == [40] * 25 + [1]


# --- adding again


async def test_an_unchanged_file_gives_the_same_share(offers: Shares, database: Database, path: Path) -> None:
    share = await offers.add(path)
    assert await offers.add(path) == share
    assert (await offers.add(path, name="renamed")).name == "renamed"
    assert [each.id for each in await offers.list()] == [share.id]
    assert (await rows(database))[0] == 1


async def test_a_file_that_is_back_is_well_again_when_it_is_added(
    offers: Shares, database: Database, path: Path
) -> None:
    share = await offers.add(path)
    aside = moved(path, "aside")
    assert (await offers.check(share.id)).problem == "gone"
    moved(aside, path.name)
    await forget_touch(database, path)  # a disk that was away has touched nothing
    assert (await offers.add(path)).problem is None
    assert [(each.id, each.problem) for each in await offers.list()] == [(share.id, None)]


async def test_a_file_that_was_only_touched_keeps_its_capability(
    offers: Shares, database: Database, path: Path
) -> None:
    share = await offers.add(path)
    before = await rows(database)
    touched(path)
    assert await offers.chunks.get([share.capability.reference]) != [None]  # a node, which needs no file
    again = await offers.add(path)
    assert again.capability == share.capability
    assert await offers.list() == (again,)
    await offers.load()
    assert await rows(database) == before
    assert await fetched(offers, share.capability) == read(path)


async def test_content_found_changed_is_read_again_whatever_the_file_looks_like(
    offers: Shares, path: Path
) -> None:
    share = await offers.add(path)
    same_size_and_time(path)
    again = await offers.add(path)
    assert again.capability != share.capability
    assert await fetched(offers, again.capability) == read(path)


async def test_content_found_changed_is_read_again_even_where_every_time_is_the_same(
    offers: Shares, database: Database, path: Path
) -> None:
    share = await offers.add(path)
    same_size_and_time(path)
    await forget_touch(database, path)  # as if all happened within one tick of the file system's clock
    assert (await offers.add(path)).id == share.id  # nobody has found out
    await offers.chunks.get(references(content(3 * LARGE_BLOCK + 100), share.secret)[:4])
    assert await fetched(offers, (await offers.add(path)).capability) == read(path)


async def test_a_new_version_shares_the_chunks_that_are_equal(offers: Shares, path: Path) -> None:
    old = await offers.add(path)
    data = read(path)
    grown(path)
    new = await offers.add(path)
    assert new.capability != old.capability
    assert [share.problem for share in await offers.list()] == ["changed", None]
    assert await fetched(offers, new.capability) == data + b"more"
    leaves = references(data, old.secret)
    assert [chunk is not None for chunk in await offers.chunks.get(leaves[:4])] == [True, True, True, False]
    assert [share.problem for share in await offers.list()] == ["changed", None]


async def test_another_secret_gives_another_share(offers: Shares, database: Database, path: Path) -> None:
    first = await offers.add(path)
    second = await open_convergent(database).add(write(path.with_name("copy"), read(path)))
    assert second.secret == SECRET
    assert first.capability != second.capability
    assert await offers.list() == (first, second)  # the first has not changed
    assert await open_convergent(database).add(path) == first  # whose secret stays what it is
    with pytest.raises(MalformedError, match="32 bytes"):
        FileEncoding(*locate(path), b"short")


async def test_secrets_are_random(offers: Shares, tmp_path: Path) -> None:
    made = [await offers.add(write(tmp_path / name, b"equal")) for name in "ab"]
    assert len({share.secret for share in made}) == len({share.capability for share in made}) == 2


async def test_convergent_the_same_file_gives_everybody_the_same(offers: Shares, path: Path) -> None:
    private = await offers.add(path)
    share = await offers.add(path, convergent=True)
    copy = await offers.add(write(path.with_name("copy"), read(path)), convergent=True)
    assert share.capability == copy.capability == encode_content(read(path), secret=NULL_SECRET)[1]
    assert await offers.add(path, convergent=True) == share
    assert await offers.add(path) == private  # each stays what it was
    grown(path)
    assert (await offers.add(path)).secret == private.secret
    assert (await offers.add(path, convergent=True)).secret == NULL_SECRET
    assert await fetched(offers, (await offers.add(path)).capability) == read(path)


async def test_what_was_only_shared_convergently_is_private_when_nobody_asks_for_that(
    offers: Shares, path: Path
) -> None:
    known = await offers.add(path, convergent=True)
    assert (await offers.add(path)).secret != known.secret == NULL_SECRET


async def test_a_folder_can_be_convergent_too(offers: Shares, path: Path) -> None:
    async with offers.folder(path.parent) as folder:
        private = await folder.add(path)
        await folder.finish(b"manifest")
    for _ in range(2):
        async with offers.folder(path.parent, convergent=True) as folder:
            part = await folder.add(path)
            share = await folder.finish(b"manifest")
        assert part.capability == encode_content(read(path), secret=NULL_SECRET)[1] != private.capability
        assert share.capability == encode_content(b"manifest", secret=NULL_SECRET)[1]
    assert len(await offers.list()) == 2


# --- what cannot be shared


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (replaced_by_pipe, RefusedError),
        (replaced_by_folder, RefusedError),
        (vanished, NotFoundError),
        (under_a_file, RefusedError),
    ],
)
async def test_what_is_no_file_is_refused(
    offers: Shares,
    database: Database,
    tmp_path: Path,
    make: Callable[[Path], None],
    error: type[OverlayError],
) -> None:
    (tmp_path / "folder").mkdir()
    path = write(tmp_path / "folder" / "file", b"")
    make(path)
    with pytest.raises(error):
        await offers.add(path)
    assert await rows(database) == [0, 0, 0]


async def test_links_in_a_circle_are_refused(offers: Shares, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(RefusedError, match="cannot be read"):
        await offers.add(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (vanished, NotFoundError),
        (truncated, RefusedError),
        (grown, RefusedError),
        (touched, RefusedError),
        (same_size_and_time, RefusedError),
        (replaced_by_link, RefusedError),
        (replaced_by_pipe, RefusedError),
    ],
)
@pytest.mark.parametrize("at", [1, 4], ids=["in the middle", "at the end"])
async def test_a_file_that_changes_while_it_is_read_is_refused(
    *,
    offers: Shares,
    database: Database,
    path: Path,
    change: Callable[[Path], None],
    error: type[OverlayError],
    at: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_file, "STEP_BYTES", LARGE_BLOCK)
    steps: list[int] = []

    def progress(done: int, _: int) -> None:
        steps.append(done)
        if len(steps) == at:
            change(path)

    with pytest.raises(error):
        await offers.add(path, progress)
    assert len(steps) == at
    assert await offers.list() == ()
    await offers._writer.sweep()
    assert await rows(database) == [0, 0, 0]


PHASES = [
    (share_writer, "locate"),
    (share_index, "discarded"),
    (share_index, "of_path"),
    (share_index, "begin"),
    (FileEncoding, "step"),
    (share_index, "extend"),
    (FileEncoding, "finish"),
    (share_index, "finish"),
]


# --- cancelled, killed, at once


@pytest.mark.parametrize(("owner", "phase"), PHASES, ids=[f"{name}" for _, name in PHASES])
async def test_cancelled_in_any_phase_an_add_leaves_all_or_nothing(
    *,
    offers: Shares,
    database: Database,
    path: Path,
    owner: object,
    phase: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_file, "STEP_BYTES", LARGE_BLOCK)
    monkeypatch.setattr(share_writer, "BATCH_LEAVES", 2)
    original = getattr(owner, phase)
    scope = anyio.CancelScope()
    calls = 0

    def cancelling(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        anyio.from_thread.run_sync(scope.cancel)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch, scope:
        patch.setattr(owner, phase, cancelling)
        await offers.add(path)
    assert calls == 1
    offered = await offers.list()
    assert len(offered) == (phase == "finish" and owner is share_index)
    share = await offers.add(path)
    assert offered in ((), (share,))
    assert (await rows(database))[:2] == [1, 4]
    assert await fetched(offers, share.capability) == read(path)


async def test_what_was_being_added_when_the_program_was_killed_is_cleared_away(
    offers: Shares, database: Database, path: Path
) -> None:
    kept = await offers.add(path)
    before = await rows(database)
    new = NewShare(None, "folder", "half", path.parent, Stamp(0, 0, 0), SECRET, 0.0)
    half = await database.write(lambda connection: share_index.begin(connection, new))
    part = NewShare(half, "file", "", path, kept.stamp, SECRET, 0.0)
    number = await database.write(lambda connection: share_index.begin(connection, part))
    leaves = [Leaf(os.urandom(32), number, bytes(32)) for number in range(10)]
    node = Chunk(bytes(32), bytes(1024))
    await database.write(lambda connection: share_index.extend(connection, number, leaves, [node]))
    assert await offers.chunks.get([leaves[0][0], bytes(32)]) == [None, None]
    again = open_shares(database)
    await again.load()
    assert await rows(database) == before
    assert await again.list() == (kept,)


async def test_two_adds_of_one_path_read_it_once(
    offers: Shares, database: Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finishes: list[None] = []
    finish = FileEncoding.finish

    def counted(encoding: FileEncoding) -> ReadCapability:
        finishes.append(None)
        return finish(encoding)

    monkeypatch.setattr(FileEncoding, "finish", counted)
    made: list[Share] = []

    async def add() -> None:
        made.append(await offers.add(path))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(add)
    assert made == [made[0]] * 3
    assert len(finishes) == 1
    assert (await rows(database))[:2] == [1, 4]


async def test_when_the_first_of_two_adds_is_cancelled_the_second_does_it(offers: Shares, path: Path) -> None:
    made: list[Share] = []
    begun = anyio.Event()

    async def second() -> None:
        await begun.wait()
        made.append(await offers.add(path))

    async with anyio.create_task_group() as group:
        group.start_soon(second)
        with anyio.CancelScope() as scope:

            def progress(*_: int) -> None:
                begun.set()
                scope.cancel()

            await offers.add(path, progress)
    assert await offers.list() == tuple(made)
    assert await fetched(offers, made[0].capability) == read(path)


async def test_adds_of_different_paths_go_on_together(offers: Shares, tmp_path: Path) -> None:
    made: dict[int, Share] = {}

    async def add(number: int) -> None:
        path = write(tmp_path / str(number), content(200_000, number))
        made[number] = await offers.add(path)

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(add, number)
    for number, share in made.items():
        assert await fetched(offers, share.capability) == content(200_000, number)
