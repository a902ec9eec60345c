from __future__ import annotations

import pytest

from overlay import errors
from overlay.errors import ERRORS_BY_CODE, OverlayError, error_from_code

PUBLIC = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, OverlayError)
]


def test_every_error_has_a_code_of_its_own() -> None:
    assert set(ERRORS_BY_CODE.values()) == set(PUBLIC)
    assert len({error.code for error in PUBLIC}) == len(PUBLIC)


@pytest.mark.parametrize("kind", PUBLIC)
def test_an_error_travels_by_its_code(kind: type[OverlayError]) -> None:
    rebuilt = error_from_code(kind.code, "what is wrong")
    assert type(rebuilt) is kind
    assert str(rebuilt) == "what is wrong"


def test_a_code_of_a_newer_version_is_a_plain_failure() -> None:
    assert type(error_from_code("from-the-future", "text")) is OverlayError


def test_errors_are_also_what_python_code_expects() -> None:
    assert issubclass(errors.MalformedError, ValueError)
    assert issubclass(errors.NotFoundError, LookupError)
