"""Every verb on real nodes and chats, over a network in memory."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from overlay.chat.service import Chat
from overlay.chat.store import CHAT_SCHEMA
from overlay.control.protocol import JSON, Answer
from overlay.control.runtime import Runtime, Services
from overlay.control.server import Answers
from overlay.control.verbs import DEFAULT_NAME, bind
from overlay.errors import (
    MalformedError,
    NotFoundError,
    OverlayError,
    RefusedError,
    StorageError,
    TransportUnavailableError,
)
from overlay.files.engine.actions import Snapshot
from overlay.files.running import Running
from overlay.files.service import FILES_SCHEMAS, Files
from overlay.testing.nodes import World, introduce
from overlay.transports.memory import MemoryNetwork, MemoryTransport


class Telling(MemoryTransport):
    """A transport that has a fact to tell."""

    @property
    def facts(self) -> Mapping[str, str]:
        return {"router": "none"}


class Caller:
    """Calls handlers as the server would, without a socket."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._handlers = bind(runtime)

    async def call(self, verb: str, **args: JSON) -> Any:  # noqa: ANN401 - JSON to be looked into
        result, _ = await self._run(verb, args)
        return result

    async def items(self, verb: str, **args: JSON) -> list[Any]:
        _, items = await self._run(verb, args)
        return items

    async def _run(self, verb: str, args: dict[str, JSON]) -> tuple[JSON, list[JSON]]:
        items: list[JSON] = []

        async def send(answer: Answer) -> None:
            items.append(answer.value)

        handler = self._handlers[verb]
        return await handler.run(msgspec.convert(args, handler.arguments), Answers(send, 1)), items


@asynccontextmanager
async def caller(world: World, name: str, user: str = "") -> AsyncIterator[Caller]:
    transport = world.network.transport(number=world.number(name))
    async with (
        world.database(CHAT_SCHEMA, *FILES_SCHEMAS) as database,
        world.node(name, database, transports=[transport]) as node,
        anyio.create_task_group() as tasks,
    ):
        chat = Chat(node, database)
        await tasks.start(chat.run)
        files = Files(node, database)
        await files.start()
        runtime = Runtime(node.identifier, user, [transport])
        runtime.started(Services(node, chat, files))
        yield Caller(runtime)
        tasks.cancel_scope.cancel()


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Caller, Caller]]:
    world = World(seed=3)
    async with caller(world, "ann", "Ann") as ann, caller(world, "bob") as bob:
        await introduce([ann.runtime.services.node, bob.runtime.services.node])
        yield ann, bob


async def test_status_ticket_peers_id(pair: tuple[Caller, Caller]) -> None:
    ann, bob = pair
    status = await ann.call("status", wait=5)
    assert (status["state"], status["peers"], status["sessions"]) == (
        "ready",
        {"known": 1, "connected": 0},
        0,
    )
    assert (await ann.call("id"))["node"] == status["node"]
    assert (await ann.call("ticket"))["ticket"].startswith("ovt1")
    (peer,) = await ann.items("peers")
    assert peer["node"] == (await bob.call("id"))["node"]
    assert (peer["connected"], peer["via"], peer["over"]) == (False, None, None)


async def test_peers_tell_over_what_they_are_reached_and_who_dialled(pair: tuple[Caller, Caller]) -> None:
    ann, bob = pair
    created = await ann.call("chat.create", title="Club")
    await bob.call("chat.join", invite=created["invite"])
    (to_ann,) = await bob.items("peers")
    (to_bob,) = await ann.items("peers")
    assert (to_ann["connected"], to_ann["over"]) == (True, "memory")
    assert to_ann["via"] in to_ann["locators"]
    assert (to_bob["connected"], to_bob["over"], to_bob["via"]) == (True, "memory", None)


async def test_status_shows_each_transport_with_its_facts() -> None:
    runtime = Runtime(World().secret("ann").identifier, "", [Telling(MemoryNetwork())])
    status = await Caller(runtime).call("status")
    assert status["transports"] == [
        {"name": "memory", "state": "stopped", "detail": "", "progress": 0, "facts": {"router": "none"}}
    ]


async def test_down_tells_the_node_to_end(pair: tuple[Caller, Caller]) -> None:
    ann, _ = pair
    assert await ann.call("down") == {"state": "stopping"}
    await ann.runtime.wait_stop()
    with pytest.raises(TransportUnavailableError):
        await ann.call("ticket")


async def test_a_session_from_create_to_leave(pair: tuple[Caller, Caller]) -> None:
    ann, bob = pair
    created = await ann.call("chat.create", title="Club")
    assert created["name"] == "Ann"
    joined = await bob.call("chat.join", invite=(await ann.call("chat.invite", session="Club"))["invite"])
    assert (joined["session"], joined["name"]) == (created["session"], DEFAULT_NAME)
    sent = await ann.call("chat.send", session=created["session"][:6], text="hi")
    assert [each["name"] for each in await bob.items("chat.people", session="Club")] == ["Ann", DEFAULT_NAME]
    entries = await ann.items("chat.read", session="Club", last=1)
    assert [(each["id"], each["from"], each["text"]) for each in entries] == [(sent["message"], "Ann", "hi")]
    assert await bob.call("chat.leave", session="Club") == {"session": created["session"]}
    assert await bob.items("chat.list") == []
    assert len(await ann.items("chat.list")) == 1


@pytest.mark.parametrize(
    ("verb", "args", "sentence"),
    [
        ("chat.send", {"session": "Club", "text": "x" * 32_769}, "post a longer one as a file"),
        ("chat.create", {"title": "x" * 201}, "a title has at most 200 bytes"),
        ("chat.create", {"title": "t", "name": "x" * 101}, "a name has at most 100 bytes"),
        ("chat.join", {"invite": "ovi1" + "a" * 100_000}, "too long"),
        ("chat.join", {"invite": "ovt1whatever"}, "this is a ticket: use it with 'overlay up --join'"),
    ],
)
async def test_what_is_too_long_or_of_another_kind_is_told_in_a_sentence(
    pair: tuple[Caller, Caller], verb: str, args: dict[str, JSON], sentence: str
) -> None:
    ann, _ = pair
    await ann.call("chat.create", title="Club")
    with pytest.raises(MalformedError, match=sentence):
        await ann.call(verb, **args)
    assert len(await ann.items("chat.list")) == 1


async def test_a_name_that_is_given_counts_more(pair: tuple[Caller, Caller]) -> None:
    assert (await pair[0].call("chat.create", title="Club", name="Queen"))["name"] == "Queen"


async def test_a_file_goes_and_comes(pair: tuple[Caller, Caller], tmp_path: Path) -> None:
    ann, bob = pair
    created = await ann.call("chat.create", title="Files")
    await bob.call("chat.join", invite=created["invite"])
    source = anyio.Path(tmp_path / "a.txt")
    await source.write_bytes(b"content")
    posted = await ann.call("chat.post", session="Files", path=str(source))
    (listed,) = await ann.items("chat.files", session="Files")
    assert listed == posted
    got = await ann.call("chat.get", session="Files", file="a.txt", path=str(tmp_path / "copy"))
    assert got == {"path": str(tmp_path / "copy"), "size": 7}
    with pytest.raises(RefusedError):
        await ann.call("chat.get", session="Files", file=posted["file"][:5], path=str(tmp_path / "copy"))
    await ann.call("chat.post", session="Files", path=str(source))
    with pytest.raises(RefusedError, match="several"):
        await ann.call("chat.get", session="Files", file="a.txt", path=str(tmp_path / "other"))


async def test_a_slash_at_the_end_of_a_path_means_a_folder(
    pair: tuple[Caller, Caller], tmp_path: Path
) -> None:
    ann, bob = pair
    await ann.call("chat.create", title="Files")
    source = anyio.Path(tmp_path / "a.txt")
    await source.write_bytes(b"content")
    await ann.call("chat.post", session="Files", path=str(source))
    link = (await ann.call("file.share", path=str(source)))["link"]
    for name in ("new", "a.txt"):
        path = f"{tmp_path}/{name}/"
        with pytest.raises(NotFoundError, match=f"there is no folder {path[:-1]}: make it"):
            await bob.call("file.get", link=link, path=path)
        with pytest.raises(NotFoundError, match=f"there is no folder {path[:-1]}: make it"):
            await ann.call("chat.get", session="Files", file="a.txt", path=path)
    assert [each.name async for each in anyio.Path(tmp_path).iterdir()] == ["a.txt"]
    await anyio.Path(tmp_path / "new").mkdir()
    got = await bob.call("file.get", link=link, path=f"{tmp_path}/new/")
    assert got == {"path": f"{tmp_path}/new/a.txt", "size": 7}


async def test_a_file_that_is_there_can_be_replaced_as_the_error_says(
    pair: tuple[Caller, Caller], tmp_path: Path
) -> None:
    ann, bob = pair
    source, there = anyio.Path(tmp_path / "a.txt"), anyio.Path(tmp_path / "there")
    await source.write_bytes(b"content")
    await there.write_bytes(b"old")
    link = (await ann.call("file.share", path=str(source)))["link"]
    with pytest.raises(RefusedError, match=r"there exists already: .* replace what is there with --force"):
        await bob.call("file.get", link=link, path=str(there))
    assert await there.read_bytes() == b"old"
    await bob.call("file.get", link=link, path=str(there), overwrite=True)
    assert await there.read_bytes() == b"content"


async def test_a_folder_that_is_being_fetched_is_named_as_it_will_be_called(
    pair: tuple[Caller, Caller], tmp_path: Path
) -> None:
    ann, bob = pair
    source = anyio.Path(tmp_path / "garden")
    await source.mkdir()
    await (source / "rose").write_bytes(bytes(range(256)) * 8192)
    link = (await ann.call("file.share", path=str(source)))["link"]
    await bob.call("file.limit", down=16_384)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: bob.call("file.get", link=link, path=str(tmp_path / "to")))
        await until_it_runs(bob)
        with pytest.raises(RefusedError, match="/to/garden is being fetched already: wait"):
            await bob.call("file.get", link=link, path=str(tmp_path / "to"))
        await bob.call("file.limit", down=None)


@pytest.mark.parametrize("name", ["y" * 256, "y" * 300 + "/z"])
async def test_a_name_that_no_file_can_have_ends_nothing_but_the_command(
    pair: tuple[Caller, Caller], tmp_path: Path, name: str
) -> None:
    ann, bob = pair
    created = await ann.call("chat.create", title="Files")
    await bob.call("chat.join", invite=created["invite"])
    source = anyio.Path(tmp_path / "a.txt")
    await source.write_bytes(b"content")
    await ann.call("chat.post", session="Files", path=str(source))
    link = (await ann.call("file.share", path=str(source)))["link"]
    long = str(tmp_path / name)
    with pytest.raises(StorageError, match="name too long"):
        await ann.call("chat.get", session="Files", file="a.txt", path=long)
    with pytest.raises(StorageError, match="name too long"):
        await bob.call("file.get", link=link, path=long)
    with pytest.raises(RefusedError, match="name too long"):
        await ann.call("file.share", path=long)


@pytest.mark.parametrize("path", ["/a\0b", "a", "/" + "a" * 5000])
async def test_a_path_that_cannot_be_one_is_refused_before_it_is_used(
    pair: tuple[Caller, Caller], path: str
) -> None:
    with pytest.raises(msgspec.ValidationError):
        await pair[0].call("file.share", path=path)


async def test_a_share_that_changed_is_listed_so_before_anybody_asks_for_it(
    pair: tuple[Caller, Caller], tmp_path: Path
) -> None:
    source = anyio.Path(tmp_path / "a.txt")
    await source.write_bytes(b"content")
    await pair[0].call("file.share", path=str(source))
    assert [item["problem"] for item in await pair[0].items("file.list")] == [None]
    await source.write_bytes(b"another content")
    assert [item["problem"] for item in await pair[0].items("file.list")] == ["changed"]


async def test_what_is_not_there(pair: tuple[Caller, Caller], tmp_path: Path) -> None:
    ann, _ = pair
    await ann.call("chat.create", title="Club")
    with pytest.raises(NotFoundError):
        await ann.call("chat.read", session="Clubs")
    with pytest.raises(NotFoundError):
        await ann.call("chat.get", session="Club", file="nothing", path=str(tmp_path))
    with pytest.raises(NotFoundError):
        await ann.call("chat.post", session="Club", path=str(tmp_path / "nothing"))


async def test_before_the_node_is_there_only_some_verbs_answer() -> None:
    early = Caller(Runtime(World().secret("ann").identifier, "", []))
    assert (await early.call("status"))["state"] == "starting"
    assert await early.call("id")
    for verb in bind(early.runtime).keys() - {"status", "id", "down"}:
        texts = {
            "title": "x",
            "session": "x",
            "invite": "x",
            "text": "x",
            "path": "/x",
            "folder": "/x",
            "file": "x",
            "link": "x",
        }
        known = bind(early.runtime)[verb].arguments.__struct_fields__
        with pytest.raises(OverlayError) as caught:
            await early.call(verb, **{name: text for name, text in texts.items() if name in known})
        assert caught.value.code == "unavailable"


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("status", {"wait": -1}),
        ("chat.post", {"session": "x", "path": "relative"}),
        ("chat.get", {"session": "x", "file": "", "path": "/x"}),
        ("chat.read", {"session": "x", "last": -1}),
        ("chat.read", {"session": "x", "follow": 1}),
        ("chat.send", {"session": "x" * 801, "text": "x"}),
        ("ticket", {"surplus": 1}),
    ],
)
async def test_arguments_have_bounds(verb: str, args: dict[str, JSON]) -> None:
    handler = bind(Runtime(World().secret("ann").identifier, "", []))[verb]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(args, handler.arguments)


async def test_limits_are_set_one_by_one_and_removed(pair: tuple[Caller, Caller]) -> None:
    ann, _ = pair
    chunks = ann.runtime.services.node.chunks

    async def limit(**args: JSON) -> tuple[JSON, JSON]:
        found = await ann.call("file.limit", **args)
        return found["up"], found["down"]

    assert await limit() == (None, None)
    assert await limit(up=65_536) == (65_536, None)
    assert await limit(down=131_072) == (65_536, 131_072)
    assert (chunks.up.rate, chunks.down.rate) == (65_536, 131_072)
    assert await limit(up=None) == (None, 131_072)
    with pytest.raises(NotFoundError, match="nothing is being fetched"):
        await ann.call("file.limit", path="/nothing", down=65_536)
    for wrong in ({}, {"up": 65_536}, {"down": 65_536, "disk": 0}):
        with pytest.raises(
            MalformedError, match="with a path give --down, the limit of the fetch to it, and"
        ):
            await ann.call("file.limit", path="/nothing", **wrong)


async def test_the_disk_is_limited_while_the_node_runs(pair: tuple[Caller, Caller]) -> None:
    ann, _ = pair
    storage = ann.runtime.services.node.storage
    await storage.put([bytes(1024), bytes(range(256)) * 4], now=0)
    (mine,) = await storage.put([b"mine" * 256], now=0, own=True)
    shown = {"up": None, "down": None, "disk": 1 << 30, "pinned": 1024, "others": 2048, "evicted": 0}
    assert await ann.call("file.limit") == shown
    lowered = await ann.call("file.limit", disk=2048)
    assert lowered == shown | {"disk": 2048, "others": 1024, "evicted": 1024}
    assert await ann.call("file.limit", disk=0) == lowered | {"disk": 0, "others": 0}
    assert await storage.owned([mine]) == [True]


@pytest.mark.parametrize("disk", [-1, 2**40 + 1, 1.5, "much", None])
async def test_what_is_no_limit_of_the_disk(disk: JSON) -> None:
    handler = bind(Runtime(World().secret("ann").identifier, "", []))["file.limit"]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"disk": disk}, handler.arguments)


@pytest.mark.parametrize("rate", [-1, 0, 16_383, 2**40 + 1, 1.5, "fast", True])
@pytest.mark.parametrize(
    ("verb", "name"), [("file.limit", "up"), ("file.limit", "down"), ("file.get", "rate")]
)
async def test_what_is_no_rate(verb: str, name: str, rate: JSON) -> None:
    handler = bind(Runtime(World().secret("ann").identifier, "", []))[verb]
    args: dict[str, JSON] = {name: rate} if verb == "file.limit" else {"link": "x", "path": "/x", name: rate}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(args, handler.arguments)


async def test_a_fetch_is_limited_shown_and_set_free_while_it_runs(
    pair: tuple[Caller, Caller], tmp_path: Path
) -> None:
    ann, bob = pair
    source = anyio.Path(tmp_path / "a.bin")
    await source.write_bytes(bytes(range(256)) * 8192)
    shared = await ann.call("file.share", path=str(source))
    copy = str(tmp_path / "copy")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: bob.call("file.get", link=shared["link"], path=copy, rate=16_384))
        status: list[Any] = []
        while not status or not status[0]["circuits"]:
            await anyio.sleep(0.01)
            status = await bob.items("file.status")
        assert (status[0]["path"], status[0]["limit"]) == (copy, 16_384)
        assert status[0]["stage"] == "fetching"
        assert status[0]["chunks"] <= 2  # four seconds of the limit
        assert await bob.call("file.limit", path=copy, down=None) == {"path": copy, "down": None}
    assert await anyio.Path(copy).read_bytes() == await source.read_bytes()
    assert await bob.items("file.status") == []


@pytest.mark.parametrize(
    ("snapshot", "stage"),
    [
        (None, "looking"),
        (Snapshot(1, 0.5, None, circuits=0, providers=0, outstanding=0), "connecting"),
        (Snapshot(1, 0.5, None, circuits=2, providers=1, outstanding=0), "fetching"),
    ],
)
async def test_a_fetch_says_what_it_is_about(
    pair: tuple[Caller, Caller], snapshot: Snapshot | None, stage: str
) -> None:
    ann, _ = pair
    running = Running("get", "plan", Path("/plan"), 9, present=1, snapshot=snapshot)
    with ann.runtime.services.files.running.showing(running):
        (shown,) = await ann.items("file.status")
    assert (shown["stage"], shown["circuits"]) == (stage, 0 if snapshot is None else snapshot.circuits)


async def until_it_runs(caller: Caller) -> Any:  # noqa: ANN401 - JSON to be looked into
    """Wait until a fetch has a circuit, and tell how it stands."""
    status: list[Any] = []
    while not status or not status[0]["circuits"]:
        await anyio.sleep(0.01)
        status = await caller.items("file.status")
    return status[0]


async def test_a_pin_is_shown_while_it_runs(pair: tuple[Caller, Caller], tmp_path: Path) -> None:
    ann, bob = pair
    source = anyio.Path(tmp_path / "a.bin")
    await source.write_bytes(bytes(range(256)) * 8192)
    shared = await ann.call("file.share", path=str(source))
    await bob.call("file.limit", down=16_384)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: bob.call("file.pin", link=shared["link"]))
        shown = await until_it_runs(bob)
        assert (shown["task"], shown["name"], shown["path"]) == ("pin", "a.bin", None)
        assert (shown["size"], shown["providers"]) == (2_097_152, 1)
        assert shown["chunks"] <= 2  # four seconds of the limit
        await bob.call("file.limit", down=None)
    assert await bob.items("file.status") == []
    (item,) = await bob.items("file.list")
    assert item["pinned"]


@pytest.mark.parametrize("spooled", [False, True])
async def test_a_put_is_shown_while_it_runs(
    pair: tuple[Caller, Caller], tmp_path: Path, *, spooled: bool
) -> None:
    _, bob = pair
    source = anyio.Path(tmp_path / "a.bin")
    await source.write_bytes(bytes(range(256)) * 12_288)
    await bob.call("file.limit", up=2 << 20)  # steps are of half of that
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: bob.call("file.put", path=str(source), spooled=spooled))
        status: list[Any] = []
        while not status or not status[0]["present"]:
            await anyio.sleep(0.01)
            status = await bob.items("file.status")
        (shown,) = status
        assert 0 < shown.pop("present") < 3 << 20
        assert shown.pop("rate") > 0
        assert shown.pop("left") >= 0
        assert shown == {
            "task": "put",
            "name": "a.bin",
            "path": None if spooled else str(source),
            "size": 3 << 20,
            "circuits": 0,
            "providers": 0,
            "chunks": 0,
            "liars": [],
            "stage": "storing",
            "limit": None,
        }
        said = "nothing is being fetched to" if spooled else "is being put, not fetched: --up without a path"
        with pytest.raises(NotFoundError, match=said):
            await bob.call("file.limit", path=str(source), down=65_536)
        await bob.call("file.limit", up=None)
    assert await bob.items("file.status") == []


async def test_a_fetch_of_the_chat_is_shown_and_limited_while_it_runs(
    pair: tuple[Caller, Caller], tmp_path: Path
) -> None:
    ann, bob = pair
    source = anyio.Path(tmp_path / "a.bin")
    await source.write_bytes(bytes(range(256)) * 8192)
    created = await bob.call("chat.create", title="Plans")
    await ann.call("chat.join", invite=created["invite"])
    await bob.call("chat.post", session="Plans", path=str(source))  # ann keeps it, and bob fetches it
    copy = str(tmp_path / "copy")
    await bob.call("file.limit", down=16_384)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: bob.call("chat.get", session="Plans", file="a.bin", path=copy))
        shown = await until_it_runs(bob)
        assert (shown["task"], shown["name"], shown["path"]) == ("chat", "a.bin", copy)
        assert shown["size"] == 2_097_152
        await bob.call("file.limit", path=copy, down=1 << 40)
        assert (await bob.items("file.status"))[0]["limit"] == 1 << 40
        await bob.call("file.limit", down=None)
    assert await anyio.Path(copy).read_bytes() == await source.read_bytes()
    assert await bob.items("file.status") == []


async def test_content_comes_as_items(pair: tuple[Caller, Caller], tmp_path: Path) -> None:
    ann, bob = pair
    data = bytes(range(256)) * 4096
    source, folder = anyio.Path(tmp_path / "a.bin"), anyio.Path(tmp_path / "room")
    await source.write_bytes(data)
    await folder.mkdir()
    shared = await ann.call("file.share", path=str(source))
    items = await bob.items("file.read", link=shared["link"], folder=str(folder))
    assert b"".join(b64decode(item["content"]) for item in items) == data
    assert [entry async for entry in folder.iterdir()] == []
