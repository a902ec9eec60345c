"""`overlay version`. Imports next to nothing, because scripts ask for it often."""

from __future__ import annotations

import argparse
import sys

from overlay_cli import __version__
from overlay_cli.exit_codes import DONE
from overlay_cli.output import Output


def version(_options: argparse.Namespace, output: Output) -> int:
    """Print the version."""
    python = ".".join(map(str, sys.version_info[:3]))
    output.data({"version": __version__, "python": python}, f"overlay {__version__}")
    return DONE
