"""Real `overlay` processes, driven by the real command, as a user would. For synchronous tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "overlay_cli")
PATIENCE = 120
"""Seconds after which a command hangs: far above what any takes, so that it never decides a test."""


@dataclass
class Home:
    """One home, and the node that runs on it."""

    path: Path
    up_options: Sequence[str] = ("--transport", "tcp")
    process: subprocess.Popen[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *words: str, stdin: str | None = None, code: int = 0) -> list[dict[str, Any]]:
        """Run one command to its end and read the JSON lines that it printed.

        Raises:
            AssertionError: another exit code than `code`, or a traceback.
        """
        done = self.finish("--json", "--quiet", *words, stdin=stdin, code=code)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def one(self, *words: str, stdin: str | None = None) -> dict[str, Any]:
        """Run a command that answers with one object."""
        (answer,) = self.run(*words, stdin=stdin)
        return answer

    def error(self, *words: str, code: int) -> str:
        """Run a command that fails with `code`, and read its one sentence.

        Raises:
            AssertionError: another exit code, or anything but one line on stderr.
        """
        done = self.finish(*words, stdin="", code=code)
        lines = done.stderr.splitlines()
        if done.stdout or len(lines) != 1:
            raise AssertionError(f"not one sentence on stderr alone: {done}")
        return lines[0]

    def finish(
        self, *words: str, stdin: str | None = None, code: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end, whatever that is, or with `code` for its exit code.

        Raises:
            AssertionError: another exit code, or a traceback.
        """
        done = subprocess.run(  # noqa: S603 - no shell, and a test chooses the words
            [*COMMAND, "--home", str(self.path), *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env=os.environ | self.environment,
        )
        if code not in {None, done.returncode} or "Traceback" in done.stderr:
            raise AssertionError(f"{done}\nits node:\n{self.log()}")
        return done

    def start(self, *options: str) -> None:
        """Start the node, without waiting for it."""
        with (self.path.parent / f"{self.path.name}.log").open("a") as log:
            self.process = subprocess.Popen(  # noqa: S603 - as above
                [*COMMAND, "--home", str(self.path), "up", *self.up_options, *options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
                env=os.environ | self.environment,
            )

    def up(self, *options: str) -> dict[str, Any]:
        """Start the node and wait until it is ready."""
        self.start(*options)
        return self.one("status", "--wait", str(PATIENCE - 10))

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the node a signal, wait for its end, and give its exit code.

        Raises:
            AssertionError: no node runs.
        """
        if self.process is None:
            raise AssertionError("no node runs here")
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self.process = None
        return code

    def log(self) -> str:
        """What the node printed."""
        path = self.path.parent / f"{self.path.name}.log"
        return path.read_text() if path.exists() else ""

    def texts(self, session: str) -> list[str]:
        """The texts of a session, in its order."""
        return [line["text"] for line in self.run("chat", "read", session) if line["kind"] == "text"]


MakeHome = Callable[..., Home]


def read_until(home: Home, session: str, wanted: str, *, kind: str = "text") -> None:
    """Follow a session, as `overlay chat read --follow` shows it, until an entry's text holds `wanted`.

    Raises:
        AssertionError: it did not come.
    """
    with subprocess.Popen(  # noqa: S603 - as above
        [*COMMAND, "--home", str(home.path), "--json", "chat", "read", session, "--follow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as follow:
        watchdog = threading.Timer(PATIENCE, follow.kill)
        watchdog.start()
        entries = (json.loads(line) for line in follow.stdout or ())
        found = any(entry["kind"] == kind and wanted in entry["text"] for entry in entries)
        watchdog.cancel()
        follow.kill()
    if not found:
        raise AssertionError(f"{wanted!r} did not come\n{home.log()}")
