"""Folders, shared on one simulated node and fetched by another."""

from __future__ import annotations

import hashlib
import os
import random
import tracemalloc
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import msgspec
import pytest

from overlay.channel.driver import Channel
from overlay.errors import MalformedError, NotFoundError, RefusedError, StorageError, UnreachableError
from overlay.files.disk import room
from overlay.files.disk.partial import Details, PartialFiles
from overlay.files.disk.target import Target
from overlay.files.engine.providers import Candidates
from overlay.files.engine.transfer import TICK
from overlay.files.folders.fetch import FolderFetch
from overlay.files.folders.order import Found, Order
from overlay.files.links import FileLink
from overlay.files.manifest.codec import HEADER, Entry, write_manifest
from overlay.files.sharing.folder_shares import SharedFolder, manifest_bytes, share_folder
from overlay.files.sharing.shares import SHARES_SCHEMA, Shares
from overlay.identity import NodeIdentifier
from overlay.peer.chunks import ChunkSource
from overlay.peer.node import Node
from overlay.testing.nodes import World, introduce
from overlay.testing.simulation import Latency
from overlay.units.capability import LARGE_BLOCK, PAIR_BYTES, ReadCapability, apply_cipher, chunk_reference
from overlay.units.eris import Chunk, Decoder, encode_content

TIME = 1_700_000_000
MAX_CIRCUITS_KEPT = 2


@dataclass
class Pair:
    """Alice, who fetches, and Bob, who shares."""

    alice: Node
    bob: Node
    shares: Shares

    async def share(self, path: Path, name: str = "") -> FileLink:
        return await self.link(await share_folder(self.shares, path, name))

    async def link(self, shared: SharedFolder) -> FileLink:
        share = shared.share
        size = await manifest_bytes(self.shares.chunks, share.capability)
        return FileLink(share.capability, name=share.name, size=size, kind="folder")

    async def manifest(self, of: FileLink) -> bytes:
        decoder, found = Decoder(of.capability), bytearray()
        while wanted := decoder.wanted(64):
            for reference, chunk in zip(wanted, await self.shares.chunks.get(wanted), strict=True):
                decoder.receive(reference, chunk or b"")
            found += decoder.read()
        return bytes(found)

    async def offer(self, manifest: bytes) -> FileLink:
        """Offer whatever somebody else may call a manifest."""
        async with self.shares.folder(Path("/garden")) as folder:
            share = await folder.finish(manifest)
        return FileLink(share.capability, name="garden", size=len(manifest), kind="folder")

    async def get(self, of: FileLink, destination: Path, *only: str, overwrite: bool = False) -> FolderFetch:
        fetch = FolderFetch(
            self.alice, Order(of, destination, only, overwrite=overwrite), Candidates([self.bob.identifier])
        )
        await fetch.run()
        return fetch


@asynccontextmanager
async def pair(seed: int) -> AsyncIterator[Pair]:
    world = World(seed, latency=Latency(0.001))
    async with (
        world.database() as database,
        world.database(SHARES_SCHEMA) as offers,
        world.node("alice", database) as alice,
        world.node("bob", offers) as bob,
    ):
        shares = Shares(offers, entropy=world.entropy, clock=world.clock)
        await shares.load()
        bob.chunks.sources.append(shares.chunks)
        await introduce([alice, bob])
        yield Pair(alice, bob, shares)


def make(root: Path, files: Mapping[str, int | bytes], *empty: str) -> Path:
    root.mkdir()
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = random.Random(name).randbytes(content) if isinstance(content, int) else content
        path.write_bytes(data)
        os.utime(path, (TIME, TIME))
    for name in empty:
        (root / name).mkdir(parents=True)
    return root


def content(root: Path) -> dict[str, bytes | None]:
    """All that is in a folder; None for folders in which nothing is."""
    found: dict[str, bytes | None] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            found[path.relative_to(root).as_posix()] = path.read_bytes()
        elif not any(path.iterdir()):
            found[path.relative_to(root).as_posix()] = None
    return found


def count_circuits(node: Node, monkeypatch: pytest.MonkeyPatch) -> list[NodeIdentifier]:
    """The nodes to which circuits are opened from now on, once for each circuit."""
    opened: list[NodeIdentifier] = []
    circuit = node.channels.circuit

    @asynccontextmanager
    async def count(provider: NodeIdentifier) -> AsyncIterator[Channel]:
        async with circuit(provider) as channel:
            opened.append(provider)
            yield channel

    monkeypatch.setattr(node.channels, "circuit", count)
    return opened


GARDEN: dict[str, int | bytes] = {
    "a-b": 5,
    "a/z": 20_000,
    "a.txt": 3000,
    "deep/er/still/leaf": 100_000,
    "empty": 0,
    "same 1": b"same" * 10_000,
    "same 2": b"same" * 10_000,
    "zeros": bytes(200_000),
    "\u00e9t\u00e9": 1024,
}


async def test_a_folder_comes_as_it_is(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", GARDEN, "nothing/here")
    (root / "a-b").chmod(0o755)
    (root / "link").symlink_to(root / "a-b")
    os.mkfifo(root / "pipe")
    (tmp_path / "to").mkdir()
    async with pair(1) as both:
        shared = await share_folder(both.shares, root)
        assert (shared.files, shared.skipped) == (len(GARDEN), 2)
        of = await both.link(shared)
        assert of.size == len(await both.manifest(of))
        fetch = await both.get(of, tmp_path / "to")
    (root / "link").unlink()
    (root / "pipe").unlink()
    assert content(tmp_path / "to" / "garden") == content(root)
    assert fetch.found == Found(len(GARDEN), shared.share.size, folders=1)
    assert fetch.present == fetch.size == shared.share.size
    copy = tmp_path / "to" / "garden" / "a-b"
    assert copy.stat().st_mtime == TIME
    assert copy.stat().st_mode & 0o100
    assert not (copy.parent / "a.txt").stat().st_mode & 0o100
    assert os.listdir(tmp_path / "to") == ["garden"]  # noqa: PTH208 - of a test


@pytest.mark.parametrize(
    ("only", "wanted"),
    [
        (("*.txt",), {"a.txt"}),
        (("a", "deep/"), {"a/z", "deep/er/still/leaf"}),
        (("/empty", "same ?"), {"empty", "same 1", "same 2"}),
        (("nothing",), {"nothing/here"}),
    ],
)
async def test_a_part_of_it_is_all_that_comes(tmp_path: Path, only: Sequence[str], wanted: set[str]) -> None:
    root = make(tmp_path / "garden", GARDEN, "nothing/here")
    async with pair(2) as both:
        fetch = await both.get(await both.share(root), tmp_path / "to", *only)
    found = content(tmp_path / "to" / "garden")
    assert found == {name: data for name, data in content(root).items() if name in wanted}
    assert fetch.size == sum(len(data) for data in found.values() if data)


async def test_nothing_that_is_wanted_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", {"a": 1})
    async with pair(3) as both:
        of = await both.share(root)
        with pytest.raises(NotFoundError, match="--only"):
            await both.get(of, tmp_path / "to", "b")
        with pytest.raises(MalformedError, match="pattern"):
            await both.get(of, tmp_path / "to", "../a")
    assert not (tmp_path / "to").exists()


async def test_an_empty_folder_comes_too(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", {})
    async with pair(4) as both:
        await both.get(await both.share(root, "called so"), tmp_path / "to")
    assert os.listdir(tmp_path / "to" / "called so") == []  # noqa: PTH208 - of a test


async def test_equal_folders_shared_again_have_the_same_link(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", GARDEN)
    async with pair(5) as both:
        first = await both.share(root)
        assert await both.share(root) == first
        assert len(await both.shares.list()) == 1
        (root / "a.txt").write_bytes(b"other")
        assert await both.share(root) != first


# --- sharing


async def test_a_bad_name_is_told_and_nothing_is_shared(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", {"a": 1, "sub/c:\\x": 1})
    async with pair(6) as both:
        with pytest.raises(MalformedError, match="sub/c:"):
            await both.share(root)
        (root / "sub" / "c:\\x").unlink()
        (root / "sub" / "Makefile").write_bytes(b"")
        (root / "sub" / "makefile").write_bytes(b"")
        with pytest.raises(MalformedError, match="sub/makefile"):
            await both.share(root)
        assert await both.shares.list() == ()


async def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", {})
    (root / os.fsdecode(b"\xff")).write_bytes(b"")
    async with pair(7) as both:
        with pytest.raises(MalformedError, match="rename it"):
            await both.share(root)


async def test_what_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "garden", {"a": 1, "secret/b": 1})
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "secret":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    async with pair(8) as both:
        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(RefusedError, match="secret cannot be read: Permission denied"):
            await both.share(root)
        assert await both.shares.list() == ()
        with pytest.raises(NotFoundError, match="no folder"):
            await both.share(tmp_path / "none")


@pytest.mark.parametrize("change", ["new", "gone", "written", "moved"])
async def test_a_folder_that_changes_while_it_is_read_is_refused(tmp_path: Path, change: str) -> None:
    root = make(tmp_path / "garden", {"a": 10, "b/c": 10_000_000, "d": 10})

    def progress(done: int, total: int) -> None:
        assert 0 < done <= total
        match change:
            case "new":
                (root / "b" / "late").write_bytes(b"")
            case "gone":
                (root / "a").unlink(missing_ok=True)
            case "written":
                (root / "d").write_bytes(b"other")
            case _ if (root / "b").exists():
                (root / "b").rename(root / "e")

    async with pair(9) as both:
        with pytest.raises((RefusedError, NotFoundError), match=r"changed while|no file"):
            await share_folder(both.shares, root, progress=progress)
        assert await both.shares.list() == ()


async def test_what_a_fetch_has_not_finished_is_not_shared(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", {"a": 1, ".b.0123abcd.part": 1, ".B.0123ABCD.Nodes": 1, ".c.part": 1})
    async with pair(10) as both:
        shared = await share_folder(both.shares, root)
    assert (shared.files, shared.skipped) == (2, 2)


# --- what is there already


async def test_what_is_there_is_not_touched_without_leave(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", {"a": 10, "b": 10})
    there = make(tmp_path / "to", {"garden/b": b"mine"}) / "garden"
    async with pair(11) as both:
        of = await both.share(root)
        with pytest.raises(RefusedError, match="garden/b exists already"):
            await both.get(of, tmp_path / "to")
        assert content(there) == {"b": b"mine"}
        await both.get(of, tmp_path / "to", "a")
        assert content(there) == {"a": (root / "a").read_bytes(), "b": b"mine"}
        await both.get(of, tmp_path / "to", overwrite=True)
        assert content(there) == content(root)


async def test_a_file_that_is_whole_is_not_fetched_again(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", {"a": 10, "b": 50_000})
    async with pair(12) as both:
        of = await both.share(root)
        await both.get(of, tmp_path / "to")
        before = [path.stat().st_ino for path in sorted((tmp_path / "to" / "garden").iterdir())]
        fetch = await both.get(of, tmp_path / "to", overwrite=True)
        assert [path.stat().st_ino for path in sorted((tmp_path / "to" / "garden").iterdir())] == before
    assert fetch.present == fetch.size == 50_010


@pytest.mark.parametrize("size", [7, 5000, 100_000])
async def test_a_file_that_only_looks_the_same_is_not_taken_for_it(tmp_path: Path, size: int) -> None:
    root = make(tmp_path / "garden", {"first": 3, "version": size, "right": 50_000})
    there = make(
        tmp_path / "to",
        {"garden/version": (root / "version").read_bytes()[:-1] + b"?", "garden/right": 50_000},
    )
    (there / "garden" / "right").write_bytes((root / "right").read_bytes())
    right = (there / "garden" / "right").stat().st_ino
    os.utime(there / "garden" / "right", (1, 1))
    async with pair(31) as both:
        of = await both.share(root)
        with pytest.raises(RefusedError, match="version exists already, and is another file"):
            await both.get(of, there)
        assert sorted(content(there / "garden")) == ["right", "version"]
        assert os.listdir(there) == ["garden"]  # noqa: PTH208 - of a test
        fetch = await both.get(of, there, overwrite=True)
    assert content(there / "garden") == content(root)
    assert (there / "garden" / "right").stat().st_ino == right
    assert fetch.present == fetch.size


async def test_comparing_a_file_takes_the_nodes_of_its_tree_and_no_more(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", {"large": 3_000_000})
    received = 0

    def count(fetch: FolderFetch) -> None:
        nonlocal received
        received = max(received, fetch.snapshot.received if fetch.snapshot else 0)

    async with pair(32) as both:
        of = await both.share(root)
        await both.get(of, tmp_path / "to")
        order, bob = Order(of, tmp_path / "to"), Candidates([both.bob.identifier])
        await FolderFetch(both.alice, order, bob, count).run()
        assert received <= 2 * LARGE_BLOCK
        before = sorted((tmp_path / "to" / "garden").iterdir())
        await FolderFetch(both.alice, order, bob).run()
    assert before == [tmp_path / "to" / "garden" / "large"]
    assert content(tmp_path / "to" / "garden") == content(root)


@pytest.mark.parametrize("time", [2**31 + 5, 2**34 + 10, 2**53 - 1])
async def test_times_that_no_disk_keeps_do_not_make_another_file(tmp_path: Path, time: int) -> None:
    data = b"hello"
    async with pair(33) as both:
        (tmp_path / "h").write_bytes(data)
        share = await both.shares.add(tmp_path / "h")
        of = await both.offer(b"".join(write_manifest([Entry(("h",), share.capability, len(data), time)])))
        await both.get(of, tmp_path / "to")
        before = (tmp_path / "to" / "garden" / "h").stat()
        await both.get(of, tmp_path / "to")
    assert (tmp_path / "to" / "garden" / "h").stat().st_ino == before.st_ino


async def test_what_lies_beside_the_folder_may_be_called_as_it_likes(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", {"a": 10})
    make(tmp_path / "to", {}, "garden.manifest")
    async with pair(34) as both:
        await both.get(await both.share(root), tmp_path / "to")
    assert content(tmp_path / "to") == {"garden/a": (root / "a").read_bytes(), "garden.manifest": None}


async def test_a_folder_that_the_disk_has_no_room_for_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "garden", {"a": 60_000, "b": 60_000})
    async with pair(35) as both:
        of = await both.share(root)
        monkeypatch.setattr(room, "free_bytes", lambda _: 119_999)
        with pytest.raises(StorageError, match=r"no room for .*garden: it takes 0.1 MiB and more, .* --only"):
            await both.get(of, tmp_path / "to")
        assert not (tmp_path / "to" / "garden").exists()
        await both.get(of, tmp_path / "to", "a")
        monkeypatch.setattr(room, "free_bytes", lambda _: 60_000)
        await both.get(of, tmp_path / "to")
        monkeypatch.setattr(room, "free_bytes", lambda _: 1000)  # for the manifest
        await both.get(of, tmp_path / "to")
    assert content(tmp_path / "to" / "garden") == content(root)


@pytest.mark.parametrize("where", ["garden", "garden/inner", "garden/node/tor"])
async def test_the_home_of_a_node_is_not_shared(tmp_path: Path, where: str) -> None:
    root = make(tmp_path / "garden", {"node/identity": 64, "node/tor/key": 10, "inner/identity": 63})
    async with pair(36) as both:
        if where == "garden/inner":
            await both.share(tmp_path / where)
            return
        with pytest.raises(RefusedError, match="garden/node is the home of a node, whose keys are secret"):
            await both.share(tmp_path / where)
        with pytest.raises(RefusedError, match="garden/node is the home of a node"):
            await both.shares.add(root / "node" / "tor" / "key")
        (tmp_path / "link").symlink_to(root / "node" / "identity")
        with pytest.raises(RefusedError, match="garden/node is the home of a node"):
            await both.shares.add(tmp_path / "link")
        assert await both.shares.list() == ()


@pytest.mark.parametrize("where", ["garden", "garden/sub", "garden/sub/file"])
async def test_nothing_is_written_through_a_symbolic_link(tmp_path: Path, where: str) -> None:
    root = make(tmp_path / "garden", {"first": 10, "sub/file": 10})
    outside = make(tmp_path / "outside", {"file": b"mine"})
    link = tmp_path / "to" / where
    link.parent.mkdir(parents=True)
    link.symlink_to(outside / "file" if where.endswith("file") else outside)
    async with pair(13) as both:
        of = await both.share(root)
        for overwrite in (False, True):
            with pytest.raises(RefusedError, match="remove it"):
                await both.get(of, tmp_path / "to", overwrite=overwrite)
    assert content(outside) == {"file": b"mine"}
    assert not (tmp_path / "to" / "garden" / "first").exists()


async def test_nor_through_one_that_is_put_there_meanwhile(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", {"first": 10, "sub/deep/file": 10})
    outside = make(tmp_path / "outside", {"deep/other": b"mine"})

    def put(fetch: FolderFetch) -> None:
        if fetch.size is not None and not other.is_symlink():  # all was looked at, and nothing was there
            other.parent.mkdir()
            other.symlink_to(outside)

    other = tmp_path / "to" / "garden" / "sub"
    async with pair(14) as both:
        of = await both.share(root)
        fetch = FolderFetch(both.alice, Order(of, tmp_path / "to"), Candidates([both.bob.identifier]), put)
        with pytest.raises(RefusedError, match="symbolic link"):
            await fetch.run()
    assert content(outside) == {"deep/other": b"mine"}


async def test_a_folder_where_a_file_belongs_is_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", {"a": 10}, "b")
    make(tmp_path / "to", {}, "garden/a")
    async with pair(15) as both:
        of = await both.share(root)
        with pytest.raises(RefusedError, match="no file"):
            await both.get(of, tmp_path / "to", overwrite=True)
        make(tmp_path / "then", {"garden/b": 1})
        with pytest.raises(RefusedError, match="no folder"):
            await both.get(of, tmp_path / "then", overwrite=True)
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(RefusedError, match="where a folder should be"):
            await both.get(of, tmp_path / "file")
        with pytest.raises(NotFoundError, match="no folder"):
            await both.get(of, tmp_path / "not" / "there")


# --- going on


async def test_a_cancelled_fetch_goes_on_where_it_was(tmp_path: Path) -> None:
    files = {f"{number}": 3000 for number in range(200)} | {"large": 3_000_000, "larger": 4_000_000}
    root = make(tmp_path / "garden", files)
    copy = tmp_path / "to" / "garden"
    async with pair(16) as both:
        of = await both.share(root)
        for part in (0.02, 0.5, 0.8):
            with anyio.CancelScope() as scope:

                def stop(fetch: FolderFetch, scope: anyio.CancelScope = scope, part: float = part) -> None:
                    if fetch.size and fetch.present > part * fetch.size:
                        scope.cancel()

                order = Order(of, tmp_path / "to")
                await FolderFetch(both.alice, order, Candidates([both.bob.identifier]), stop).run()
            assert scope.cancelled_caught
            whole = {path: path.stat().st_ino for path in copy.iterdir() if path.name in files}
            assert all(path.read_bytes() == (root / path.name).read_bytes() for path in whole)
        received = 0

        def count(fetch: FolderFetch) -> None:
            nonlocal received
            received = max(received, fetch.snapshot.received if fetch.snapshot else 0)

        fetch = FolderFetch(both.alice, order, Candidates([both.bob.identifier]), count)
        await fetch.run()
    assert content(copy) == content(root)
    assert whole
    assert all(path.stat().st_ino == inode for path, inode in whole.items())
    assert received < 0.35 * (fetch.size or 0)
    assert os.listdir(tmp_path / "to") == ["garden"]  # noqa: PTH208 - of a test


async def test_a_fetch_killed_when_a_file_had_two_names_is_tidied_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "garden", {"a": 10})
    copy, unlink = tmp_path / "to" / "garden", os.unlink

    def die(name: str, *, dir_fd: int) -> None:
        if name.startswith(".a.") and name.endswith(".part"):
            raise OSError(5, "Input/output error")
        unlink(name, dir_fd=dir_fd)

    async with pair(25) as both:
        of = await both.share(root)
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", die)
            with pytest.raises(StorageError):
                await both.get(of, tmp_path / "to")
        assert len(content(copy)) == 2
        await both.get(of, tmp_path / "to")
    assert content(copy) == content(root)


async def test_a_full_disk_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "garden", {f"{number:02}": 30_000 for number in range(60)})
    copy, settle, left = tmp_path / "to" / "garden", PartialFiles.settle, 20

    def fill(files: PartialFiles, size: int, details: Details | None) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        settle(files, size, details)

    async with pair(17) as both:
        of = await both.share(root)
        with monkeypatch.context() as patch:
            patch.setattr(PartialFiles, "settle", fill)
            with pytest.raises(StorageError, match="No space left"):
                await both.get(of, tmp_path / "to")
        whole = {path: path.stat().st_ino for path in copy.iterdir() if not path.name.startswith(".")}
        assert 0 < len(whole) <= 20
        await both.get(of, tmp_path / "to")
    assert content(copy) == content(root)
    assert all(path.stat().st_ino == inode for path, inode in whole.items())


async def test_two_fetches_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", GARDEN)
    errors: list[RefusedError] = []
    async with pair(18) as both:
        of = await both.share(root)

        async def get(destination: Path) -> None:
            try:
                await both.get(of, destination)
            except RefusedError as error:
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            for name in ("to", "to", "elsewhere"):
                tasks.start_soon(get, tmp_path / name)
    assert [str(error) for error in errors if "being fetched already" in str(error)]
    assert len(errors) == 1
    assert content(tmp_path / "to" / "garden") == content(tmp_path / "elsewhere" / "garden") == content(root)


async def test_what_nobody_has_any_more_is_said(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", {"a": 10, "b": 50_000})
    async with pair(19) as both:
        of = await both.share(root)
        (root / "b").unlink()
        with pytest.raises(NotFoundError, match=r"^1 of 2 files cannot be had from anybody any more, b: "):
            await both.get(of, tmp_path / "to")
        assert (await both.shares.list())[0].problem == "gone"
    assert (tmp_path / "to" / "garden" / "a").read_bytes() == (root / "a").read_bytes()


async def test_files_that_nobody_has_keep_none_of_the_others_away(tmp_path: Path) -> None:
    files: dict[str, int | bytes] = {f"small/{n:03}": 3000 for n in range(90)}
    root = make(tmp_path / "garden", files | {"large 1": 300_000, "large 2": 2_000_000, "none": 0})
    gone = {"large 2": root / "large 2", **{name: root / name for name in ("small/007", "small/050")}}
    for number in range(60, 64):
        gone[f"small/0{number}"] = root / f"small/0{number}"
    aside = tmp_path / "aside"
    aside.mkdir()
    async with pair(23) as both:
        of, whole = await both.share(root), content(root)
        for number, path in enumerate(gone.values()):
            path.rename(aside / str(number))
        with pytest.raises(NotFoundError, match=r"^7 of 93 files .* and 4 more: the others"):
            await both.get(of, tmp_path / "to")
        copy = tmp_path / "to" / "garden"
        there = {name: data for name, data in content(copy).items() if not Path(name).name.startswith(".")}
        assert there == {name: data for name, data in whole.items() if name not in gone}
        for number, path in enumerate(gone.values()):
            (aside / str(number)).rename(path)
        fetch = await both.get(of, tmp_path / "to")
        assert fetch.present == fetch.size
        assert content(copy) == whole
    assert {path.name for path in (tmp_path / "to").iterdir()} == {"garden"}


async def test_files_that_nobody_has_cost_no_circuit_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "garden", {f"{number:03}": 3000 for number in range(200)})
    async with pair(37) as both:
        of, whole = await both.share(root), content(root)
        for number in range(190):
            (root / f"{number:03}").unlink()
        opened = count_circuits(both.alice, monkeypatch)
        with pytest.raises(NotFoundError, match=r"^190 of 200 files cannot be had from anybody any more"):
            await both.get(of, tmp_path / "to")
    copy = content(tmp_path / "to" / "garden")
    there = {name: data for name, data in copy.items() if not name.startswith(".")}
    assert there == {name: data for name, data in whole.items() if name >= "190"}
    assert len(opened) < 190 / 4


async def test_where_somebody_is_not_reached_each_file_is_tried_and_it_is_said(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", {f"{number}": 50_000 for number in range(6)})
    async with pair(38) as both:
        of, nobody = await both.share(root), NodeIdentifier(bytes(32))
        for name in "14":
            (root / name).unlink()
        candidates = Candidates([both.bob.identifier, nobody])
        fetch = FolderFetch(both.alice, Order(of, tmp_path / "to"), candidates)
        with pytest.raises(
            UnreachableError, match="2 of 6 files cannot be had because somebody who may have"
        ):
            await fetch.run()
    copy = content(tmp_path / "to" / "garden")
    assert {name for name in copy if not name.startswith(".")} == set("0235")


async def test_where_nobody_is_left_not_every_file_is_tried(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", {"a": 10, "b": 50_000})
    async with pair(24) as both:
        of = await both.share(root)
        with pytest.raises(NotFoundError, match="nobody is known"):
            await FolderFetch(both.alice, Order(of, tmp_path / "to"), Candidates([])).run()


async def test_a_folder_of_this_node_needs_nobody(tmp_path: Path) -> None:
    root = make(tmp_path / "garden", GARDEN)
    async with pair(20) as both:
        of = await both.share(root)
        await FolderFetch(both.bob, Order(of, tmp_path / "to"), Candidates([])).run()
    assert content(tmp_path / "to" / "garden") == content(root)


# --- manifests of somebody else


def raw(*entries: Mapping[str, object], end: bytes | None = None) -> bytes:
    """A manifest with whatever is in it."""
    bodies = [msgspec.msgpack.encode(entry) for entry in entries]
    sizes = [entry.get("size", 0) for entry in entries]
    total = sum(size for size in sizes if isinstance(size, int))
    written = b"".join(len(body).to_bytes(2) + body for body in bodies)
    return HEADER + written + (end or bytes(2) + len(entries).to_bytes(8) + total.to_bytes(8))


def file(*path: str, size: int = 0) -> dict[str, object]:
    capability = encode_content(bytes(size), secret=bytes(32))[1].to_bytes()
    return {"path": path, **({"size": size} if size else {}), "capability": capability}


@pytest.mark.parametrize(
    ("manifest", "match"),
    [
        (raw(file("..", "x")), "not safe"),
        (raw(file("a", "..", "..", "x")), "not safe"),
        (raw(file("../x")), "not safe"),
        (raw(file("/etc/x")), "not safe"),
        (raw(file("C:x")), "not safe"),
        (raw(file("a\0b")), "not safe"),
        (raw(file("a" * 256)), "255"),
        (raw(file("a"), file("a")), "twice"),
        (raw(file("b"), file("a")), "out of order"),
        (raw(file("a"), file("a", "b")), "lies in"),
        (raw({"path": ["a"]}, file("a", "b")), "lies in"),
        (raw(file("A"), file("a")), "on other systems"),
        (raw(file("a"), end=bytes(2) + (2).to_bytes(8) + bytes(8)), "end"),
        (raw(file("a"))[:-1], "cut short"),
        (raw(file("a")) + b"x", "after its end"),
        (raw({**file("a"), "size": 1 << 40}), "does not fit"),
        (raw(file("ok"), file("sub", ".ok.0123abcd.part")), "not whole yet"),
        (raw(file("ok"), file("sub", ".ok.0123ABCD.PART. ")), "not whole yet"),
        (b"no manifest", "not the manifest"),
        (b"", "cut short"),
    ],
)
async def test_a_hostile_manifest_is_refused_and_nothing_is_made(
    tmp_path: Path, manifest: bytes, match: str
) -> None:
    async with pair(21) as both:
        of = await both.offer(manifest)
        with pytest.raises(MalformedError, match=match):
            await both.get(of, tmp_path / "to", overwrite=True)
    assert not (tmp_path / "to").exists()


async def test_a_manifest_longer_than_any_is_given_up(tmp_path: Path) -> None:
    """Eight GiB of one chunk: two nodes full of it, and a link that does not say how long it is."""
    zeros = encode_content(bytes(LARGE_BLOCK), secret=bytes(32))[0][0]
    key = hashlib.blake2b(bytes(LARGE_BLOCK), digest_size=32, key=bytes(32)).digest()
    leaf = Chunk(
        chunk_reference(apply_cipher(key, 0, bytes(LARGE_BLOCK))), apply_cipher(key, 0, bytes(LARGE_BLOCK))
    )
    assert leaf == zeros
    chunks = {leaf.reference: leaf.data}
    pair_of = leaf.reference + key
    for level in (1, 2):
        node = pair_of * (LARGE_BLOCK // PAIR_BYTES)
        key = hashlib.blake2b(node, digest_size=32).digest()
        data = apply_cipher(key, level, node)
        chunks[chunk_reference(data)] = data
        pair_of = chunk_reference(data) + key

    class Source(ChunkSource):
        async def get(self, references: Sequence[bytes]) -> Sequence[bytes | None]:
            return [chunks.get(reference) for reference in references]

    async with pair(22) as both:
        both.bob.chunks.sources.append(Source())
        of = FileLink(
            ReadCapability(LARGE_BLOCK, 2, pair_of[:32], pair_of[32:]), name="garden", kind="folder"
        )
        with pytest.raises(MalformedError, match="more than"):
            await both.get(of, tmp_path / "to")
    assert not (tmp_path / "to").exists()


async def test_a_manifest_is_on_disk_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where writing what came last takes longer than hearing that nothing is missing any more."""
    flush = Target.flush

    async def slow(target: Target) -> None:
        if target.tree.finished:
            await anyio.sleep(TICK + 0.5)  # the transfer is over and has looked
        await flush(target)

    monkeypatch.setattr(Target, "flush", slow)
    capability = encode_content(b"", secret=bytes(32))[1]
    entries = (Entry((f"{number:05}",), capability) for number in range(3000))
    async with pair(25) as both:
        of = await both.offer(b"".join(write_manifest(entries)))
        fetch = FolderFetch(
            both.alice, Order(of, tmp_path / "to", ["00000"]), Candidates([both.bob.identifier])
        )
        with pytest.raises(NotFoundError):  # of the file itself, which nobody has
            await fetch.run()
    assert fetch.files == 1


async def test_many_entries_take_little_memory(tmp_path: Path) -> None:
    capability = encode_content(b"", secret=bytes(32))[1]
    names = sorted(f"{number:05}" for number in range(30_000))
    entries = (Entry((name[:3], name), capability) for name in names)
    manifest = b"".join(write_manifest(entries))
    async with pair(23) as both:
        of = await both.offer(manifest)
        fetch = FolderFetch(
            both.alice, Order(of, tmp_path / "to", ["00000"]), Candidates([both.bob.identifier])
        )
        tracemalloc.start()
        try:
            with pytest.raises(NotFoundError):  # of the file itself, which nobody has
                await fetch.run()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert fetch.files == 1
    assert peak < 3 * len(manifest)  # as a list, entries have five times that


async def test_circuits_live_on_from_one_transfer_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of them: the manifest, what has small chunks, what has large ones."""
    root = make(tmp_path / "garden", {f"{number}": 2048 for number in range(100)} | {"large": 60_000})
    async with pair(24) as both:
        of = await both.share(root)
        opened = count_circuits(both.alice, monkeypatch)
        await both.get(of, tmp_path / "to")
    assert content(tmp_path / "to" / "garden") == content(root)
    assert len(opened) <= MAX_CIRCUITS_KEPT
