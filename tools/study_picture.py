"""Draws several benches of scan orders side by side: python tools/study_picture.py BENCH... [file].

Rows are orders, grouped by their number of paths; columns are benches, which share their orders.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vimamba.cli.bench_report import open_bench
from vimamba.files import write_whole
from vimamba.scan_orders import num_paths
from vimamba.scanbench.results import Bench
from vimamba.tasks.pictures import COLORS, GRAY, STYLE

DEFAULT_FILE = Path(__file__).parents[1] / "docs" / "images" / "scan_order_study.png"


def points_of(bench: Bench) -> dict[str, list[float]]:
    """The scores of each order in points, of the seeds that all orders have."""
    scores: dict[str, dict[int, float]] = {}
    for result in bench.results:
        score = 100 * result.scores[bench.plan.score]
        scores.setdefault(result.trial.order, {})[result.trial.seed] = score
    shared = set.intersection(*(set(by_seed) for by_seed in scores.values()))
    return {order: [by_seed[seed] for seed in shared] for order, by_seed in scores.items()}


def draw_bench(axes: Axes, bench: Bench, orders: Sequence[str]) -> None:
    """A row per order: runs as dots, their mean as a diamond; a line at the mean of each group."""
    points = points_of(bench)
    groups: dict[int, list[int]] = {}
    for row, order in enumerate(orders):
        groups.setdefault(num_paths(order, bench.plan.dims), []).append(row)
    for color, rows in zip(COLORS, groups.values(), strict=False):
        found = [points[orders[row]] for row in rows]
        for row, values in zip(rows, found, strict=True):
            axes.plot(values, [row] * len(values), "o", color=color, ms=3, alpha=0.5, mew=0)
            axes.plot(np.mean(values), row, "D", color=color, mfc="white", ms=4.5)
        middle = np.mean([np.mean(values) for values in found])
        axes.vlines(middle, rows[0] - 0.4, rows[-1] + 0.4, color=GRAY, lw=1)
        axes.axhline(rows[-1] + 0.5, color=GRAY, lw=0.5)
    runs = len(points[orders[0]])
    seeds = "1 seed" if runs == 1 else f"{runs} seeds"
    axes.set_title(f"{bench.plan.data}, {seeds}", loc="left", fontweight="bold")
    axes.set_xlabel(f"{bench.plan.score} ({bench.split}), points")


def draw(folders: Sequence[Path], file: Path) -> None:
    """Write the picture of several benches; rows are sorted by the first."""
    benches = [open_bench(folder) for folder in folders]
    first = points_of(benches[0])
    dims = benches[0].plan.dims
    orders = sorted(first, key=lambda order: (num_paths(order, dims), -np.mean(first[order])))
    with mpl.rc_context(STYLE):
        size = (1.6 + 2.3 * len(benches), 0.7 + 0.2 * len(orders))
        figure = Figure(figsize=size, dpi=100, layout="constrained")
        panels = figure.subplots(1, len(benches), sharey=True, squeeze=False)[0]
        for axes, bench in zip(panels, benches, strict=True):
            draw_bench(axes, bench, orders)
        names = [f"{order}  K = {num_paths(order, dims)}" for order in orders]
        panels[0].set_yticks(range(len(orders)), names)
        panels[0].set_ylim(len(orders) - 0.5, -0.5)
        with write_whole(file) as part:
            figure.savefig(part, format="png", facecolor="white")


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:]]
    if given and given[-1].suffix == ".png":
        draw(given[:-1], given[-1])
    else:
        draw(given, DEFAULT_FILE)
