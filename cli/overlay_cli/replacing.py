"""Asking whoever sits at the terminal whether a file that is there is to be replaced."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

from overlay.errors import MalformedError
from overlay.files.links import FileLink
from overlay_cli.output import Output, printable

_YES = frozenset({b"y", b"yes"})


def file_in_the_way(link: str, path: str) -> Path | None:
    """Find the file that fetching a link to `path` would replace.

    None where there is none, and where nothing would be replaced anyway: the node says what is wrong then.
    """
    try:
        parsed = FileLink.parse(link)
        name = parsed.name if Path(path).is_dir() else ""
        if parsed.kind != "file" or (not name and path.endswith("/")):
            return None
        found = Path(path) / name
        return found if stat.S_ISREG(found.lstat().st_mode) else None
    except (MalformedError, OSError):
        return None


def ask(path: Path, output: Output) -> bool:
    """Ask whether a file is to be replaced; what is no yes leaves it.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    output.stderr.write(f"{printable(str(path))} exists: replace it? [y/N] ")
    output.stderr.flush()
    answer = b""
    try:
        answer = sys.stdin.buffer.readline()
    finally:
        if not answer.endswith(b"\n"):  # what comes next begins on a line of its own
            output.stderr.write("\n")
    return answer.strip().lower() in _YES
