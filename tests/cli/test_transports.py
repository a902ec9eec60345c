from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from overlay.control.config import Config
from overlay.control.home import Home, Remembered
from overlay.errors import MalformedError, RefusedError
from overlay_cli.daemon import choose_config
from overlay_cli.transports import build_transports


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create("", bytes)
    return home


def options(**given: object) -> argparse.Namespace:
    names = ("transport", "join", "torrc", "tor_control", "listen")
    return argparse.Namespace(**{**dict.fromkeys(names), "directory": False, **given})


def names(home: Home, config: Config) -> list[str]:
    return [transport.name for transport in build_transports(home, config)]


def test_transports_come_in_the_order_of_preference(home: Home) -> None:
    assert names(home, Config()) == ["tor"]
    assert names(home, Config(transports=("tcp",))) == ["tcp"]
    assert names(home, Config(transports=("tcp", "tor"), anonymous=False)) == ["tcp", "tor"]
    assert names(home, Config(tor_control="127.0.0.1:9051")) == ["tor"]


def test_tcp_beside_tor_is_refused(home: Home) -> None:
    with pytest.raises(RefusedError, match="reveal"):
        build_transports(home, Config(transports=("tor", "tcp")))


def test_a_torrc_that_cannot_be_read_is_refused(home: Home, tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match="torrc"):
        build_transports(home, Config(torrc=str(tmp_path)))


def test_options_count_more_than_memory_and_memory_more_than_the_file(home: Home) -> None:
    home.config.write_text(
        'listen = "127.0.0.1:1"\nrelay = true\njoin = "file"\n[tor]\ncontrol = "127.0.0.1:9"\n'
    )
    config = choose_config(options(), home)
    assert (config.listen, config.join, config.relay) == ("127.0.0.1:1", "file", True)
    home.remember(Remembered(join="memory", directory=True))
    config = choose_config(options(listen="127.0.0.1:2", transport=["tcp", "tcp"]), home)
    assert (config.listen, config.join, config.directory) == ("127.0.0.1:2", "memory", True)
    assert config.transports == ("tcp",)
    assert choose_config(options(torrc="lines"), home).tor_control == ""


def test_the_password_of_the_environment_counts_more(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.config.write_text('[tor]\npassword = "file"\n')
    monkeypatch.delenv("OVERLAY_TOR_PASSWORD", raising=False)
    assert choose_config(options(), home).tor_password == "file"
    monkeypatch.setenv("OVERLAY_TOR_PASSWORD", "environment")
    assert choose_config(options(), home).tor_password == "environment"


def test_a_bad_ticket_is_not_remembered(home: Home) -> None:
    with pytest.raises(MalformedError):
        choose_config(options(join="ovt1aaaa"), home)
    assert home.remembered() == Remembered()


def test_being_a_directory_is_remembered(home: Home) -> None:
    assert choose_config(options(directory=True), home).directory
    assert choose_config(options(), home).directory
