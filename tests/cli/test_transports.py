from __future__ import annotations

import argparse
import socket
from pathlib import Path

import pytest

from overlay.control.config import Config
from overlay.control.home import Home, Remembered
from overlay.errors import MalformedError, RefusedError
from overlay.transports.i2p.settings import AttachedRouter, LaunchedRouter
from overlay_cli.daemon import choose_config
from overlay_cli.transports import build_transports, choose_router


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create("", bytes)
    return home


def options(**given: object) -> argparse.Namespace:
    names = ("transport", "join", "torrc", "tor_control", "sam", "i2pd", "i2p_config", "listen")
    return argparse.Namespace(**{**dict.fromkeys(names), "directory": False, **given})


def names(home: Home, config: Config) -> list[str]:
    return [transport.name for transport in build_transports(home, config)]


def test_transports_come_in_the_order_of_preference(home: Home) -> None:
    assert names(home, Config()) == ["tor"]
    assert names(home, Config(transports=("tcp",))) == ["tcp"]
    assert names(home, Config(transports=("tcp", "tor"), anonymous=False)) == ["tcp", "tor"]
    assert names(home, Config(tor_control="127.0.0.1:9051")) == ["tor"]
    assert names(home, Config(transports=("i2p", "tor"), sam="127.0.0.1:7656")) == ["i2p", "tor"]


def test_tcp_beside_tor_is_refused(home: Home) -> None:
    with pytest.raises(RefusedError, match="reveal"):
        build_transports(home, Config(transports=("tor", "tcp")))


def test_a_torrc_that_cannot_be_read_is_refused(home: Home, tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match="torrc"):
        build_transports(home, Config(torrc=str(tmp_path)))


@pytest.mark.parametrize("path", ["/nonexistent", "."])
def test_a_configuration_for_i2pd_that_cannot_be_read_is_refused(home: Home, path: str) -> None:
    with pytest.raises(MalformedError, match="--i2p-config"):
        build_transports(home, Config(transports=("i2p",), i2p_config=path))


def test_a_sam_address_that_is_none_is_refused(home: Home) -> None:
    with pytest.raises(MalformedError, match="nowhere"):
        build_transports(home, Config(transports=("i2p",), sam="nowhere"))


def test_the_router_that_is_named_is_taken(home: Home, tmp_path: Path) -> None:
    assert choose_router(home, Config(sam="127.0.0.1:1")) == AttachedRouter("127.0.0.1:1")
    data = home.i2p / "data"
    assert choose_router(home, Config(i2pd="/opt/i2pd")) == LaunchedRouter(data, None, "/opt/i2pd")
    extra = tmp_path / "extra.conf"
    extra.touch()
    assert choose_router(home, Config(i2p_config=str(extra))) == LaunchedRouter(data, extra, "i2pd")


def test_without_a_name_a_router_that_runs_is_taken_and_else_one_is_launched(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = LaunchedRouter(home.i2p / "data", None, "i2pd")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setattr("overlay_cli.transports.DEFAULT_SAM", address)
        assert choose_router(home, Config()) == AttachedRouter(address)
        assert choose_router(home, Config(i2pd="i2pd")) == launched
    assert choose_router(home, Config()) == launched


def test_options_count_more_than_memory_and_memory_more_than_the_file(home: Home) -> None:
    home.config.write_text(
        'listen = "127.0.0.1:1"\nrelay = true\njoin = "file"\n[tor]\ncontrol = "127.0.0.1:9"\n'
    )
    config = choose_config(options(), home)
    assert config.transports == ("tor",)
    assert (config.listen, config.join, config.relay) == ("127.0.0.1:1", "file", True)
    home.remember(Remembered(join="memory", directory=True))
    config = choose_config(options(listen="127.0.0.1:2", transport=["tcp", "tcp"]), home)
    assert (config.listen, config.join, config.directory) == ("127.0.0.1:2", "memory", True)
    assert config.transports == ("tcp",)
    assert choose_config(options(torrc="lines"), home).tor_control == ""


def test_what_cannot_be_is_refused_before_anything_is_remembered(home: Home) -> None:
    with pytest.raises(MalformedError, match="--transport i2p"):
        choose_config(options(sam="127.0.0.1:7656", directory=True), home)
    assert home.remembered() == Remembered()


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
