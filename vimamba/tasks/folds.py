"""Shared code of the tasks for reports over all folds of a cross-validation.

A task's module pools the held-out cases (`pool_folds` of `vimamba.tasks.tools.Tools`); the command
writes the lists, prints the tables and draws the dots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from vimamba.console import number

Row = dict[str, Any]


@dataclass(frozen=True)
class Folds:
    """The scored folds of a cross-validation.

    Attributes:
        reports: The scores of each fold's held-out images, as in its metrics.json.
        cases: The rows of every `cases_test.csv`, as text, each with the number of its `fold`;
            empty if the task writes no such list.
        per_fold: The rows of folds.csv.
        over_folds: Number, mean and standard deviation of each score over the folds that have it.
    """

    reports: Sequence[Row]
    cases: Sequence[Row]
    per_fold: Sequence[Row]
    over_folds: Mapping[str, Row]

    def numbers(self, *text: str) -> list[Row]:
        """The cases with parsed numbers and None for empty cells, except in text columns."""
        return [
            {
                key: value if key in ("fold", *text) else cell_value(value)
                for key, value in row.items()
            }
            for row in self.cases
        ]


@dataclass(frozen=True)
class Pooled:
    """A task's report on the held-out cases of all folds.

    Attributes:
        summary: Entries of summary.json in addition to the scores of the folds.
        tables: Title, heads and rows of each table to print.
        headline: The most important score, in a line.
        title: Title of the dot plot.
        axis: Label of the axis.
        dots: Rows of the plot: a name, and the fold and value of each dot.
    """

    summary: Row
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[object]]]]
    headline: str
    title: str
    axis: str
    dots: Sequence[tuple[str, Sequence[tuple[int, float | None]]]]


def cell_value(text: str) -> float | None:
    """A cell as a number, None if it is empty."""
    if not text:
        return None
    return int(text) if text.isdecimal() else float(text)


def spread(values: Sequence[float]) -> Row:
    """Number, mean and sample standard deviation (None for a single value)."""
    deviation = stdev(values) if len(values) > 1 else None
    return {"n": len(values), "mean": fmean(values), "sd": deviation}


def plus_minus(found: Mapping[str, Any] | None) -> str:
    """Mean and standard deviation in a cell."""
    if found is None:
        return "-"
    return f"{found['mean']:.3f} ± {number(found['sd'])}"
