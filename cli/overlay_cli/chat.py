"""The verbs of the chat. A session is named by its identifier, the beginning of it, or its title."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from overlay.chat.texts import MAX_TEXT_BYTES
from overlay.control.protocol import JSON
from overlay.errors import MalformedError, NotFoundError, RefusedError
from overlay_cli.context import ANSWER_TIMEOUT, Context, absolute, as_object
from overlay_cli.exit_codes import DONE
from overlay_cli.output import Output, printable
from overlay_cli.progress import size


def create(options: argparse.Namespace, output: Output) -> int:
    """Create a session."""
    found = Context(options, output).ask("chat.create", title=options.title, name=options.name)
    output.data(found, f"session {_shown(found, 'session')}", f"invite {_shown(found, 'invite')}")
    return DONE


def list(options: argparse.Namespace, output: Output) -> int:  # noqa: A001 - the verb's name
    """List the sessions."""
    return _print_items(options, output, "chat.list", {}, _session_line)


def invite(options: argparse.Namespace, output: Output) -> int:
    """Print a token that lets somebody join."""
    found = Context(options, output).ask("chat.invite", session=options.session)
    output.data(found, _shown(found, "invite"))
    return DONE


def join(options: argparse.Namespace, output: Output) -> int:
    """Join a session."""
    found = Context(options, output).ask("chat.join", invite=options.invite, name=options.name)
    output.data(found, f"session {_shown(found, 'session')}", f"title {_shown(found, 'title')}")
    return DONE


def people(options: argparse.Namespace, output: Output) -> int:
    """List who takes part."""
    return _print_items(options, output, "chat.people", {"session": options.session}, _person_line)


def leave(options: argparse.Namespace, output: Output) -> int:
    """Leave a session."""
    found = Context(options, output).ask("chat.leave", session=options.session)
    output.data(found, f"left {_shown(found, 'session')}")
    return DONE


def send(options: argparse.Namespace, output: Output) -> int:
    """Send a message."""
    text = _read_stdin() if options.text == "-" else options.text
    found = Context(options, output).ask("chat.send", session=options.session, text=text)
    output.data(found, _shown(found, "message"))
    return DONE


def read(options: argparse.Namespace, output: Output) -> int:
    """Print messages, and with --follow go on until Ctrl-C."""
    args: dict[str, JSON] = {"session": options.session, "follow": options.follow}
    if options.last is not None:
        args["last"] = options.last
    return _print_items(options, output, "chat.read", args, _entry_line, timeout=None)


def post(options: argparse.Namespace, output: Output) -> int:
    """Post a file.

    Raises:
        MalformedError: the path is empty.
        NotFoundError: there is no such file.
        RefusedError: it is not a file but something else.
    """
    path = Path(absolute(options.path))
    if not path.exists():
        raise NotFoundError(f"{path} does not exist")
    if path.is_dir():
        raise RefusedError(f"{path} is a folder: pack it into a file first")
    if not path.is_file():
        raise RefusedError(f"{path} is not a regular file")
    found = Context(options, output).ask("chat.post", session=options.session, path=str(path))
    output.data(found, f"file {_shown(found, 'file')}", f"name {_shown(found, 'name')}")
    return DONE


def files(options: argparse.Namespace, output: Output) -> int:
    """List the posted files."""
    return _print_items(options, output, "chat.files", {"session": options.session}, _file_line)


def get(options: argparse.Namespace, output: Output) -> int:
    """Fetch a posted file.

    Raises:
        MalformedError: the path is empty.
    """
    path = absolute("." if options.path is None else options.path)
    found = Context(options, output).ask("chat.get", session=options.session, file=options.file, path=path)
    output.data(found, _shown(found, "path"))
    return DONE


def _print_items(
    options: argparse.Namespace,
    output: Output,
    verb: str,
    args: Mapping[str, JSON],
    line: Callable[[Mapping[str, JSON]], str],
    *,
    timeout: float | None = ANSWER_TIMEOUT,
) -> int:
    with Context(options, output).node(timeout=timeout) as node:
        for item in map(as_object, node.stream(verb, args)):
            output.data(item, line(item))
    return DONE


def _read_stdin() -> str:
    if sys.stdin is None:  # whoever started the command closed it
        raise MalformedError("stdin is closed: give the message as TEXT, or something to read it from")
    data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 2)  # room for a line end that does not count
    text = data.removesuffix(b"\n").removesuffix(b"\r")
    if len(text) > MAX_TEXT_BYTES:
        raise MalformedError(f"a message has at most {MAX_TEXT_BYTES} bytes: post a longer one as a file")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise MalformedError("a message is UTF-8 text: post anything else as a file") from error


def _shown(found: Mapping[str, JSON], key: str) -> str:
    return printable(str(found.get(key, "")))


def _when(found: Mapping[str, JSON]) -> str:
    at = found.get("at")
    try:
        return (
            datetime.fromtimestamp(at, tz=None).astimezone().strftime("%Y-%m-%d %H:%M")
            if isinstance(at, int)
            else ""
        )
    except (ValueError, OverflowError, OSError):  # the author's clock says anything
        return "?"


def _session_line(found: Mapping[str, JSON]) -> str:
    return f"{_shown(found, 'session')}  {_shown(found, 'title')}"


def _person_line(found: Mapping[str, JSON]) -> str:
    marks = {"me": "  (you)", "left": "  (left)", "connected": "  (connected)"}
    marked = "".join(mark for key, mark in marks.items() if found.get(key))
    return f"{_shown(found, 'participant')}  {_shown(found, 'name')}{marked}"


def _file_line(found: Mapping[str, JSON]) -> str:
    amount = found.get("size")
    shown = size(amount) if isinstance(amount, int) else "?"
    return f"{_shown(found, 'file')}  {shown:>10}  {_shown(found, 'name')}"


def _entry_line(found: Mapping[str, JSON]) -> str:
    text = printable(str(found.get("text", "")), lines=True)
    who = _shown(found, "from")
    match found.get("kind"):
        case "text":
            return f"{_when(found)}  {who}: {text}"
        case "file":
            return f"{_when(found)}  {who} posted {text}"
        case "created":
            return f"{_when(found)}  the session begins: {text}"
        case kind:  # joined, left
            return f"{_when(found)}  {who} {printable(str(kind))}"
