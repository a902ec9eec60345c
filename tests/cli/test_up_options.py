from __future__ import annotations

import argparse

import pytest

from overlay.control.config import Config
from overlay.errors import MalformedError
from overlay_cli.up_options import check_up_options, with_up_options


def options(**given: str) -> argparse.Namespace:
    names = ("torrc", "tor_control", "sam", "i2pd", "i2p_config", "listen")
    return argparse.Namespace(**{**dict.fromkeys(names), **given})


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"torrc": "f", "tor_control": "a"}, "--torrc is for the node's own tor, --tor-control"),
        ({"sam": "a", "i2pd": "p"}, "--i2pd is for the node's own I2P router, --sam"),
        ({"sam": "a", "i2p_config": "f"}, "--i2p-config is for the node's own I2P router, --sam"),
    ],
)
def test_options_that_exclude_each_other_are_refused(given: dict[str, str], option: str) -> None:
    with pytest.raises(MalformedError, match=f"{option}.*one of them"):
        check_up_options(options(**given), ("tor", "i2p", "tcp"))


@pytest.mark.parametrize(
    ("option", "transport"),
    [
        ("torrc", "tor"),
        ("tor_control", "tor"),
        ("sam", "i2p"),
        ("i2pd", "i2p"),
        ("i2p_config", "i2p"),
        ("listen", "tcp"),
    ],
)
def test_an_option_is_refused_where_its_transport_was_not_chosen(option: str, transport: str) -> None:
    others = tuple(name for name in ("tor", "i2p", "tcp") if name != transport)
    with pytest.raises(MalformedError) as caught:
        check_up_options(options(**{option: "x"}), others)
    written = "--" + option.replace("_", "-")
    assert str(caught.value) == (
        f"{written} is for {transport}, and this node uses {' and '.join(others)} only: "
        f"add '--transport {transport}', or leave {written} away"
    )
    check_up_options(options(**{option: "x"}), (*others, transport))


def test_without_an_option_the_file_counts() -> None:
    config = Config(tor_control="a", sam="s", listen="127.0.0.1:1")
    assert with_up_options(config, options()) == config


def test_an_option_ends_what_it_excludes_in_the_file() -> None:
    attached = Config(tor_control="a", sam="s")
    assert with_up_options(attached, options(torrc="f")) == Config(torrc="f", sam="s")
    assert with_up_options(attached, options(i2pd="p")) == Config(tor_control="a", i2pd="p")
    assert with_up_options(attached, options(i2p_config="c")) == Config(tor_control="a", i2p_config="c")
    launched = Config(torrc="f", i2pd="p", i2p_config="c")
    assert with_up_options(launched, options(tor_control="a")) == Config(
        tor_control="a", i2pd="p", i2p_config="c"
    )
    assert with_up_options(launched, options(sam="s")) == Config(torrc="f", sam="s")


def test_an_option_counts_more_than_the_file() -> None:
    config = Config(listen="127.0.0.1:1", i2pd="p", i2p_config="c")
    chosen = with_up_options(config, options(listen="127.0.0.1:2", i2pd="q"))
    assert (chosen.listen, chosen.i2pd, chosen.i2p_config) == ("127.0.0.1:2", "q", "c")
