from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from overlay.errors import MalformedError, NotFoundError, RefusedError
from overlay.files.disk.target import open_target
from overlay.files.folders import reading
from overlay.files.folders.inventory import Inventory, Need
from overlay.files.folders.landing import Landing
from overlay.files.folders.order import Found, Order
from overlay.files.links import FileLink
from overlay.files.manifest.codec import Entry, write_manifest
from overlay.files.manifest.selection import select
from overlay.units.capability import LARGE_BLOCK, SMALL_BLOCK, ReadCapability
from overlay.units.eris import encode_content


def capability(size: int) -> ReadCapability:
    return encode_content(bytes(size), secret=bytes(32))[1]


def file(name: str, size: int) -> Entry:
    return Entry(tuple(name.split("/")), capability(size), size)


ENTRIES = [
    Entry(("empty",)),
    file("large 1", 50_000),
    file("large 2", 60_000),
    file("small/1", 10),
    file("small/2", 20),
]


@asynccontextmanager
async def inventory(
    tmp_path: Path, *entries: Entry, only: tuple[str, ...] = (), overwrite: bool = False
) -> AsyncIterator[Inventory]:
    """That of a folder whose manifest is there."""
    manifest = b"".join(write_manifest(entries))
    chunks, of = encode_content(manifest, secret=bytes(32))
    order = Order(FileLink(of, name="garden", kind="folder"), tmp_path, only, overwrite)
    landing = Landing(order.path)
    async with open_target(order.path, of, nameless=True) as target:
        while wanted := target.tree.wanted(1):
            target.take(wanted[0], dict(chunks)[wanted[0]])
        await target.flush()
        yield Inventory(target, landing, order, select(only) if only else None)
    landing.close()


async def chosen(of: Inventory, need: Need, block_size: int) -> list[str]:
    files, names = of.choose(need, block_size), list[str]()
    while (some := await files.next()) is not None:
        assert all(each.path == of.order.path.joinpath(*each.entry.path) for each in some)
        names += [each.entry.text for each in some]
    return names


def put(tmp_path: Path, name: str, size: int) -> None:
    path = tmp_path / "garden" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))


@pytest.fixture(params=[65_536, 10], ids=["at once", "in pieces"])
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE_BYTES", request.param)


@pytest.mark.usefixtures("_pieces")
async def test_what_is_there_is_compared_and_what_is_not_is_fetched(tmp_path: Path) -> None:
    put(tmp_path, "large 1", 50_000)
    put(tmp_path, "small/2", 20)
    async with inventory(tmp_path, *ENTRIES) as of:
        await of.take()
        assert of.found == Found(
            files=4,
            size=110_030,
            standing=Counter({LARGE_BLOCK: 50_000, SMALL_BLOCK: 20}),
            lacking=Counter({LARGE_BLOCK: 60_000, SMALL_BLOCK: 10}),
            folders=1,
        )
        assert await chosen(of, Need.COMPARE, SMALL_BLOCK) == ["small/2"]
        assert await chosen(of, Need.COMPARE, LARGE_BLOCK) == ["large 1"]
        assert await chosen(of, Need.FETCH, SMALL_BLOCK) == ["small/1"]
        assert await chosen(of, Need.FETCH, LARGE_BLOCK) == ["large 2"]


@pytest.mark.usefixtures("_pieces")
async def test_only_what_is_wanted_counts(tmp_path: Path) -> None:
    async with inventory(tmp_path, *ENTRIES, only=("small", "large 2")) as of:
        await of.take()
        assert (of.found.files, of.found.size, of.found.folders) == (3, 60_030, 0)
        assert await chosen(of, Need.FETCH, SMALL_BLOCK) == ["small/1", "small/2"]
        assert await chosen(of, Need.FETCH, LARGE_BLOCK) == ["large 2"]
        await of.make_folders()
    assert not list((tmp_path / "garden").iterdir())


async def test_empty_folders_are_made_and_no_others(tmp_path: Path) -> None:
    async with inventory(tmp_path, *ENTRIES) as of:
        await of.take()
        assert not (tmp_path / "garden").exists()
        await of.make_folders()
    assert [path.name for path in (tmp_path / "garden").iterdir()] == ["empty"]


async def test_a_file_of_another_size_may_be_replaced_or_not(tmp_path: Path) -> None:
    put(tmp_path, "small/1", 11)
    async with inventory(tmp_path, *ENTRIES) as of:
        with pytest.raises(RefusedError, match="small/1 exists already, and is another file"):
            await of.take()
    async with inventory(tmp_path, *ENTRIES, overwrite=True) as of:
        await of.take()
        assert await chosen(of, Need.FETCH, SMALL_BLOCK) == ["small/1", "small/2"]


async def test_a_file_that_was_found_to_be_another_is_fetched_if_it_may_be(tmp_path: Path) -> None:
    put(tmp_path, "small/2", 20)
    for overwrite in (False, True):
        async with inventory(tmp_path, *ENTRIES, overwrite=overwrite) as of:
            await of.take()
            files = await of.choose(Need.COMPARE, SMALL_BLOCK).next()
            assert files is not None
            if overwrite:
                of.replace(files[0])
                assert of.found.lacking[SMALL_BLOCK] == 30
                assert await chosen(of, Need.FETCH, SMALL_BLOCK) == ["small/1", "small/2"]
            else:
                with pytest.raises(RefusedError, match="small/2 exists already"):
                    of.replace(files[0])


@pytest.mark.parametrize(
    ("entry", "only", "error"),
    [
        (file("a", 5), ("b",), NotFoundError),
        (file(".a.0123abcd.part", 5), (), MalformedError),
    ],
)
async def test_what_cannot_be_fetched_is_said(
    tmp_path: Path, entry: Entry, only: tuple[str, ...], error: type[Exception]
) -> None:
    async with inventory(tmp_path, entry, only=only) as of:
        with pytest.raises(error):
            await of.take()
