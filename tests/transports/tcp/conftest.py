"""Real sockets need real clocks."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each async test on both event loops, in real time."""
    backend: str = request.param
    return backend
