"""Paths in the manifest of a folder: what is safe and distinct on every system. Pure.

Source: docs/spec/files.md, section "Manifests".
"""

from __future__ import annotations

import re
import unicodedata

from overlay.errors import MalformedError
from overlay.wire.filenames import STRAY_JOINER

MAX_NAME_BYTES = 255
"""Bytes of UTF-8 of one name in a path: what file systems take."""
MAX_PATH_BYTES = 4096
"""Bytes of a path in text, PATH_MAX: no file system knows longer ones."""
MAX_DEPTH = 128
"""Names in a path: nested packages of nested packages reach 40."""

# Fixed, as in the chat: a list that followed Unicode's categories would change from release to release. This
# is Cc, Cf, Zl and Zp of Unicode 15 but for the two joiners, and what is no text at all.
_REFUSED_NAMES = re.compile(
    r"[\x00-\x1f/\\\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b\u200e\u200f"
    r"\u2028-\u202e\u2060-\u2064\u2066-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000110bd\U000110cd"
    r"\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f]"
    r"|^[A-Za-z]:"  # joined to a folder on Windows, it leaves it for another drive
    r"|^[. ]+\Z"  # Windows drops dots and spaces at the end, so that '.. ' is '..'
)
_NO_JOINERS = {0x200C: None, 0x200D: None}
_SHOWN = 120  # characters of a path in an error


def check_path(path: tuple[str, ...]) -> None:
    """Check that a path stays in its folder, on every system, and can be carried in a manifest.

    Raises:
        MalformedError: empty, too long, too deep, or a name in it that is refused: the sentence shows it.
    """
    if not 0 < len(path) <= MAX_DEPTH:
        raise MalformedError(f"the path {show_path(path)} has not 1 to {MAX_DEPTH} names")
    length = len(path) - 1
    for name in path:
        if not name or _REFUSED_NAMES.search(name) or STRAY_JOINER.search(name):
            raise MalformedError(f"the path {show_path(path)} has a name that is not safe: rename it")
        name_length = len(name.encode())
        if name_length > MAX_NAME_BYTES:
            raise MalformedError(f"the path {show_path(path)} has a name of more than {MAX_NAME_BYTES} bytes")
        length += name_length
    if length > MAX_PATH_BYTES:
        raise MalformedError(f"the path {show_path(path)} has more than {MAX_PATH_BYTES} bytes")


def fold(name: str) -> str:
    """Give what is equal for names that macOS or Windows take for one.

    That is Unicode's canonical caseless matching. Joiners go: to HFS+ they are not there.
    """
    decomposed = unicodedata.normalize("NFD", name.rstrip(". ").translate(_NO_JOINERS))
    return unicodedata.normalize("NFD", decomposed.casefold())


def show_path(path: tuple[str, ...]) -> str:
    """Give a path as errors show it: escaped, because it may be somebody else's, and cut."""
    text = "/".join(path)
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
