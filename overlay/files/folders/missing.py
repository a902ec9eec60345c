"""Files of a folder that are not to be had: found out, so that the others come all the same.

The engine of a transfer gives up as soon as one chunk is nowhere. Where all who may have it were asked, it
says which chunks that are, and files that need one of them are given up. Where somebody was not reached, each
file that was open then is tried by itself: whoever has some of them may still have others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from functools import partial

import anyio

from overlay.errors import NotFoundError, OverlayError, UnreachableError, VerificationError
from overlay.files.engine.actions import Snapshot
from overlay.files.fetching.gathering import Report
from overlay.files.fetching.sink import Part
from overlay.files.fetching.together import together
from overlay.files.folders.bundle import Bundle
from overlay.files.manifest.codec import Entry

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
        self._is_lied_about = False

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
        self._is_lied_about = self._is_lied_about or isinstance(error, VerificationError)

    def error(self, wanted: int, lie: str) -> OverlayError:
        """Say what is missing.

        Args:
            wanted: how many files were asked for.
            lie: see `Past.accusation`.
        """
        more = self.files - len(self._names)
        names = ", ".join(self._names) + (f" and {more} more" if more else "")
        begin = f"{self.files} of {wanted} files cannot be had"
        if self._may_come:
            return UnreachableError(
                f"{begin} because somebody who may have them is not reached, {names}: "
                "the others are here, try again later"
            )
        if self._is_lied_about:
            return VerificationError(
                f"{begin} because {lie}, {names}: the others are here, ask for another link"
            )
        return NotFoundError(
            f"{begin} from anybody any more, {names}: the others are here, "
            f"and the same command brings the rest where it is to be had again{'; ' if lie else ''}{lie}"
        )


class Meeting:
    """Sees whom a transfer has reached.

    Args:
        report: told all that this is told.

    Attributes:
        met: whether anybody was reached.
        absent: chunks that all who were reached say are not there, where the transfer failed.
    """

    def __init__(self, report: Report) -> None:
        self.met = False
        self.absent: Collection[bytes] = ()
        self._report = report

    def __call__(self, snapshot: Snapshot | None) -> None:
        """See `Report`."""
        if snapshot is not None:
            self.met = self.met or snapshot.circuits > 0
            self.absent = snapshot.absent
        self._report(snapshot)


async def give_up_absent(bundle: Bundle, absent: Collection[bytes]) -> bool:
    """Give up the open files of a bundle that need a chunk which nobody has, and wait until they are gone.

    Args:
        bundle: no transfer brings anything for it meanwhile.
        absent: these chunks.

    Returns:
        whether there was one.
    """
    gone = {target for target in bundle.lacking if any(map(target.tree.places, absent))}
    for target in gone:
        bundle.give_up(target)
    while gone.intersection(bundle.lacking):
        await bundle.bell.next.wait()
    return bool(gone)


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
    places = anyio.CapacityLimiter(MAX_ALONE)

    async def attempt(target: Part) -> None:
        meeting = Meeting(report)
        try:
            async with places:
                await fetch(target, meeting)
            bundle.look(target)
        except (NotFoundError, UnreachableError, VerificationError) as error:
            if not (meeting.met or isinstance(error, VerificationError)):
                raise
            missing.judge(error)
            bundle.give_up(target)

    async with together() as start:
        for target in bundle.lacking:
            start(partial(attempt, target))
