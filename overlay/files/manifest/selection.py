"""Which files of a folder are meant by patterns, such as `*.txt` or `photos/2024`. Pure.

The rules are those that people know from `.gitignore`: a pattern without a slash means a name at any depth,
one with a slash a path from the top; what means a folder means everything in it.

Source: docs/spec/files.md, section "Selecting".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from fnmatch import translate

from overlay.errors import MalformedError
from overlay.files.manifest.codec import Entry
from overlay.files.manifest.paths import MAX_PATH_BYTES

_ANY_DEPTH = "**"


def select(patterns: Iterable[str]) -> Callable[[Entry], bool]:
    """Read patterns.

    Args:
        patterns: `*`, `?` and `[…]` stand for what they do in a shell and never for a slash, `**` between
            slashes for any number of folders. Case counts.

    Returns:
        says of an entry whether one of the patterns means it.

    Raises:
        MalformedError: a pattern that is empty, too long or leaves the folder.
    """
    parsed = [_Pattern(pattern) for pattern in patterns]
    return lambda entry: any(pattern.takes(entry) for pattern in parsed)


class _Pattern:
    def __init__(self, text: str) -> None:
        if len(text) > MAX_PATH_BYTES:
            raise MalformedError(f"a pattern has at most {MAX_PATH_BYTES} characters")
        names = text.removeprefix("/").removesuffix("/").split("/")
        if not all(name.strip(".") for name in names):
            raise MalformedError("a pattern is a name or a path in the folder, without '.', '..' or '//'")
        self._folder = text.endswith("/")
        if "/" not in text.removesuffix("/"):
            names.insert(0, _ANY_DEPTH)
        else:
            while len(names) > 1 and names[-1] == _ANY_DEPTH:
                names.pop()
                self._folder = True  # everything in it, but not a file that is called like it
        self._parts = [None if name == _ANY_DEPTH else _compile(name) for name in names]

    def takes(self, entry: Entry) -> bool:
        """Whether the entry, or a folder that it is in, fits."""
        places = self._pass_over({0})
        for depth, given in enumerate(entry.path, 1):
            name = unicodedata.normalize("NFC", given)
            places = self._pass_over({after for place in places for after in self._step(place, name)})
            is_folder = depth < len(entry.path) or entry.capability is None
            if len(self._parts) in places and (is_folder or not self._folder):
                return True
        return False

    def _step(self, place: int, name: str) -> Iterable[int]:
        """Where the pattern goes on behind a name; it is walked as an automaton, so no path makes it slow."""
        if place == len(self._parts):
            return ()
        part = self._parts[place]
        if part is None:
            return (place,)
        return (place + 1,) if part.match(name) else ()

    def _pass_over(self, places: set[int]) -> set[int]:
        """Add the places that are reached where `**` stands for no folder at all."""
        for place, part in enumerate(self._parts):
            if part is None and place in places:
                places.add(place + 1)
        return places


def _compile(name: str) -> re.Pattern[str]:
    return re.compile(translate(unicodedata.normalize("NFC", name)))
