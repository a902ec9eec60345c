from __future__ import annotations

from overlay.sensitive import Sensitive


def test_no_text_form_shows_the_value() -> None:
    hidden = Sensitive("an address")
    for text in (str(hidden), repr(hidden), f"{hidden}", f"{hidden!r}", "%s" % hidden, repr([hidden])):  # noqa: UP031 - logging formats so
        assert "address" not in text
        assert "[hidden]" in text
    assert hidden.value == "an address"
