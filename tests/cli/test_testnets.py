"""`overlay testnet`, as far as it goes without a network."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Command


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--link-delay", "1.5", "a link's delay is 0 to 1 seconds, not 1.5"),
        ("--link-delay", "-1", "invalid number of seconds"),
        ("--link-rate", "0", "a rate is a number of bytes a second, above 0"),
    ],
)
def test_links_that_cannot_be_are_wrong_use(
    overlay: Command, option: str, value: str, complaint: str
) -> None:
    done = overlay("testnet", "tor", option, value)
    assert (done.code, done.out) == (2, "")
    assert complaint in done.err


@pytest.mark.parametrize(("network", "other"), [("tor", "i2plib"), ("i2p", "stem")])
def test_each_network_needs_its_own_extra_alone(
    overlay: Command, monkeypatch: pytest.MonkeyPatch, network: str, other: str
) -> None:
    for name in [name for name in sys.modules if name.startswith(("overlay_cli.testnet", "overlay.testing"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, other, None)
    module = importlib.import_module(f"overlay_cli.testnet_{network}")
    assert getattr(module, network)
    assert overlay("testnet", network, "--help").code == 0
