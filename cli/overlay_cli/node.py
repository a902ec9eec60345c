"""The verbs that ask the running node about itself: status, ticket, peers, down."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

from overlay.control.protocol import JSON
from overlay.errors import (
    ClosedError,
    NotRunningError,
    OverlayError,
    TransportUnavailableError,
    UnreachableError,
)
from overlay_cli.context import ANSWER_TIMEOUT, Context, as_list, as_object
from overlay_cli.exit_codes import DONE
from overlay_cli.output import Output, printable

DOWN_TIMEOUT = 60.0
"""Seconds that a node may take to end; its tor process alone may take several."""
POLL_INTERVAL = 0.05
"""Seconds between two looks at the file system, which cannot tell by itself."""


def status(options: argparse.Namespace, output: Output) -> int:
    """Show how the node stands."""
    context = Context(options, output)
    seconds: float | None = options.wait
    found = _status(context) if seconds is None else _wait_ready(context, seconds)
    output.data(found, *_status_lines(found, output))
    return DONE


def ticket(options: argparse.Namespace, output: Output) -> int:
    """Print a token that lets another node join."""
    found = Context(options, output).ask("ticket", timeout=ANSWER_TIMEOUT)
    output.data(found, printable(str(found.get("ticket"))))
    return DONE


def peers(options: argparse.Namespace, output: Output) -> int:
    """List the nodes that this one knows."""
    with Context(options, output).node(timeout=ANSWER_TIMEOUT) as node:
        for peer in map(as_object, node.stream("peers")):
            output.data(peer, *_peer_lines(peer))
    return DONE


def down(options: argparse.Namespace, output: Output) -> int:
    """End the node, and wait until its home is free.

    Raises:
        UnreachableError: it still runs after `DOWN_TIMEOUT`.
    """
    context = Context(options, output)
    deadline = time.perf_counter() + DOWN_TIMEOUT
    with context.node(timeout=DOWN_TIMEOUT) as node:
        try:
            node.call("down")
            node.wait_closed()
        except ClosedError:
            output.note("the node ended before it could answer")
    while context.home.locked:
        if time.perf_counter() > deadline:
            raise UnreachableError("the node was told to end and still runs: look at its log")
        time.sleep(POLL_INTERVAL)
    output.data({"state": "stopped"}, "the node has ended")
    return DONE


def _status(context: Context, wait: float | None = None) -> dict[str, JSON]:
    timeout = ANSWER_TIMEOUT + (wait or 0)
    return context.ask("status", timeout=timeout, wait=wait)


def _wait_ready(context: Context, seconds: float) -> dict[str, JSON]:
    deadline = time.perf_counter() + seconds
    while True:
        left = deadline - time.perf_counter()
        try:
            found = _status(context, max(left, 0.0))
        except (NotRunningError, ClosedError):
            if left <= 0:
                raise
            time.sleep(min(POLL_INTERVAL, left))
            continue
        if found.get("state") == "ready":
            return found
        if left <= 0 or found.get("state") != "stopping":
            raise _not_ready(found, seconds)
        time.sleep(min(POLL_INTERVAL, left))


def _not_ready(found: Mapping[str, JSON], seconds: float) -> OverlayError:
    sentence = f"the node is not ready after {seconds:g} seconds: {found.get('detail')}"
    transports = [as_object(each).get("state") for each in as_list(found.get("transports"))]
    if found.get("state") == "starting" or any(state != "ready" for state in transports):
        return TransportUnavailableError(sentence)
    return UnreachableError(sentence)


def _status_lines(found: Mapping[str, JSON], output: Output) -> list[str]:
    state, detail = printable(str(found.get("state"))), printable(str(found.get("detail")))
    state = output.styled(state, {"ready": "green", "stopping": "red"}.get(state, "yellow"))
    peers_known = as_object(found.get("peers"))
    rows = [
        ("state", f"{state}: {detail}"),
        ("node", printable(str(found.get("node")))),
        *(("locator", printable(str(each))) for each in as_list(found.get("locators"))),
        *(row for each in as_list(found.get("transports")) for row in _transport_rows(as_object(each))),
        ("peers", f"{peers_known.get('known')} known, {peers_known.get('connected')} connected"),
        ("sessions", f"{found.get('sessions')}"),
    ]
    return [f"{name:10} {text}" for name, text in rows]


def _transport_rows(transport: Mapping[str, JSON]) -> list[tuple[str, str]]:
    detail = f": {transport.get('detail')}" if transport.get("detail") else ""
    facts = as_object(transport.get("facts")).items()
    return [
        ("transport", printable(f"{transport.get('name')} {transport.get('state')}{detail}")),
        *(("", printable(f"  {name}: {fact}")) for name, fact in facts),
    ]


def _peer_lines(peer: Mapping[str, JSON]) -> list[str]:
    state = "connected" if peer.get("connected") else "-"
    where = " ".join(map(str, as_list(peer.get("locators"))))
    lines = [f"{peer.get('node')}  {state:9}  {where}"]
    if peer.get("over"):
        how = f"it was dialled at {peer['via']}" if peer.get("via") else "it dialled this node"
        lines.append(f"    over {peer['over']}: {how}")
    return [printable(line) for line in lines]
