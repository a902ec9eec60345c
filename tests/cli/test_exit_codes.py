from __future__ import annotations

import pytest

from overlay.errors import ERRORS_BY_CODE
from overlay_cli.exit_codes import exit_code


@pytest.mark.parametrize("code", ERRORS_BY_CODE)
def test_every_error_has_an_exit_code(code: str) -> None:
    assert 1 <= exit_code(ERRORS_BY_CODE[code]("x")) <= 8


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("failure", 1),
        ("malformed", 2),
        ("not-running", 3),
        ("unavailable", 4),
        ("unreachable", 5),
        ("refused", 6),
        ("not-found", 7),
        ("verification", 8),
    ],
)
def test_the_exit_codes_of_the_contract(code: str, expected: int) -> None:
    assert exit_code(ERRORS_BY_CODE[code]("x")) == expected
