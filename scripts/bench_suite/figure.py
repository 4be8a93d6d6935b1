"""A figure, its target, and how both are written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Target:
    """What a figure is to be: its value or its ratio, at most or at least a limit."""

    of: Literal["value", "ratio"]
    bound: Literal["at most", "at least"]
    limit: float

    def is_met_by(self, figure: Figure) -> bool:
        """Whether a figure is as it should be."""
        number = figure.value if self.of == "value" else figure.ratio
        return number <= self.limit if self.bound == "at most" else number >= self.limit

    def __str__(self) -> str:
        return f"{self.of} {self.bound} {self.limit:g}"


@dataclass(frozen=True)
class Figure:
    """One measurement. `floor` is what the same run measured for comparison, in the same unit.

    `note` says, for people, what value and floor are and how they came about.
    """

    name: str
    value: float
    unit: str
    floor: float
    note: str

    @property
    def ratio(self) -> float:
        """The value over the floor."""
        return self.value / self.floor if self.floor else float("inf")

    def as_json(self) -> str:
        """One line."""
        return json.dumps(
            {
                "name": self.name,
                "value": round(self.value, 3),
                "unit": self.unit,
                "floor": round(self.floor, 3),
                "ratio": round(self.ratio, 3) if self.floor else None,
            }
        )


def table(measured: Iterable[tuple[Figure, Target]]) -> str:
    """The figures for people, each with its target and what it was measured against."""
    rows = [("figure", "value", "floor", "unit", "ratio", "target", "")]
    notes = []
    for figure, target in measured:
        rows.append(
            (
                figure.name,
                _number(figure.value),
                _number(figure.floor),
                figure.unit,
                f"{figure.ratio:.2f}",
                str(target),
                "met" if target.is_met_by(figure) else "MISSED",
            )
        )
        notes.append(f"{figure.name}: {figure.note}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numbers = {1, 2, 4}
    lines = [
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", *notes])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"
