from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from overlay.control.home import Home

if TYPE_CHECKING:
    from tests.cli.conftest import Command


def findings(overlay: Command, **environ: str) -> tuple[int, dict[str, Any]]:
    done = overlay("--json", "doctor", environ=environ)
    return done.code, {each["check"]: each for each in done.lines}


def fake_tor(folder: Path, script: str) -> str:
    program = folder / "tor"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_without_a_home(overlay: Command) -> None:
    code, found = findings(overlay)
    assert code == 7
    assert found["python"]["ok"]
    assert not found["home"]["ok"]


def test_a_node_that_does_not_run_is_not_wrong(overlay: Command, home: Home) -> None:
    home.config.write_text("transports = ['tcp']\n")
    code, found = findings(overlay)
    assert code == 0
    assert all(each["ok"] for each in found.values())
    assert "overlay up" in found["node"]["detail"]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo Tor version 0.4.8.9.", (0, "0.4.8.9")),
        ("echo Tor version 0.3.5.1.", (4, "too old")),
        ("exit 1", (4, "does not run")),
        ("echo nonsense", (4, "too old")),
    ],
)
def test_tor(overlay: Command, home: Home, tmp_path: Path, script: str, expected: tuple[int, str]) -> None:
    assert home.exists
    code, found = findings(overlay, PATH=fake_tor(tmp_path, script))
    assert code == expected[0]
    assert expected[1] in found["tor-program"]["detail"]


def test_what_others_can_read(overlay: Command, home: Home) -> None:
    (home.path / "identity").chmod(0o644)
    code, found = findings(overlay)
    assert (code, found["home"]["ok"]) == (6, False)


def test_a_damaged_identity_and_a_bad_configuration(overlay: Command, home: Home) -> None:
    home.config.write_text("transports = ['pigeon']\n")
    code, found = findings(overlay)
    assert (code, found["config"]["ok"]) == (2, False)
    (home.path / "identity").write_bytes(b"short")
    code, found = findings(overlay)
    assert (code, found["home"]["ok"]) == (2, False)


def test_a_clock_that_is_past(overlay: Command, home: Home) -> None:
    late = 4_000_000_000
    os.utime(home.path / "identity", (late, late))
    code, found = findings(overlay)
    assert (code, found["clock"]["ok"]) == (1, False)


def test_a_home_that_is_held_by_something_that_does_not_answer(overlay: Command, home: Home) -> None:
    home.config.write_text("transports = ['tcp']\n")
    with home.lock():
        code, found = findings(overlay)
    assert (code, found["node"]["ok"]) == (5, False)
