"""Tor keeps what every transport promises, on a real network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from overlay.locators import NodeLocator
from overlay.testing.conformance import CHECKS, Check, check_backpressure, check_cancelled_send
from overlay.testing.pair import TransportPair
from overlay.transports.tor.transport import TorTransport

# On a fresh circuit tor itself takes in some 250 MiB before it makes a sender wait, and then needs a minute
# to pass them on. What bounds memory over Tor is the channel's credit.
TOO_LARGE = {check_backpressure, check_cancelled_send}


@pytest.fixture(scope="module")
async def pair(
    tor_transport: Callable[[str], TorTransport], nobody: NodeLocator
) -> AsyncIterator[TransportPair]:
    async with (
        tor_transport("caller") as caller,
        tor_transport("receiver") as receiver,
        TransportPair(caller, receiver, nobody=nobody, impostor=nobody) as pair,
    ):
        yield pair


@pytest.mark.parametrize(
    "check", [check for check in CHECKS if check not in TOO_LARGE], ids=lambda check: check.__name__
)
async def test_tor_conforms(check: Check, pair: TransportPair) -> None:
    await check(pair)
