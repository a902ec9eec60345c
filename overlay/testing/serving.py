"""Private networks that run until they are told to end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import anyio

Network = TypeVar("Network")


async def serve(network: AbstractAsyncContextManager[Network], ready: Callable[[Network], None]) -> None:
    """Run a network until cancelled.

    Args:
        network: what starts when it is entered.
        ready: called once with it, when clients can start.

    Raises:
        TransportUnavailableError: it does not start.
    """
    async with network as started:
        ready(started)
        await anyio.sleep_forever()
