"""The verbs of the files, against a scripted node."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from overlay.control.file_verbs import PutArguments, ShareArguments
from overlay.control.home import Home
from overlay.control.protocol import JSON
from overlay.control.server import Answers, Arguments, Handler, Handlers
from overlay.errors import MalformedError, OverlayError, RefusedError, UnreachableError
from overlay.files.links import FileLink
from overlay.locators import LocatorRecord, parse_locator
from overlay.peer.storage import MAX_QUOTA
from overlay.testing.nodes import World
from overlay.units.capability import ReadCapability
from overlay_cli.output import printable
from overlay_cli.parser import parse

if TYPE_CHECKING:
    from tests.cli.conftest import Command, CommandAt

EVIL = "\x1b[2J\u202e"
CAPABILITY = ReadCapability(32768, 1, bytes(32), bytes(range(32)))
RUNNING: dict[str, JSON] = {
    "path": "/tmp/plan",  # noqa: S108 - nothing is written
    "size": 4 << 20,
    "present": 1 << 20,
    "rate": 1 << 20,
    "left": 3,
    "circuits": 4,
    "providers": 1,
    "chunks": 12,
    "limit": None,
}
FIGURES_LINE = "  1.0 MiB of 4.0 MiB, 1.0 MiB/s, 3 s left, 4 circuits to 1 node, 12 chunks asked for"
FULL: dict[str, JSON] = {
    "up": None,
    "down": None,
    "disk": 1 << 30,
    "pinned": 8 << 20,
    "others": 1024,
    "evicted": 0,
}
FIGURES = {name: RUNNING[name] for name in ("rate", "left", "circuits", "providers", "chunks")}

Start = Callable[[Handlers], None]


class Anything(Arguments, frozen=True, forbid_unknown_fields=False):
    """Takes whatever it is given."""


def getting(*progress: tuple[int, int, dict[str, JSON]]) -> Handler[Any]:
    async def run(_args: Anything, answers: Answers) -> JSON:
        for each in progress:
            answers.progress(*each)
            for _ in range(10):  # meanwhile the progress gets on its way
                await answers.item(None)
        return {"path": "/tmp/plan", "size": 4 << 20}  # noqa: S108 - nothing is written

    return Handler(Anything, run)


def test_progress_comes_as_lines_before_the_result(overlay: Command, scripted: Start) -> None:
    scripted({"file.get": getting((1 << 20, 4 << 20, FIGURES), (2 << 20, 4 << 20, FIGURES))})
    first, result = overlay("--json", "file", "get", "urn").lines  # the second came too soon after the first
    assert first == {"progress": {"done": 1 << 20, "total": 4 << 20, **FIGURES}}
    assert list(result) == ["path", "size"]
    (alone,) = overlay("--json", "--quiet", "file", "get", "urn").lines
    assert alone == result


def test_a_total_that_is_not_known_is_null_in_the_lines(overlay: Command, scripted: Start) -> None:
    scripted({"file.get": getting((1 << 20, 0, FIGURES))})
    first, _result = overlay("--json", "file", "get", "urn").lines
    assert first == {"progress": {"done": 1 << 20, "total": None, **FIGURES}}


def reading(*pieces: bytes, then: OverlayError | None = None, wait: bool = False) -> Handler[Any]:
    """Hands on pieces, and then fails, waits for ever, or is done."""

    async def run(args: ReadArguments, answers: Answers) -> JSON:
        folder = anyio.Path(args.folder)
        await (folder / "content").write_bytes(b"what came too early")
        answers.progress(1, 2, FIGURES)
        for piece in pieces:
            await answers.item({"content": base64.b64encode(piece).decode()})
        if then is not None:
            raise then
        if wait:
            await anyio.sleep_forever()
        return None

    return Handler(ReadArguments, run)


class ReadArguments(Arguments, frozen=True):
    link: str
    folder: str
    rate: int | None = None


def scratch(overlay: Command) -> list[Path]:
    return [*overlay.home.glob("stdout-*")]


def test_content_and_nothing_else_goes_to_stdout(overlay: Command, scripted: Start, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    scripted({"file.read": reading(*(data[at : at + 70_000] for at in range(0, len(data), 70_000)))})
    with (tmp_path / "out").open("wb") as out:
        command = overlay.arguments("file", "get", "urn", "-o", "-", "--rate", "20000")
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, env=overlay.environ, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "out").read_bytes() == data
    assert scratch(overlay) == []


def test_a_failure_on_the_way_is_told_beside_stdout(overlay: Command, scripted: Start) -> None:
    scripted({"file.read": reading(b"a part", then=UnreachableError("nobody is there"))})
    done = overlay("file", "get", "urn", "-o", "-")
    assert (done.code, done.out, done.err) == (5, "a part", "overlay: nobody is there\n")
    assert scratch(overlay) == []


def test_who_reads_no_more_ends_it(overlay: Command, scripted: Start) -> None:
    scripted({"file.read": reading(*([bytes(200_000)] * 50))})
    with overlay.running("file", "get", "urn", "-o", "-") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == b"\0"
        process.stdout.close()
        assert process.wait() == 141
        assert process.stderr.read() == b""
    assert scratch(overlay) == []


def test_an_interruption_leaves_nothing(overlay: Command, scripted: Start) -> None:
    scripted({"file.read": reading(b"a part", wait=True)})
    with overlay.running("file", "get", "urn", "-o", "-") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(6) == b"a part"
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert b"begins anew" in process.stderr.read()
    assert scratch(overlay) == []


@pytest.mark.parametrize("words", [("--json",), ("--only", "*.txt")])
def test_what_does_not_go_with_stdout(overlay: Command, words: tuple[str, ...]) -> None:
    done = overlay("file", "get", "urn", "-o", "-", *words)
    assert (done.code, done.out) == (2, "")
    assert "leave one" in done.err


def test_a_full_disk_under_stdout_is_told(overlay: Command, scripted: Start) -> None:
    scripted({"file.read": reading(b"much")})
    with Path("/dev/full").open("wb") as full:
        command = overlay.arguments("file", "get", "urn", "-o", "-")
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=overlay.environ, check=False)
    assert (done.returncode, done.stderr) == (1, b"overlay: no space left on device\n")


def test_an_older_node_says_less(overlay: Command, scripted: Start) -> None:
    scripted({"file.get": getting((1 << 20, 4 << 20, {}))})
    assert overlay("--json", "file", "get", "urn").lines[0] == {
        "progress": {"done": 1 << 20, "total": 4 << 20}
    }


def test_status(overlay: Command, scripted: Start) -> None:
    async def status(_args: Anything, answers: Answers) -> JSON:
        await answers.item(RUNNING)
        await answers.item({**RUNNING, "path": EVIL, "limit": 65536, "left": None, "circuits": 0})
        await answers.item({**RUNNING, "size": None, "present": 0, "circuits": 0, "stage": "looking"})
        await answers.item({**RUNNING, "present": RUNNING["size"], "circuits": 0, "chunks": 0})
        for task in ("get", "chat", "pin", "read"):
            path = RUNNING["path"] if task in {"get", "chat"} else None
            await answers.item({**RUNNING, "task": task, "name": f"{task}{EVIL}", "path": path})
        storing = {**RUNNING, "task": "put", "circuits": 0, "providers": 0, "chunks": 0, "stage": "storing"}
        await answers.item({**storing, "name": "plan"})
        await answers.item({**storing, "name": EVIL, "path": None, "present": 0, "rate": 0, "left": None})
        return None

    scripted({"file.status": Handler(Anything, status), "file.limit": limits(FULL)})
    assert overlay("file", "status").out.splitlines() == [
        "/tmp/plan",  # noqa: S108 - nothing is written
        FIGURES_LINE,
        "\\x1b[2J\\u202e",
        (
            "  1.0 MiB of 4.0 MiB, no provider is connected, still trying, 12 chunks asked for, "
            "limited to 64.0 KiB/s"
        ),
        "/tmp/plan",  # noqa: S108 - nothing is written
        "  0 B, looking at what is there, 12 chunks asked for",
        "/tmp/plan",  # noqa: S108 - nothing is written
        "  4.0 MiB of 4.0 MiB",
        "/tmp/plan",  # noqa: S108 - nothing is written
        FIGURES_LINE,
        "/tmp/plan (posted)",  # noqa: S108 - nothing is written
        FIGURES_LINE,
        "pin\\x1b[2J\\u202e (to pin it)",
        FIGURES_LINE,
        "read\\x1b[2J\\u202e (to standard output)",
        FIGURES_LINE,
        "/tmp/plan (to other nodes)",  # noqa: S108 - nothing is written
        "  1.0 MiB of 4.0 MiB, 1.0 MiB/s, 3 s left",
        "\\x1b[2J\\u202e (from standard input to other nodes)",
        "  0 B of 4.0 MiB, 0 B/s",
        "disk 1.0 GiB: 8.0 MiB pinned, 1.0 KiB kept for others",
    ]
    first, *_others = overlay("--json", "file", "status").lines
    assert first == RUNNING


def taking(args: list[dict[str, Any]]) -> Handler[Any]:
    """Notes what a verb is asked with."""

    async def run(given: Told, _answers: Answers) -> JSON:
        args.append({name: each for name in ("path", "rate", "down") if (each := getattr(given, name)) != ""})
        return {}

    return Handler(Told, run)


class Told(Arguments, frozen=True, forbid_unknown_fields=False):
    path: str = ""
    rate: int | str | None = ""
    down: int | str | None = ""


@pytest.mark.parametrize(
    ("words", "path", "rate"),
    [
        ((), "{here}", {}),
        (("-o", "new"), "{here}/new", {}),
        (("-o", "new/"), "{here}/new/", {}),
        (("-o", "new/."), "{here}/new/", {}),
        (("-o", "/"), "/", {}),
        (("--rate", "none"), "{here}", {}),
        (("--rate", "64K"), "{here}", {"rate": 65_536}),
    ],
)
def test_where_a_file_is_put_and_how_fast(
    overlay: Command, scripted: Start, words: tuple[str, ...], path: str, rate: dict[str, int]
) -> None:
    args: list[dict[str, Any]] = []
    scripted({"file.get": taking(args)})
    assert overlay("file", "get", "urn", *words).code == 0
    assert args == [{"path": path.format(here=Path.cwd()), **rate}]


@pytest.mark.parametrize(
    "words",
    [
        ("file", "share", ""),
        ("file", "put", ""),
        ("file", "get", "urn", "-o", ""),
        ("file", "limit", "", "--down", "none"),
        ("chat", "post", "club", ""),
        ("chat", "get", "club", "plan", "-o", ""),
    ],
)
def test_an_empty_path_means_nothing(overlay: Command, words: tuple[str, ...]) -> None:
    done = overlay(*words)
    assert (done.code, done.out) == (2, "")
    assert "a path is empty: name a file or a folder" in done.err


class Overwriting(Arguments, frozen=True, forbid_unknown_fields=False):
    path: str
    overwrite: bool


@contextmanager
def at_terminal(
    overlay: Command, *words: str, typed: bytes = b""
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run it with a terminal for stdin and stderr, at which something was typed; gives its other end."""
    ours, theirs = pty.openpty()
    os.write(ours, typed)
    try:
        with subprocess.Popen(
            overlay.arguments(*words),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env=overlay.environ,
        ) as process:
            os.close(theirs)
            yield ours, process
            process.kill()
    finally:
        os.close(ours)


def read_until_end(ours: int) -> str:
    seen = b""
    with suppress(OSError):  # how Linux tells that nobody holds the other end any more
        while data := os.read(ours, 4096):
            seen += data
    return seen.decode()


def refusing(asked: list[bool]) -> Handlers:
    """Notes whether a file may be replaced, and refuses where not."""

    async def get(args: Overwriting, _answers: Answers) -> JSON:
        asked.append(args.overwrite)
        if not args.overwrite:
            raise RefusedError("exists already")
        return {"path": args.path, "size": 1}

    return {"file.get": Handler(Overwriting, get)}


PLAN = FileLink(CAPABILITY, (), "plan.pdf", 100_000, "file").urn
QUESTION = "exists: replace it? [y/N] "


@pytest.mark.parametrize("into", ["", "/", "/plan.pdf"])
@pytest.mark.parametrize(
    ("typed", "replaced"),
    [
        (b"y\n", True),
        (b" YES \n", True),
        (b"\n", False),
        (b"no\n", False),
        (b"yet\n", False),
        (b"\x04", False),
    ],
)
def test_at_a_terminal_a_person_is_asked_whether_a_file_is_to_be_replaced(
    overlay: Command, scripted: Start, tmp_path: Path, into: str, typed: bytes, *, replaced: bool
) -> None:
    asked: list[bool] = []
    scripted(refusing(asked))
    (tmp_path / "plan.pdf").write_bytes(b"before")
    with at_terminal(overlay, "file", "get", PLAN, "-o", f"{tmp_path}{into}", typed=typed) as (ours, process):
        seen = read_until_end(ours)
        assert process.wait() == (0 if replaced else 6)
    assert asked == [replaced]
    assert f"{tmp_path / 'plan.pdf'} {QUESTION}" in seen
    assert ("exists already" in seen.splitlines()[-1]) is not replaced


def test_an_interrupted_question_leaves_all_as_it_was(
    overlay: Command, scripted: Start, tmp_path: Path
) -> None:
    asked: list[bool] = []
    scripted(refusing(asked))
    (tmp_path / "plan.pdf").write_bytes(b"before")
    with at_terminal(overlay, "file", "get", PLAN, "-o", str(tmp_path)) as (ours, process):
        seen = b""
        while not seen.endswith(QUESTION.encode()):
            seen += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert read_until_end(ours) == "\r\n"
    assert asked == []


def test_nobody_is_asked_in_vain(overlay: Command, home: Home, tmp_path: Path) -> None:
    assert home.exists
    (tmp_path / "plan.pdf").write_bytes(b"before")
    with at_terminal(overlay, "file", "get", PLAN, "-o", str(tmp_path)) as (ours, process):
        seen = read_until_end(ours)
        assert process.wait() == 3
    assert QUESTION not in seen


FOLDER = FileLink(CAPABILITY, (), "plan.pdf", 100_000, "folder").urn


@pytest.mark.parametrize(
    ("words", "overwrite"),
    [
        ((PLAN, "-o", "{here}", "--force"), True),
        ((PLAN, "-o", "{here}", "--quiet"), False),
        ((PLAN, "-o", "{here}", "--json"), False),
        ((PLAN, "-o", "{here}", "--only", "x"), False),
        (("-", "-o", "{here}/plan.pdf"), False),
        ((FOLDER, "-o", "{here}"), False),
        (("urn:eris:none", "-o", "{here}/plan.pdf"), False),
        ((CAPABILITY.urn, "-o", "{here}"), False),
        ((PLAN, "-o", "{here}/link"), False),
        ((PLAN, "-o", "{here}/new"), False),
        ((PLAN, "-o", "{here}/plan.pdf/"), False),
        ((PLAN, "-o", "{here}/" + 300 * "x"), False),
    ],
)
def test_where_nobody_is_asked(
    overlay: Command, scripted: Start, tmp_path: Path, words: tuple[str, ...], *, overwrite: bool
) -> None:
    asked: list[bool] = []
    scripted(refusing(asked))
    (tmp_path / "plan.pdf").write_bytes(b"before")
    (tmp_path / "link").symlink_to("plan.pdf")
    given = [word.format(here=tmp_path) for word in words]
    typed = PLAN.encode() + b"\n\x04" if "-" in words else b"y\n"
    with at_terminal(overlay, "file", "get", *given, typed=typed) as (ours, process):
        seen = read_until_end(ours)
        assert process.wait() == (0 if overwrite else 6)
    assert asked == [overwrite]
    assert QUESTION not in seen


def test_without_a_terminal_nobody_is_asked(overlay: Command, scripted: Start, tmp_path: Path) -> None:
    asked: list[bool] = []
    scripted(refusing(asked))
    (tmp_path / "plan.pdf").write_bytes(b"before")
    done = overlay("file", "get", PLAN, "-o", str(tmp_path), stdin=b"y\n")
    assert (done.code, asked) == (6, [False])
    ours, theirs = pty.openpty()
    os.write(ours, b"y\n")
    command = overlay.arguments("file", "get", PLAN, "-o", str(tmp_path))
    ended = subprocess.run(command, stdin=theirs, capture_output=True, env=overlay.environ, check=False)
    os.close(ours)
    os.close(theirs)
    assert (ended.returncode, asked) == (6, [False, False])
    assert QUESTION.encode() not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_put_that_is_ended_leaves_nothing_of_stdin(
    overlay: Command, scripted: Start, number: signal.Signals
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    seen: list[bytes] = []

    async def put(args: PutArguments, _answers: Answers) -> JSON:
        seen.append(Path(args.path).read_bytes())  # noqa: ASYNC240 - of a test
        started.pop().send_signal(number)
        await anyio.sleep_forever()
        return {}

    scripted({"file.put": Handler(PutArguments, put)})
    with subprocess.Popen(
        overlay.arguments("file", "put", "-"), stdin=subprocess.PIPE, env=overlay.environ
    ) as process:
        started.append(process)
        process.communicate(b"secret")
    assert process.returncode == 128 + number
    assert seen == [b"secret"]
    assert list(overlay.home.glob("stdin-*")) == []


def test_a_put_under_nohup_outlives_its_terminal(overlay: Command, scripted: Start) -> None:
    started: list[subprocess.Popen[bytes]] = []

    async def put(_args: PutArguments, _answers: Answers) -> JSON:
        started.pop().send_signal(signal.SIGHUP)
        return {"link": CAPABILITY.urn, "name": "", "size": 6}

    scripted({"file.put": Handler(PutArguments, put)})
    command = ["nohup", *overlay.arguments("file", "put", "-")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=overlay.environ
    ) as process:
        started.append(process)
        out, _ = process.communicate(b"secret")
    assert (process.returncode, out.decode().strip()) == (0, CAPABILITY.urn)


def test_what_a_killed_put_left_of_stdin_is_removed_by_the_next(
    overlay: Command, scripted: Start, tmp_path: Path
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    async def put(_args: Anything, _answers: Answers) -> JSON:
        if started:
            started.pop().kill()
        return {}

    scripted({"file.put": Handler(Anything, put)})
    with subprocess.Popen(
        overlay.arguments("file", "put", "-"), stdin=subprocess.PIPE, env=overlay.environ
    ) as process:
        started.append(process)
        process.communicate(b"secret")
    assert process.returncode == -signal.SIGKILL
    (left,) = overlay.home.glob("stdin-*")
    assert left.read_bytes() == b"secret"
    (tmp_path / "plan").touch()
    assert overlay("file", "put", str(tmp_path / "plan")).code == 0
    assert not left.exists()


def test_only_a_copy_of_stdin_is_a_path_that_says_nothing(
    overlay: Command, scripted: Start, tmp_path: Path
) -> None:
    asked: list[tuple[bool, bool]] = []

    async def put(args: PutArguments, _answers: Answers) -> JSON:
        asked.append((args.spooled, Path(args.path).name.startswith("stdin-")))
        return {}

    scripted({"file.put": Handler(PutArguments, put)})
    (tmp_path / "plan").touch()
    assert overlay("file", "put", str(tmp_path / "plan")).code == 0
    assert overlay("file", "put", "-").code == 0
    assert asked == [(False, False), (True, True)]


def test_what_is_no_home_is_not_tidied(command_at: CommandAt, tmp_path: Path) -> None:
    (tmp_path / "stdin-notes").touch()
    assert command_at(tmp_path)("file", "put", str(tmp_path / "stdin-notes")).code == 3
    assert (tmp_path / "stdin-notes").exists()


def limits(answer: dict[str, JSON]) -> Handler[Any]:
    async def limit(_args: Anything, _answers: Answers) -> JSON:
        return answer

    return Handler(Anything, limit)


def test_a_limit_of_the_disk_says_what_it_cost_and_what_it_could_not(
    overlay: Command, scripted: Start
) -> None:
    scripted({"file.limit": limits({**FULL, "disk": 1 << 20, "others": 0, "evicted": 1024})})
    done = overlay("file", "limit", "--disk", "1M")
    assert (
        done.out
        == "up without limit, down without limit, disk 1.0 MiB: 8.0 MiB pinned, 0 B kept for others\n"
    )
    assert done.err.splitlines() == [
        "1.0 KiB that were kept for others were given up",
        "what is pinned takes more than that: it stays, and nothing more is stored until it fits",
    ]
    assert overlay("--quiet", "file", "limit", "--disk", "1M").err == ""


@pytest.mark.parametrize(
    ("words", "size"),
    [("0", 0), ("1000", 1000), ("3k", 3072), ("500M", 500 << 20), ("20G", 20 << 30), ("1T", MAX_QUOTA)],
)
def test_sizes_of_the_disk(words: str, size: int) -> None:
    assert parse(["file", "limit", "--disk", words]).disk == size
    assert parse(["file", "limit", "--up", "64K"]).up == 65_536


@pytest.mark.parametrize("words", ["-1", "", "M", "1.5G", "2T", "1MB", "much", "1099511627777", "none"])
def test_what_is_no_size_of_the_disk(words: str) -> None:
    with pytest.raises(MalformedError):
        parse(["file", "limit", f"--disk={words}"])


def test_status_goes_on_until_it_is_interrupted(overlay: Command, scripted: Start) -> None:
    asked = 0

    async def status(_args: Anything, answers: Answers) -> JSON:
        nonlocal asked
        asked += 1
        await answers.item({**RUNNING, "present": asked << 20})
        return None

    scripted({"file.status": Handler(Anything, status)})
    with overlay.running("--json", "file", "status", "--follow") as process:
        assert process.stdout is not None
        seen = [json.loads(process.stdout.readline())["present"] for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert seen == [1 << 20, 2 << 20]


@pytest.mark.parametrize(
    ("words", "args", "answer", "said"),
    [
        ((), {}, {"up": None, "down": 65536}, "up without limit, down 64.0 KiB/s"),
        (("--up", "65536"), {"up": 65536}, {"up": 65536, "down": None}, "up 64.0 KiB/s, down without limit"),
        (
            ("--down", "none"),
            {"down": None},
            {"up": None, "down": None},
            "up without limit, down without limit",
        ),
        (
            ("/x", "--down", "16384"),
            {"down": 16384, "path": "/x"},
            {"path": "/x", "down": 16384},
            "down 16.0 KiB/s",
        ),
        (
            ("--disk", "0"),
            {"disk": 0},
            {**FULL, "disk": 0, "pinned": 0},
            "up without limit, down without limit, disk 0 B: 0 B pinned, 1.0 KiB kept for others",
        ),
    ],
)
def test_limits(  # noqa: PLR0917 - parameters of a table
    overlay: Command,
    scripted: Start,
    words: tuple[str, ...],
    args: dict[str, JSON],
    answer: dict[str, JSON],
    said: str,
) -> None:
    class LimitArguments(Arguments, frozen=True):
        up: int | None = -1
        down: int | None = -1
        disk: int | None = -1
        path: str | None = None

    async def limit(given: LimitArguments, _answers: Answers) -> JSON:
        assert given == LimitArguments(**args)  # type: ignore[arg-type]
        return answer

    scripted({"file.limit": Handler(LimitArguments, limit)})
    assert overlay("file", "limit", *words).out == said + "\n"
    assert overlay("--json", "file", "limit", *words).lines == [answer]


@pytest.mark.parametrize("value", ["-1", "0", "1", "16383", "1099511627777", "9" * 400, "1.5", "fast", ""])
@pytest.mark.parametrize("words", [("limit", "--up"), ("limit", "--down"), ("get", "urn", "--rate")])
def test_what_is_no_rate(words: tuple[str, ...], value: str) -> None:
    with pytest.raises(MalformedError):
        parse(["file", *words[:-1], f"{words[-1]}={value}"])


def test_a_wrong_rate_is_wrong_use(overlay: Command) -> None:
    done = overlay("file", "get", "urn", "--rate", "0")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "16384" in done.err


def record(*, issued: int, lifetime: int = 86_400) -> LocatorRecord:
    locators = [parse_locator("127.0.0.1:4000")]
    return LocatorRecord.sign(World(1).secret("ann"), locators, number=1, now=issued, lifetime=lifetime)


def test_info_needs_no_node_and_no_home(overlay: Command) -> None:
    now = int(time.time())
    valid, expired, future = record(issued=now), record(issued=now - 90_000), record(issued=now + 90_000)
    forged = valid.encoded[:-1] + bytes([valid.encoded[-1] ^ 1])
    providers = (valid.encoded, expired.encoded, future.encoded, forged, b"?")
    link = FileLink(CAPABILITY, providers, "plan.pdf", 100_000, "file").urn
    (found,) = overlay("--json", "file", "info", link).lines
    described = found.pop("providers")
    assert found == {
        "capability": CAPABILITY.urn,
        "kind": "file",
        "name": "plan.pdf",
        "size": 100_000,
        "block": 32768,
        "level": 1,
    }
    assert [each["state"] for each in described] == ["valid", "expired", "invalid", "invalid", "invalid"]
    assert described[0] == {
        "node": str(valid.identifier),
        "locators": ["/ip4/127.0.0.1/tcp/4000"],
        "issued": now,
        "expires": now + 86_400,
        "state": "valid",
    }
    assert described[3]["node"] is described[4]["node"] is None
    human = overlay("file", "info", "-", stdin=link.encode()).out
    assert "file: plan.pdf, 97.7 KiB (100000 bytes)" in human
    assert re.search(rf"provider: {valid.identifier}, valid for 2[34] h .*: /ip4/127.0.0.1/tcp/4000", human)
    assert "expired 1 h 0 min ago" in human
    assert not overlay.home.exists()


def test_info_of_a_plain_link_and_of_none(overlay: Command) -> None:
    (found,) = overlay("--json", "file", "info", CAPABILITY.urn).lines
    assert (found["name"], found["size"], found["providers"]) == (None, None, [])
    assert "none are named" in overlay("file", "info", CAPABILITY.urn).out
    assert overlay("file", "info", "urn:eris:nothing").code == 2


def test_a_share_with_its_code(overlay: Command, scripted: Start, tmp_path: Path) -> None:
    async def share(_args: Anything, _answers: Answers) -> JSON:
        return {"link": CAPABILITY.urn, "name": "plan", "size": 1}

    scripted({"file.share": Handler(Anything, share)})
    (tmp_path / "plan").touch()
    done = overlay("file", "share", str(tmp_path / "plan"), "--qr")
    assert done.out.splitlines()[0] == CAPABILITY.urn
    assert len(done.out.splitlines()) == 24
    assert overlay("--json", "file", "share", str(tmp_path / "plan"), "--qr").code == 2


@pytest.mark.parametrize("options", [[], ["--convergent"]])
@pytest.mark.parametrize("verb", ["share", "put"])
def test_only_who_asks_for_it_gets_the_link_of_everybody(
    overlay: Command, scripted: Start, tmp_path: Path, verb: str, options: list[str]
) -> None:
    asked: list[bool] = []

    async def answer(args: ShareArguments | PutArguments, _answers: Answers) -> JSON:
        asked.append(args.convergent)
        return {"link": CAPABILITY.urn, "name": "plan", "size": 1}

    scripted(
        {"file.share": Handler(ShareArguments, answer), "file.put": Handler(PutArguments, answer)},
    )
    (tmp_path / "plan").touch()
    assert overlay("file", verb, str(tmp_path / "plan"), *options).code == 0
    assert asked == [bool(options)]


def test_without_the_library_of_codes_nothing_is_shared(
    overlay: Command,
    home: Home,
    tmp_path: Path,
) -> None:
    (tmp_path / "segno.py").write_text("raise ModuleNotFoundError(name='segno')\n", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = overlay("file", "share", str(tmp_path / "segno.py"), "--qr", environ={"PYTHONPATH": path})
    assert home.exists
    assert (done.code, done.out) == (4, "")
    assert "pip install 'overlay-p2p[qr]'" in done.err


def test_what_is_removed_and_what_a_folder_still_offers(overlay: Command, scripted: Start) -> None:
    async def remove(_args: Anything, _answers: Answers) -> JSON:
        return {"name": "plan", "paths": ["/a/plan", EVIL], "within": ["/b"]}

    scripted({"file.remove": Handler(Anything, remove)})
    done = overlay("file", "remove", CAPABILITY.urn)
    assert done.out == f"not offered any more: /a/plan, {printable(EVIL)}\n"
    assert EVIL not in done.out
    assert done.err == "a shared folder has it still, as a part, and offers it: /b\n"


def test_what_is_convergent_is_marked(overlay: Command, scripted: Start) -> None:
    async def offers(_args: Anything, answers: Answers) -> JSON:
        for convergent, problem in ((True, None), (True, "gone"), (False, None)):
            offer: dict[str, JSON] = {"name": "plan", "size": 5, "path": "/plan", "link": "urn:x", "added": 7}
            await answers.item({**offer, "problem": problem, "pinned": False, "convergent": convergent})
        return None

    scripted({"file.list": Handler(Anything, offers)})
    lines = overlay("file", "list").out.splitlines()[::2]
    assert [line.strip() for line in lines] == [
        "5 B  /plan  (convergent)",
        "5 B  /plan  (gone, convergent)",
        "5 B  /plan",
    ]
