from __future__ import annotations

import io
import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.control.protocol import JSON
from overlay_cli import progress as module
from overlay_cli.progress import (
    LINE_INTERVAL,
    Progress,
    ProgressLines,
    StatusBlock,
    StatusLine,
    draw,
    duration,
    size,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rate_and_remaining_time_are_shown() -> None:
    assert draw("get", 3 << 20, 12 << 20, 2.0, 2 << 20) == (
        "get [######------------------]  25% 3.0 MiB of 12.0 MiB, 1.0 MiB/s, 9 s left"
    )


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.floats(1e-6, 1e6), st.integers(0, 2**40))
def test_any_amounts_can_be_drawn(done: int, total: int, seconds: float, moved: int) -> None:
    line = draw("x", done, total, seconds, moved)
    assert len(line) < 100
    assert "\n" not in line


SHOWN, LIED = "3.0 MiB of 12.0 MiB", "2 nodes sent wrong chunks"
FIGURES: Mapping[str, JSON] = {"rate": 1 << 20, "left": 9, "circuits": 3, "providers": 1}


@pytest.mark.parametrize(
    ("more", "width", "line"),
    [
        (
            FIGURES,
            200,
            f"get [######{'-' * 18}]  25% 3.0 MiB of 12.0 MiB, 1.0 MiB/s, 9 s left, 3 circuits to 1 node",
        ),
        (
            {**FIGURES, "left": None},
            78,
            "get [###-----------]  25% 3.0 MiB of 12.0 MiB, 1.0 MiB/s, 3 circuits to 1 node",
        ),
        (
            {**FIGURES, "circuits": 0, "stage": "connecting"},
            78,
            "get [#------]  25% 3.0 MiB of 12.0 MiB, no provider is connected, still trying",
        ),
        (
            {**FIGURES, "liars": ["a", "b"]},
            200,
            f"get [######{'-' * 18}]  25% {SHOWN}, 1.0 MiB/s, 9 s left, 3 circuits to 1 node, {LIED}",
        ),
        (
            {**FIGURES, "circuits": 0, "liars": ["a", "b"]},
            200,
            f"get [######{'-' * 18}]  25% {SHOWN}, no provider is connected, still trying, {LIED}",
        ),
        (
            {**FIGURES, "circuits": 0, "stage": "looking"},
            78,
            "get [#####----------------]  25% 3.0 MiB of 12.0 MiB, looking at what is there",
        ),
        (FIGURES, 60, "get [##------]  25% 3.0 MiB of 12.0 MiB, 1.0 MiB/s, 9 s left"),
        (FIGURES, 20, "get [#-----]  25% 3.0 MiB of 12.0 MiB"[:20]),
        ({"rate": 0, "left": None}, 200, "get [######------------------]  25% 3.0 MiB of 12.0 MiB, 0 B/s"),
    ],
)
def test_what_the_node_says_comes_first_and_the_line_fits(
    more: Mapping[str, JSON], width: int, line: str
) -> None:
    drawn = draw("get", 3 << 20, 12 << 20, 100.0, 1, more=more, width=width)
    assert drawn == line
    assert len(drawn) <= width


def test_without_a_total_there_is_no_bar() -> None:
    assert draw("get", 3 << 20, 0, 1.0, 1, more=FIGURES) == "get 3.0 MiB, 1.0 MiB/s, 3 circuits to 1 node"
    more = {**FIGURES, "circuits": 0, "stage": "connecting"}
    assert draw("get", 3 << 20, 0, 1.0, 1, more=more) == (
        "get 3.0 MiB, no provider is connected, still trying"
    )
    assert draw("get", 0, 0, 1.0, 1, more={**more, "stage": "looking"}) == "get 0 B, looking at what is there"
    assert draw("get", 3 << 20, 0, 1.0, 1, more=FIGURES, width=20) == "get 3.0 MiB, 1.0 MiB"


def test_a_total_that_is_not_known_is_null_for_programs() -> None:
    stream, clock = io.StringIO(), Clock()
    with ProgressLines(stream, clock) as progress:
        progress(3 << 20, 0, FIGURES)
        progress(3 << 20, 4 << 20, FIGURES)  # too soon
        clock.now += LINE_INTERVAL
        progress(3 << 20, 4 << 20, FIGURES)
    lines = [json.loads(line)["progress"] for line in stream.getvalue().splitlines()]
    assert lines == [{"done": 3 << 20, "total": total, **FIGURES} for total in (None, 4 << 20)]


def test_what_is_whole_needs_no_provider() -> None:
    line = draw("get", 3 << 20, 3 << 20, 1.0, 1, more={**FIGURES, "circuits": 0})
    assert line == f"get [{'#' * 24}] 100% 3.0 MiB of 3.0 MiB"


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(1, 200))
def test_no_line_is_wider_than_its_terminal(done: int, total: int, width: int) -> None:
    more = {"rate": done / 7, "left": total, "circuits": 8, "providers": 8}
    assert len(draw("get", done, total, 1.0, 1, more=more, width=width)) <= width


def test_programs_get_a_line_a_second() -> None:
    stream, clock = io.StringIO(), Clock()
    with ProgressLines(stream, clock) as progress:
        for done in range(25):
            progress(done, 25, {"rate": 7, "total": 25})
            clock.now += 0.125
    lines = [json.loads(line)["progress"] for line in stream.getvalue().splitlines()]
    assert [each["done"] for each in lines] == [0, 8, 16, 24]
    assert lines[0] == {"done": 0, "total": 25, "rate": 7}


def test_lines_change_in_place_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "terminal_size", lambda _: (5, 3))
    stream = Terminal()
    block = StatusBlock(stream)
    block.show(["one", "too long", "too many"])
    block.show(["one", "too long"])  # looks the same
    block.show(["two"])
    block.show([])
    block.show(["three"])
    assert stream.getvalue() == "one\ntoo \n\x1b[2A\r\x1b[Jtwo\n\x1b[1A\r\x1b[Jthre\n"


def test_lines_that_changed_come_one_below_the_other_elsewhere() -> None:
    stream = io.StringIO()
    block = StatusBlock(stream)
    for lines in (["one"], ["one"], ["two", "x" * 300]):
        block.show(lines)
    assert stream.getvalue() == "one\ntwo\n" + "x" * 300 + "\n"


def test_a_terminal_sees_the_bar_and_then_nothing_of_it() -> None:
    stream, clock = Terminal(), Clock()
    with Progress(stream, "post", clock) as progress:
        progress(0, 10)
        clock.now += 1
        progress(5, 10)
        assert "50%" in stream.getvalue()
        assert "5 s left" not in stream.getvalue()
        assert "1 s left" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_it_is_not_drawn_too_often() -> None:
    stream, clock = Terminal(), Clock()
    with Progress(stream, "post", clock) as progress:
        for done in range(1, 100):
            clock.now += 0.001
            progress(done, 100)
    assert stream.getvalue().count("[") < 6


@pytest.mark.parametrize(("stream", "shown"), [(io.StringIO(), True), (Terminal(), False)])
def test_nobody_else_sees_anything(stream: io.StringIO, *, shown: bool) -> None:
    with Progress(stream, "post", Clock(), shown=shown) as progress:
        progress(1, 2)
    assert not stream.getvalue()


def test_a_status_is_shown_in_place_on_a_terminal_and_in_lines_elsewhere() -> None:
    for stream, expected in (
        (Terminal(), "\r\x1b[Kone\r\x1b[Ktwo\n"),
        (io.StringIO(), "one\ntwo\n"),
    ):
        line = StatusLine(stream, shown=True)
        line.show("one", last=False)
        line.show("two", last=True)
        assert stream.getvalue() == expected
    line.show("two", last=True)
    assert stream.getvalue() == expected  # the same again says nothing new
    silent = io.StringIO()
    StatusLine(silent, shown=False).show("one", last=True)
    assert not silent.getvalue()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 50, "3072.0 TiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (63, "1 min 3 s"), (7500, "2 h 5 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
