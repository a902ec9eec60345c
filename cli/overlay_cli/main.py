"""The `overlay` command: reads the command line, runs the verb, and turns errors into exit codes."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

from overlay.errors import OverlayError, TransportUnavailableError
from overlay_cli.exit_codes import BROKEN_PIPE, FAILURE, INTERRUPTED, exit_code
from overlay_cli.output import Output, make_encodable
from overlay_cli.parser import parse

_EXTRAS = {"stem": "tor", "socks": "tor", "i2plib": "i2p", "segno": "qr"}
"""The libraries that come with an extra, with its name."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name; None takes the process's own.

    Returns:
        the exit code, as in docs/cli.md.
    """
    given = sys.argv[1:] if arguments is None else arguments
    make_encodable(sys.stdout, sys.stderr)
    options = _before_end_of_options(given)  # an error of the parser itself heeds them, too
    output = Output(as_json="--json" in options, quiet="--quiet" in options)
    try:
        return _run(given, output)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort: a bug, too, is one sentence and code 1
        if "--verbose" in options:
            traceback.print_exc()
        return _tell(output, _first(error))


def _run(arguments: list[str], output: Output) -> int:
    options = parse(arguments)
    output.as_json, output.quiet = options.json, options.quiet
    module, _, function = options.run.partition(":")
    code: int = getattr(importlib.import_module(f"overlay_cli.{module}"), function)(options, output)
    return code


def _before_end_of_options(arguments: list[str]) -> list[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _tell(output: Output, error: Exception) -> int:
    match error:
        case ModuleNotFoundError(name=str(module)) if (library := module.partition(".")[0]) in _EXTRAS:
            extra = f"'overlay-p2p[{_EXTRAS[library]}]'"
            return _tell(
                output, TransportUnavailableError(f"'{library}' is missing: run pip install {extra}")
            )
        case OverlayError():
            output.error(error)
            return exit_code(error)
        case BrokenPipeError():
            _drop_stdout()
            return BROKEN_PIPE
        case OSError():
            if error.filename is None:
                _drop_stdout()  # most likely it is what cannot be written
            place = f"{error.filename}: " if error.filename else ""
            output.error(OverlayError(f"{place}{(error.strerror or str(error)).lower()}"))
        case _:
            kind = type(error).__name__
            output.error(
                OverlayError(f"this is a bug ({kind}: {error}): run it again with --verbose and report it")
            )
    return FAILURE


def _first(error: Exception) -> Exception:
    """The error itself, or the first of those that several tasks ended with."""
    return _first(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error


def _drop_stdout() -> None:
    """Send what is still buffered nowhere, because Python complains when it cannot be written at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
