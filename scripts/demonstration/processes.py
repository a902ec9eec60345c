"""The `overlay` processes of the demonstration, and the promise that none of them outlives it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

COMMAND_TIMEOUT = 120.0
"""Seconds that any single command may take; on a busy machine a first onion circuit needs some of them."""

GOODBYE_TIMEOUT = 15.0
"""Seconds in which a node must have ended after it was asked to."""

LAST_WORDS = 12
"""Lines of a process's log that are shown when something failed."""

Answer = dict[str, Any]


class StepFailedError(Exception):
    """A step of the demonstration did not do what it shows.

    Args:
        reason: one sentence.
        details: the last lines of the logs concerned.
    """

    def __init__(self, reason: str, details: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.details = tuple(details)


class Program:
    """One running `overlay` process, the leader of a process group of its own.

    Args:
        words: the command as it is typed, starting with `overlay`.
        folder: its working directory; its standard error goes to a file there.
    """

    def __init__(self, words: Sequence[str], folder: Path, log: Path) -> None:
        self.words = tuple(words)
        self._log = log
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                [Path(sys.executable).with_name("overlay"), "--json", *words[1:]],
                cwd=folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def number(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.poll() is None

    def answer(self, wanted: Callable[[Answer], bool] = lambda _: True) -> Answer:
        """Wait for a line of output that is `wanted`.

        Raises:
            StepFailedError: the process ended, or nothing came in time.
        """
        while True:
            try:
                line = self._lines.get(timeout=COMMAND_TIMEOUT)
            except queue.Empty:
                raise self._failed(f"said nothing for {COMMAND_TIMEOUT:.0f} s") from None
            if line is None:
                raise self._failed(f"ended with exit code {self._process.wait()}")
            answer = self._decode(line)
            if wanted(answer):
                return answer

    def finish(self, good_codes: Sequence[int] = (0,)) -> list[Answer]:
        """Wait for the process to end with a good exit code, and return all that it printed.

        Raises:
            StepFailedError: it failed, or did not end in time.
        """
        try:
            code = self._process.wait(COMMAND_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise self._failed(f"did not end within {COMMAND_TIMEOUT:.0f} s") from None
        if code not in good_codes:
            raise self._failed(f"ended with exit code {code}")
        return [self._decode(line) for line in self._rest()]

    def interrupt(self) -> None:
        """Do what Ctrl-C does, and wait for the end.

        Raises:
            StepFailedError: it did not end, or ended in another way than programs do after Ctrl-C.
        """
        self._process.send_signal(signal.SIGINT)
        self.finish(good_codes=(0, 128 + signal.SIGINT))

    def crash(self) -> None:
        """Kill the process by SIGKILL, itself alone: what it started has to notice by itself."""
        self._process.kill()
        self._process.wait()

    def kill(self) -> None:
        """End the process and all of its group: gently first, then not."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GOODBYE_TIMEOUT)

    def last_words(self) -> list[str]:
        """The last lines that the process wrote to standard error."""
        return self._log.read_text(errors="replace").splitlines()[-LAST_WORDS:]

    def _failed(self, what: str) -> StepFailedError:
        return StepFailedError(f"`{' '.join(self.words)[:160]}` {what}", self.last_words())

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it was asked for above
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def _rest(self) -> Iterator[bytes]:
        """What the process still printed; its output stays open as long as a child of it holds it."""
        try:
            yield from iter(lambda: self._lines.get(timeout=GOODBYE_TIMEOUT), None)
        except queue.Empty:
            raise self._failed("ended, but something that it started goes on") from None

    def _decode(self, line: bytes) -> Answer:
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._failed(f"printed a line that is not a JSON object: {line[:80]!r}")
        return answer


class Household:
    """All processes of the demonstration.

    Args:
        folder: everything that they write lies in it.
        announce: called with each command before it runs, and whether it goes on in the background.
    """

    def __init__(self, folder: Path, announce: Callable[[Sequence[str], bool], None]) -> None:
        self._folder = folder
        self._announce = announce
        self._programs: list[Program] = []
        self._nodes: dict[str, Program] = {}

    def run(self, *words: str) -> Answer:
        """Run a command to its end and return its last answer, or nothing where it gave none.

        Raises:
            StepFailedError: it failed.
        """
        answers = self.begin(*words).finish()
        return answers[-1] if answers else {}

    def begin(self, *words: str) -> Program:
        """Start a command whose end is waited for later."""
        return self._start(words, background=False)

    def stay(self, *words: str) -> Program:
        """Start a command that runs until it is told to end."""
        return self._start(words, background=True)

    def node(self, home: str, *words: str) -> None:
        """Start the node of a home."""
        self._nodes[home] = self.stay("overlay", "--home", home, "up", *words)

    def stop_node(self, home: str) -> None:
        """Ask a node to end, and wait until it has.

        Raises:
            StepFailedError: it did not end, or not with exit code 0.
        """
        self.run("overlay", "--home", home, "down")
        self._nodes[home].finish()

    def kill_node(self, home: str) -> None:
        """End a node as a crash does, at once and without a word to it."""
        self._announce(("kill", "-KILL", str(self._nodes[home].number)), False)
        self._nodes[home].crash()

    def last_words(self) -> list[str]:
        """The last lines of every node's log, each with the name of its home."""
        return [f"{home}: {line}" for home, node in self._nodes.items() for line in node.last_words()[-5:]]

    def close(self) -> None:
        """End whatever still runs, the last one started first; afterwards nothing of it is left."""
        for program in reversed(self._programs):
            if program.running:
                program.kill()
        for process in left_over(self._folder):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _start(self, words: Sequence[str], *, background: bool) -> Program:
        self._announce(words, background)
        log = self._folder / f"{len(self._programs)}.log"
        program = Program(words, self._folder, log)
        self._programs.append(program)
        return program


def left_over(folder: Path) -> list[int]:
    """Processes other than this one that work in `folder` or name it: children of children included."""
    listed = _from_proc(folder) if Path("/proc/self/cwd").exists() else _from_ps(folder)
    return [process for process in listed if process != os.getpid()]


def _from_proc(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile, or belongs to somebody else
            words = (entry / "cmdline").read_bytes()
            works_there = (entry / "cwd").resolve().is_relative_to(folder)
            if words and (works_there or os.fsencode(folder) in words):
                found.append(int(entry.name))
    return found


def _from_ps(folder: Path) -> list[int]:
    listing = subprocess.run(["ps", "-axo", "pid=,command="], capture_output=True, text=True, check=True)  # noqa: S607 - where ps lies differs
    lines = [line.split(maxsplit=1) for line in listing.stdout.splitlines() if str(folder) in line]
    return [int(number) for number, _ in lines]


def _environment() -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if name != "OVERLAY_HOME"}
    return mine | {"NO_COLOR": "1"}
