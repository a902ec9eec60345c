"""The exit codes of every command; docs/cli.md lists them for users."""

from __future__ import annotations

from overlay.errors import OverlayError

DONE = 0
FAILURE = 1
USAGE = 2
NOT_RUNNING = 3
UNAVAILABLE = 4
UNREACHABLE = 5
REFUSED = 6
NOT_FOUND = 7
VERIFICATION = 8
INTERRUPTED = 130
"""128 and the number of SIGINT, as shells count."""
BROKEN_PIPE = 141
"""128 and the number of SIGPIPE: whoever read the output stopped reading."""

_BY_CODE = {
    "failure": FAILURE,
    "malformed": USAGE,
    "not-running": NOT_RUNNING,
    "unavailable": UNAVAILABLE,
    "unreachable": UNREACHABLE,
    "closed": UNREACHABLE,
    "refused": REFUSED,
    "not-found": NOT_FOUND,
    "verification": VERIFICATION,
    "protocol": VERIFICATION,
    "storage": FAILURE,
}


def exit_code(error: OverlayError) -> int:
    """The exit code of a command that ended with `error`."""
    return _BY_CODE[error.code]
