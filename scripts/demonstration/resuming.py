"""A large file comes over several circuits, and goes on after the node that fetches it was killed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from time import sleep

from overlay_cli.progress import size, used
from scripts.demonstration.console import Console
from scripts.demonstration.processes import Answer, Household, StepFailedError

MEBIBYTE = 1024 * 1024
SIZES = {"tcp": 192 * MEBIBYTE, "tor": 64 * MEBIBYTE, "i2p": 24 * MEBIBYTE}
"""Bytes of the file by network: some seconds of each, so that there is a middle to be killed in."""
PART = 4
"""One of so many parts is there when the node is killed."""
SEVERAL = 2
"""Circuits at least by then."""
KILLED = 5
"""The exit code of a command whose node goes away: not reached any more."""
POLL_SECONDS = 0.02
STATUS_SECONDS = 0.5
READY_SECONDS = "90"
NAME, COPY = "concert.raw", "copy-of-concert.raw"


class ResumedFetch:
    """The part of the story in which Bob fetches a file from Ada, and his node is killed meanwhile.

    Args:
        folder: where the commands run.
        console: what tells it.
        household: the nodes of `ada` and `bob` run there.
        up_words: what Bob's node is started with.
        length: bytes of the file.
    """

    def __init__(
        self,
        folder: Path,
        console: Console,
        household: Household,
        up_words: Sequence[str],
        length: int,
    ) -> None:
        self._folder = folder
        self._console = console
        self._household = household
        self._up_words = up_words
        self._size = length

    def tell(self) -> None:
        """Run all steps.

        Raises:
            StepFailedError: one of them did not do what it shows.
        """
        link = self._offer()
        self._fetch_until_killed(link)
        self._go_on(link)

    def _offer(self) -> str:
        with self._console.step(
            f"Ada offers a file of {size(self._size)} from where it lies",
            proves="nothing is copied and nobody else stores it; the link is all that one needs to fetch it",
        ):
            _fill(self._folder / NAME, self._size)
            link = self._overlay("ada", "file", "share", NAME).get("link")
            if not isinstance(link, str):
                raise StepFailedError("'file share' did not print a link")
            return link

    def _fetch_until_killed(self, link: str) -> None:
        with self._console.step(
            "Bob fetches it, and in the middle his node is killed",
            proves="several circuits brought it together; what came is in a hidden file beside the target",
        ):
            fetching = self._household.begin(*_get(link))
            while self._written() < self._size // PART:
                if not fetching.running:
                    raise StepFailedError("the file was there before Bob's node could be killed")
                sleep(POLL_SECONDS)
            self._show(self._several_circuits())
            self._household.kill_node("bob")
            fetching.finish(good_codes=(KILLED,))
            if (self._folder / COPY).exists():
                raise StepFailedError("the file has its name although it is not whole")
            self._console.fact("bob", "the node is gone, and the command says so and ends")

    def _go_on(self, link: str) -> None:
        with self._console.step(
            "Bob's node starts again, and the same command goes on from there",
            proves="all of it was verified, what lay on the disk once more; only now has the file its name",
        ):
            self._household.node("bob", *self._up_words)
            self._overlay("bob", "status", "--wait", READY_SECONDS)
            reports = [each["progress"] for each in self._household.begin(*_get(link)).finish()[:-1]]
            there = reports[0]["done"] if reports else 0
            if there < self._size // PART:
                raise StepFailedError(f"only {there} bytes were still there, and more had come")
            circuits = max(report["circuits"] for report in reports)
            self._console.fact("bob", f"{size(there)} were there already")
            self._console.fact("bob", f"{size(self._size - there)} came now, over {circuits} circuits")
            offered, fetched = (_digest(self._folder / name) for name in (NAME, COPY))
            self._console.fact("offered", f"sha256 {offered}")
            self._console.fact("fetched", f"sha256 {fetched}")
            if offered != fetched:
                raise StepFailedError("the file that was fetched is not the one that was offered")

    def _several_circuits(self) -> Answer:
        """Ask how the fetch stands until several circuits bring it.

        Raises:
            StepFailedError: it was over before.
        """
        words = ("overlay", "--home", "bob", "file", "status")
        status = self._household.run(*words)
        while status and status["circuits"] < SEVERAL:
            sleep(STATUS_SECONDS)
            status = self._household.run(*words)
        if not status:
            raise StepFailedError("the file was there before several circuits brought it")
        return status

    def _show(self, status: Answer) -> None:
        present, rate = size(status["present"]), size(status["rate"])
        self._console.fact("bob", ", ".join([f"{present} of {size(self._size)}", f"{rate}/s", *used(status)]))

    def _written(self) -> int:
        """Bytes of the hidden file that are written; it has holes where nothing came yet."""
        return sum(part.stat().st_blocks * 512 for part in self._folder.glob(f".{COPY}.*.part"))

    def _overlay(self, home: str, *words: str) -> Answer:
        return self._household.run("overlay", "--home", home, *words)


def _get(link: str) -> Sequence[str]:
    return "overlay", "--home", "bob", "file", "get", link, "-o", COPY


def _fill(path: Path, length: int) -> None:
    with path.open("wb") as file:
        for _ in range(length // MEBIBYTE):
            file.write(os.urandom(MEBIBYTE))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
