from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import MalformedError
from overlay.wire.tokens import base32, format_token, parse_token, unbase32

LIMIT = 200
prefixes = st.sampled_from(["overlay-ticket-", "overlay-invite-", "ovt"])
payloads = st.binary(min_size=1, max_size=LIMIT)


@given(st.binary(max_size=100))
def test_base32_is_that_of_the_standard_library(data: bytes) -> None:
    text = base32(data)
    assert text == base64.b32encode(data).decode().rstrip("=").lower()
    assert unbase32(text) == unbase32(text.upper()) == data


@given(st.text(max_size=40) | st.text("abcXYZ27=", max_size=40))
def test_any_text_is_base32_or_malformed(text: str) -> None:
    try:
        data = unbase32(text)
    except MalformedError:
        return
    assert base32(data) == text.lower()


@pytest.mark.parametrize(
    "text",
    ["a", "abc", "abcdef", "a1", "a=", "=", "mzxw6===", "ab c", "ab\n", "\u017f" * 8, "\u0131" * 8, "ab"],
)
def test_what_is_not_shortest_base32_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        unbase32(text)


@given(prefixes, payloads, st.data())
def test_token_round_trips_however_it_was_pasted(prefix: str, payload: bytes, data: st.DataObject) -> None:
    text = format_token(prefix, payload)
    at = data.draw(st.integers(0, len(text)))
    for pasted in (text, text.upper(), f"  {text}\n", f"{text[:at]}\r\n   {text[at:]}"):
        assert parse_token(prefix, pasted, limit=LIMIT) == payload


@given(payloads)
def test_one_kind_is_not_another(payload: bytes) -> None:
    ticket = format_token("ticket-", payload)
    with pytest.raises(MalformedError, match="does not begin with 'invite-'"):
        parse_token("invite-", ticket, limit=LIMIT)
    with pytest.raises(MalformedError, match="damaged"):
        parse_token("invite-", "invite-" + ticket.removeprefix("ticket-"), limit=LIMIT)
    with pytest.raises(MalformedError):  # a kind whose name begins like the other's
        parse_token("tick", ticket, limit=LIMIT)


@given(payloads, st.data())
def test_a_mistyped_or_cut_token_is_refused(payload: bytes, data: st.DataObject) -> None:
    text = format_token("t-", payload)
    at = data.draw(st.integers(2, len(text) - 1))
    other = data.draw(
        st.sampled_from("abcdefghijklmnopqrstuvwxyz234567").filter(lambda letter: letter != text[at])
    )
    for bad in (text[:at], text[:at] + other + text[at + 1 :], text[:at] + text[at + 1 :]):
        with pytest.raises(MalformedError, match="this token is damaged: copy it again, whole"):
            parse_token("t-", bad, limit=LIMIT)


def test_limit_is_exact() -> None:
    assert parse_token("t-", format_token("t-", bytes(10)), limit=10) == bytes(10)
    with pytest.raises(MalformedError, match="too long"):
        parse_token("t-", format_token("t-", bytes(11)), limit=10)


@pytest.mark.parametrize("text", ["", " ", "t-", "t-a", "t-aaaaaaa", "x"])
def test_a_token_without_payload_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_token("t-", text, limit=LIMIT)


@given(st.text(max_size=100) | st.text("t-aA27", max_size=100).map("t-".__add__))
def test_any_text_is_malformed(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_token("t-", text, limit=50)
