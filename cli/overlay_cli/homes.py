"""The verbs about a home that need no running node: init and id."""

from __future__ import annotations

import argparse
import os

import anyio

from overlay.chat.texts import MAX_NAME_BYTES, check_line
from overlay.control.config import config_template
from overlay.identity import NodeSecret
from overlay_cli.context import Context
from overlay_cli.daemon import open_database
from overlay_cli.exit_codes import DONE
from overlay_cli.output import Output, printable

PRIVATE_UMASK = 0o077


def init(options: argparse.Namespace, output: Output) -> int:
    """Make a home: identity, configuration, database."""
    context = Context(options, output)
    name: str = check_line("name", options.name, limit=MAX_NAME_BYTES) if options.name else ""
    os.umask(PRIVATE_UMASK)
    context.home.create(config_template(name), os.urandom)
    anyio.run(_make_database, context)
    node = str(NodeSecret.from_bytes(context.home.identity()).identifier)
    home = str(context.home.path)
    output.data({"home": home, "node": node}, f"home {printable(home)}", f"node {node}")
    return DONE


def identifier(options: argparse.Namespace, output: Output) -> int:
    """Print the node's identifier."""
    node = str(NodeSecret.from_bytes(Context(options, output).home.identity()).identifier)
    output.data({"node": node}, node)
    return DONE


async def _make_database(context: Context) -> None:
    async with await open_database(context.home):
        pass
