"""What a link says. No node is needed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

from overlay.errors import MalformedError, VerificationError
from overlay.files.links import FileLink
from overlay.locators import LocatorRecord
from overlay_cli.exit_codes import DONE
from overlay_cli.file import read_link
from overlay_cli.output import Output, printable
from overlay_cli.progress import duration, size


def info(options: argparse.Namespace, output: Output) -> int:
    """Show what a link says.

    Raises:
        MalformedError: it is none.
    """
    link = FileLink.parse(read_link(options))
    now = time.time()  # noqa: TID251 - the clock of the command
    providers = [_provider(encoded, now) for encoded in link.providers]
    capability = link.capability
    of = "its list " if link.kind == "folder" else ""
    output.data(
        {
            "capability": capability.urn,
            "kind": link.kind,
            "name": link.name or None,
            "size": link.size,
            "block": capability.block_size,
            "level": capability.level,
            "providers": providers,
        },
        f"{link.kind}: {printable(link.name) or 'without a name'}, {of}{_size(link.size)}",
        f"encoded: blocks of {size(capability.block_size)}, level {capability.level}",
        f"read capability: {capability.urn}",
        *(_provider_line(provider, now) for provider in providers),
        *(() if providers else ("providers: none are named, the nodes that yours knows are asked",)),
    )
    return DONE


def _provider(encoded: bytes, now: float) -> dict[str, object]:
    """Describe one provider; of a record that is not genuine nothing else is told."""
    try:
        record = LocatorRecord.from_store(encoded)
    except (MalformedError, VerificationError):
        return {"node": None, "locators": [], "issued": None, "expires": None, "state": "invalid"}
    try:
        LocatorRecord.verify(encoded, now=now)
    except VerificationError:
        state = "expired" if record.issued <= record.expires <= now else "invalid"
    else:
        state = "valid"
    return {
        "node": str(record.identifier),
        "locators": [str(locator) for locator in record.locators],
        "issued": record.issued,
        "expires": record.expires,
        "state": state,
    }


def _provider_line(provider: Mapping[str, object], now: float) -> str:
    if provider["node"] is None:
        return "provider: damaged or forged"
    expires = provider["expires"]
    seconds = expires - now if isinstance(expires, int) else 0.0
    state = {
        "valid": f"valid for {duration(seconds)}",
        "expired": f"expired {duration(-seconds)} ago; its addresses may still be right",
        "invalid": "with times that cannot be",
    }[str(provider["state"])]
    locators = provider["locators"]
    shown = ", ".join(map(printable, locators)) if isinstance(locators, list) else ""
    return f"provider: {provider['node']}, {state}: {shown or 'no address'}"


def _size(count: int | None) -> str:
    return "of unknown size" if count is None else f"{size(count)} ({count} bytes)"
