from __future__ import annotations

import importlib

import pytest

from overlay.errors import MalformedError
from overlay_cli.parser import parse

COMMANDS = [
    ["init"],
    ["up"],
    ["status"],
    ["ticket"],
    ["peers"],
    ["id"],
    ["down"],
    ["doctor"],
    ["version"],
    ["chat", "create", "title"],
    ["chat", "list"],
    ["chat", "invite", "s"],
    ["chat", "join", "i"],
    ["chat", "people", "s"],
    ["chat", "leave", "s"],
    ["chat", "send", "s", "text"],
    ["chat", "read", "s"],
    ["chat", "post", "s", "p"],
    ["chat", "files", "s"],
    ["chat", "get", "s", "f"],
    ["testnet", "tor"],
    ["testnet", "i2p"],
]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_verb_leads_to_a_function(command: list[str]) -> None:
    module, _, function = parse(command).run.partition(":")
    assert callable(getattr(importlib.import_module(f"overlay_cli.{module}"), function))


@pytest.mark.parametrize("command", COMMANDS)
def test_global_options_may_stand_before_and_after_the_command(command: list[str]) -> None:
    before = parse(["--home", "h", "--json", "--quiet", *command])
    after = parse([*command, "--home", "h", "--json", "--quiet"])
    assert before == after
    assert (before.home, before.json, before.quiet, before.verbose) == ("h", True, True, False)
    assert parse(command).home is None


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("chat get s f --force", "overlay chat get"),
        ("file share p --follow", "overlay file share"),
        ("id --only x", "overlay id"),
    ],
)
def test_what_a_command_does_not_know_leads_to_its_own_help(words: str, command: str) -> None:
    with pytest.raises(MalformedError, match=f"^unrecognized arguments: --.*: see '{command} --help'$"):
        parse(words.split())


@pytest.mark.parametrize("text", ["1.5M", "fast", "K", "", "1_0K5"])
def test_what_is_no_number_of_bytes_is_said(text: str) -> None:
    with pytest.raises(MalformedError, match=f"{text!r} is no whole number of bytes, which K, M, G or T"):
        parse(["file", "get", "l", "--rate", text])


def test_options_of_up() -> None:
    text = "up --transport tor --transport i2p --transport tcp --directory --join T"
    text += " --torrc F --tor-control A --listen H:1 --sam S:1 --i2pd P --i2p-config C"
    options = parse(text.split())
    assert options.transport == ["tor", "i2p", "tcp"]
    assert (options.sam, options.i2pd, options.i2p_config) == ("S:1", "P", "C")
    assert (options.directory, options.join, options.torrc) == (True, "T", "F")
    assert (options.tor_control, options.listen) == ("A", "H:1")


def test_text_that_looks_like_an_option_comes_after_two_dashes() -> None:
    assert parse(["chat", "send", "s", "--", "--help"]).text == "--help"
    assert parse(["chat", "send", "s", "-"]).text == "-"


def test_links_have_no_distance_unless_they_are_given_one() -> None:
    near = parse(["testnet", "tor"])
    far = parse(["testnet", "tor", "--link-delay", "0.03", "--link-rate", "20000000"])
    assert (near.link_delay, near.link_rate) == (0.0, None)
    assert (far.link_delay, far.link_rate) == (0.03, 20_000_000)


def test_a_wrong_number_of_relays_is_called_so() -> None:
    with pytest.raises(MalformedError, match="invalid number of relays value: 'x'"):
        parse(["testnet", "tor", "--relays", "x"])


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["nonsense"],
        ["chat"],
        ["chat", "nonsense"],
        ["status", "--wai", "5"],
        ["status", "--wait", "soon"],
        ["status", "--wait", "-1"],
        ["status", "--wait", "nan"],
        ["status", "--wait", "inf"],
        ["up", "--transport", "pigeon"],
        ["up", "surplus"],
        ["chat", "create"],
        ["chat", "read", "s", "--last", "-1"],
        ["chat", "read", "s", "--last", "x"],
        ["testnet", "tor", "--relays", "2"],
        ["testnet", "tor", "--relays", "1000"],
        ["testnet", "tor", "--link-delay", "-1"],
        ["testnet", "tor", "--link-delay", "nan"],
        ["testnet", "tor", "--link-delay", "soon"],
        ["testnet", "tor", "--link-rate", "0"],
        ["testnet", "tor", "--link-rate", "-5"],
        ["testnet", "tor", "--link-rate", "1.5"],
        ["testnet", "i2p", "--routers", "7"],
        ["testnet", "i2p", "--routers", "1000"],
    ],
)
def test_a_wrong_use_is_one_sentence_that_leads_to_the_help(command: list[str]) -> None:
    with pytest.raises(MalformedError) as caught:
        parse(command)
    assert "--help" in str(caught.value)
    assert "\n" not in str(caught.value)
