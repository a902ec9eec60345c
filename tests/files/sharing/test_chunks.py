"""Sharing without a copy: what is served is always right, and what cannot be served right is not served."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from overlay.database import Database
from overlay.errors import MalformedError, RefusedError
from overlay.files.sharing.chunks import MAX_BATCH_CHUNKS
from overlay.files.sharing.shares import Shares
from overlay.units.eris import LARGE_BLOCK, Encoder, chunk_reference, encode_content
from tests.files.sharing.conftest import (
    content,
    fetched,
    grown,
    open_convergent,
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

MIB = 1 << 20


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
    assert share.capability == encode_content(data, secret=share.secret)[1]
    assert await fetched(offers, share.capability) == data
    assert (share.size, share.name, share.kind, share.added) == (size, "a", "file", 5.0)


async def test_a_huge_sparse_file_takes_hardly_any_room(
    offers: Shares, database: Database, tmp_path: Path
) -> None:
    size = 300 * MIB
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(size)
    share = await offers.add(path)
    leaves = [
        *Encoder(LARGE_BLOCK, share.secret).feed(bytes(LARGE_BLOCK)),
        *Encoder(LARGE_BLOCK, share.secret).finish()[0],
    ]
    assert await offers.chunks.get([leaf.reference for leaf in leaves]) == [leaf.data for leaf in leaves]
    # All zeros but the last; one full node of zeros many times over, one cut short, and the root.
    assert await rows(database) == [1, 2, 3]
    assert share.capability.level == 2


async def test_a_tree_is_unfolded_from_its_root_and_no_further_than_to_its_nodes(
    offers: Shares, tmp_path: Path
) -> None:
    data = content(40_000_000)
    share = await offers.add(write(tmp_path / "large.bin", data))
    assert share.capability is not None
    root = share.capability.reference
    given = [await offers.chunks.unfold(root, number) for number in range(1, 6)]
    chunks, _ = encode_content(data, secret=share.secret)
    nodes = [chunks[512], chunks[1025], chunks[-2]]  # a node follows the last of its children
    assert given == [*(node.data for node in nodes), None, None]
    assert await offers.chunks.unfold(nodes[0].reference, 1) is None  # a root of nothing that is shared
    assert await offers.chunks.unfold(chunks[0].reference, 1) is None
    await offers.remove(share.capability)
    assert await offers.chunks.unfold(root, 1) is None


async def test_what_belongs_to_no_share_is_missing(offers: Shares, path: Path) -> None:
    share = await offers.add(path)
    known = references(read(path), share.secret)
    found = await offers.chunks.get([bytes(32), known[2], b"short", known[0]])
    assert [chunk and chunk_reference(chunk) for chunk in found] == [None, known[2], None, known[0]]
    assert await offers.chunks.get([]) == []
    assert await offers.chunks.get([bytes(32)]) == [None]


async def test_a_request_is_looked_up_once_and_holds_no_chunk(
    offers: Shares, database: Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = await offers.add(path)
    leaves, root = references(read(path), share.secret)[:4], share.capability.reference
    lookup = await offers.chunks.look_up([*leaves, root, bytes(32)])
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
    assert await offers.chunks.get([bytes(32)] * MAX_BATCH_CHUNKS) == [None] * MAX_BATCH_CHUNKS
    with pytest.raises(MalformedError, match="at most 256"):
        await offers.chunks.get([bytes(32)] * (MAX_BATCH_CHUNKS + 1))


# --- a file that is not what it was


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
    assert await offers.chunks.get([share.capability.reference]) == [None]
    assert [each.problem for each in await offers.list()] == [problem]


async def test_what_did_not_change_is_still_served_where_only_the_content_tells(
    offers: Shares, path: Path
) -> None:
    share = await offers.add(path)
    leaves = references(read(path), share.secret)[:4]
    same_size_and_time(path)
    found = await offers.chunks.get(leaves)
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
        assert await offers.chunks.get(leaves) == [None] * 4
        assert (await offers.list())[0].problem == "gone"
        with pytest.raises(RefusedError, match="cannot be read: Permission denied"):
            await offers.add(path)
    assert None not in await offers.chunks.get(leaves)
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
        assert await offers.chunks.get(leaves) == [None] * 4
    assert (await offers.list())[0].problem == "gone"


async def test_a_node_that_was_damaged_in_the_database_is_missing(
    offers: Shares, database: Database, path: Path
) -> None:
    share = await offers.add(path)
    assert await offers.chunks.get([share.capability.reference]) != [None]
    damage = "UPDATE share_chunks SET content = CAST(x'ff' || substr(content, 2) AS BLOB)"
    await database.write(lambda connection: connection.execute(damage).fetchall())
    assert await offers.chunks.get([share.capability.reference]) == [None]


async def test_one_changed_file_does_not_spoil_the_batch(offers: Shares, tmp_path: Path) -> None:
    paths = [write(tmp_path / str(number), content(10, number)) for number in range(6)]
    made = [await offers.add(path) for path in paths]
    paths[1].unlink()
    paths[4].write_bytes(b"other")
    found = await offers.chunks.get([share.capability.reference for share in made])
    assert [chunk is not None for chunk in found] == [True, False, True, True, False, True]
    problems = [share.problem for share in await offers.list()]
    assert problems == [None, "gone", None, None, "changed", None]


async def test_equal_files_stand_in_for_each_other(database: Database, tmp_path: Path) -> None:
    offers = open_convergent(database)
    paths = [write(tmp_path / str(number), b"equal") for number in range(4)]
    made = [await offers.add(path) for path in paths]
    reference = made[0].capability.reference
    paths[0].unlink()
    assert None not in await offers.chunks.get([reference])
    for path in paths[1:3]:
        path.unlink()
    tries = [(await offers.chunks.get([reference]))[0] is not None for _ in range(2)]
    assert tries[-1]
    paths[3].unlink()
    assert await offers.chunks.get([reference]) == [None]
    await offers.chunks.get([reference])
    assert {share.problem for share in await offers.list()} == {"gone"}
