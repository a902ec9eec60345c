"""Sharing without a copy: what is served is always right, and what cannot be served right is not served."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import anyio.from_thread
import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.database import Database
from overlay.errors import MalformedError, NotFoundError, OverlayError, RefusedError
from overlay.files import share_index, shared_file, shares
from overlay.files.share_records import NewShare, Stamp
from overlay.files.shared_file import FileEncoding, locate
from overlay.files.shares import MAX_BATCH_CHUNKS, SHARES_SCHEMA, Share, Shares
from overlay.units.eris import (
    LARGE_BLOCK,
    Chunk,
    Decoder,
    Encoder,
    ReadCapability,
    choose_block_size,
    chunk_reference,
)

SECRET = bytes(range(32))
MIB = 1 << 20


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with await Database.open(tmp_path / "overlay.db", [SHARES_SCHEMA]) as database:
        yield database


@pytest.fixture
def offers(database: Database) -> Shares:
    return open_shares(database)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of four leaves, the last one short."""
    return write(tmp_path / "file.bin", content(3 * LARGE_BLOCK + 100))


def open_shares(database: Database) -> Shares:
    return Shares(database, entropy=random.Random(1).randbytes, clock=lambda: 5.0)


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def encoded(data: bytes, secret: bytes) -> tuple[list[Chunk], ReadCapability]:
    encoder = Encoder(choose_block_size(len(data)), secret)
    chunks = encoder.feed(data)
    last, capability = encoder.finish()
    return chunks + last, capability


def references(data: bytes, secret: bytes) -> list[bytes]:
    return [chunk.reference for chunk in encoded(data, secret)[0]]


def read(path: Path) -> bytes:
    return path.read_bytes()


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def moved(path: Path, name: str) -> Path:
    return path.rename(path.with_name(name))


async def fetched(offers: Shares, capability: ReadCapability) -> bytes:
    """Read a whole content out of what is offered."""
    decoder = Decoder(capability)
    found = []
    while not decoder.finished:
        wanted = decoder.wanted(64)
        for reference, chunk in zip(wanted, await offers.get(wanted), strict=True):
            assert chunk is not None
            decoder.receive(reference, chunk)
        found.append(decoder.read())
    return b"".join(found)


async def rows(database: Database) -> list[int]:
    """Count shares, leaves and chunks in the tables."""

    def count(connection: apsw.Connection) -> list[int]:
        tables = "shares", "share_leaves", "share_chunks"
        return [connection.execute(f"SELECT count(*) FROM {table}").get for table in tables]  # noqa: S608 - constants

    return await database.read(count)


async def forget_touch(database: Database, path: Path) -> None:
    """Note the present time of change of a file's entry, which no program can set back."""
    now = locate(path)[1].touched
    await database.write(
        lambda connection: connection.execute("UPDATE shares SET touched = ?", (now,)).fetchall()
    )


# --- what is offered is served


@pytest.mark.parametrize(
    "size",
    [0, 1, 1023, 1024, 5000, 16_383, 16_384, 32_767, 32_768, 5 * 32_768 + 7, 512 * 32_768, 513 * 32_768 + 1],
)
async def test_a_file_is_served_as_any_encoder_would_encode_it(
    offers: Shares, tmp_path: Path, size: int
) -> None:
    data = content(size)
    share = await offers.add(write(tmp_path / "a", data))
    assert share.capability == encoded(data, share.secret)[1]
    assert await fetched(offers, share.capability) == data
    assert (share.size, share.name, share.kind, share.added) == (size, "a", "file", 5.0)


@given(st.integers(0, 300_000))
def test_leaves_are_told_from_nodes_in_trees_of_any_height(size: int) -> None:
    data = content(size)
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        path = write(Path(folder) / "file", data)
        patch.setattr(
            shared_file, "choose_block_size", lambda _: 1024
        )  # 16 children: high trees of few bytes
        patch.setattr(shared_file, "STEP_BYTES", 70_000)
        patch.setattr(shared_file, "_PIECE_BYTES", 9_999)
        encoding = FileEncoding(*locate(path), SECRET)
        while not encoding.read:
            encoding.step()
        capability = encoding.finish()
    encoder = Encoder(1024, SECRET)
    chunks = encoder.feed(data)
    last, expected = encoder.finish()
    assert capability == expected
    padded = (data + b"\x80").ljust((size // 1024 + 1) * 1024, b"\0")
    leaves = [Encoder(1024, SECRET).feed(padded[i : i + 1024])[0] for i in range(0, len(padded), 1024)]
    assert encoding.leaves == [(leaf.reference, number) for number, leaf in enumerate(leaves)]
    known = {leaf.reference for leaf in leaves}
    assert encoding.nodes == [chunk for chunk in chunks + last if chunk.reference not in known]


async def test_a_link_is_followed_when_it_is_shared(offers: Shares, path: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(path)
    share = await offers.add(tmp_path / "latest")
    assert (share.name, share.path) == ("latest", path)
    (tmp_path / "latest").unlink()
    assert await fetched(offers, share.capability) == read(path)


async def test_long_files_are_noted_in_batches_and_progress_is_told(
    offers: Shares, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "BATCH_LEAVES", 40)
    batches: list[int] = []
    extend = share_index.extend

    def counted(
        connection: apsw.Connection, share: int, leaves: list[tuple[bytes, int]], nodes: list[Chunk]
    ) -> None:
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


async def test_a_huge_sparse_file_takes_hardly_any_room(
    offers: Shares, database: Database, tmp_path: Path
) -> None:
    size = 300 * MIB
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(size)
    share = await offers.add(path, secret=SECRET)
    leaves = [
        *Encoder(LARGE_BLOCK, SECRET).feed(bytes(LARGE_BLOCK)),
        *Encoder(LARGE_BLOCK, SECRET).finish()[0],
    ]
    assert await offers.get([leaf.reference for leaf in leaves]) == [leaf.data for leaf in leaves]
    # All zeros but the last; one full node of zeros many times over, one cut short, and the root.
    assert await rows(database) == [1, 2, 3]
    assert share.capability.level == 2


async def test_a_tree_is_unfolded_from_its_root_and_no_further_than_to_its_nodes(
    offers: Shares, tmp_path: Path
) -> None:
    data = content(40_000_000)
    share = await offers.add(write(tmp_path / "large.bin", data), secret=SECRET)
    assert share.capability is not None
    root = share.capability.reference
    given = [await offers.unfold(root, number) for number in range(1, 6)]
    chunks, _ = encoded(data, SECRET)
    nodes = [chunks[512], chunks[1025], chunks[-2]]  # a node follows the last of its children
    assert given == [*(node.data for node in nodes), None, None]
    assert await offers.unfold(nodes[0].reference, 1) is None  # a root of nothing that is shared
    assert await offers.unfold(chunks[0].reference, 1) is None
    await offers.remove(share.id)
    assert await offers.unfold(root, 1) is None


async def test_what_belongs_to_no_share_is_missing(offers: Shares, path: Path) -> None:
    share = await offers.add(path)
    known = references(read(path), share.secret)
    found = await offers.get([bytes(32), known[2], b"short", known[0]])
    assert [chunk and chunk_reference(chunk) for chunk in found] == [None, known[2], None, known[0]]
    assert await offers.get([]) == []
    assert await offers.get([bytes(32)]) == [None]


async def test_a_request_is_looked_up_once_and_holds_no_chunk(
    offers: Shares, database: Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = await offers.add(path)
    leaves, root = references(read(path), share.secret)[:4], share.capability.reference
    lookup = await offers.look_up([*leaves, root, bytes(32)])
    await database.write(lambda connection: connection.execute("DELETE FROM share_chunks").fetchall())
    reads = 0
    read_database = database.read

    async def count(fn: Callable[[apsw.Connection], object], *, bulk: bool) -> object:
        nonlocal reads
        reads += 1
        return await read_database(fn, bulk=bulk)

    monkeypatch.setattr(database, "read", count)
    for two in (leaves[:2], leaves[2:]):
        assert [chunk and chunk_reference(chunk) for chunk in await lookup.get(two)] == two
    assert reads == 0
    assert await lookup.get([root, bytes(32)]) == [None, None]
    assert reads == 1


async def test_batches_are_bounded(offers: Shares) -> None:
    assert await offers.get([bytes(32)] * MAX_BATCH_CHUNKS) == [None] * MAX_BATCH_CHUNKS
    with pytest.raises(MalformedError, match="at most 256"):
        await offers.get([bytes(32)] * (MAX_BATCH_CHUNKS + 1))


async def test_shares_survive_a_restart(tmp_path: Path, path: Path) -> None:
    ids = []
    for _ in range(2):
        async with await Database.open(tmp_path / "again.db", [SHARES_SCHEMA]) as database:
            offers = open_shares(database)
            await offers.load()
            share = await offers.add(path, name="a name")
            ids.append(share.id)
            assert await offers.list() == (share,)
            assert await offers.lookup(share.capability) == share
            assert await fetched(offers, share.capability) == read(path)
    assert ids[0] == ids[1]


async def test_secrets_are_not_shown(offers: Shares, path: Path) -> None:
    share = await offers.add(path, secret=SECRET)
    assert repr(SECRET) not in repr(share)
    assert repr(share.capability.key) not in repr(share)


# --- a file that is not what it was


def same_size_and_time(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touched(path: Path) -> None:
    os.utime(path, ns=(0, 0))


def truncated(path: Path) -> None:
    os.truncate(path, LARGE_BLOCK)


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replaced_by_link(path: Path) -> None:
    copy = path.rename(path.with_name("elsewhere"))
    path.symlink_to(copy)


def replaced_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def vanished(path: Path) -> None:
    path.unlink()


def under_a_file(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()
    path.parent.write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (same_size_and_time, "changed"),
        (touched, "changed"),
        (truncated, "changed"),
        (grown, "changed"),
        (replaced_by_link, "changed"),
        (replaced_by_pipe, "changed"),
        (replaced_by_folder, "changed"),
        (vanished, "gone"),
        (under_a_file, "gone"),
    ],
)
async def test_a_file_that_is_not_what_it_was_is_gone_and_listed_so(
    offers: Shares, tmp_path: Path, change: Callable[[Path], None], problem: str
) -> None:
    (tmp_path / "folder").mkdir()
    path = write(tmp_path / "folder" / "file", content(100))
    share = await offers.add(path)
    assert (await offers.list())[0].problem is None
    change(path)
    assert await offers.get([share.capability.reference]) == [None]
    assert [each.problem for each in await offers.list()] == [problem]


async def test_what_did_not_change_is_still_served_where_only_the_content_tells(
    offers: Shares, path: Path
) -> None:
    share = await offers.add(path)
    leaves = references(read(path), share.secret)[:4]
    same_size_and_time(path)
    found = await offers.get(leaves)
    assert [chunk and chunk_reference(chunk) for chunk in found] == [None, *leaves[1:]]
    assert (await offers.check(share.id)).problem == "changed"  # it looks right, but was found out


async def test_a_file_that_cannot_be_read_is_gone_until_it_can(
    offers: Shares, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = await offers.add(path)
    leaves = references(read(path), share.secret)[:4]
    opening = os.open

    def refuse(name: str, flags: int) -> int:
        if Path(name) == path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opening(name, flags)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)  # the mode does not stop whoever runs tests as root
        assert await offers.get(leaves) == [None] * 4
        assert (await offers.list())[0].problem == "gone"
        with pytest.raises(RefusedError, match="cannot be read: Permission denied"):
            await offers.add(path)
    assert None not in await offers.get(leaves)
    assert (await offers.list())[0].problem is None


async def test_a_disk_that_fails_in_the_middle_is_gone(
    offers: Shares, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = await offers.add(path)
    leaves = references(read(path), share.secret)[:4]

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        assert await offers.get(leaves) == [None] * 4
    assert (await offers.list())[0].problem == "gone"


async def test_a_node_that_was_damaged_in_the_database_is_missing(
    offers: Shares, database: Database, path: Path
) -> None:
    share = await offers.add(path)
    assert await offers.get([share.capability.reference]) != [None]
    damage = "UPDATE share_chunks SET content = CAST(x'ff' || substr(content, 2) AS BLOB)"
    await database.write(lambda connection: connection.execute(damage).fetchall())
    assert await offers.get([share.capability.reference]) == [None]


async def test_one_changed_file_does_not_spoil_the_batch(offers: Shares, tmp_path: Path) -> None:
    paths = [write(tmp_path / str(number), content(10, number)) for number in range(6)]
    made = [await offers.add(path) for path in paths]
    paths[1].unlink()
    paths[4].write_bytes(b"other")
    found = await offers.get([share.capability.reference for share in made])
    assert [chunk is not None for chunk in found] == [True, False, True, True, False, True]
    problems = [share.problem for share in await offers.list()]
    assert problems == [None, "gone", None, None, "changed", None]


async def test_equal_files_stand_in_for_each_other(offers: Shares, tmp_path: Path) -> None:
    paths = [write(tmp_path / str(number), b"equal") for number in range(4)]
    made = [await offers.add(path, secret=SECRET) for path in paths]
    reference = made[0].capability.reference
    paths[0].unlink()
    assert None not in await offers.get([reference])
    for path in paths[1:3]:
        path.unlink()
    tries = [(await offers.get([reference]))[0] is not None for _ in range(2)]
    assert tries[-1]
    paths[3].unlink()
    assert await offers.get([reference]) == [None]
    await offers.get([reference])
    assert {share.problem for share in await offers.list()} == {"gone"}


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
    assert await offers.get([share.capability.reference]) != [None]  # a node, which needs no file
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
    await offers.get(references(content(3 * LARGE_BLOCK + 100), share.secret)[:4])
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
    assert [chunk is not None for chunk in await offers.get(leaves[:4])] == [True, True, True, False]
    assert [share.problem for share in await offers.list()] == ["changed", None]


async def test_another_secret_gives_another_share(offers: Shares, path: Path) -> None:
    first = await offers.add(path)
    second = await offers.add(path, secret=SECRET)
    assert second.secret == SECRET
    assert first.capability != second.capability
    assert await offers.list() == (first, second)  # the first has not changed
    with pytest.raises(MalformedError, match="32 bytes"):
        await offers.add(path, secret=b"short")


async def test_secrets_are_random(offers: Shares, tmp_path: Path) -> None:
    made = [await offers.add(write(tmp_path / name, b"equal")) for name in "ab"]
    assert len({share.secret for share in made}) == len({share.capability for share in made}) == 2


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
    await offers._sweep()
    assert await rows(database) == [0, 0, 0]


# --- cancelled, killed, at once

PHASES = [
    (shares, "locate"),
    (share_index, "discarded"),
    (share_index, "of_path"),
    (share_index, "begin"),
    (FileEncoding, "step"),
    (share_index, "extend"),
    (FileEncoding, "finish"),
    (share_index, "finish"),
]


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
    monkeypatch.setattr(shares, "BATCH_LEAVES", 2)
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
    leaves = [(os.urandom(32), number) for number in range(10)]
    node = Chunk(bytes(32), bytes(1024))
    await database.write(lambda connection: share_index.extend(connection, number, leaves, [node]))
    assert await offers.get([leaves[0][0], bytes(32)]) == [None, None]
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


# --- removing


async def test_what_was_removed_is_served_no_more_and_leaves_no_row(
    offers: Shares, database: Database, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_index, "SWEEP_LEAVES", 3)
    monkeypatch.setattr(share_index, "SWEEP_CHUNKS", 1)
    other = await offers.add(write(tmp_path / "other", read(path)), secret=SECRET)
    before = await rows(database)
    share = await offers.add(path, secret=SECRET)
    more = await offers.add(write(tmp_path / "more", content(700_000)))
    await offers.remove(share.id)
    await offers.remove(more.id)
    assert await rows(database) == before
    assert read(path)
    assert await offers.list() == (other,)
    assert await offers.get([more.capability.reference]) == [None]
    assert await fetched(offers, share.capability) == read(path)  # from the other, which is equal
    with pytest.raises(NotFoundError, match=f"number {share.id}"):
        await offers.remove(share.id)
    assert (await offers.add(path)).id > more.id  # numbers are not used again


async def test_a_removal_that_was_cancelled_is_ended_later(
    offers: Shares, database: Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = await offers.add(path)
    with monkeypatch.context() as patch, anyio.CancelScope() as scope:
        original = share_index.remove

        def cancelling(connection: apsw.Connection, share: int) -> None:
            anyio.from_thread.run_sync(scope.cancel)
            original(connection, share)

        patch.setattr(share_index, "remove", cancelling)
        await offers.remove(share.id)
    assert scope.cancelled_caught
    assert await offers.list() == ()
    assert await rows(database) != [0, 0, 0]
    await offers.load()
    assert await rows(database) == [0, 0, 0]


# --- folders


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


async def test_a_folder_owns_its_parts_and_its_manifest(
    offers: Shares, database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_index, "SWEEP_CHUNKS", 2)
    manifest = content(200_000)
    share = await share_folder(offers, folder, manifest)
    assert (share.kind, share.name, share.size, share.parent) == ("folder", "folder", 150_000, None)
    assert await offers.list() == (share,)
    assert await offers.lookup(share.capability) == share
    assert await fetched(offers, share.capability) == manifest
    parts = await offers.parts(share.id)
    assert [part.path.name for part in parts] == ["0", "1", "2"]
    for part in parts:
        assert (part.parent, part.secret) == (share.id, share.secret)
        assert await fetched(offers, part.capability) == read(part.path)
        assert await offers.lookup(part.capability) == part
    with pytest.raises(RefusedError, match="remove the folder"):
        await offers.remove(parts[0].id)
    await offers.remove(share.id)
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

    monkeypatch.setattr(shares, "FileEncoding", Noting)
    return names


async def test_what_did_not_change_in_a_folder_is_not_encoded_again(
    offers: Shares, folder: Path, encoded_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "BATCH_PARTS", 2)
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
        await offers.remove(gone.id)
        assert await fetched(offers, parts[1]["0"].capability) == read(folder / "0")
        assert {part.path.name for part in await offers.parts(left.id)} == {"0", "1", "2"}
        aside = (folder / "0").rename(folder.with_name("aside"))
        assert (await offers.check(left.id)).problem is not None
        aside.rename(folder / "0")
        await offers.remove(left.id)
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
    await offers._sweep()
    assert await rows(database) == before
    assert await fetched(offers, (await offers.parts(share.id))[0].capability) == read(folder / "0")


async def test_parts_that_are_removed_meanwhile_are_not_offered_half(offers: Shares, folder: Path) -> None:
    share = await share_folder(offers, folder)
    with pytest.raises(RefusedError, match="removed from what is offered"):  # noqa: PT012 - the same
        async with offers.folder(folder) as group:
            await group.add(folder / "0")
            await offers.remove(share.id)
            await group.finish(b"")
    assert await offers.list() == ()


async def test_folders_that_an_older_version_shared_keep_their_parts(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "old.db"
    async with await Database.open(path, [SHARES_SCHEMA]) as new:
        share = await share_folder(open_shares(new), folder)
        await new.write(lambda connection: connection.execute("DROP TABLE share_parts").fetchall())
        old = "UPDATE schema_versions SET version = 1 WHERE name = 'shares'"
        await new.write(lambda connection: connection.execute(old).fetchall())
    async with await Database.open(path, [SHARES_SCHEMA]) as migrated:
        parts = await open_shares(migrated).parts(share.id)
        assert [part.path.name for part in parts] == ["0", "1", "2"]


async def test_a_folder_that_grew_gets_a_share_of_its_own(offers: Shares, folder: Path) -> None:
    first = await share_folder(offers, folder, b"3")
    write(folder / "3", b"new")
    second = await share_folder(offers, folder, b"4")
    assert await offers.list() == (first, second)  # nothing of the first has changed
    assert second.secret == first.secret
    assert await fetched(offers, first.capability) == b"3"


async def test_a_file_of_its_own_is_preferred_to_an_equal_part(offers: Shares, folder: Path) -> None:
    alone = await offers.add(folder / "0", secret=SECRET)
    async with offers.folder(folder, secret=SECRET) as group:
        part = await group.add(folder / "0")
        await group.finish(b"")
    assert part.capability == alone.capability
    assert await offers.lookup(alone.capability) == alone


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
    assert await offers.get([part.capability.reference]) == [None]
    await offers._sweep()
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
