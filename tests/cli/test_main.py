"""The command line as other programs see it: exit codes, streams, and what never reaches a terminal."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

import anyio
import msgspec
import pytest

from overlay.control.home import Home
from overlay.control.protocol import JSON
from overlay.control.server import Answers, Arguments, Handler, Handlers
from overlay.errors import ERRORS_BY_CODE, OverlayError, RefusedError
from overlay_cli import __version__

if TYPE_CHECKING:
    from tests.cli.conftest import Command

Start = Callable[[Handlers], None]
EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egpj.exe"


class Anything(Arguments, frozen=True, forbid_unknown_fields=False):
    """Whatever a verb takes."""


def answering(result: JSON, items: tuple[JSON, ...] = ()) -> Handler[Anything]:
    async def run(_args: Anything, answers: Answers) -> JSON:
        for item in items:
            await answers.item(item)
        return result

    return Handler(Anything, run)


def failing(error: OverlayError) -> Handler[Anything]:
    async def run(_args: Anything, _answers: Answers) -> JSON:
        raise error

    return Handler(Anything, run)


STATUS: dict[str, JSON] = {
    "state": "ready",
    "detail": "ready",
    "node": "n" * 56,
    "locators": ["/ip4/127.0.0.1/tcp/9"],
    "transports": [{"name": "tcp", "state": "ready", "detail": "", "progress": 100, "facts": {}}],
    "peers": {"known": 2, "connected": 1},
    "sessions": 1,
}


# --- version, help, wrong use


def test_version(overlay: Command) -> None:
    assert overlay("version").out == f"overlay {__version__}\n"
    assert overlay("--json", "version").lines[0]["version"] == __version__
    assert importlib.metadata.version("overlay-p2p") == __version__


def test_the_installed_command_is_the_module(overlay: Command) -> None:
    installed = shutil.which("overlay", path=os.path.dirname(sys.executable))  # noqa: PTH120 - it takes a text
    assert installed is not None
    done = subprocess.run([installed, "version"], capture_output=True, check=True)
    assert done.stdout.decode() == overlay("version").out


def test_help_is_no_error(overlay: Command) -> None:
    done = overlay("chat", "--help")
    assert (done.code, done.err) == (0, "")
    assert "follow" in overlay("chat", "read", "--help").out


@pytest.mark.parametrize("words", [["nonsense"], [], ["chat", "read"], ["status", "--wait", "x"]])
def test_a_wrong_use_is_one_sentence(overlay: Command, words: list[str]) -> None:
    done = overlay(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("overlay: ")
    assert done.err.count("\n") == 1
    with_json = overlay(*words, "--json")
    assert (with_json.code, with_json.error["code"]) == (2, "malformed")


# --- no home, no node


VERBS = [
    ["status"],
    ["ticket"],
    ["peers"],
    ["down"],
    ["chat", "create", "t"],
    ["chat", "list"],
    ["chat", "invite", "s"],
    ["chat", "join", "i"],
    ["chat", "people", "s"],
    ["chat", "leave", "s"],
    ["chat", "send", "s", "x"],
    ["chat", "read", "s", "--follow"],
    ["chat", "files", "s"],
    ["chat", "get", "s", "f"],
]


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_without_a_node(overlay: Command, words: list[str]) -> None:
    done = overlay("--json", *words)
    assert (done.code, done.out) == (3, "")
    assert done.error["code"] == "not-running"
    assert "overlay init" in done.error["message"]
    assert "overlay up" in done.error["message"]


def test_without_a_node_on_a_home(overlay: Command, home: Home) -> None:
    done = overlay("status")
    assert (done.code, str(home.path) in done.err) == (3, True)
    assert "overlay init" not in done.err


def test_an_empty_home_is_none(overlay: Command) -> None:
    done = overlay("--home", "", "init")
    assert (done.code, done.out) == (2, "")
    assert "empty" in done.err


@pytest.mark.parametrize("words", [["up"], ["id"]])
def test_without_a_home(overlay: Command, words: list[str]) -> None:
    done = overlay("--json", *words)
    assert (done.code, done.out) == (7, "")
    assert "overlay init" in done.error["message"]


def test_waiting_for_a_node_that_never_comes(overlay: Command) -> None:
    done = overlay("status", "--wait", "0.1")
    assert (done.code, done.out) == (3, "")


# --- init and id


def test_init_and_id(overlay: Command) -> None:
    done = overlay("--json", "init", "--name", "Ann")
    assert (done.code, done.err) == (0, "")
    assert done.lines == [{"home": str(overlay.home), "node": done.lines[0]["node"]}]
    assert overlay("id").out.strip() == done.lines[0]["node"]
    assert overlay("--json", "id").lines == [{"node": done.lines[0]["node"]}]
    assert 'name = "Ann"' in Home(overlay.home).config.read_text()
    assert Home(overlay.home).database.exists()
    assert all(path.stat().st_mode & 0o077 == 0 for path in [overlay.home, *overlay.home.rglob("*")])
    before = (overlay.home / "identity").read_bytes()
    assert overlay("init").code == 6
    assert (overlay.home / "identity").read_bytes() == before


@pytest.mark.parametrize("name", ["\x1b[2J", "x" * 101, " "])
def test_init_refuses_a_name_that_a_chat_would_not_take(overlay: Command, name: str) -> None:
    assert overlay("init", "--name", name).code == 2
    assert not overlay.home.exists()


def test_the_home_option_counts_more_than_the_variable(overlay: Command) -> None:
    other = overlay.home.with_name("other")
    assert overlay("init", "--home", str(other)).code == 0
    assert Home(other).exists
    assert not Home(overlay.home).exists


def test_init_where_nothing_can_be_written(overlay: Command) -> None:
    overlay.home.parent.joinpath("file").touch()
    done = overlay("--home", str(overlay.home.parent / "file" / "home"), "init")
    assert done.code == 1
    assert done.err.count("\n") == 1


# --- up, before the node


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--join", "ovt1damaged"], 2, "copy it again"),
        (["--join", "nonsense"], 2, "token"),
        (["--join", " OVI1whatever"], 2, "overlay chat join"),
        (["--listen", "nowhere"], 2, "HOST:PORT"),
        (["--listen", "example.org:80"], 2, "not looked up"),
        (["--transport", "tor", "--transport", "tcp"], 6, "reveal"),
        (["--torrc", "/nonexistent/torrc"], 2, "torrc"),
        (["--torrc", "x", "--tor-control", "y"], 2, "one of them"),
        (["--transport", "i2p", "--transport", "tcp"], 6, "reveal"),
        (["--transport", "i2p", "--i2p-config", "/nonexistent/i2pd.conf"], 2, "--i2p-config takes a file"),
        (["--transport", "i2p", "--sam", "nowhere"], 2, "127.0.0.1:7656"),
        (["--transport", "i2p", "--sam", "x", "--i2pd", "y"], 2, "one of them"),
        (["--transport", "tor", "--sam", "127.0.0.1:7656"], 2, "add '--transport i2p'"),
        (["--transport", "i2p", "--torrc", "x"], 2, "add '--transport tor'"),
    ],
)
def test_up_refuses_what_cannot_be(
    overlay: Command, home: Home, words: list[str], code: int, sentence: str
) -> None:
    transport = (
        [] if "--transport" in words or any("tor" in word for word in words) else ["--transport", "tcp"]
    )
    done = overlay("--json", "up", *words, *transport)
    assert (done.code, done.out) == (code, "")
    assert sentence in done.error["message"]
    assert not home.remembered().join
    assert not home.locked


@pytest.mark.parametrize(("transport", "library"), [("tor", "stem"), ("i2p", "i2plib")])
def test_up_without_the_library_of_a_transport(
    overlay: Command, home: Home, transport: str, library: str
) -> None:
    without = f"import sys; sys.modules['{library}'] = None; from overlay_cli.main import main"
    words = ["up", "--json", "--transport", transport]
    command = [sys.executable, "-c", f"{without}; sys.exit(main({words}))"]
    done = subprocess.run(command, capture_output=True, env=overlay.environ, check=False)
    assert (done.returncode, done.stdout) == (4, b"")
    assert f"pip install 'overlay-p2p[{transport}]'" in json.loads(done.stderr)["error"]["message"]
    assert not home.locked


def test_up_names_file_and_key_of_a_bad_configuration(overlay: Command, home: Home) -> None:
    home.config.write_text("colour = 'red'\n")
    done = overlay("up")
    assert done.code == 2
    assert str(home.config) in done.err
    assert "colour" in done.err


def test_a_second_node_on_a_home_is_refused(overlay: Command, home: Home) -> None:
    with home.lock():
        done = overlay("up", "--transport", "tcp")
    assert (done.code, done.out) == (6, "")
    assert "already" in done.err


# --- what a node answers


@pytest.mark.parametrize("code", ERRORS_BY_CODE)
def test_each_error_of_the_node_has_its_exit_code(overlay: Command, scripted: Start, code: str) -> None:
    expected = {
        "malformed": 2,
        "not-running": 3,
        "unavailable": 4,
        "unreachable": 5,
        "closed": 5,
        "refused": 6,
    }
    expected |= {"not-found": 7, "verification": 8, "protocol": 8, "storage": 1, "failure": 1}
    scripted({"ticket": failing(ERRORS_BY_CODE[code](f"because {EVIL}"))})
    done = overlay("--json", "ticket")
    assert (done.code, done.out) == (expected[code], "")
    assert done.error == {"code": code, "message": f"because {EVIL}"}
    assert "\x1b" not in done.err


def test_an_error_is_one_sentence_and_a_traceback_on_demand(overlay: Command, scripted: Start) -> None:
    scripted({"ticket": failing(RefusedError(f"because\n{EVIL}"))})
    done = overlay("ticket")
    assert (done.code, done.out, done.err.count("\n")) == (6, "", 1)
    assert done.err.startswith("overlay: because")
    assert "\x1b" not in done.err
    assert "Traceback" in overlay("--verbose", "ticket").err


ITEMS: dict[str, tuple[JSON, ...]] = {
    "peers": ({"node": "n", "locators": [EVIL], "connected": True, "via": EVIL, "over": EVIL},),
    "chat.list": ({"session": "s", "title": EVIL},),
    "chat.people": ({"participant": "p", "name": EVIL, "me": True},),
    "chat.files": ({"file": "f", "name": EVIL, "size": 5, "at": 1, "from": EVIL},),
    "chat.read": (
        {"id": "i", "at": 1, "from": EVIL, "kind": "text", "text": f"a\n{EVIL}"},
        {"id": "i", "at": 2**53, "from": EVIL, "kind": "file", "text": EVIL},
        {"id": "i", "at": "never", "from": EVIL, "kind": EVIL, "text": EVIL},
    ),
}
RESULTS: dict[str, JSON] = {
    "status": {
        **STATUS,
        "detail": EVIL,
        "locators": [EVIL],
        "transports": [{"name": EVIL, "detail": EVIL, "facts": {EVIL: EVIL}}],
    },
    "ticket": {"ticket": EVIL},
    "chat.create": {"session": "s", "invite": EVIL},
    "chat.invite": {"invite": EVIL},
    "chat.join": {"session": "s", "title": EVIL},
    "chat.leave": {"session": EVIL},
    "chat.send": {"message": EVIL},
    "chat.get": {"path": EVIL, "size": 5},
}


@pytest.mark.parametrize("words", [words for words in VERBS if words != ["down"]], ids=" ".join)
def test_nothing_that_a_node_says_steers_the_terminal(
    overlay: Command, scripted: Start, words: list[str]
) -> None:
    verb = ".".join(words[:2]) if words[0] == "chat" else words[0]
    scripted({verb: answering(RESULTS.get(verb), ITEMS.get(verb, ()))})
    human = overlay(*words)
    assert (human.code, human.err) == (0, "")
    assert human.out
    assert all(char.isprintable() or char == "\n" for char in human.out)
    as_json = overlay("--json", *words)
    assert as_json.out.isascii()
    assert as_json.lines == list(ITEMS.get(verb) or [RESULTS[verb]])


def test_a_message_cannot_pass_for_another(overlay: Command, scripted: Start) -> None:
    entry: JSON = {
        "id": "i",
        "at": 0,
        "from": "eve",
        "kind": "text",
        "text": "hi\n2026-01-01 00:00  bob: yes",
    }
    scripted({"chat.read": answering(None, (entry,))})
    first, second = overlay("chat", "read", "room").out.splitlines()
    assert first.endswith("eve: hi")
    assert second.startswith("    ")


def test_status_shows_each_transport_with_its_facts(overlay: Command, scripted: Start) -> None:
    i2p: JSON = {
        "name": "i2p",
        "state": "starting",
        "detail": "building tunnels",
        "facts": {"router": "127.0.0.1:7656", "sam": "3.1"},
    }
    tor: JSON = {"name": "tor", "state": "ready", "detail": "", "facts": {"tor": "0.4.8.9, launched"}}
    scripted({"status": answering({**STATUS, "transports": [tor, i2p]})})
    lines = overlay("status").out.splitlines()
    start = lines.index("transport  tor ready")
    assert lines[start : start + 5] == [
        "transport  tor ready",
        "             tor: 0.4.8.9, launched",
        "transport  i2p starting: building tunnels",
        "             router: 127.0.0.1:7656",
        "             sam: 3.1",
    ]


def test_peers_say_over_what_each_is_reached(overlay: Command, scripted: Start) -> None:
    known: tuple[JSON, ...] = (
        {"node": "a", "locators": ["/x", "/y"], "connected": True, "via": "/y", "over": "i2p"},
        {"node": "b", "locators": ["/z"], "connected": True, "via": None, "over": "tor"},
        {"node": "c", "locators": [], "connected": False, "via": None, "over": None},
    )
    scripted({"peers": answering(None, known)})
    assert overlay("peers").out.splitlines() == [
        "a  connected  /x /y",
        "    over i2p: it was dialled at /y",
        "b  connected  /z",
        "    over tor: it dialled this node",
        "c  -          ",
    ]


def test_status_without_noise(overlay: Command, scripted: Start) -> None:
    scripted({"status": answering(STATUS)})
    done = overlay("status", "--json")
    assert (done.code, done.err, done.lines) == (0, "", [STATUS])
    assert "ready" in overlay("status").out


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ({"state": "starting", "transports": [{"state": "starting"}]}, 4),
        ({"state": "starting", "transports": [{"state": "ready"}]}, 4),
        ({"state": "no-directory", "transports": [{"state": "failed"}]}, 4),
        ({"state": "no-directory", "transports": [{"state": "ready"}]}, 5),
        ({"state": "joining", "transports": [{"state": "ready"}]}, 5),
    ],
)
def test_what_is_missing_decides_the_exit_code(
    overlay: Command, scripted: Start, found: Mapping[str, JSON], code: int
) -> None:
    scripted({"status": answering({**STATUS, **found, "detail": "the reason"})})
    done = overlay("status", "--wait", "0.1")
    assert (done.code, done.out) == (code, "")
    assert "the reason" in done.err


def test_waiting_for_a_node_that_is_about_to_start(overlay: Command, home: Home, scripted: Start) -> None:
    with overlay.running("--json", "status", "--wait", "20") as process:
        scripted({"status": answering(STATUS)})
        out, _ = process.communicate()
    assert json.loads(out) == STATUS
    assert process.returncode == 0
    assert home.control_socket.exists()


class SendArguments(Arguments, frozen=True):
    session: str
    text: Annotated[str, msgspec.Meta(max_length=40_000)]


@pytest.mark.parametrize(
    ("stdin", "sent"),
    [(b"hi\n", "hi"), (b"two\nlines\r\n", "two\nlines"), (b"x" * 32_768 + b"\n", "x" * 32_768)],
)
def test_a_message_from_stdin(overlay: Command, scripted: Start, stdin: bytes, sent: str) -> None:
    texts = []

    async def send(args: SendArguments, _answers: Answers) -> JSON:
        texts.append(args.text)
        return {"message": "m"}

    scripted({"chat.send": Handler(SendArguments, send)})
    assert overlay("chat", "send", "room", "-", stdin=stdin).code == 0
    assert texts == [sent]


@pytest.mark.parametrize("stdin", [b"x" * 32_769, b"\xff"])
def test_a_message_that_is_too_long_or_no_text(overlay: Command, stdin: bytes) -> None:
    done = overlay("chat", "send", "room", "-", stdin=stdin)
    assert done.code == 2
    assert "as a file" in done.err


@pytest.mark.parametrize("option", ["--json", "--quiet", "--verbose"])
def test_an_option_after_the_end_of_options_is_text(overlay: Command, scripted: Start, option: str) -> None:
    texts = []

    async def send(args: SendArguments, _answers: Answers) -> JSON:
        texts.append(args.text)
        raise RefusedError("because")

    scripted({"chat.send": Handler(SendArguments, send)})
    done = overlay("chat", "send", "room", "--", option)
    assert (done.code, done.err, texts) == (6, "overlay: because\n", [option])


def test_a_message_from_a_stdin_that_is_closed(overlay: Command) -> None:
    closing = ["sh", "-c", 'exec "$@" <&-', "sh", *overlay.arguments("chat", "send", "room", "-")]
    done = subprocess.run(closing, capture_output=True, env=overlay.environ, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"overlay: stdin is closed")


def test_people_are_marked(overlay: Command, scripted: Start) -> None:
    people: tuple[JSON, ...] = (
        {"participant": "a", "name": "Ann", "me": True},
        {"participant": "b", "name": "Bob", "connected": True},
        {"participant": "c", "name": "Cid", "left": True, "connected": False},
    )
    scripted({"chat.people": answering(None, people)})
    assert overlay("chat", "people", "room").out.splitlines() == [
        "a  Ann  (you)",
        "b  Bob  (connected)",
        "c  Cid  (left)",
    ]


@pytest.mark.parametrize(("path", "code"), [("nothing-here", 7), (".", 6)])
def test_posting_what_is_no_file(overlay: Command, path: str, code: int) -> None:
    assert overlay("chat", "post", "room", path).code == code


def test_a_program_that_stops_reading_is_no_error(overlay: Command, scripted: Start) -> None:
    async def flood(_args: Anything, answers: Answers) -> JSON:
        while True:
            await answers.item({"text": "x" * 1000})

    scripted({"chat.read": Handler(Anything, flood)})
    with overlay.running("--json", "chat", "read", "room", "--follow") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait() == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_ctrl_c_ends_a_command_quietly(overlay: Command, scripted: Start) -> None:
    async def follow(_args: Anything, answers: Answers) -> JSON:
        await answers.item({"text": "one"})
        await anyio.sleep_forever()
        return None

    scripted({"chat.read": Handler(Anything, follow)})
    with overlay.running("--json", "chat", "read", "room", "--follow") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (130, b"")


def test_a_full_disk_is_one_sentence(overlay: Command, scripted: Start) -> None:
    scripted({"status": answering(STATUS)})
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        done = subprocess.run(
            overlay.arguments("status"), stdout=full, stderr=subprocess.PIPE, env=overlay.environ, check=False
        )
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert b"no space left" in done.stderr


# --- terminals


def on_terminal(overlay: Command, *words: str, environ: Mapping[str, str] | None = None) -> str:
    """Run the command with a terminal for stdout and stderr; gives what it wrote there."""
    ours, theirs = pty.openpty()
    given = {**overlay.environ, "TERM": "xterm", **(environ or {})}
    with subprocess.Popen(overlay.arguments(*words), stdout=theirs, stderr=theirs, env=given) as process:
        os.close(theirs)
        written = b""
        try:
            while data := os.read(ours, 4096):
                written += data
        except OSError:  # how Linux tells that nobody holds the other end any more
            process.wait()
        os.close(ours)
    return written.decode()


def test_colour_on_a_terminal_unless_it_is_not_wanted(overlay: Command, scripted: Start) -> None:
    scripted({"status": answering(STATUS)})
    assert "\x1b[32mready" in on_terminal(overlay, "status")
    assert "\x1b" not in on_terminal(overlay, "status", environ={"NO_COLOR": "1"})
    assert "\x1b" not in on_terminal(overlay, "--json", "status")
    assert "\x1b" not in overlay("status").out


@pytest.mark.parametrize("words", [(), ("--quiet",), ("--json",)])
def test_progress_is_for_terminals(overlay: Command, scripted: Start, words: tuple[str, ...]) -> None:
    async def get(_args: Anything, answers: Answers) -> JSON:
        answers.progress(1 << 20, 4 << 20)
        for _ in range(10):  # meanwhile the progress gets on its way
            await answers.item(None)
        return {"path": "/tmp/x", "size": 4 << 20}  # noqa: S108 - nothing is written

    scripted({"chat.get": Handler(Anything, get)})
    seen = on_terminal(overlay, *words, "chat", "get", "room", "file")
    assert ("25%" in seen) is (words == ())
    assert "%" not in overlay("chat", "get", "room", "file").err


def test_names_do_not_steer_a_terminal(overlay: Command, scripted: Start) -> None:
    scripted({"chat.list": answering(None, ({"session": "s", "title": EVIL},))})
    seen = on_terminal(overlay, "chat", "list")
    assert "\x1b" not in seen
    assert "\\x1b[2J" in seen
