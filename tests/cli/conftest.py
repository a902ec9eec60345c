"""The real command, in processes of its own, and a scripted node for it to talk to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup
from anyio.from_thread import start_blocking_portal

from overlay.control.home import Home
from overlay.control.server import Handlers, serve

PROCESS_TIMEOUT = 25
"""Seconds; far more than any of these commands takes, and less than pytest gives a test."""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, str]:
        """The error that it printed on stderr as JSON, as its only line there."""
        printed: dict[str, dict[str, str]] = json.loads(self.err)
        return printed["error"]


class Command:
    """Runs `overlay` on one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environ = {
            **os.environ,
            "OVERLAY_HOME": str(home),
            "PYTHONWARNINGS": "error",
            "HOME": str(home.parent),
        }
        self.environ.pop("NO_COLOR", None)

    def arguments(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "overlay_cli", *words]

    def __call__(self, *words: str, stdin: bytes = b"", environ: Mapping[str, str] | None = None) -> Done:
        done = subprocess.run(
            self.arguments(*words),
            input=stdin,
            capture_output=True,
            env={**self.environ, **(environ or {})},
            check=False,
            timeout=PROCESS_TIMEOUT,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    @contextmanager
    def running(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run it in the background; killed at the end if it still runs."""
        with subprocess.Popen(
            self.arguments(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environ
        ) as process:
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short path, which leaves room for the names of Unix sockets."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


CommandAt = Callable[[Path], Command]


@pytest.fixture(scope="session")
def command_at() -> CommandAt:
    """Make the command for a home at a path."""
    return Command


@pytest.fixture
def overlay(short_folder: Path) -> Command:
    return Command(short_folder / "home")


@pytest.fixture
def home(overlay: Command) -> Home:
    """A home without a node."""
    home = Home(overlay.home)
    home.create("", os.urandom)
    return home


@pytest.fixture
def scripted(home: Home) -> Iterator[Callable[[Handlers], None]]:
    """Start a node on the home that does what the given handlers say."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(_tasks()) as tasks:

        def start(handlers: Handlers) -> None:
            portal.call(tasks.start, serve, home.control_socket, handlers)

        yield start


@asynccontextmanager
async def _tasks() -> AsyncIterator[TaskGroup]:
    async with anyio.create_task_group() as tasks:
        yield tasks
        tasks.cancel_scope.cancel()
