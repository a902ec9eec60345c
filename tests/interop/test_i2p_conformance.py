"""I2P keeps what every transport promises, on a real network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from overlay.locators import NodeLocator
from overlay.testing.conformance import CHECKS, Check, check_backpressure, check_cancelled_connect
from overlay.testing.pair import TransportPair
from overlay.transports.i2p.transport import I2pTransport

NOBODY = NodeLocator("garlic32", b"\7" * 32)
FOREIGN = NodeLocator("onion3", bytes(32), 80)

KEPT_OTHERWISE = {
    # The receiver's i2pd acknowledges what nobody reads, and keeps it: it took in 32 MiB within 2.6 s.
    # What bounds memory over I2P is the channel's credit.
    check_backpressure,
    # In 3 of 100 runs one of its ten dials left a stream that the receiver's i2pd never ended: by its source
    # it misses an end that comes in the moment in which it begins to wait for data, and looks again after an
    # hour. What ends such a channel is its heartbeat. That the caller's side leaves nothing open is tested
    # in test_i2p_transport.
    check_cancelled_connect,
}


@pytest.fixture(scope="module")
async def pair(i2p_transport: Callable[[str, int], I2pTransport]) -> AsyncIterator[TransportPair]:
    async with (
        i2p_transport("conforming-caller", 0) as caller,
        i2p_transport("conforming-receiver", 1) as receiver,
        TransportPair(caller, receiver, nobody=NOBODY, impostor=NOBODY, foreign=FOREIGN) as pair,
    ):
        yield pair


@pytest.mark.parametrize(
    "check", [check for check in CHECKS if check not in KEPT_OTHERWISE], ids=lambda check: check.__name__
)
async def test_i2p_conforms(check: Check, pair: TransportPair) -> None:
    await check(pair)
