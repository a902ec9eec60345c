"""What a verb needs that deals with a home and its node."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from overlay.control.client import Client
from overlay.control.home import Home
from overlay.control.protocol import JSON
from overlay.errors import MalformedError, NotRunningError
from overlay_cli.output import Output
from overlay_cli.progress import Progress, ProgressLines

ANSWER_TIMEOUT = 30.0
"""Seconds that a node may take for what it knows by itself."""


class Context:
    """One run of a verb.

    Attributes:
        options: the options and arguments that were given.
        output: where to print.
        home: the home that was chosen; it need not exist.
    """

    def __init__(self, options: argparse.Namespace, output: Output) -> None:
        self.options = options
        self.output = output
        self.home = Home.locate(options.home, os.environ)

    def node(self, *, timeout: float | None = None) -> Client:
        """Connect to the node that runs on the home; other errors as of `Client`.

        Raises:
            NotRunningError: no node runs there; the sentence tells a home without one from no home at all.
        """
        try:
            return Client(self.home.control_socket, timeout=timeout)
        except NotRunningError as error:
            if self.home.exists:
                raise
            raise NotRunningError(
                f"{self.home.path} is no home: make one with 'overlay init', then start it with 'overlay up'"
            ) from error

    def ask(
        self, verb: str, *, timeout: float | None = None, lines: bool = False, **args: JSON
    ) -> dict[str, JSON]:
        """Ask the running node for one object, and show its progress; errors as of `Client.call`.

        Args:
            verb: what to ask for.
            timeout: see `Client`.
            lines: show progress with --json too, as lines of its own.
            args: of the verb; None leaves one out.
        """
        given = {name: value for name, value in args.items() if value is not None}
        with self.node(timeout=timeout) as node, self.progress(verb, lines=lines) as progress:
            return as_object(node.call(verb, given, progress=progress))

    def progress(self, verb: str, *, lines: bool = False) -> Progress | ProgressLines:
        """Make what shows how far a verb is; see `ask`."""
        if lines and self.output.as_json and not self.output.quiet:
            return ProgressLines(self.output.stdout, time.perf_counter)
        shown = not (self.output.quiet or self.output.as_json)
        return Progress(self.output.stderr, verb.rpartition(".")[2], time.perf_counter, shown=shown)


def absolute(path: str) -> str:
    """Make a path absolute. A slash at its end stays: whoever writes it means a folder.

    Raises:
        MalformedError: it is empty, as that of a variable that is not set; it does not mean this folder.
    """
    if not path:
        raise MalformedError("a path is empty: name a file or a folder, '.' for the one that you are in")
    found = str(Path(path).absolute())
    return found if found == "/" or not path.endswith(("/", "/.")) else f"{found}/"


def as_object(value: JSON) -> dict[str, JSON]:
    """Take a value that the node promises to be an object."""
    return value if isinstance(value, dict) else {}


def as_list(value: JSON) -> list[JSON]:
    """Take a value that the node promises to be a list."""
    return value if isinstance(value, list) else []
