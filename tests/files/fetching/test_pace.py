from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest

from overlay.files.engine.transfer import MAX_OUTSTANDING
from overlay.files.fetching import pace as module
from overlay.files.fetching.pace import WAITING_SECONDS, Pace
from overlay.peer.limits import Limiter


@pytest.mark.parametrize(
    ("own", "shared", "sharing", "expected"),
    [
        (None, None, [1], MAX_OUTSTANDING),
        (65_536, None, [1], 65_536 * WAITING_SECONDS),
        (None, 65_536, [1, 2], 32_768 * WAITING_SECONDS),
        (65_536, 65_536, [1, 2, 3, 4], 16_384 * WAITING_SECONDS),
        (16_384, 65_536, [], 16_384 * WAITING_SECONDS),
        (1 << 40, 1 << 40, [1], MAX_OUTSTANDING),
    ],
)
def test_as_much_is_asked_for_as_may_soon_pass(
    own: int | None, shared: int | None, sharing: Sequence[int], expected: float
) -> None:
    assert Pace(Limiter(own), Limiter(shared), sharing).outstanding == expected


def test_without_arguments_there_is_no_limit() -> None:
    assert Pace().outstanding == MAX_OUTSTANDING


async def test_only_the_own_limit_is_kept_here() -> None:
    own = Limiter(1 << 20)
    pace = Pace(own, Limiter(16_384))
    begin = anyio.current_time()
    await pace.pass_on(1 << 18)  # the quarter of a second that was saved
    await pace.pass_on(1 << 16)
    await pace.pass_on(1)
    assert 0.06 <= anyio.current_time() - begin < 2
    assert module.WAITING_SECONDS < 10  # or requests stall
