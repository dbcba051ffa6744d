"""Pictures of runs: several of them side by side, and a search for a learning rate."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vimamba.runs import Run, curve
from vimamba.tasks.pictures import BLUE, COLORS, RED, STYLE, save, shorten

if TYPE_CHECKING:
    from vimamba.tasks.rate_finder import RateRise

# beyond as many runs as there are colors these change, too
LINES = ("-", "--", ":", "-.")


def draw_runs(
    entries: Sequence[tuple[str, Sequence[Run]]], metrics: Sequence[str], path: Path
) -> None:
    """Metrics against the epoch, a panel for each, with a dot at each best epoch.

    Args:
        entries: Names, each with its run, or with the folds that are drawn alike.
        metrics: Columns of metrics.csv.
        path: PNG to write.
    """
    styles = [(color, line) for line in LINES for color in COLORS]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(metrics), 3.6), layout="constrained")
        panels = figure.subplots(1, len(metrics), squeeze=False)[0]
        lines = []
        for (_, runs), (color, line) in zip(entries, cycle(styles), strict=False):
            style = {"color": color, "ls": line, "lw": 1.8 if len(runs) == 1 else 0.9}
            for axes, metric in zip(panels, metrics, strict=True):
                for run in runs:
                    draw_run(axes, run, metric, style)
            lines.append(Line2D([], [], **style))
        for axes, metric in zip(panels, metrics, strict=True):
            axes.set_title(metric, loc="left", fontweight="bold")
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        names = [shorten(name, 40) for name, _ in entries]
        columns = min(len(names), 2 * len(metrics))
        figure.legend(lines, names, loc="outside lower left", ncols=columns)
        save(figure, path)


def draw_run(axes: Any, run: Run, metric: str, style: dict[str, Any]) -> None:
    """One curve, and its best epoch."""
    epochs, values = curve(run.rows, metric)
    axes.plot(epochs, values, marker="o" if len(values) == 1 else "", ms=3, **style)
    best = run.best_row or {}
    if metric in best and "epoch" in best:
        axes.plot(best["epoch"], best[metric], "o", color=style["color"], ms=5)


def draw_rates(found: "RateRise", path: Path) -> None:
    """The loss against the rate, with the suggestion.

    Args:
        found: What was tried.
        path: PNG to write.
    """
    with mpl.rc_context({**STYLE, "text.parse_math": True}):  # for the powers of ten
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.semilogx(found.rates, found.losses, color=BLUE, lw=1.8)
        rate = found.suggestion
        if rate is not None:
            axes.axvline(rate, color=RED, ls="--", lw=1.2)
        title = "no suggestion" if rate is None else f"suggestion: {rate:g}"
        axes.set_title(f"Search for a learning rate, {title}", loc="left", fontweight="bold")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss, running mean")
        save(figure, path)
