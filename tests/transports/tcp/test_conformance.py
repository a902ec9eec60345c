"""TCP keeps what every transport promises."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from overlay.locators import NodeLocator
from overlay.testing.conformance import CHECKS, Check
from overlay.testing.pair import TransportPair
from overlay.transports.tcp import TcpTransport


@pytest.fixture
def nobody() -> Iterator[NodeLocator]:
    """An address that is taken, so that no other process takes it, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield NodeLocator.tcp(*taken.getsockname())


@pytest.fixture
async def pair(nobody: NodeLocator) -> AsyncIterator[TransportPair]:
    async with (
        TcpTransport() as caller,
        TcpTransport() as receiver,
        TransportPair(caller, receiver, nobody=nobody) as pair,
    ):
        yield pair


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_tcp_conforms(check: Check, pair: TransportPair) -> None:
    await check(pair)
