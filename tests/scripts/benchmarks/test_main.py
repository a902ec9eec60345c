from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from scripts.benchmarks import __main__ as program
from scripts.benchmarks.figures import Failure, Figure
from scripts.benchmarks.files import Effort


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured: nothing really is."""
    names: list[str] = []

    def run(chosen: Sequence[str], _effort: Effort) -> list[Figure | Failure]:
        names.extend(chosen)
        return []

    monkeypatch.setattr(program, "run", run)
    return names


def bench(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["scripts/bench", *words])
    program.main()


def test_what_takes_the_disk_is_measured_only_if_it_is_named(
    monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    bench(monkeypatch)
    assert "files-large" not in measured
    assert {"files", "files-chat", "chat"} <= {*measured}
    measured.clear()
    bench(monkeypatch, "--only", "files-large", "--only", "files-chat")
    assert measured == ["files-large", "files-chat"]


def test_the_list_names_all(
    monkeypatch: pytest.MonkeyPatch, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bench(monkeypatch, "--list")
    assert {"files-large", "files-chat", "chat"} <= {*capsys.readouterr().out.splitlines()}
    assert measured == []
