from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.control.config import Config, config_template, load_config, parse_address
from overlay.errors import MalformedError, RefusedError


def written(path: Path, text: str) -> Path:
    file = path / "config.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_missing_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path / "config.toml") == Config()


def test_the_template_means_the_defaults_and_the_name(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, config_template('Ann "the\\ß"'))) == Config(name='Ann "the\\ß"')


def test_the_template_shows_every_key_with_its_default(tmp_path: Path) -> None:
    shown = re.sub(r"^#(?=\w+ =)", "", config_template("x"), flags=re.MULTILINE)
    config = load_config(written(tmp_path, shown))
    assert config == Config(name="x", anonymous=True)
    assert len(re.findall(r"^\w+ = ", shown, flags=re.MULTILINE)) == len(fields(Config))


def test_every_key_is_read(tmp_path: Path) -> None:
    text = """
        name = "a"
        transports = ["tcp", "i2p", "tor"]
        anonymous = false
        listen = "[::1]:9000"
        directory = true
        relay = true
        join = "t"
        tor = { control = "127.0.0.1:9051", password = "p", torrc = "f" }
        i2p = { sam = "127.0.0.1:7656", i2pd = "i", config = "c", length = 2, quantity = 4 }
        storage.quota_mib = 1
        limits.idle_timeout = 60
    """
    assert load_config(written(tmp_path, text)) == Config(
        name="a",
        transports=("tcp", "i2p", "tor"),
        anonymous=False,
        listen="[::1]:9000",
        directory=True,
        relay=True,
        join="t",
        tor_control="127.0.0.1:9051",
        tor_password="p",
        torrc="f",
        sam="127.0.0.1:7656",
        i2pd="i",
        i2p_config="c",
        tunnel_length=2,
        tunnel_quantity=4,
        quota_mib=1,
        idle_timeout=60,
    )


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("nmae = 'x'", "nmae"),
        ("name = 5", "name"),
        ("name = '" + "x" * 101 + "'", "name"),
        ('name = "x\\u001b[2J"', "name"),
        ("transports = 'tor'", "transports"),
        ("transports = []", "transports"),
        ("transports = ['i2']", "transports"),
        ("transports = ['tor', 'tor']", "transports"),
        ("transports = [[]]", "transports"),
        ("anonymous = 1", "anonymous"),
        ("listen = '9000'", "listen"),
        ("listen = 'localhost:99999'", "listen"),
        ("tor = 1", "tor"),
        ("[tor]\nport = 1", "tor.port"),
        ("[i2p]\nsam = '7656'", "i2p.sam"),
        ("[i2p]\nlength = 0", "i2p.length"),
        ("[i2p]\nlength = 8", "i2p.length"),
        ("[i2p]\nquantity = 0", "i2p.quantity"),
        ("[i2p]\nquantity = 17", "i2p.quantity"),
        ("[storage]\nquota_mib = -1", "storage.quota_mib"),
        ("[storage]\nquota_mib = true", "storage.quota_mib"),
        ("[limits]\nidle_timeout = 60.5", "limits.idle_timeout"),
        ("[limits]\nidle_timeout = 0", "limits.idle_timeout"),
        ("[strange]", "strange"),
    ],
)
def test_a_bad_key_is_named_with_its_file(tmp_path: Path, text: str, key: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(MalformedError) as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"name = ", b"\xff", b"= 1"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(data)
    with pytest.raises(MalformedError, match=re.escape(str(file))):
        load_config(file)


@pytest.mark.parametrize(
    ("transports", "anonymous", "hides"),
    [
        (("tor",), None, True),
        (("tcp",), None, False),
        (("tor", "tcp"), False, False),
        (("tcp",), False, False),
        (("tor",), True, True),
        (("i2p",), None, True),
        (("tor", "i2p"), None, True),
        (("i2p", "tcp"), False, False),
    ],
)
def test_a_node_hides_unless_told_otherwise(
    *, transports: tuple[str, ...], anonymous: bool | None, hides: bool
) -> None:
    config = Config(transports=transports, anonymous=anonymous)
    config.check_transports()
    assert config.hides is hides


@pytest.mark.parametrize(
    ("transports", "anonymous"),
    [(("tor", "tcp"), None), (("i2p", "tcp"), None), (("tcp",), True), (("tcp", "tor"), True)],
)
def test_tcp_is_refused_on_an_anonymous_node(*, transports: tuple[str, ...], anonymous: bool | None) -> None:
    with pytest.raises(RefusedError, match="reveal"):
        Config(transports=transports, anonymous=anonymous).check_transports()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (Config(tor_control="127.0.0.1:9051", torrc="f"), "tor.torrc"),
        (Config(sam="127.0.0.1:7656", i2pd="i"), "i2p.sam"),
        (Config(sam="127.0.0.1:7656", i2p_config="c"), "i2p.sam"),
    ],
)
def test_a_router_to_launch_beside_one_that_runs_is_refused(config: Config, sentence: str) -> None:
    with pytest.raises(MalformedError, match=f"{sentence}.*keep one of them in config.toml"):
        config.check_transports()


def test_secrets_are_not_shown() -> None:
    assert "hush" not in repr(Config(tor_password="hush", join="hush"))


@given(st.text(max_size=30))
def test_an_address_is_read_or_refused(text: str) -> None:
    try:
        host, port = parse_address(text)
    except MalformedError:
        return
    assert host is not None
    assert 0 <= port <= 65535
