from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread

from overlay.database.room import DISK_RESERVE
from overlay.errors import MalformedError, NotFoundError, RefusedError, StorageError, VerificationError
from overlay.files.disk import partial as partial_module
from overlay.files.disk import room
from overlay.files.disk import target as target_module
from overlay.files.disk.partial import Details
from overlay.files.disk.target import Target, open_target
from overlay.units.capability import LARGE_BLOCK, SMALL_BLOCK, ReadCapability
from overlay.units.encode import Encoder
from overlay.units.tree import TreeReader

SECRET = bytes(range(32))


def encode(content: bytes, block_size: int = SMALL_BLOCK) -> tuple[dict[bytes, bytes], ReadCapability]:
    encoder = Encoder(block_size, SECRET)
    chunks = encoder.feed(content)
    last, capability = encoder.finish()
    return dict(chunks + last), capability


CONTENT = hashlib.shake_128(b"content").digest(100_000)
SIZE = len(CONTENT)
BEGUN = 61  # chunks that a half-done fetch has brought
CHUNKS, CAPABILITY = encode(CONTENT)


async def fetch(
    target: Target, chunks: Mapping[bytes, bytes] = CHUNKS, upto: int | None = None
) -> list[bytes]:
    """Bring chunks until `upto` were brought, or all; lists those that were."""
    brought: list[bytes] = []
    while not target.tree.finished and (upto is None or len(brought) < upto):
        for reference in target.tree.wanted(5):
            target.take(reference, chunks[reference])
            brought.append(reference)
        await target.flush()
    return brought


def read(path: Path) -> bytes:
    return path.read_bytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def hidden(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*"))


def remains(folder: Path, ending: str) -> Path:
    [found] = folder.glob(f".*.{ending}")
    return found


@pytest.fixture
async def begun(tmp_path: Path) -> Path:
    """Leave a fetch half done, and give the path of its target."""
    path = tmp_path / "file"
    async with open_target(path, CAPABILITY, size=SIZE) as target:
        await fetch(target, upto=BEGUN)
    return path


async def finish_it(path: Path, *, size: int | None = SIZE) -> list[bytes]:
    async with open_target(path, CAPABILITY, size=size) as target:
        brought = await fetch(target)
        await target.finish()
    assert read(path) == CONTENT
    assert names(path.parent) == [path.name]
    return brought


@pytest.mark.parametrize("size", [0, 1, SMALL_BLOCK - 1, SMALL_BLOCK, 16 * SMALL_BLOCK, 50_000])
@pytest.mark.parametrize("sized", [True, False])
async def test_a_file_appears_when_it_is_whole(tmp_path: Path, size: int, *, sized: bool) -> None:
    content = CONTENT[:size]
    chunks, capability = encode(content)
    path = tmp_path / "file"
    async with open_target(path, capability, size=size if sized else None) as target:
        assert target.tree.present == 0
        await fetch(target, chunks)
        assert not path.exists()
        await target.finish()
        assert read(path) == content
    assert names(tmp_path) == ["file"]


async def test_content_is_brought_to_the_disk_while_more_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_module, "SYNC_BYTES", SIZE // 4)
    synced: list[int] = []
    fsync = os.fsync

    def watch(handle: int) -> None:
        fsync(handle)
        synced.append(handle)

    monkeypatch.setattr(os, "fsync", watch)
    async with open_target(tmp_path / "file", CAPABILITY, size=SIZE) as target:
        await fetch(target)
        assert len(synced) == 3
        await target.finish()


async def test_large_blocks(tmp_path: Path) -> None:
    content = CONTENT * 4
    chunks, capability = encode(content, LARGE_BLOCK)
    async with open_target(tmp_path / "file", capability) as target:
        await fetch(target, chunks, upto=8)
    async with open_target(tmp_path / "file", capability) as target:
        await fetch(target, chunks)
        await target.finish()
    assert read(tmp_path / "file") == content


@pytest.mark.parametrize("size", [SIZE, None])
async def test_what_is_there_is_not_fetched_again(begun: Path, size: int | None) -> None:
    async with open_target(begun, CAPABILITY, size=size) as target:
        assert target.tree.present > 40 * SMALL_BLOCK
        assert len(await fetch(target)) == len(CHUNKS) - BEGUN
        assert target.tree.missing == 0
        await target.finish()
    assert read(begun) == CONTENT


@pytest.mark.parametrize("size", [SIZE, None])
async def test_a_whole_file_that_was_not_finished_needs_nothing(tmp_path: Path, size: int | None) -> None:
    async with open_target(tmp_path / "file", CAPABILITY, size=size) as target:
        await fetch(target)
    assert await finish_it(tmp_path / "file", size=size) == []


async def test_what_follows_the_content_is_cut_off(tmp_path: Path) -> None:
    async with open_target(tmp_path / "file", CAPABILITY) as target:
        await fetch(target)
    with remains(tmp_path, "part").open("ab") as file:
        file.write(b"more")
    assert await finish_it(tmp_path / "file") == []


async def test_holes_are_not_read(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread, offsets = os.pread, set()

    def note(handle: int, length: int, offset: int) -> bytes:
        if length == LARGE_BLOCK:
            offsets.add(offset)
        return pread(handle, length, offset)

    content = CONTENT * 10
    chunks, capability = encode(content, LARGE_BLOCK)
    path = begun.with_name("large")
    async with open_target(path, capability, size=len(content)) as target:
        target.take(capability.reference, chunks[capability.reference])
        leaves = target.tree.wanted(50)
        for reference in (leaves[3], leaves[20]):
            target.take(reference, chunks[reference])
    monkeypatch.setattr(os, "pread", note)
    async with open_target(path, capability, size=len(content)) as target:
        assert target.tree.present == 2 * LARGE_BLOCK
    assert offsets == {0, 3 * LARGE_BLOCK, 20 * LARGE_BLOCK}  # the first is the node's


async def test_interrupted_again_and_again_no_chunk_is_fetched_twice(tmp_path: Path) -> None:
    brought: list[bytes] = []
    for _ in range(200):
        async with open_target(tmp_path / "file", CAPABILITY, size=SIZE) as target:
            brought += await fetch(target, upto=1)
            if target.tree.finished:
                await target.finish()
                break
    assert sorted(brought) == sorted(CHUNKS)
    assert read(tmp_path / "file") == CONTENT


async def test_what_was_taken_and_not_flushed_is_kept(tmp_path: Path) -> None:
    with anyio.CancelScope() as scope:
        async with open_target(tmp_path / "file", CAPABILITY) as target:
            await fetch(target, upto=11)
            for reference in target.tree.wanted(9):
                target.take(reference, CHUNKS[reference])
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert len(await finish_it(tmp_path / "file")) == len(CHUNKS) - 20


async def test_a_full_disk_does_not_hide_why_a_fetch_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        async with open_target(tmp_path / "file", CAPABILITY) as target:
            target.take(CAPABILITY.reference, CHUNKS[CAPABILITY.reference])
            raise KeyError("reason")

    monkeypatch.setattr(os, "pwrite", no_room)
    with pytest.raises(KeyError, match="reason"):
        await fail()
    assert names(tmp_path) == []


async def test_another_content_begins_anew(begun: Path) -> None:
    chunks, capability = encode(CONTENT[::-1])
    async with open_target(begun, capability) as target:
        assert target.tree.present == 0
        await fetch(target, chunks)
        await target.finish()
    assert read(begun) == CONTENT[::-1]
    assert len(hidden(begun.parent)) == 2  # those of the first


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ending", ["part", "nodes"])
async def test_damaged_remains_are_fetched_again(begun: Path, ending: str, seed: int) -> None:
    rng = random.Random(seed)
    path = remains(begun.parent, ending)
    data = bytearray(path.read_bytes())
    hurt = rng.sample(range(len(data)), 5)
    for place in hurt:
        data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    brought = await finish_it(begun)
    blocks = len({place // SMALL_BLOCK for place in hurt})
    assert len(CHUNKS) - BEGUN < len(brought) <= len(CHUNKS) - BEGUN + blocks


@pytest.mark.parametrize("ending", ["part", "nodes"])
@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"x" * 200_000,
        lambda data: data[SMALL_BLOCK:] + data[:SMALL_BLOCK],
        lambda data: bytes(len(data)),
    ],
)
async def test_remains_of_another_form(begun: Path, ending: str, change: Callable[[bytes], bytes]) -> None:
    path = remains(begun.parent, ending)
    path.write_bytes(change(path.read_bytes()))
    await finish_it(begun)


@pytest.mark.parametrize("ending", ["part", "nodes"])
@pytest.mark.parametrize("size", [SIZE, None])
async def test_remains_that_are_lost(begun: Path, ending: str, size: int | None) -> None:
    remains(begun.parent, ending).unlink()
    await finish_it(begun, size=size)


async def test_zeros_are_holes(tmp_path: Path) -> None:
    content = bytes(8 << 20) + CONTENT + bytes(8 << 20)
    chunks, capability = encode(content, LARGE_BLOCK)
    tracemalloc.start()
    try:
        async with open_target(tmp_path / "file", capability, size=len(content)) as target:
            await fetch(target, chunks)
            await target.finish()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20
    assert read(tmp_path / "file") == content
    assert (tmp_path / "file").stat().st_blocks * 512 < 1 << 20


async def test_zeros_replace_what_an_earlier_run_left(tmp_path: Path) -> None:
    content = CONTENT[:5000] + bytes(30 * SMALL_BLOCK) + b"end"
    chunks, capability = encode(content)
    async with open_target(tmp_path / "file", capability) as target:
        await fetch(target, chunks, upto=1)
    remains(tmp_path, "part").write_bytes(b"x" * 50_000)
    async with open_target(tmp_path / "file", capability) as target:
        await fetch(target, chunks)
        await target.finish()
    assert read(tmp_path / "file") == content


async def test_a_wrong_chunk_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    async with open_target(tmp_path / "file", CAPABILITY) as target:
        with pytest.raises(VerificationError):
            target.take(CAPABILITY.reference, bytes(SMALL_BLOCK))
        await target.flush()
    assert names(tmp_path) == []


async def test_ill_formed_content_is_refused_again_when_it_is_resumed(tmp_path: Path) -> None:
    wrong = ReadCapability(SMALL_BLOCK, CAPABILITY.level, CAPABILITY.reference, bytes(32))
    async with open_target(tmp_path / "file", wrong) as target:
        with pytest.raises(MalformedError):
            target.take(CAPABILITY.reference, CHUNKS[CAPABILITY.reference])
    with pytest.raises(MalformedError, match="does not fit"):
        async with open_target(tmp_path / "file", CAPABILITY, size=5):
            pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("size", [SIZE, None])
async def test_a_file_is_not_finished_while_something_is_missing(begun: Path, size: int | None) -> None:
    async with open_target(begun, CAPABILITY, size=size) as target:
        with pytest.raises(ValueError, match="missing"):
            await target.finish()
    assert "file" not in names(begun.parent)


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1])
async def test_of_content_that_is_not_what_it_is_said_to_be_nothing_stays(tmp_path: Path, size: int) -> None:
    async with open_target(tmp_path / "file", CAPABILITY, size=size) as target:
        with pytest.raises(MalformedError, match="has not the"):
            await fetch(target)
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == []


@pytest.mark.parametrize("size", [SIZE - 1, SIZE - 40 * SMALL_BLOCK])
async def test_what_a_better_link_has_brought_survives_a_wrong_one(begun: Path, size: int) -> None:
    with pytest.raises(MalformedError):
        await finish_it(begun, size=size)
    async with open_target(begun, CAPABILITY, size=SIZE) as target:
        assert len(await fetch(target)) <= len(CHUNKS) - BEGUN
        await target.finish()
    assert read(begun) == CONTENT


async def test_what_was_discarded_is_discarded_once(begun: Path) -> None:
    async with open_target(begun, CAPABILITY) as target:
        left = remains(begun.parent, "part")
        await target.discard()
        left.write_bytes(b"of the next fetch")
        await target.discard()
        assert left.read_bytes() == b"of the next fetch"


async def test_a_name_that_was_taken_meanwhile_leaves_what_came_and_says_where_it_is(tmp_path: Path) -> None:
    async with open_target(tmp_path / "file", CAPABILITY) as target:
        await fetch(target)
        (tmp_path / "file").write_bytes(b"mine")
        with pytest.raises(RefusedError, match=r"exists already: what was fetched is kept in .*\.part and"):
            await target.finish()
    (tmp_path / "file").unlink()
    assert await finish_it(tmp_path / "file") == []


async def test_what_was_removed_meanwhile_is_not_said_to_be_kept(tmp_path: Path) -> None:
    async with open_target(tmp_path / "file", CAPABILITY) as target:
        await fetch(target)
        remains(tmp_path, "part").unlink()
        with pytest.raises(StorageError, match=r"was removed meanwhile$"):
            await target.finish()


async def test_discarded_it_leaves_nothing(begun: Path) -> None:
    async with open_target(begun, CAPABILITY) as target:
        await target.discard()
    assert names(begun.parent) == []


async def test_one_fetch_of_a_target_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    async with open_target(path, CAPABILITY) as target:
        await fetch(target, upto=10)
        for overwrite in (False, True):
            with pytest.raises(RefusedError, match="being fetched already"):
                async with open_target(path, CAPABILITY, overwrite=overwrite):
                    pass
        async with open_target(tmp_path / "other", CAPABILITY):
            pass
        await fetch(target)
        await target.finish()
    assert read(path) == CONTENT
    assert names(tmp_path) == ["file"]


def make_folder(path: Path) -> None:
    path.mkdir()


def make_link(path: Path) -> None:
    path.with_name("elsewhere").write_bytes(b"precious")
    path.symlink_to(path.with_name("elsewhere"))


def make_dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


SPECIAL: dict[Callable[[Path], None], str] = {
    make_folder: "is a folder",
    make_link: "symbolic link",
    make_dangling: "symbolic link",
    make_pipe: "not a file",
    make_socket: "not a file",
}


@pytest.mark.parametrize("make", SPECIAL)
@pytest.mark.parametrize("overwrite", [True, False])
async def test_a_target_that_is_no_file_is_refused(
    tmp_path: Path, make: Callable[[Path], None], *, overwrite: bool
) -> None:
    make(tmp_path / "file")
    before = names(tmp_path)
    with pytest.raises(RefusedError, match=SPECIAL[make]):
        async with open_target(tmp_path / "file", CAPABILITY, overwrite=overwrite):
            pass
    assert names(tmp_path) == before


@pytest.mark.parametrize("path", [".", "..", "/"])
async def test_a_path_that_names_a_folder_is_refused(path: str) -> None:
    with pytest.raises(RefusedError, match="folder"):
        async with open_target(Path(path), CAPABILITY, overwrite=True):
            pass


@pytest.mark.parametrize("make", SPECIAL)
@pytest.mark.parametrize("ending", ["part", "nodes"])
async def test_remains_that_are_no_files_are_not_followed(
    begun: Path, make: Callable[[Path], None], ending: str
) -> None:
    path = remains(begun.parent, ending)
    path.unlink()
    make(path)
    with pytest.raises(RefusedError, match="remove it"):
        async with open_target(begun, CAPABILITY):
            pass
    assert path in hidden(begun.parent)
    elsewhere = begun.parent / "elsewhere"
    assert not elsewhere.exists() or elsewhere.read_bytes() == b"precious"
    assert not (begun.parent / "nowhere").exists()


@pytest.mark.parametrize("ending", ["part", "nodes"])
async def test_remains_with_another_name_are_not_written_to(begun: Path, ending: str) -> None:
    precious = begun.parent / "precious"
    precious.write_bytes(b"precious")
    remains(begun.parent, ending).unlink()
    os.link(precious, begun.parent / (hidden(begun.parent)[0].stem + "." + ending))
    async with open_target(begun, CAPABILITY) as target:
        await fetch(target)
        await target.finish()
    assert read(begun) == CONTENT
    assert read(precious) == b"precious"


async def test_an_existing_file_is_replaced_only_if_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RefusedError, match="exists already"):
        async with open_target(path, CAPABILITY):
            pass
    assert names(tmp_path) == ["file"]
    async with open_target(path, CAPABILITY, overwrite=True) as target:
        await fetch(target)
        assert read(path) == b"old"
        await target.finish()
    assert read(path) == CONTENT
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("links", [True, False])
async def test_a_file_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "file"
    async with open_target(path, CAPABILITY) as target:
        await fetch(target)
        path.write_bytes(b"new")
        with pytest.raises(RefusedError, match="exists already"):
            await target.finish()
    assert read(path) == b"new"
    path.unlink()
    assert await finish_it(path) == []


def no_room(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def no_links(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


async def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_links)
    await finish_it(tmp_path / "file")


async def test_a_file_that_appears_in_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    link = os.link

    def appear(source: str, name: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        path.write_bytes(b"new")
        link(source, name, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    async with open_target(path, CAPABILITY) as target:
        await fetch(target)
        monkeypatch.setattr(os, "link", appear)
        with pytest.raises(RefusedError, match="exists already"):
            await target.finish()
    assert read(path) == b"new"


async def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "folder" / "file", tmp_path / "file" / "file"):
        with pytest.raises(NotFoundError, match="no folder"):
            async with open_target(path, CAPABILITY):
                pass


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "a b\n", "-rf", ".hidden"])
async def test_any_name(tmp_path: Path, name: str) -> None:
    async with open_target(tmp_path / name, CAPABILITY) as target:
        await fetch(target, upto=BEGUN)
    assert len(await finish_it(tmp_path / name)) == len(CHUNKS) - BEGUN


async def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match="NUL"):
        async with open_target(tmp_path / "a\0b", CAPABILITY):
            pass
    with pytest.raises(MalformedError, match="characters that no name has"):
        async with open_target(tmp_path / "\ud800", CAPABILITY):
            pass
    with pytest.raises(StorageError, match="too long"):
        async with open_target(tmp_path / ("n" * 256), CAPABILITY):
            pass
    assert names(tmp_path) == []


async def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, pwrite = tmp_path / "file", os.pwrite
    room = 40_000

    def limited(handle: int, data: bytes, offset: int) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = pwrite(handle, data[:room], offset)  # a short write, as systems make them
        room -= written
        return written

    monkeypatch.setattr(os, "pwrite", limited)
    async with open_target(path, CAPABILITY) as target:
        with pytest.raises(StorageError, match=r"No space left on device.*kept"):
            await fetch(target)
        with pytest.raises(StorageError, match="No space left on device"):
            await target.flush()
        with pytest.raises(StorageError, match="No space left on device"):
            await target.finish()
    monkeypatch.undo()
    assert len(await finish_it(path)) < len(CHUNKS) - 30


async def test_a_disk_that_fails_when_the_file_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    async with open_target(tmp_path / "file", CAPABILITY) as target:
        await fetch(target)
        with pytest.raises(StorageError, match="Input/output error"):
            await target.finish()
    monkeypatch.undo()
    assert not (tmp_path / "file").exists()
    assert await finish_it(tmp_path / "file") == []


async def test_discarded_after_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_target(tmp_path / "file", CAPABILITY) as target:
        await fetch(target, upto=10)
        monkeypatch.setattr(os, "pwrite", no_room)
        with pytest.raises(StorageError):
            await fetch(target)
        await target.discard()
    assert names(tmp_path) == []


class Cut:
    """Cancels before or after one of the steps on disk."""

    def __init__(self, moment: int, scope: anyio.CancelScope) -> None:
        self.step, self.late = divmod(moment, 2)
        self.scope = scope
        self.run_sync = to_thread.run_sync

    async def __call__(self, work: Callable[..., object], *args: object) -> object:
        self.step -= 1
        if self.step == -1 and not self.late:
            self.scope.cancel()
        result = await self.run_sync(work, *args)
        if self.step == -1:
            self.scope.cancel()
        return result


@pytest.mark.parametrize("phase", ["open", "fetch", "finish"])
async def test_cancelled_at_any_moment_it_can_be_resumed(
    begun: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """Before each step on disk in turn, and after it, until it has come to the end."""
    moment = 0
    while hidden(begun.parent):
        with anyio.CancelScope() as scope, monkeypatch.context() as patched:
            cut = Cut(moment, scope)
            if phase == "open":
                patched.setattr(to_thread, "run_sync", cut)
            async with open_target(begun, CAPABILITY, size=SIZE) as target:
                if phase == "fetch":
                    patched.setattr(to_thread, "run_sync", cut)
                await fetch(target)
                if phase == "finish":
                    patched.setattr(to_thread, "run_sync", cut)
                await target.finish()
        moment += 1
        assert moment < 200
    assert moment > 3
    assert read(begun) == CONTENT
    assert names(begun.parent) == ["file"]


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few leaves be open at once, as of a long file, so that places are looked for again and again."""
    monkeypatch.setattr(target_module, "TreeReader", partial(TreeReader, window=16))


@pytest.mark.usefixtures("narrow")
async def test_a_flush_that_is_cancelled_loses_nothing_for_the_others(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_target(begun, CAPABILITY) as target:
        while not target.tree.finished:
            for reference in target.tree.wanted(7):
                target.take(reference, CHUNKS[reference])
            with anyio.CancelScope() as scope, monkeypatch.context() as patched:
                patched.setattr(to_thread, "run_sync", Cut(0, scope))
                await target.flush()
            await target.flush()
        await target.finish()
    assert read(begun) == CONTENT


@pytest.mark.usefixtures("narrow")
async def test_several_tasks_fetch_at_once(begun: Path) -> None:
    async with open_target(begun, CAPABILITY) as target:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(fetch, target)
        await target.finish()
    assert read(begun) == CONTENT


async def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: pwrite(handle, data[:700], offset))
    await finish_it(tmp_path / "file")


async def test_another_fetch_ends_while_this_one_begins(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was the hidden file is the other's finished one when this fetch gets its lock."""
    part, flock = remains(begun.parent, "part"), fcntl.flock
    kept = part.read_bytes()

    def flock_late(handle: int, operation: int) -> None:
        if not begun.exists():
            part.rename(begun)
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    async with open_target(begun, CAPABILITY, overwrite=True) as target:
        assert target.tree.present == 0
        await fetch(target)
        await target.flush()
        assert read(begun) == kept
        await target.finish()
    assert read(begun) == CONTENT


PROGRAM = """
import resource, sys
from pathlib import Path
import anyio
from tests_target import CAPABILITY, CHUNKS, SIZE, open_target

async def main(path, limit):
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    async with open_target(Path(path), CAPABILITY, size=SIZE) as target:
        brought = 0
        while not target.tree.finished:
            for reference in target.tree.wanted(3):
                target.take(reference, CHUNKS[reference])
                brought += 1
            await target.flush()
            print(brought, flush=True)

anyio.run(main, sys.argv[1], int(sys.argv[2]))
"""


@pytest.fixture
def command(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Give the command that fetches in a process of its own, with this file as a module."""
    program = tmp_path_factory.mktemp("program") / "program.py"
    program.write_text(PROGRAM)
    program.with_name("tests_target.py").symlink_to(__file__)
    return lambda path, limit=0: [sys.executable, str(program), str(path), str(limit)]


def test_killed_again_and_again(tmp_path: Path, command: Callable[..., list[str]]) -> None:
    path, written = tmp_path / "file", 0
    for lines in (1, 4, 9):
        with subprocess.Popen(command(path), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(lines):
                brought = int(process.stdout.readline())
            process.kill()
        assert process.returncode == -signal.SIGKILL
        written += brought
    assert not path.exists()
    assert len(anyio.run(finish_it, path)) <= len(CHUNKS) - written


def test_a_limit_of_the_system(tmp_path: Path, command: Callable[..., list[str]]) -> None:
    result = subprocess.run(command(tmp_path / "file", 50_000), capture_output=True, check=False)
    assert result.stderr.strip().splitlines()[-1].startswith(b"overlay.errors.StorageError: ")
    assert b"File too large: what was fetched is kept" in result.stderr
    assert len(anyio.run(finish_it, tmp_path / "file")) < len(CHUNKS) - 40


async def test_another_process_is_refused_too(tmp_path: Path, command: Callable[..., list[str]]) -> None:
    async with open_target(tmp_path / "file", CAPABILITY):
        result = await anyio.run_process(command(tmp_path / "file"), check=False)
    assert b"being fetched already" in result.stderr.splitlines()[-1]


# --- room on the disk, and who may read


async def test_what_the_disk_has_no_room_for_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda _: SIZE - 1)
    with pytest.raises(StorageError, match=r"no room for .*file: it takes 0.1 MiB and more"):
        async with open_target(tmp_path / "file", CAPABILITY, size=SIZE):
            pass
    assert names(tmp_path) == []
    monkeypatch.setattr(room, "free_bytes", lambda _: SIZE)
    await finish_it(tmp_path / "file")


async def test_what_is_there_takes_no_room_again(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = remains(begun.parent, "part").stat().st_blocks * 512
    assert 0 < there < SIZE
    monkeypatch.setattr(room, "free_bytes", lambda _: SIZE - there - 1)
    with pytest.raises(StorageError, match=r"remove what came, which is kept in .*part"):
        await finish_it(begun)
    monkeypatch.setattr(room, "free_bytes", lambda _: SIZE - there)
    await finish_it(begun)


async def test_content_without_end_ends_before_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endless: tuple[dict[bytes, bytes], ReadCapability]
) -> None:
    free = 200 << 20
    path = tmp_path / "file"

    def left(handle: int) -> int:
        return free - os.fstat(handle).st_blocks * 512

    monkeypatch.setattr(room, "free_bytes", left)
    async with open_target(path, endless[1]) as target:
        with pytest.raises(StorageError, match="give the same command again, or remove what came"):
            await fetch(target, endless[0])
        assert target.tree.present < 2 * free
    kept = remains(tmp_path, "part")
    assert kept.stat().st_blocks * 512 <= free
    monkeypatch.setattr(room, "free_bytes", lambda _: 0)
    async with open_target(path, endless[1]) as target:
        with pytest.raises(StorageError, match=f"kept in {kept}"):
            await fetch(target, endless[0])


async def test_a_disk_that_does_not_say_its_size_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: nothing)
    await finish_it(tmp_path / "file")


@pytest.mark.parametrize(("blocks", "reserve"), [(1 << 30, DISK_RESERVE), (1 << 14, 1 << 22)])
async def test_some_of_a_disk_stays_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int, reserve: int
) -> None:
    for free, path in ((reserve + SIZE, tmp_path / "file"), (reserve, tmp_path / "other")):
        disk = os.statvfs_result((4096, 4096, blocks, 0, -(-free // 4096), 0, 0, 0, 0, 255))
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", lambda _, disk=disk: disk)
            if path.name == "file":
                await finish_it(path)
                path.unlink()
            else:
                with pytest.raises(StorageError, match=r" 0\.0 MiB are free beside what always stays free"):
                    await finish_it(path)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755, 0o444])
@pytest.mark.parametrize("details", [None, Details(1_000_000, executable=True), Details(0, executable=False)])
async def test_a_file_that_is_replaced_keeps_who_may_read_it(
    tmp_path: Path, mode: int, details: Details | None
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    async with open_target(path, CAPABILITY, overwrite=True) as target:
        assert remains(tmp_path, "part").stat().st_mode & 0o077 == mode & 0o077
        await fetch(target)
        await target.finish(details)
    assert read(path) == CONTENT
    expected = mode
    if details is not None:
        expected = mode & ~0o111 | ((mode & 0o444) >> 2 if details.executable else 0)
    assert path.stat().st_mode & 0o777 == expected


async def test_what_is_never_finished_needs_no_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.mkdir()
    async with open_target(path, CAPABILITY, nameless=True) as target:
        await fetch(target)
        assert await target.read(0, SIZE) == CONTENT
        await target.discard()
    assert names(tmp_path) == ["file"]
