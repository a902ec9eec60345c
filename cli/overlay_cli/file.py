"""The verbs of the files. A file is named by its link, which is a secret: - reads it from stdin."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from overlay.control.protocol import JSON
from overlay.errors import MalformedError, NotFoundError
from overlay_cli.context import ANSWER_TIMEOUT, Context, as_object
from overlay_cli.exit_codes import DONE
from overlay_cli.output import Output, printable
from overlay_cli.progress import duration, size

MAX_LINK_BYTES = 65_536
"""Bytes read from stdin: twice what a link has."""


def share(options: argparse.Namespace, output: Output) -> int:
    """Offer a file from where it lies.

    Raises:
        NotFoundError: there is no such file.
    """
    path = Path(options.path).absolute()
    if not path.exists():
        raise NotFoundError(f"{path} does not exist")
    found = Context(options, output).ask("file.share", path=str(path), name=options.name)
    output.data(found, _shown(found, "link"))
    return DONE


def get(options: argparse.Namespace, output: Output) -> int:
    """Fetch a file.

    Raises:
        KeyboardInterrupt: it was interrupted; what came is kept.
    """
    path = str(Path(options.path or ".").absolute())
    context = Context(options, output)
    try:
        found = context.ask("file.get", link=_link(options), path=path, overwrite=options.force)
    except KeyboardInterrupt:
        output.note("what came is kept: the same command goes on from there")
        raise
    output.data(found, _shown(found, "path"))
    return DONE


def list(options: argparse.Namespace, output: Output) -> int:  # noqa: A001 - the verb's name
    """List what this node offers."""
    with Context(options, output).node(timeout=ANSWER_TIMEOUT) as node:
        for item in map(as_object, node.stream("file.list", {})):
            output.data(item, _offer_line(item))
    return DONE


def remove(options: argparse.Namespace, output: Output) -> int:
    """Offer something no more."""
    found = Context(options, output).ask("file.remove", link=_link(options))
    output.data(found, f"not offered any more: {_shown(found, 'path')}")
    return DONE


def status(options: argparse.Namespace, output: Output) -> int:
    """Show the fetches that go on."""
    with Context(options, output).node(timeout=ANSWER_TIMEOUT) as node:
        for item in map(as_object, node.stream("file.status", {})):
            output.data(item, _running_line(item))
    return DONE


def _link(options: argparse.Namespace) -> str:
    """The link that was given, or what stdin holds.

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


def _amount(found: Mapping[str, JSON], key: str) -> str:
    amount = found.get(key)
    return size(amount) if isinstance(amount, int) else "?"


def _offer_line(found: Mapping[str, JSON]) -> str:
    problem = f"  ({_shown(found, 'problem')})" if found.get("problem") else ""
    return f"{_amount(found, 'size'):>10}  {_shown(found, 'path')}{problem}\n{_shown(found, 'link')}"


def _running_line(found: Mapping[str, JSON]) -> str:
    left = found.get("left")
    rest = f", {duration(left)} left" if isinstance(left, int) else ""
    return (
        f"{_amount(found, 'present')} of {_amount(found, 'size')}, {_amount(found, 'rate')}/s{rest}, "
        f"circuits {_shown(found, 'circuits')}, providers {_shown(found, 'providers')}: "
        f"{_shown(found, 'path')}"
    )
