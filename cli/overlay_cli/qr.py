"""A link as a QR code that a terminal shows, two rows of it in one line."""

from __future__ import annotations

import segno

from overlay.errors import MalformedError
from overlay.files.links import FileLink
from overlay_cli.output import Output
from overlay_cli.progress import terminal_size

MAX_CODE_BYTES = 2953
"""What the largest QR code holds at the least correction: a link with four providers."""

_QUIET = 4  # modules of margin, as ISO/IEC 18004 asks for
_BLOCKS = {(False, False): "█", (False, True): "▀", (True, False): "▄", (True, True): " "}  # of light modules
_WHITE_ON_BLACK = "\x1b[0;97;40m"
_PLAIN = "\x1b[0m"


def show_link(link: str, output: Output) -> None:
    """Print the code of a link; where it has no room, that of its read capability alone, and say so.

    Raises:
        MalformedError: not a link; or not even its read capability has room.
    """
    # In capitals, which take less room where nothing else is in the text: `urn:eris:` and base32.
    alone = FileLink.parse(link).capability.urn.upper()
    whole = alone if link.upper() == alone else link
    for text in (whole, alone):
        lines = draw(text)
        if lines and _has_room(lines, output):
            if text != whole:
                output.note(
                    "the whole link has no room here: this code is the file's without who has it; "
                    "make the terminal larger for all of it"
                )
            _write(lines, output)
            return
    raise MalformedError(
        f"a QR code needs a terminal of {len(lines[0])} columns and {len(lines) + 1} lines: make it larger"
    )


def draw(text: str) -> list[str]:
    """Draw a code in lines of blocks, light on dark; none if the text is too long for one."""
    if len(text) > MAX_CODE_BYTES:
        return []
    code = segno.make_qr(text, error="l", boost_error=False)
    rows = [[bool(module) for module in row] for row in code.matrix_iter(border=_QUIET)]
    below = [*rows[1::2], [True] * len(rows[0])]  # the number of rows is odd: the last one has none below it
    return [
        "".join(_BLOCKS[pair] for pair in zip(upper, lower, strict=True))
        for upper, lower in zip(rows[::2], below, strict=True)
    ]


def _has_room(lines: list[str], output: Output) -> bool:
    if not output.stdout.isatty():
        return True
    columns, height = terminal_size(output.stdout)
    return len(lines[0]) <= columns and len(lines) < height


def _write(lines: list[str], output: Output) -> None:
    begin, end = (_WHITE_ON_BLACK, _PLAIN) if output.stdout.isatty() else ("", "")
    output.stdout.writelines(f"{begin}{line}{end}\n" for line in lines)
    output.stdout.flush()
