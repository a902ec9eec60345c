"""What is offered, listed and removed: files and folders."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import anyio.from_thread
import apsw
import pytest

from overlay.database import Database
from overlay.errors import MalformedError, NotFoundError, RefusedError
from overlay.files.sharing import index as share_index
from overlay.files.sharing import writer as share_writer
from overlay.files.sharing.records import Share, Stamp
from overlay.files.sharing.shared_file import FileEncoding
from overlay.files.sharing.shares import SHARES_SCHEMA, Shares
from overlay.units.capability import ReadCapability
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
    rows,
    touched,
    write,
)

Removed = tuple[tuple[Share, ...], tuple[Share, ...]]


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


# --- what is offered


async def test_a_link_is_followed_when_it_is_shared(offers: Shares, path: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(path)
    share = await offers.add(tmp_path / "latest")
    assert (share.name, share.path) == ("latest", path)
    (tmp_path / "latest").unlink()
    assert await fetched(offers, share.capability) == read(path)


async def test_shares_survive_a_restart(tmp_path: Path, path: Path) -> None:
    ids = []
    for _ in range(2):
        async with await Database.open(tmp_path / "again.db", [SHARES_SCHEMA]) as database:
            offers = open_shares(database)
            await offers.load()
            share = await offers.add(path, name="a name")
            ids.append(share.id)
            assert await offers.list() == (share,)
            assert await fetched(offers, share.capability) == read(path)
    assert ids[0] == ids[1]


async def test_secrets_are_not_shown(offers: Shares, path: Path) -> None:
    share = await offers.add(path)
    assert repr(share.secret) not in repr(share)
    assert repr(share.capability.key) not in repr(share)


# --- a file that is not what it was


async def test_check_looks_and_notes(offers: Shares, path: Path) -> None:
    share = await offers.add(path)
    assert await offers.check(share.id) == share
    aside = moved(path, "aside")
    assert (await offers.check(share.id)).problem == "gone"
    assert (await offers.list())[0].problem == "gone"
    moved(aside, path.name)
    assert (await offers.check(share.id)).problem is None
    with pytest.raises(NotFoundError, match="number 99"):
        await offers.check(99)


# --- what cannot be shared


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\nb", "\udcff"])
async def test_a_name_that_cannot_be_told_is_refused(offers: Shares, path: Path, name: str) -> None:
    with pytest.raises(MalformedError, match="file name"):
        await offers.add(path, name=name)
    with pytest.raises(MalformedError, match="file name"):
        async with offers.folder(path.parent, name=name):
            pytest.fail("a folder with a bad name was begun")
    assert await offers.list() == ()


async def test_a_path_of_any_bytes_is_shared_under_another_name(offers: Shares, tmp_path: Path) -> None:
    path = write(tmp_path / os.fsdecode(b"\xff\xfe"), b"bytes")
    share = await offers.add(path, name="bytes")
    assert share.path == path
    assert await fetched(offers, share.capability) == b"bytes"


# --- removing


async def test_of_equal_files_that_are_convergent_none_stays(offers: Shares, path: Path) -> None:
    first = await offers.add(path, convergent=True)
    second = await offers.add(write(path.with_name("copy"), read(path)), convergent=True)
    private = await offers.add(path)
    assert first.capability == second.capability
    assert await offers.remove(first.capability) == ((first, second), ())
    assert await offers.list() == (private,)
    assert await offers.chunks.get([first.capability.reference]) == [None]


async def test_what_was_removed_is_served_no_more_and_leaves_no_row(
    database: Database, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_index, "SWEEP_LEAVES", 3)
    monkeypatch.setattr(share_index, "SWEEP_CHUNKS", 1)
    offers = open_convergent(database)
    other = await offers.add(write(tmp_path / "other", read(path) + b"more"))
    before = await rows(database)
    share = await offers.add(path)
    more = await offers.add(write(tmp_path / "more", content(700_000)))
    await offers.remove(share.capability)
    await offers.remove(more.capability)
    assert await rows(database) == before
    assert read(path)
    assert await offers.list() == (other,)
    assert await offers.chunks.get([more.capability.reference]) == [None]
    leaves = await offers.chunks.get(references(read(path), SECRET)[:4])
    assert [leaf is not None for leaf in leaves] == [True] * 3 + [False]  # from the other, which begins so
    with pytest.raises(NotFoundError, match="does not offer that"):
        await offers.remove(share.capability)
    assert (await offers.add(path)).id > more.id  # numbers are not used again


async def test_a_removal_that_was_cancelled_is_ended_later(
    offers: Shares, database: Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = await offers.add(path)
    with monkeypatch.context() as patch, anyio.CancelScope() as scope:
        original = share_index.remove

        def cancelling(connection: apsw.Connection, capability: ReadCapability) -> Removed:
            anyio.from_thread.run_sync(scope.cancel)
            return original(connection, capability)

        patch.setattr(share_index, "remove", cancelling)
        await offers.remove(share.capability)
    assert scope.cancelled_caught
    assert await offers.list() == ()
    assert await rows(database) != [0, 0, 0]
    await offers.load()
    assert await rows(database) == [0, 0, 0]


async def share_folder(offers: Shares, folder: Path, manifest: bytes = b"manifest") -> Share:
    async with offers.folder(folder) as group:
        for path in sorted(files(folder)):
            await group.add(path)
        return await group.finish(manifest)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(3):
        write(folder / f"{number}", content(50_000, number))
    return folder


# --- folders


async def test_a_folder_owns_its_parts_and_its_manifest(
    offers: Shares, database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_index, "SWEEP_CHUNKS", 2)
    manifest = content(200_000)
    share = await share_folder(offers, folder, manifest)
    assert (share.kind, share.name, share.size, share.parent) == ("folder", "folder", 150_000, None)
    assert await offers.list() == (share,)
    assert await fetched(offers, share.capability) == manifest
    parts = await offers.parts(share.id)
    assert [part.path.name for part in parts] == ["0", "1", "2"]
    for part in parts:
        assert (part.parent, part.secret) == (share.id, share.secret)
        assert await fetched(offers, part.capability) == read(part.path)
    with pytest.raises(RefusedError, match=f"part of the shared folder {folder}: remove that"):
        await offers.remove(parts[0].capability)
    await offers.remove(share.capability)
    assert await rows(database) == [0, 0, 0]


async def test_a_part_with_a_problem_is_seen_at_the_folder(offers: Shares, folder: Path) -> None:
    share = await share_folder(offers, folder)
    aside = (folder / "1").rename(folder.with_name("aside"))
    assert (await offers.check(share.id)).problem == "gone"
    assert (await offers.list())[0].problem == "gone"
    assert [part.problem for part in await offers.parts(share.id)] == [None, "gone", None]
    aside.rename(folder / "1")
    assert (await offers.check(share.id)).problem is None


async def test_an_unchanged_folder_keeps_its_capability(
    offers: Shares, database: Database, folder: Path
) -> None:
    first = await share_folder(offers, folder)
    before = await rows(database)
    second = await share_folder(offers, folder)
    assert second.capability == first.capability
    assert await offers.list() == (second,)
    await offers.load()
    assert await rows(database) == before


@pytest.fixture
def encoded_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are encoded from now on."""
    names: list[str] = []

    class Noting(FileEncoding):
        def __init__(self, path: Path, stamp: Stamp, secret: bytes) -> None:
            names.append(path.name)
            super().__init__(path, stamp, secret)

    monkeypatch.setattr(share_writer, "FileEncoding", Noting)
    return names


async def test_what_did_not_change_in_a_folder_is_not_encoded_again(
    offers: Shares, folder: Path, encoded_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_writer, "BATCH_PARTS", 2)
    await share_folder(offers, folder)
    assert encoded_files == ["0", "1", "2"]
    again = await share_folder(offers, folder)
    assert (encoded_files[3:], again.size) == ([], 150_000)
    grown(folder / "1")
    touched(folder / "2")
    write(folder / "3", b"new")
    await share_folder(offers, folder, b"other")
    assert encoded_files[3:] == ["1", "2", "3"]


async def test_a_part_of_two_folders_stays_until_both_are_removed(
    offers: Shares, database: Database, folder: Path
) -> None:
    for first_goes in (True, False):
        first = await share_folder(offers, folder, b"before")
        grown(folder / "1")
        second = await share_folder(offers, folder, b"after")
        parts = [{part.path.name: part for part in await offers.parts(each.id)} for each in (first, second)]
        assert [parts[0][name].id == parts[1][name].id for name in "012"] == [True, False, True]
        assert second.size == first.size + 4
        gone, left = (first, second) if first_goes else (second, first)
        await offers.remove(gone.capability)
        assert await fetched(offers, parts[1]["0"].capability) == read(folder / "0")
        assert {part.path.name for part in await offers.parts(left.id)} == {"0", "1", "2"}
        aside = (folder / "0").rename(folder.with_name("aside"))
        assert (await offers.check(left.id)).problem is not None
        aside.rename(folder / "0")
        await offers.remove(left.capability)
        assert await rows(database) == [0, 0, 0]


async def test_an_attempt_that_fails_takes_nothing_from_what_is_offered(
    offers: Shares, database: Database, folder: Path
) -> None:
    share = await share_folder(offers, folder)
    before = await rows(database)
    with pytest.raises(NotFoundError):  # noqa: PT012 - it leaves the context manager
        async with offers.folder(folder) as group:
            await group.add(folder / "0")
            await group._take_over()
            await group.add(folder / "missing")
    await offers._writer.sweep()
    assert await rows(database) == before
    assert await fetched(offers, (await offers.parts(share.id))[0].capability) == read(folder / "0")


async def test_parts_that_are_removed_meanwhile_are_not_offered_half(offers: Shares, folder: Path) -> None:
    share = await share_folder(offers, folder)
    with pytest.raises(RefusedError, match="removed from what is offered"):  # noqa: PT012 - the same
        async with offers.folder(folder) as group:
            await group.add(folder / "0")
            await offers.remove(share.capability)
            await group.finish(b"")
    assert await offers.list() == ()


async def test_folders_that_an_older_version_shared_keep_their_parts(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "old.db"
    async with await Database.open(path, [SHARES_SCHEMA]) as new:
        share = await share_folder(open_shares(new), folder)
        await new.write(lambda connection: connection.execute("DROP TABLE share_parts").fetchall())
        no_keys = "ALTER TABLE share_leaves DROP COLUMN key"
        await new.write(lambda connection: connection.execute(no_keys).fetchall())
        old = "UPDATE schema_versions SET version = 1 WHERE name = 'shares'"
        await new.write(lambda connection: connection.execute(old).fetchall())
    async with await Database.open(path, [SHARES_SCHEMA]) as migrated:
        parts = await open_shares(migrated).parts(share.id)
        assert [part.path.name for part in parts] == ["0", "1", "2"]
        for part in parts:
            assert await fetched(open_shares(migrated), part.capability) == read(part.path)


async def test_a_folder_that_grew_gets_a_share_of_its_own(offers: Shares, folder: Path) -> None:
    first = await share_folder(offers, folder, b"3")
    write(folder / "3", b"new")
    second = await share_folder(offers, folder, b"4")
    assert await offers.list() == (first, second)  # nothing of the first has changed
    assert second.secret == first.secret
    assert await fetched(offers, first.capability) == b"3"


async def test_an_equal_part_of_a_folder_stays_when_a_file_of_its_own_is_removed(
    database: Database, folder: Path
) -> None:
    offers = open_convergent(database)
    alone = await offers.add(folder / "0")
    async with offers.folder(folder) as group:
        part = await group.add(folder / "0")
        share = await group.finish(b"")
    assert part.capability == alone.capability
    assert await offers.remove(alone.capability) == ((alone,), (share,))
    assert await offers.list() == (share,)
    assert await fetched(offers, alone.capability) == read(folder / "0")


@pytest.mark.parametrize("how", ["failed", "left", "cancelled"])
async def test_a_folder_that_is_not_finished_leaves_nothing(
    offers: Shares, database: Database, folder: Path, how: str
) -> None:
    async with AsyncExitStack() as stack:
        if how == "failed":
            stack.enter_context(pytest.raises(NotFoundError))
        scope = stack.enter_context(anyio.CancelScope())
        group = await stack.enter_async_context(offers.folder(folder))
        part = await group.add(folder / "0")
        if how == "failed":
            await group.add(folder / "missing")
        if how == "cancelled":
            scope.cancel()
            await group.add(folder / "1")
    assert await offers.list() == ()
    assert await offers.chunks.get([part.capability.reference]) == [None]
    await offers._writer.sweep()
    assert await rows(database) == [0, 0, 0]


async def test_a_part_that_fails_does_not_end_the_folder(offers: Shares, folder: Path) -> None:
    async with offers.folder(folder) as group:
        with pytest.raises(NotFoundError):
            await group.add(folder / "missing")
        with pytest.raises(RefusedError):
            await group.add(folder / "1", lambda *_: grown(folder / "1"))
        await group.add(folder / "0")
        share = await group.finish(b"")
    assert len(await offers.parts(share.id)) == 1
    assert share.size == 50_000
