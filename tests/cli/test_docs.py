"""What docs/cli.md and docs/spec/control.md promise is what there is."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from overlay.control.config import config_template
from overlay.control.runtime import Runtime
from overlay.control.verbs import bind
from overlay.errors import ERRORS_BY_CODE
from overlay.testing.nodes import World
from overlay_cli.parser import make_parser

DOCS = Path(__file__).parents[2] / "docs"


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every option and command of a parser and of those below it."""
    for action in parser._actions:
        yield from (option for option in action.option_strings if option not in {"-h", "--help"})
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield name
                yield from options(command)


def test_every_verb_and_option_is_described() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert [word for word in set(options(make_parser())) if not re.search(rf"[` \[]{word}\b", text)] == []


def test_every_error_has_its_line() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert [code for code in ERRORS_BY_CODE if f"`{code}`" not in text] == []


def test_every_key_of_the_configuration_is_described() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    table = ""
    for line in config_template().splitlines():
        if section := re.match(r"\[(\w+)\]", line):
            table = f"{section[1]}."
        elif key := re.match(r"#?(\w+) = ", line):
            assert f"| `{table}{key[1]}` |" in text


async def test_every_verb_of_the_api_is_described_with_its_arguments() -> None:
    _, _, text = (DOCS / "spec" / "control.md").read_text(encoding="utf-8").partition("## Verbs")
    for verb, handler in bind(Runtime(World().secret("ann").identifier, "", [])).items():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{verb}` |"))
        for name in handler.arguments.__struct_fields__:
            assert f"`{name}`" in row
