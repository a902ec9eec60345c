"""`overlay up`: puts a node together and runs it. The composition root: nothing else knows all the parts."""

from __future__ import annotations

import argparse
import logging
import os
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial

import anyio

from overlay.channel.machine import ChannelLimits
from overlay.chat.invite import PREFIX as INVITE_PREFIX
from overlay.chat.service import Chat
from overlay.chat.store import CHAT_SCHEMA
from overlay.connection import ConnectionLayer, Transport, TransportStatus
from overlay.control.config import Config, load_config
from overlay.control.home import Home
from overlay.control.runtime import Runtime, RuntimeStatus, Services
from overlay.control.server import serve
from overlay.control.verbs import bind
from overlay.database import Database
from overlay.errors import MalformedError, NotFoundError
from overlay.files.service import FILES_SCHEMAS, Files
from overlay.identity import NodeSecret
from overlay.locators import LocatorRecord
from overlay.peer.node import NODE_SCHEMAS, Node, NodeOptions
from overlay.peer.ticket import Ticket, check_ticket
from overlay_cli.context import Context
from overlay_cli.exit_codes import DONE
from overlay_cli.output import Output, printable
from overlay_cli.progress import StatusLine
from overlay_cli.signals import wait_for_signal
from overlay_cli.spool import remove_left
from overlay_cli.transports import build_transports
from overlay_cli.up_options import check_up_options, with_up_options

PASSWORD_VARIABLE = "OVERLAY_TOR_PASSWORD"  # noqa: S105 - the name of a variable, not a password
MIB = 1 << 20
PRIVATE_UMASK = 0o077
"""Whatever the node writes, its user alone can read."""


def up(options: argparse.Namespace, output: Output) -> int:
    """Run the node until SIGINT, SIGTERM or `overlay down`.

    Raises:
        NotFoundError: there is no home yet.
    """
    context = Context(options, output)
    if not context.home.exists:
        raise NotFoundError(f"{context.home.path} is no home: make one with 'overlay init'")
    os.umask(PRIVATE_UMASK)
    _start_logging(options, output)
    with context.home.lock():
        for sentence in context.home.check():
            output.note(sentence)
        remove_left(context.home.path)
        config = choose_config(options, context.home)
        anyio.run(partial(_run, context, config))
    return DONE


async def open_database(home: Home) -> Database:
    """Open the home's database, and make or migrate it first where that is due.

    Raises:
        StorageError: it cannot be used.
    """
    return await Database.open(home.database, (*NODE_SCHEMAS, CHAT_SCHEMA, *FILES_SCHEMAS))


def choose_config(options: argparse.Namespace, home: Home) -> Config:
    """Put together what the command line, the home's memory and config.toml say, in this order of rank.

    Raises:
        MalformedError: a bad value in config.toml, a bad ticket, options that exclude each other, or one for
            a transport that was not chosen.
        VerificationError: a forged ticket.
    """
    config, remembered = load_config(home.config), home.remembered()
    transports = tuple(dict.fromkeys(options.transport or config.transports))
    check_up_options(options, transports)
    if options.join:
        _check_ticket(options.join)
    told = replace(
        remembered,
        join=options.join or remembered.join,
        directory=options.directory or remembered.directory,
    )
    if told != remembered:
        home.remember(told)
    config = with_up_options(config, options)
    return replace(
        config,
        transports=transports,
        join=told.join or config.join,
        directory=told.directory or config.directory,
        tor_password=os.environ.get(PASSWORD_VARIABLE) or config.tor_password,
    )


async def _run(context: Context, config: Config) -> None:
    secret = NodeSecret.from_bytes(context.home.identity())
    directory = _directory_to_join(config, secret)
    transports = build_transports(context.home, config)
    runtime = Runtime(secret.identifier, config.name, transports)
    _show_progress(transports, context.output)
    async with anyio.create_task_group() as outer:
        await outer.start(serve, context.home.control_socket, bind(runtime))
        outer.start_soon(_stop_on_signal, runtime)
        outer.start_soon(_report, runtime, context.output)
        async with anyio.create_task_group() as inner:
            inner.start_soon(_run_node, context, config, secret, directory, runtime)
            await runtime.wait_stop()
            inner.cancel_scope.cancel()
        outer.cancel_scope.cancel()


async def _run_node(
    context: Context, config: Config, secret: NodeSecret, directory: LocatorRecord | None, runtime: Runtime
) -> None:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(await open_database(context.home))
        node = Node(
            secret=secret,
            layer=ConnectionLayer(runtime.transports, anonymous=config.hides),
            database=database,
            clock=time.time,  # noqa: TID251 - here it is chosen
            entropy=os.urandom,
            options=NodeOptions(
                directory=config.directory,
                join=directory,
                relays=config.relay,
                storage_quota=config.quota_mib * MIB,
                limits=ChannelLimits(idle_timeout=config.idle_timeout),
            ),
        )
        chat, files = Chat(node, database), Files(node, database)
        async with anyio.create_task_group() as tasks:
            await tasks.start(node.run)
            _remember_port(context.home, node)
            await tasks.start(chat.run)
            await files.start()
            runtime.started(Services(node, chat, files))


def _remember_port(home: Home, node: Node) -> None:
    for locator in node.status.locators:
        if locator.protocol in {"ip4", "ip6"}:
            home.remember(replace(home.remembered(), tcp_port=locator.port))


def _directory_to_join(config: Config, secret: NodeSecret) -> LocatorRecord | None:
    if not config.join:
        return None
    record = _check_ticket(config.join).directory
    if record.identifier == secret.identifier:
        raise MalformedError("this ticket leads to this very node: a directory needs no --join")
    return record


def _check_ticket(text: str) -> Ticket:
    if text.lstrip().lower().startswith(INVITE_PREFIX):
        raise MalformedError("this is an invite: use it with 'overlay chat join'")
    return check_ticket(text)


async def _stop_on_signal(runtime: Runtime) -> None:
    await wait_for_signal()
    runtime.stop()


async def _report(runtime: Runtime, output: Output) -> None:
    """Print each state and each change of address on stdout, as it comes."""
    before: RuntimeStatus | None = None
    while True:
        status = runtime.status
        moved = before is None or status.locators != before.locators
        if moved or before is None or status.state != before.state:
            _print_status(runtime, status, output, moved=moved)
            before = status
        await runtime.wait_changed()


def _print_status(runtime: Runtime, status: RuntimeStatus, output: Output, *, moved: bool) -> None:
    locators = [str(locator) for locator in status.locators]
    output.data(
        {
            "state": status.state,
            "detail": status.detail,
            "node": str(runtime.identifier),
            "locators": locators,
        },
        printable(f"{status.state}: {status.detail}"),
        *(f"locator {locator}" for locator in locators if moved),
    )


def _show_progress(transports: list[Transport], output: Output) -> None:
    line = StatusLine(output.stderr, shown=not output.quiet)
    failures: dict[str, str] = {}

    def show(transport: Transport, status: TransportStatus) -> None:
        before = (
            failures.pop(transport.name, None) if status.state == "ready" else failures.get(transport.name)
        )
        if before is not None and (status.state == "starting" or status.detail == before):
            return  # it is tried again every minute or so, which says nothing new
        if status.state == "failed":
            failures[transport.name] = status.detail
        text = printable(f"{transport.name} {status.state} {status.progress}% {status.detail}".rstrip())
        line.show(text, last=status.state != "starting")

    for transport in transports:
        transport.observe(partial(show, transport))


class _PrintableFormatter(logging.Formatter):
    """Log lines hold what peers and other programs said, too."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)


def _start_logging(options: argparse.Namespace, output: Output) -> None:
    handler = logging.StreamHandler(output.stderr)
    handler.setFormatter(_PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    level = logging.DEBUG if options.verbose else logging.ERROR if options.quiet else logging.INFO
    logging.getLogger().addHandler(handler)
    logging.getLogger("overlay").setLevel(level)
