"""Files of a folder that are not to be had: found out one by one, so that the others come all the same.

The engine of a transfer gives up as soon as one chunk is nowhere, and does not say which. So each file that
was open then is tried by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from overlay.errors import NotFoundError, OverlayError, UnreachableError
from overlay.files.actions import Snapshot
from overlay.files.bundle import Bundle
from overlay.files.gathering import Report
from overlay.files.manifest import Entry
from overlay.files.sink import Part

MAX_ALONE = 4
"""Files tried at once, each over circuits of its own: what is not there is told in a round trip or two."""

MAX_SHOWN = 3
"""Names in the error; whoever wants to know all asks for them again."""

MAX_SHOWN_CHARACTERS = 100
"""Of each of these names; what is longer is cut at its beginning."""


class Missing:
    """Files that are not to be had.

    Attributes:
        files: how many.
        bytes: that they lack.
    """

    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0
        self._names: list[str] = []
        self._may_come = False

    def add(self, entry: Entry, lacking: int) -> None:
        """Note one more."""
        self.files += 1
        self.bytes += lacking
        if self.files <= MAX_SHOWN:
            text = entry.text
            cut = "…" + text[1 - MAX_SHOWN_CHARACTERS :]
            self._names.append(text if len(text) <= MAX_SHOWN_CHARACTERS else cut)

    def judge(self, error: OverlayError) -> None:
        """Note why one is not to be had."""
        self._may_come = self._may_come or isinstance(error, UnreachableError)

    def error(self, wanted: int) -> OverlayError:
        """Say what is missing.

        Args:
            wanted: how many files were asked for.
        """
        more = self.files - len(self._names)
        names = ", ".join(self._names) + (f" and {more} more" if more else "")
        begin = f"{self.files} of {wanted} files cannot be had"
        if self._may_come:
            return UnreachableError(
                f"{begin} because somebody who may have them is not reached, {names}: "
                "the others are here, try again later"
            )
        return NotFoundError(
            f"{begin} from anybody any more, {names}: the others are here, "
            "and the same command brings the rest where it is to be had again"
        )


class Meeting:
    """Sees whether a transfer has reached anybody.

    Args:
        report: told all that this is told.
    """

    def __init__(self, report: Report) -> None:
        self.met = False
        self._report = report

    def __call__(self, snapshot: Snapshot | None) -> None:
        """See `Report`."""
        self.met = self.met or (snapshot is not None and snapshot.circuits > 0)
        self._report(snapshot)


async def try_alone(
    bundle: Bundle, missing: Missing, fetch: Callable[[Part, Report], Awaitable[None]], report: Report
) -> None:
    """Bring each open file of a bundle by itself, and give up those that are not to be had.

    Args:
        bundle: no transfer brings anything for it meanwhile.
        missing: told why.
        fetch: brings one file.
        report: told how each transfer stands.

    Raises:
        OverlayError: any of `fetch`, but that those who were reached do not have a file.
    """
    failures: list[OverlayError] = []
    places = anyio.CapacityLimiter(MAX_ALONE)

    async with anyio.create_task_group() as tasks:

        async def attempt(target: Part) -> None:
            meeting = Meeting(report)
            try:
                async with places:
                    await fetch(target, meeting)
                bundle.look(target)
            except OverlayError as error:
                if meeting.met and isinstance(error, NotFoundError | UnreachableError):
                    missing.judge(error)
                    bundle.give_up(target)
                else:
                    failures.append(error)
                    tasks.cancel_scope.cancel()

        for target in bundle.lacking:
            tasks.start_soon(attempt, target)
    if failures:
        raise failures[0]
