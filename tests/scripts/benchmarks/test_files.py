from __future__ import annotations

import shutil
from typing import NamedTuple

import pytest

from scripts.benchmarks import files
from scripts.benchmarks.files import Effort, measure_large


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.timeout(120)
def test_both_nodes_of_a_large_fetch_are_measured() -> None:
    (figure,) = measure_large(Effort(mebibytes=8))
    nodes = [figure.detail["offering node MiB"], figure.detail["fetching node MiB"]]
    assert all(isinstance(each, float) and each > 10 for each in nodes)
    assert figure.value == max(nodes)
    assert figure.detail["bytes"] == 8 * 1024 * 1024


def test_a_disk_without_room_is_told_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 2**30 + 2 * 2**23 - 1))
    monkeypatch.setattr(files, "fill", lambda *_: pytest.fail("something was written"))
    with pytest.raises(OSError, match=r"two files of 8 MiB have no room in .*: set TMPDIR"):
        measure_large(Effort(mebibytes=8))
