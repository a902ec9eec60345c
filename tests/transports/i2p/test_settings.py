from __future__ import annotations

import pytest

from overlay.errors import MalformedError
from overlay.transports.i2p.protocol import TRANSIENT, session_create
from overlay.transports.i2p.settings import AttachedRouter, TunnelOptions


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7656", ("127.0.0.1", 7656)),
        ("localhost:1", ("127.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("10.0.0.2:7656", ("10.0.0.2", 7656)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert AttachedRouter(text).address == address


def test_default_is_what_routers_offer() -> None:
    assert AttachedRouter().address == ("127.0.0.1", 7656)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7656",
        "127.0.0.1",
        "127.0.0.1:",
        ":7656",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:" + "9" * 5000,
        "127.0.0.1:0655350",
        "127.0.0.1:\u0661",
        "127.0.0.1:-1",
        "127.0.0.1: 1",
        "router.example:7656",
        "127.1:7656",
        "[127.0.0.1:7656",
        "http://127.0.0.1:7656",
    ],
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(MalformedError, match=r"127\.0\.0\.1:7656"):
        AttachedRouter(text)


def test_options_are_what_i2pd_takes() -> None:
    assert TunnelOptions(length=2, quantity=4).options()[:5] == (
        "inbound.length=2",
        "outbound.length=2",
        "inbound.quantity=4",
        "outbound.quantity=4",
        "i2cp.leaseSetEncType=4",
    )
    options = TunnelOptions(initial_ack_delay=50).options()
    assert "i2p.streaming.initialAckDelay=50" in options
    assert session_create("a", "STREAM", TRANSIENT, options).count(b"=") == len(options) + 4


@pytest.mark.parametrize(
    ("length", "quantity", "delay"),
    [(0, 5, None), (8, 5, None), (-1, 5, None), (3, 0, None), (3, 17, None), (3, 5, 0), (3, 5, 10_001)],
)
def test_numbers_out_of_range(length: int, quantity: int, delay: int | None) -> None:
    with pytest.raises(MalformedError):
        TunnelOptions(length, quantity, delay)


def test_options_for_people() -> None:
    assert str(TunnelOptions()) == "3 hops, 5 each way"
    assert str(TunnelOptions(length=1)) == "1 hop, 5 each way"
