from __future__ import annotations

import io
import os

import pytest
import segno

from overlay.errors import MalformedError
from overlay.files.links import FileLink
from overlay.units.capability import ReadCapability
from overlay_cli import qr
from overlay_cli.output import Output

CAPABILITY = ReadCapability(32768, 1, bytes(32), bytes(range(32)))
LINK = FileLink(CAPABILITY, (os.urandom(300),), "plan.pdf", 100_000, "file").urn
PAIRS = {block: pair for pair, block in qr._BLOCKS.items()}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def modules(lines: list[str]) -> list[list[bool]]:
    """The code that a person sees: two rows of modules a line, the last of them one too many."""
    rows = [[PAIRS[block][half] for block in line] for line in lines for half in (0, 1)]
    return rows[:-1]


def shown(link: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setattr(qr, "terminal_size", lambda _: size)
    stdout, stderr = Terminal(), io.StringIO()
    qr.show_link(link, Output(stdout=stdout, stderr=stderr))
    return stdout.getvalue(), stderr.getvalue()


@pytest.mark.parametrize("text", ["x" * 700, CAPABILITY.urn.upper()])
def test_what_is_drawn_is_the_code(text: str) -> None:
    code = segno.make_qr(text, error="l", boost_error=False)
    assert modules(qr.draw(text)) == [[bool(it) for it in row] for row in code.matrix_iter(border=4)]


def test_a_capability_in_capitals_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FileLink.parse(CAPABILITY.urn.upper()).capability == CAPABILITY
    assert len(qr.draw(CAPABILITY.urn.upper())[0]) == 45
    out, err = shown(CAPABILITY.urn, (45, 24), monkeypatch)
    assert (out.count("\n"), err) == (23, "")


def test_a_usual_link_has_the_size_that_the_documentation_says() -> None:
    usual = FileLink.parse(LINK)
    assert (len(qr.draw(usual.urn)[0]), len(qr.draw(usual.urn))) == (97, 49)


def test_the_whole_link_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = shown(LINK, (97, 50), monkeypatch)
    assert out.splitlines() == [f"\x1b[0;97;40m{line}\x1b[0m" for line in qr.draw(LINK)]
    assert not err


@pytest.mark.parametrize("size", [(96, 50), (97, 49), (80, 24)])
def test_the_capability_alone_where_there_is_not(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = shown(LINK, size, monkeypatch)
    assert out.splitlines() == [f"\x1b[0;97;40m{line}\x1b[0m" for line in qr.draw(CAPABILITY.urn.upper())]
    assert "without who has it" in err


def test_no_room_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MalformedError, match="45 columns and 24 lines"):
        shown(LINK, (44, 24), monkeypatch)


def test_what_no_code_holds_is_cut_down_to_the_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    records = tuple(os.urandom(2048) for _ in range(8))
    link = FileLink(CAPABILITY, records, "plan.pdf", 100_000, "file").urn
    assert qr.draw(link) == []
    assert "without who has it" in shown(link, (1000, 1000), monkeypatch)[1]


def test_elsewhere_there_is_always_room_and_no_colour() -> None:
    stdout = io.StringIO()
    qr.show_link(LINK, Output(stdout=stdout, stderr=io.StringIO()))
    assert stdout.getvalue().splitlines() == qr.draw(LINK)
