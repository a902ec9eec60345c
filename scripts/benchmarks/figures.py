"""What a benchmark gives: figures, each with its goal, and the table of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure.

    Attributes:
        name: the benchmark that it comes from.
        what: what was measured, in words.
        value: the median, in `unit`.
        unit: of `value` and `goal`.
        goal: the value to reach.
        better: whether more or less is better.
        detail: the raw values behind it, and the conditions.
    """

    name: str
    what: str
    value: float
    unit: str
    goal: float
    better: Literal["more", "less"]
    detail: dict[str, float | str] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """Whether the goal is reached."""
        return self.value >= self.goal if self.better == "more" else self.value <= self.goal

    def fields(self) -> dict[str, object]:
        """What makes an equal one, in another process."""
        return asdict(self)

    def to_json(self) -> dict[str, object]:
        """The figure as it is written to a file."""
        return self.fields() | {"reached": self.reached}


@dataclass(frozen=True, slots=True)
class Failure:
    """A benchmark that could not be run, and why."""

    name: str
    reason: str


def spread(label: str, samples: Sequence[float]) -> dict[str, float | str]:
    """The median of samples with the least and the greatest, for `Figure.detail`."""
    return {
        label: statistics.median(samples),
        f"{label} (least)": min(samples),
        f"{label} (greatest)": max(samples),
    }


def table(outcomes: Sequence[Figure | Failure]) -> str:
    """All outcomes as lines of text."""
    rows = [("", "measured", "goal", "", "what"), *map(_row, outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for name, value, goal, mark, what in rows:
        cells = (
            name.ljust(widths[0]),
            value.rjust(widths[1]),
            goal.rjust(widths[2]),
            mark.ljust(widths[3]),
        )
        lines.append("  ".join((*cells, what)).rstrip())
    return "\n".join(lines)


def _row(outcome: Figure | Failure) -> tuple[str, str, str, str, str]:
    if isinstance(outcome, Failure):
        return outcome.name, "-", "", "not measured", outcome.reason
    sign = "≥" if outcome.better == "more" else "≤"
    mark = "reached" if outcome.reached else "missed"
    value, goal = f"{_short(outcome.value)} {outcome.unit}", f"{sign} {_short(outcome.goal)} {outcome.unit}"
    return outcome.name, value, goal, mark, outcome.what


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"
