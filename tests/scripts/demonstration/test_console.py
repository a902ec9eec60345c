from __future__ import annotations

from io import StringIO

import pytest

from scripts.demonstration.console import Console


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("chat", "send", "two words"), 'chat send "two words"'),
        (("file", "get", "urn:eris:" + "A" * 99), "file get urn:eris:AAAAAAAAAAAAAAA…"),
        (("file", "get", "urn:eris:A?+from=b"), "file get 'urn:eris:A?+from=b'"),
    ],
)
def test_commands_are_shown_as_they_are_typed(words: tuple[str, ...], shown: str) -> None:
    out = StringIO()
    Console(out).command(words)
    assert out.getvalue() == f"   $ {shown}\n"
