"""Pictures of a bench: runs as points, ranks, scores against cost, classes.

An order has one color and one mark in all of them; the baseline is black.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vimamba.scanbench.cost import Cost
from vimamba.scanbench.findings import POINTS, Findings, Ranked, Standing
from vimamba.scanbench.plan import label
from vimamba.tasks.pictures import COLORS, GRAY, STYLE, save, shorten

INK, BASELINE = "#222222", "#111111"
MARKS = "osD^vP*"
LONGEST = 30
MOST_CLASSES = 20
Look = tuple[str, str]


def looks_of(orders: Sequence[str], baseline: str) -> dict[str, Look]:
    """The color and the mark of each order; among 49 orders no two are alike."""
    hues = [color for color in COLORS if color != GRAY]
    others = [order for order in orders if order != baseline]
    found = {
        order: (hues[place % len(hues)], MARKS[(place + place // len(hues)) % len(MARKS)])
        for place, order in enumerate(others)
    }
    return {baseline: (BASELINE, "s"), **found}


def name_of(order: str) -> str:
    """An order in a picture."""
    return shorten(label(order), LONGEST)


def draw_points(found: Findings, looks: Mapping[str, Look], score: str, path: Path) -> None:
    """Every run as a point, and its difference to the baseline's run of the same seed.

    Args:
        found: Scores and comparisons.
        looks: Of each order.
        score: What the score is called.
        path: PNG to write.
    """
    standings, comparisons = found.standings, {c.order: c for c in found.comparisons}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 1.5 + 0.36 * len(standings)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for place, standing in enumerate(standings):
            look = looks[standing.order]
            values = list(standing.values.values())
            _draw_row(left, place, values, standing.mean, standing.interval, look)
            beside = comparisons.get(standing.order)
            if beside is not None:
                _draw_row(right, place, beside.differences, beside.mean, beside.interval, look)
        right.axvline(0, color=BASELINE, lw=1.2, zorder=1)
        left.set_yticks(range(len(standings)), [name_of(s.order) for s in standings])
        left.set_ylim(len(standings) - 0.5, -0.5)
        left.set_title(f"{found.model}: {found.units}", loc="left", fontweight="bold")
        left.set_xlabel(f"{score}, points")
        right.set_title("Difference to the same seed", loc="left", fontweight="bold")
        right.set_xlabel(f"points more than {name_of(found.baseline)}")
        figure.supxlabel("dots: runs; diamonds: means with 95 % intervals", fontsize=7, color=GRAY)
        save(figure, path)


def _draw_row(
    axes: Any, place: int, values: Sequence[float], mean: float, interval: Any, look: Look
) -> None:
    """Dots above a mean with its interval."""
    color, _ = look
    # apart from each other in a fixed way: the first seed is the highest in every row
    heights = (
        place - 0.28 + 0.2 * np.linspace(0, 1, len(values)) if len(values) > 1 else place - 0.2
    )
    axes.scatter(values, heights, s=16, color=color, alpha=0.75, linewidths=0, zorder=3)
    if interval is not None:
        axes.hlines(place + 0.16, interval.low, interval.high, color=color, lw=2, zorder=2)
    axes.plot(mean, place + 0.16, "D", color=color, mfc="white", ms=5, mew=1.4, zorder=4)


def draw_ranks(ranked: Ranked, looks: Mapping[str, Look], path: Path) -> None:
    """Critical-difference diagram: orders joined by a bar do not differ significantly.

    Args:
        ranked: Ranks and Nemenyi's p values.
        looks: Of each order.
        path: PNG to write.
    """
    import scikit_posthocs
    from pandas import DataFrame

    names = [name_of(order) for order in ranked.orders]
    pairs = DataFrame(ranked.ranking.pairs, index=names, columns=names)
    ranks = dict(zip(names, ranked.ranking.ranks, strict=True))
    colors = {name_of(order): looks[order][0] for order in ranked.orders}
    with mpl.rc_context({**STYLE, "axes.grid": False, "axes.spines.top": True}):
        height = 1.9 + 0.26 * ((len(names) + 1) // 2)
        figure = Figure(figsize=(9.6, height), layout="constrained")
        axes = figure.subplots()
        scikit_posthocs.critical_difference_diagram(
            ranks,
            pairs,
            ax=axes,
            label_fmt_left="{label}  {rank:.2f} ",
            label_fmt_right=" {rank:.2f}  {label}",
            color_palette=colors,
            crossbar_props={"color": GRAY, "linewidth": 3},
            elbow_props={"linewidth": 1.1},
            marker_props={"s": 18},
        )
        gap = f"{ranked.ranking.critical:.2f}"
        axes.set_title(
            f"Mean ranks over {ranked.blocks}; critical difference {gap}",
            loc="left",
            fontweight="bold",
            pad=14,
        )
        figure.supxlabel(
            "1 is best; a bar joins orders that do not differ at 0.05 in Nemenyi's test",
            fontsize=7,
            color=GRAY,
        )
        save(figure, path)


def draw_cost(
    found: Findings, costs: Mapping[str, Cost], looks: Mapping[str, Look], score: str, path: Path
) -> None:
    """Scores against time per image, operations and memory.

    Args:
        found: Scores.
        costs: Of each order.
        looks: Of each order.
        score: What the score is called.
        path: PNG to write.
    """
    axes_of: list[tuple[str, Callable[[Cost], float | None]]] = [
        ("time per image, ms", lambda cost: cost.milliseconds),
        ("operations per image, GFLOPs", lambda cost: cost.gflops),
        ("peak memory of a training step, MiB", lambda cost: cost.memory),
    ]
    shown = [s for s in found.standings if s.order in costs]
    kept = [
        (text, read)
        for text, read in axes_of
        if all(read(costs[s.order]) is not None for s in shown)
    ]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.9 + 3.2 * len(kept), 3.6), layout="constrained")
        panels = figure.subplots(1, len(kept), sharey=True, squeeze=False)[0]
        for axes, (text, read) in zip(panels, kept, strict=True):
            for standing in shown:
                _draw_cost(axes, standing, read(costs[standing.order]) or 0.0, looks)
            axes.set_xlabel(text)
            axes.set_xlim(0, 1.1 * max(read(costs[s.order]) or 0.0 for s in shown) or 1.0)
            axes.xaxis.set_major_locator(MaxNLocator(5))
        panels[0].set_ylabel(f"{score}, points")
        panels[0].set_title(found.model, loc="left", fontweight="bold")
        handles = [_handle(looks[s.order]) for s in shown]
        names = [f"{name_of(s.order)} (K = {s.paths})" for s in shown]
        figure.legend(handles, names, loc="outside right center", fontsize=8)
        save(figure, path)


def _handle(look: Look) -> Line2D:
    color, mark = look
    return Line2D([], [], marker=mark, ls="", color=color, ms=6)


def _draw_cost(axes: Any, standing: Standing, cost: float, looks: Mapping[str, Look]) -> None:
    color, mark = looks[standing.order]
    interval = standing.interval
    if interval is not None:
        axes.vlines(cost, interval.low, interval.high, color=color, lw=1.2, alpha=0.5, zorder=2)
    axes.plot(cost, standing.mean, mark, color=color, ms=7, mec="white", mew=0.6, zorder=3)


def class_score(found: Findings) -> str | None:
    """The score that the rows of a class have: Dice, F1, or else recall."""
    rows = [row for result in found.bench.of_model(found.model) for row in result.per_class]
    known = ("dice", "f1", "recall")
    return next((key for key in known if rows and all(key in row for row in rows)), None)


def draw_classes(found: Findings, key: str, path: Path) -> None:
    """Mean score of each class by order, colored by the difference to the baseline.

    Args:
        found: Orders, best first.
        key: Which score of a class.
        path: PNG to write.
    """
    table, classes, more = class_table(found, key)
    orders = [standing.order for standing in found.standings]
    first = table[orders.index(found.baseline)] if found.baseline in orders else table.mean(0)
    beside = table - first
    reach = max(float(np.nanmax(np.abs(beside), initial=0.0)), 0.1)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        width = min(2.9 + 0.52 * len(classes), 14)
        figure = Figure(figsize=(width, 1.9 + 0.3 * len(orders)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(beside, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
        for row, column in np.argwhere(np.isfinite(table)):
            color = "white" if abs(beside[row, column]) > 0.65 * reach else INK
            text = f"{table[row, column]:.1f}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
        names = [shorten(name, 16) for name in classes]
        slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        upright = max(map(len, names)) > 4
        axes.set_xticks(range(len(classes)), names, **(slanted if upright else {}))
        axes.set_yticks(range(len(orders)), [name_of(order) for order in orders])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        title = f"{key.replace('f1', 'F1').replace('dice', 'Dice')} of each class, points{more}"
        axes.set_title(title, loc="left", fontweight="bold")
        figure.colorbar(image, ax=axes, label=f"more than {name_of(found.baseline)}", pad=0.01)
        save(figure, path)


def class_table(found: Findings, key: str) -> tuple[np.ndarray, list[str], str]:
    """Mean points of each order and class, the names of the classes, and what was left out."""
    results = found.bench.of_model(found.model)
    classes = list(dict.fromkeys(row["class"] for r in results for row in r.per_class))
    rows = []
    for standing in found.standings:
        own = [r for r in results if r.trial.order == standing.order]
        columns = [
            [
                np.nan if row.get(key) is None else POINTS * row[key]
                for result in own
                for row in result.per_class
                if row["class"] == name
            ]
            for name in classes
        ]
        rows.append([_mean_of_known(column) for column in columns])
    table = np.asarray(rows, dtype=np.float64)
    if len(classes) <= MOST_CLASSES:
        return table, classes, ""
    spreads = np.nan_to_num(np.nanmax(table, 0) - np.nanmin(table, 0))
    kept = np.sort(np.argsort(-spreads, kind="stable")[:MOST_CLASSES])
    more = f"; the {MOST_CLASSES} of {len(classes)} on which the orders differ most"
    return table[:, kept], [classes[i] for i in kept], more


def _mean_of_known(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else np.nan
