"""What a dial does is tested with the transport, by the answers of a router."""

from __future__ import annotations

import itertools
import os

from overlay.transports.i2p.dial import pauses


def test_pauses_double_and_differ() -> None:
    given = list(itertools.islice(pauses(4.0, os.urandom), 8))
    for pause, usual in zip(given, (1, 2, 4, 8, 16, 16, 16, 16), strict=True):
        assert 0.75 * usual <= pause <= 1.25 * usual
    assert len(set(given)) > 1
