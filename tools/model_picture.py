"""Plots published accuracy against parameters and against measured time, one color per family."""

import csv
from pathlib import Path

from vimamba.checkpoints import find_facts, list_families
from vimamba.files import write_whole

BENCHMARKS = Path(__file__).parents[1] / "docs" / "benchmarks"
# case name of the rows with times of single images of 224 pixels
_CASE = "224 px, batch 1, inference"
# no picture with fewer timed models
_FEWEST_TIMES = 5


def read_times() -> dict[str, float]:
    """Milliseconds for one image of 224 pixels on a CPU, by model, from the newest results."""
    times: dict[str, float] = {}
    for file in sorted(BENCHMARKS.glob("*/models_inference.csv")):
        with file.open(encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                if row["case"] == _CASE:
                    times[row["candidate"]] = float(row["milliseconds"])
    return times


def draw_accuracy(path: Path) -> None:
    """Write a PNG of models with a published accuracy, and of timed ones if there are enough."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    families = sorted(
        (f for f in list_families() if f.top1), key=lambda family: family.name.lower()
    )
    times = read_times()
    have_times = [key for f in families for key in f.top1 if key.split(".")[0] in times]
    panels = 2 if len(have_times) >= _FEWEST_TIMES else 1
    figure = Figure(figsize=(7 * panels + 2, 5.5), dpi=110, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for index, family in enumerate(families):
        color = colormaps["turbo"](0.05 + 0.9 * index / max(len(families) - 1, 1))
        style = {"color": color, "label": family.name, "linewidth": 0.8, "markersize": 5}
        published = [(key.split(".")[0], top1) for key, top1 in family.top1.items()]
        facts = [(find_facts(model), top1) for model, top1 in published]
        sizes = [(known.params / 1e6, top1) for known, top1 in facts if known]
        timed = [(times[model], top1) for model, top1 in published if model in times]
        for axis, points in zip(axes, (sizes, timed), strict=False):
            if points:
                axis.plot(*zip(*sorted(points), strict=True), "o-", **style)
    axes[0].set_ylabel("ImageNet-1k top-1 (%), as published")
    labels = ("parameters (M)", "time of one image, 224 pixels, CPU (ms)")
    for axis, label in zip(axes, labels, strict=False):
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.25, which="both")
    columns = 1 + len(families) // 24
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside right upper", ncols=columns, frameon=False, fontsize=8
    )
    with write_whole(path) as part:
        figure.savefig(part, format="png")
