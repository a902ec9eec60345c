"""Fixtures that every test shares."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from trio.testing import MockClock

pytest_plugins = ["overlay.testing.fixtures"]

# A busy machine must not fail a property: pytest's own timeout catches what hangs.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run each async test on both event loops; on trio, time is virtual.

    Tests with real sockets, threads or processes override this with real clocks, because the virtual one
    jumps ahead whenever the event loop alone has nothing to do.
    """
    if request.param == "trio":
        return "trio", {"clock": MockClock(autojump_threshold=0)}
    return "asyncio", {"debug": True}
