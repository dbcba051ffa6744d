"""The picture of a cross-validation: each held-out case, or each fold, as a dot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vimamba.tasks.folds import Pooled
from vimamba.tasks.pictures import COLORS, STYLE, save, shorten

MOST_CLASSES = 24
# spread of the dots across their row, the same in every picture
JITTER = 0.22


def draw_folds(pooled: Pooled, folds: int, path: Path) -> None:
    """Dots, colored by fold, over a box of their quartiles.

    Args:
        pooled: Holds the dots.
        folds: Number of folds.
        path: PNG to write.
    """
    rows = pooled.dots
    values = [value for _, points in rows for _, value in points if value is not None]
    with mpl.rc_context(STYLE):
        height = 1.7 + 0.55 * min(len(rows), MOST_CLASSES)
        figure = Figure(figsize=(8.4, height), layout="constrained")
        axes = figure.subplots()
        draw_rows(axes, rows[:MOST_CLASSES])
        more = f"; {len(rows) - MOST_CLASSES} more rows" if len(rows) > MOST_CLASSES else ""
        axes.set_title(pooled.title + more, loc="left", fontweight="bold")
        axes.set_xlabel(f"{pooled.axis} (line: range, box: quartiles, bar: median, diamond: mean)")
        if all(0 <= value <= 1 for value in values):
            axes.set_xlim(-0.02, 1.02)
        dots = [Line2D([], [], marker="o", ls="", color=color_of(fold)) for fold in range(folds)]
        legend = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "title": "fold"}
        axes.legend(dots, [str(fold) for fold in range(folds)], **legend)
        save(figure, path)


def color_of(fold: int) -> str:
    """The color of a fold; they repeat after eight."""
    return COLORS[fold % len(COLORS)]


def draw_rows(axes: Any, rows: Sequence[tuple[str, Sequence[tuple[int, float | None]]]]) -> None:
    """One row of dots for each name, the first on top."""
    rng = np.random.default_rng(0)
    labels = []
    for place, (name, points) in enumerate(rows):
        known = [(fold, value) for fold, value in points if value is not None]
        labels.append(f"{shorten(name, 24)} ({len(known)})")
        if not known:
            continue
        values = np.array([value for _, value in known])
        if len(values) > 2:
            low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
            axes.hlines(place, values.min(), values.max(), color="#999999", lw=1)
            box = {"facecolors": "white", "edgecolors": "#999999"}
            axes.broken_barh([(low, high - low)], (place - 0.3, 0.6), **box)
            axes.vlines(middle, place - 0.3, place + 0.3, color="#222222", lw=1.5)
        across = place + rng.uniform(-JITTER, JITTER, len(values))
        colors = [color_of(fold) for fold, _ in known]
        axes.scatter(values, across, s=18, c=colors, alpha=0.8, zorder=3, linewidths=0)
        axes.plot(values.mean(), place, "D", color="#222222", ms=6, zorder=4, mfc="white")
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
