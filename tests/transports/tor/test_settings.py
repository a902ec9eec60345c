from __future__ import annotations

from pathlib import Path

import pytest

from overlay.errors import MalformedError
from overlay.transports.tor.settings import AttachedTor


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9051", ("127.0.0.1", 9051)),
        ("localhost:9051", ("localhost", 9051)),
        ("[::1]:9051", ("::1", 9051)),
        ("/run/tor/control", Path("/run/tor/control")),
        ("./control.sock", Path("control.sock")),
    ],
)
def test_control_address(text: str, address: object) -> None:
    assert AttachedTor(text).address == address


@pytest.mark.parametrize(
    "text", ["", "9051", "host", "host:", ":9051", "host:0", "host:65536", "host:x", "host:²"]
)
def test_what_is_no_control_address(text: str) -> None:
    with pytest.raises(MalformedError, match="no control port"):
        AttachedTor(text)


def test_the_password_is_asked_for_and_not_shown() -> None:
    attached = AttachedTor("127.0.0.1:9051", password=lambda: "hunter2")
    assert attached.password is not None
    assert attached.password() == "hunter2"
    assert "password" not in repr(attached)
