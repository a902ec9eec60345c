"""The rules that titles, names, texts and file names keep in a session. Pure.

What is refused is listed code point by code point rather than by Unicode category: categories change with
the Unicode version, and two participants that judge the same event differently would never agree again.
"""

from __future__ import annotations

import re

from overlay.errors import MalformedError

MAX_TITLE_BYTES = 200
MAX_NAME_BYTES = 100
MAX_TEXT_BYTES = 32 * 1024
"""About ten pages; with its event around it, it still fits one message between nodes (64 KiB)."""
MAX_FILE_NAME_BYTES = 255
"""What the common file systems allow."""

_NOT_IN_A_LINE = re.compile(
    r"[\x00-\x1f\x7f-\x9f"  # C0 and C1 controls: line breaks and terminal escapes
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the writing direction around
    r"\u2028\u2029\ufeff]"  # separators of lines, byte order mark
)


def check_line(what: str, text: str, *, limit: int) -> str:
    """Let one line of text pass: a title or a name.

    Args:
        what: the word for it in the error message.
        text: the line.
        limit: the most bytes that it may have in UTF-8.

    Returns:
        the same text.

    Raises:
        MalformedError: empty or blank, too long, or with characters that no honest name has.
    """
    if not text.strip():
        raise MalformedError(f"a {what} is not empty")
    if _encoded_length(what, text) > limit:
        raise MalformedError(f"a {what} has at most {limit} bytes")
    if _NOT_IN_A_LINE.search(text):
        raise MalformedError(f"a {what} has no control characters and no line breaks")
    return text


def check_text(text: str) -> str:
    """Let the text of a message pass; it may have any character, since whoever shows it makes it safe.

    Returns:
        the same text.

    Raises:
        MalformedError: empty, or longer than `MAX_TEXT_BYTES`.
    """
    if not text:
        raise MalformedError("a message is not empty")
    if _encoded_length("message", text) > MAX_TEXT_BYTES:
        raise MalformedError(f"a message has at most {MAX_TEXT_BYTES} bytes: post a longer one as a file")
    return text


def check_file_name(name: str) -> str:
    """Let a file's name pass: a name alone, never a path.

    Returns:
        the same name.

    Raises:
        MalformedError: not a single line, or something that leads to another folder.
    """
    check_line("file name", name, limit=MAX_FILE_NAME_BYTES)
    if "/" in name or "\\" in name or name in {".", ".."}:
        raise MalformedError("a file name is not a path")
    return name


def _encoded_length(what: str, text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise MalformedError(f"a {what} is text that UTF-8 can write") from error
