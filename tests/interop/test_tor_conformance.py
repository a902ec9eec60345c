"""Tor keeps what every transport promises, on a real network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from overlay.locators import NodeLocator
from overlay.testing.conformance import CHECKS, Check
from overlay.testing.pair import TransportPair
from overlay.transports.tor.settings import ONION_PORT
from overlay.transports.tor.transport import TorTransport

NOBODY = NodeLocator("onion3", bytes(range(32)), ONION_PORT)


@pytest.fixture(scope="module")
async def pair(tor_transport: Callable[[str], TorTransport]) -> AsyncIterator[TransportPair]:
    async with (
        tor_transport("caller") as caller,
        tor_transport("receiver") as receiver,
        TransportPair(caller, receiver, nobody=NOBODY, impostor=NOBODY, half_closes=False) as pair,
    ):
        yield pair


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_tor_conforms(check: Check, pair: TransportPair) -> None:
    await check(pair)
