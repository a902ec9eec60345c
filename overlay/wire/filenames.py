"""File names that came from somebody else, made fit to be created here. Pure.

A posted file carries its name, and whoever posted it chose that name; a name is one component of a path,
never a path. `safe_basename` refuses what no honest program sends and mends what is merely awkward:

- refused: an empty name, `.` and `..`, a slash or backslash, NUL and every other control character, marks
  that change the direction of text or cannot be seen, half of a surrogate pair, and the device names that
  Windows reserves, with any ending; the two joiners of letters only where they may join any, see
  `STRAY_JOINER`;
- mended: leading dots and dashes (hidden files, options of commands) and `~` become `_`, trailing dots and
  spaces go, `: * ? " < > |` become `_`, and what is longer than `MAX_NAME_BYTES` is cut before its ending.

A safe name is its own safe name, so both sides of a transfer may apply the rule.
"""

from __future__ import annotations

import re
import unicodedata

from overlay.errors import MalformedError

MAX_NAME_BYTES = 200
"""Bytes of UTF-8: file systems take 255, and this leaves room for a suffix such as `.part` or ` (2)`."""

MAX_GIVEN_BYTES = 4096
"""Bytes of UTF-8 that a name may have before it is cut; PATH_MAX, no file system knows longer ones."""

_MAX_ENDING_BYTES = 20  # `.tar.zst` is 8; whatever is longer is not an ending
_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # of category Cf, but Persian words and many emoji need them
STRAY_JOINER = re.compile(rf"(?<![^\x00-\x7f{_JOINERS}])[{_JOINERS}]|[{_JOINERS}](?![^\x00-\x7f{_JOINERS}])")
"""A joiner (U+200C, U+200D) that is not between two characters beyond ASCII: nothing there could need it, and
it would only make two names that look the same."""

_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(\.|:|$)", re.IGNORECASE)
_AWKWARD = re.compile(r'[:*?"<>|]')
_LEADING = re.compile(r"^[.\-~ ]+")


def safe_basename(name: str) -> str:
    """Give the name under which a file called `name` can be created, in any folder, on any system.

    Returns:
        one path component of at most `MAX_NAME_BYTES` bytes; given to this function again, it is unchanged.

    Raises:
        MalformedError: the name is a path, is empty, holds characters that have no place in a name, or
            means a device.
    """
    _refuse_dangerous(name)
    mended = _AWKWARD.sub("_", _LEADING.sub(_underscores, name))
    shortened = _shorten(mended.rstrip(". "))
    _refuse_device(shortened)
    return shortened


def _underscores(match: re.Match[str]) -> str:
    return "_" * len(match.group())


def _refuse_dangerous(name: str) -> None:
    if not name.strip(". "):
        raise MalformedError("a file name is empty or made of dots")
    if "/" in name or "\\" in name:
        raise MalformedError("a file name holds a path: only its last part may be given")
    hidden = any(unicodedata.category(char) in _REFUSED_CATEGORIES and char not in _JOINERS for char in name)
    if hidden or STRAY_JOINER.search(name):
        raise MalformedError("a file name holds characters that cannot be seen")
    if len(name.encode()) > MAX_GIVEN_BYTES:
        raise MalformedError(f"a file name is longer than {MAX_GIVEN_BYTES} bytes")
    _refuse_device(name)


def _refuse_device(name: str) -> None:
    if _DEVICES.match(name):
        raise MalformedError("a file name means a device on some systems: rename the file")


def _shorten(name: str) -> str:
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    stem, dot, ending = name.rpartition(".")
    if not stem or len(ending.encode()) >= _MAX_ENDING_BYTES:
        stem, dot, ending = name, "", ""
    tail = dot + ending
    room = MAX_NAME_BYTES - len(tail.encode())
    cut = stem.encode()[:room].decode(errors="ignore")
    return cut.rstrip(". " + _JOINERS) + tail
