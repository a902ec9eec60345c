"""The verbs of the files. A file is named by its link, which is a secret: - reads it from stdin."""

from __future__ import annotations

import argparse
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from overlay.control.client import Client
from overlay.control.protocol import JSON
from overlay.errors import MalformedError, NotFoundError, RefusedError
from overlay_cli.context import ANSWER_TIMEOUT, Context, absolute, as_object
from overlay_cli.exit_codes import DONE
from overlay_cli.output import Output, printable
from overlay_cli.progress import StatusBlock, counted, duration, size, stands_still, used
from overlay_cli.spool import binary_stdout, remove_left, scratch_folder, spooled_stdin, write_all

FOLLOW_INTERVAL = 1.0
"""Seconds between two looks at what goes on."""
MAX_LINK_BYTES = 65_536
"""Bytes read from stdin: twice what a link has."""


def share(options: argparse.Namespace, output: Output) -> int:
    """Offer a file or a folder from where it lies.

    Raises:
        MalformedError: the path is empty.
        NotFoundError: there is no such thing.
    """
    show_link = _qr(output) if options.qr else None
    path = Path(absolute(options.path))
    if not path.exists():
        raise NotFoundError(f"{path} does not exist")
    found = Context(options, output).ask(
        "file.share", path=str(path), name=options.name, convergent=options.convergent
    )
    output.data(found, _shown(found, "link"))
    if found.get("skipped"):
        output.note(f"passed over, because they are no files or folders: {_shown(found, 'skipped')}")
    if show_link is not None:
        show_link(str(found.get("link", "")), output)
    return DONE


def put(options: argparse.Namespace, output: Output) -> int:
    """Store a file at other nodes.

    Raises:
        MalformedError: the path is empty.
        NotFoundError: there is no such file.
        RefusedError: it is not a file but something else.
    """
    show_link = _qr(output) if options.qr else None
    context = Context(options, output)
    path = Path(absolute(options.path))
    if options.path == "-":
        with context.node():  # before anybody writes gigabytes in vain
            pass
        with spooled_stdin(context.home.path) as spool:
            name = options.name or ""
            found = context.ask(
                "file.put", path=str(spool), name=name, convergent=options.convergent, spooled=True
            )
    elif not path.exists():
        raise NotFoundError(f"{path} does not exist")
    elif path.is_dir():
        raise RefusedError(f"{path} is a folder: pack it into a file first")
    elif not path.is_file():
        raise RefusedError(f"{path} is not a regular file")
    else:
        if context.home.exists:  # elsewhere files of such names are not ours
            remove_left(context.home.path)
        found = context.ask("file.put", path=str(path), name=options.name, convergent=options.convergent)
    output.data(found, _shown(found, "link"))
    if found.get("holders") == 1:
        output.note("only one node was reached that keeps it: put it again when there are more")
    if show_link is not None:
        show_link(str(found.get("link", "")), output)
    return DONE


def pin(options: argparse.Namespace, output: Output) -> int:
    """Keep a file or a folder in this node's own storage.

    Raises:
        KeyboardInterrupt: it was interrupted; what came is kept.
    """
    try:
        found = Context(options, output).ask("file.pin", link=read_link(options))
    except KeyboardInterrupt:
        output.note("what came is kept: the same command goes on from there")
        raise
    output.data(found, _shown(found, "link"))
    return DONE


def unpin(options: argparse.Namespace, output: Output) -> int:
    """Keep something no more."""
    found = Context(options, output).ask("file.unpin", link=read_link(options))
    output.data(found, f"not pinned any more: {_shown(found, 'name') or 'a file without a name'}")
    return DONE


def get(options: argparse.Namespace, output: Output) -> int:
    """Fetch a file or a folder.

    Raises:
        MalformedError: the path is empty.
        KeyboardInterrupt: it was interrupted; what came is kept.
    """
    if options.path == "-":
        return _get_to_stdout(options, output)
    path = absolute("." if options.path is None else options.path)
    context = Context(options, output)
    link = read_link(options)
    overwrite = options.force or (_may_ask(options, output) and _is_to_be_replaced(context, link, path))
    try:
        found = context.ask(
            "file.get",
            lines=True,
            link=link,
            path=path,
            overwrite=overwrite,
            rate=options.rate or None,
            only=options.only,
        )
    except KeyboardInterrupt:
        output.note("what came is kept: the same command goes on from there")
        raise
    output.data(found, _shown(found, "path"))
    return DONE


def _may_ask(options: argparse.Namespace, output: Output) -> bool:
    """Whether there is a person to ask whether a file is to be replaced; of a folder nobody is asked."""
    if output.as_json or output.quiet or options.only or options.link == "-":
        return False
    return sys.stdin is not None and sys.stdin.isatty() and output.stderr.isatty()


def _is_to_be_replaced(context: Context, link: str, path: str) -> bool:
    from overlay_cli.replacing import ask, file_in_the_way  # noqa: PLC0415 - needs far more than other verbs

    found = file_in_the_way(link, path)
    if found is None:
        return False
    with context.node():  # before anybody answers in vain
        pass
    return ask(found, context.output)


def _get_to_stdout(options: argparse.Namespace, output: Output) -> int:
    """Fetch a file and write what is in it to stdout, from its beginning to its end.

    Raises:
        MalformedError: stdout is for lines of JSON or a terminal, or a part of a folder is asked for.
        KeyboardInterrupt: it was interrupted; nothing is kept.
    """
    if output.as_json:
        raise MalformedError("stdout is for the content with -o -, and for lines with --json: leave one out")
    if options.only:
        raise MalformedError("-o - is for a file, and --only for a part of a folder: leave one of them out")
    context = Context(options, output)
    try:
        with (
            binary_stdout() as stdout,
            context.node() as node,
            scratch_folder(context.home.path) as folder,
            context.progress("file.get") as progress,
        ):
            rate = options.rate or None
            args: dict[str, JSON] = {"link": read_link(options), "folder": str(folder), "rate": rate}
            for item in node.stream("file.read", args, progress=progress):
                write_all(stdout, b64decode(str(as_object(item).get("content", ""))))
    except KeyboardInterrupt:
        output.note("nothing is kept of what goes to standard output: the same command begins anew")
        raise
    return DONE


def list(options: argparse.Namespace, output: Output) -> int:  # noqa: A001 - the verb's name
    """List what this node offers, and what it has pinned."""
    with Context(options, output).node(timeout=ANSWER_TIMEOUT) as node:
        for item in map(as_object, node.stream("file.list", {})):
            output.data(item, _offer_line(item))
    return DONE


def remove(options: argparse.Namespace, output: Output) -> int:
    """Offer something no more."""
    found = Context(options, output).ask("file.remove", link=read_link(options))
    output.data(found, f"not offered any more: {_listed(found, 'paths')}")
    if found.get("within"):
        output.note(f"a shared folder has it still, as a part, and offers it: {_listed(found, 'within')}")
    return DONE


def status(options: argparse.Namespace, output: Output) -> int:
    """Show what is being fetched and put, once or until Ctrl-C."""
    block = StatusBlock(output.stdout)
    nothing = ["nothing is being fetched or put"] if options.follow else []
    with Context(options, output).node(timeout=ANSWER_TIMEOUT) as node:
        _show_running(node, output, block, nothing)
        while options.follow:
            time.sleep(FOLLOW_INTERVAL)
            _show_running(node, output, block, nothing)
    return DONE


def limit(options: argparse.Namespace, output: Output) -> int:
    """Change what the node, or one fetch, may use; without options tell what the node may and does use.

    Raises:
        MalformedError: the path is empty.
    """
    given = {"up": options.up, "down": options.down}
    args: dict[str, JSON] = {name: value or None for name, value in given.items() if value is not None}
    if options.disk is not None:
        args["disk"] = options.disk
    if options.path is not None:
        args["path"] = str(Path(absolute(options.path)))
    with Context(options, output).node(timeout=ANSWER_TIMEOUT) as node:
        found = as_object(node.call("file.limit", args))
    rates = [_limit(found, name) for name in ("up", "down") if name in found]
    output.data(found, ", ".join([*rates, *_disk(found)]))
    _note_disk(found, output)
    return DONE


def _show_running(node: Client, output: Output, block: StatusBlock, nothing: Sequence[str]) -> None:
    found = [as_object(item) for item in node.stream("file.status", {})]
    if output.as_json:
        for item in found:
            output.data(item)
    else:
        lines = [line for item in found for line in _running_lines(item)]
        block.show([*(lines or nothing), *_disk(as_object(node.call("file.limit", {})))])


def _disk(found: Mapping[str, JSON]) -> Sequence[str]:
    """Say what is stored of what may be, where the node says that."""
    if "disk" not in found:
        return []
    pinned, others = _amount(found, "pinned"), _amount(found, "others")
    return [f"disk {_amount(found, 'disk')}: {pinned} pinned, {others} kept for others"]


def _note_disk(found: Mapping[str, JSON], output: Output) -> None:
    """Tell what a change of the disk's limit has cost, and what it could not do."""
    disk, pinned = found.get("disk"), found.get("pinned")
    if found.get("evicted"):
        output.note(f"{_amount(found, 'evicted')} that were kept for others were given up")
    if isinstance(disk, int) and isinstance(pinned, int) and pinned > disk:
        output.note("what is pinned takes more than that: it stays, and nothing more is stored until it fits")


def _limit(found: Mapping[str, JSON], name: str) -> str:
    return f"{name} {_amount(found, name)}/s" if found.get(name) else f"{name} without limit"


def _qr(output: Output) -> Callable[[str, Output], None]:
    """Find what shows a link as a QR code, before anything is done that would be lost without it.

    Raises:
        MalformedError: a program reads the output.
        ModuleNotFoundError: the extra `qr` is not installed.
    """
    if output.as_json:
        raise MalformedError("--qr is for people and --json for programs: leave one of them out")
    from overlay_cli.qr import show_link  # noqa: PLC0415 - needs a library that only this option needs

    return show_link


def read_link(options: argparse.Namespace) -> str:
    """Give the link that was given, or what stdin holds.

    Raises:
        MalformedError: stdin is closed.
    """
    if options.link != "-":
        return str(options.link)
    if sys.stdin is None:  # whoever started the command closed it
        raise MalformedError("stdin is closed: give the link as LINK, or something to read it from")
    return sys.stdin.buffer.read(MAX_LINK_BYTES).decode("ascii", "replace")


def _shown(found: Mapping[str, JSON], key: str) -> str:
    return printable(str(found.get(key, "")))


def _listed(found: Mapping[str, JSON], key: str) -> str:
    items = found.get(key)
    return ", ".join(printable(str(item)) for item in items) if isinstance(items, Sequence) else ""


def _amount(found: Mapping[str, JSON], key: str) -> str:
    amount = found.get(key)
    return size(amount) if isinstance(amount, int) else "?"


def _offer_line(found: Mapping[str, JSON]) -> str:
    marks = [_shown(found, "problem")] if found.get("problem") else []
    marks += ["convergent"] if found.get("convergent") else []
    problem = f"  ({', '.join(marks)})" if marks else ""
    where = f"{_shown(found, 'name')} (pinned)" if found.get("pinned") else _shown(found, "path")
    return f"{_amount(found, 'size'):>10}  {where}{problem}\n{_shown(found, 'link')}"


def _running_lines(found: Mapping[str, JSON]) -> Sequence[str]:
    left, whole, chunks = found.get("left"), found.get("size"), found.get("chunks")
    rest = f", {duration(left)} left" if isinstance(left, int) else ""
    figures = ", ".join(
        [
            _amount(found, "present") + ("" if whole is None else f" of {_amount(found, 'size')}"),
            *([] if stands_still(found) else [f"{_amount(found, 'rate')}/s{rest}"]),
            *(used(found) if found.get("present") != whole else ()),
            *([f"{counted(chunks, 'chunk')} asked for"] if isinstance(chunks, int) and chunks else []),
            *([f"limited to {_amount(found, 'limit')}/s"] if found.get("limit") else []),
        ]
    )
    return [_running_title(found), f"  {figures}"]


def _running_title(found: Mapping[str, JSON]) -> str:
    """Say what a fetch is: where it goes, or what for where that is no place; or what is put."""
    match found.get("task"):
        case "pin":
            return f"{_shown(found, 'name') or 'a file without a name'} (to pin it)"
        case "read":
            return f"{_shown(found, 'name') or 'a file without a name'} (to standard output)"
        case "put" if found.get("path") is None:
            return f"{_shown(found, 'name') or 'a file without a name'} (from standard input to other nodes)"
        case "put":
            return f"{_shown(found, 'path')} (to other nodes)"
        case "chat":
            return f"{_shown(found, 'path')} (posted)"
        case _:
            return _shown(found, "path")
