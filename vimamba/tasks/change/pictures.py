"""Pictures of pairs: samples of the data and of the predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from vimamba.data import ChangeFolder
from vimamba.data.items import take
from vimamba.data.paired.change_folder import read_dates
from vimamba.data.resizing import as_fractions
from vimamba.labels import IGNORE
from vimamba.tasks.change.channels import WRITTEN
from vimamba.tasks.overlays import as_pixels, class_colors, find_view, legend_entries, panel
from vimamba.tasks.pictures import STYLE, save, shorten, show_image
from vimamba.tasks.segmentation.pictures import LONGEST, add_legend

# size of a panel in a figure, inches
SIDE = 1.9


def shown_map(kind: str, truth: NDArray, name: str) -> NDArray:
    """The label map (M, H, W) that a written map is compared with."""
    place = {"binary": 0, "damage": 1}.get(kind)
    return truth[{"before": 1, "after": 2}[name] if place is None else place]


def pick(data: ChangeFolder, split: str, count: int) -> list[int]:
    """Pairs of a split, those with change or buildings first."""
    pairs = data.items(split)
    order = np.random.default_rng(0).permutation(len(pairs)).tolist()
    holding: list[int] = []
    others: list[int] = []
    for index in order[: 8 * count]:
        truth = data.truths.read(pairs[index])[0]
        (holding if (truth == 1).any() else others).append(index)
        if len(holding) == count:
            break
    return (holding + others)[:count]


def draw_pairs(data: ChangeFolder, path: Path, columns: int = 5) -> None:
    """Training pairs with their labels as stored, and as the network sees them.

    Args:
        data: The data set.
        path: PNG to write.
        columns: Pairs to show.
    """
    chosen = pick(data, "train", columns)
    pairs = take(data.items("train"), chosen)
    prepare, kind = data.preprocessing, data.kind
    stored = [[as_fractions(date) for date in read_dates(pair, prepare)[0]] for pair in pairs]
    truths = [data.truths.read(pair) for pair in pairs]
    changed = [cast(Any, data.dataset("train", augmented=True))[0, index] for index in chosen]
    view = find_view([date for dates in stored for date in dates])
    look = looks(data.class_names)
    name = WRITTEN[kind][-1]
    rows: list[tuple[str, list[NDArray[np.uint8]]]] = [
        ("before", [panel(view(dates[0]), None, **look) for dates in stored]),
        ("after", [panel(view(dates[1]), None, **look) for dates in stored]),
        (
            f"labels: {name}",
            [
                panel(view(dates[1]), shown_map(kind, truth, name), **look)
                for dates, truth in zip(stored, truths, strict=True)
            ],
        ),
        *(
            (f"{date}, augmented", [network_panel(view, d[place], prepare, look)
                                            for d, _ in changed])
            for place, date in enumerate(("before", "after"))
        ),
    ]  # fmt: skip
    draw_grid(
        rows,
        [Path(pair.name).name for pair in pairs],
        path,
        title="Training pairs: as stored, with labels, as the network sees them",
        names=data.class_names,
        note=view.text(prepare.intensity, prepare.bands),
        ignored=any((truth == IGNORE).any() for truth in truths),
    )


def looks(class_names: Sequence[str]) -> dict[str, Any]:
    """How panels show classes."""
    colors = class_colors(len(class_names), True)
    return {"colors": colors, "background": True, "longest": LONGEST}


def network_panel(view: Any, image: Tensor, prepare: Any, look: dict[str, Any]) -> NDArray:
    """The image (C, h, w) that the network gets, as a picture."""
    return panel(view(as_pixels(image, prepare)), None, **look)


def draw_grid(
    rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]],
    captions: Sequence[str],
    path: Path,
    *,
    title: str,
    names: Sequence[str],
    note: str,
    ignored: bool,
) -> None:
    """A column for each pair, a row for each of its pictures, and the legend.

    Args:
        rows: Name of each row, and its pictures (H, W, 3).
        captions: One per column.
        path: PNG to write.
        title: Line above the grid.
        names: Names of the classes, the first without a color.
        note: Description of what is shown.
        ignored: Whether ignored pixels are shown.
    """
    columns = len(captions)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        size = (SIDE * max(columns, 4), (SIDE + 0.2) * len(rows) + 1.2)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(title, fontsize=11, fontweight="bold")
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for line, (name, images) in zip(grid, rows, strict=True):
            for place, (axes, image) in enumerate(zip(line, images, strict=True)):
                above = shorten(captions[place], 22) if line is grid[0] else ""
                show_image(axes, image, above)
            line[0].set_ylabel(name, fontsize=8)
        legend = legend_entries(names, class_colors(len(names), True), True)
        add_legend(figure, legend, ignored=ignored, title=note)
        save(figure, path)


def draw_predictions(
    task: Any, data: ChangeFolder, split: str, path: Path, *, columns: int = 5
) -> None:
    """Before, after, truth and prediction of some pairs, the worst of a sample first.

    Args:
        task: A change task.
        data: The data set.
        split: Split to show.
        path: PNG to write.
        columns: Pairs to show.
    """
    dataset, kind = cast(Any, data.dataset(split)), data.kind
    device = next(task.parameters()).device
    names = WRITTEN[kind]
    judged: list[tuple[float, int, list[NDArray], NDArray]] = []
    task.eval()
    for index in pick(data, split, 3 * columns):
        dates, maps, _ = dataset[index]
        truth = maps.numpy()
        found = [m.numpy() for m in task.compare(dates.flatten(0, 1).to(device), truth.shape[1:])]
        wanted = np.stack([shown_map(kind, truth, name) for name in names])
        counted = wanted != IGNORE
        right = float((np.stack(found) == wanted)[counted].mean()) if counted.any() else 1.0
        judged.append((right, index, found, truth))
    judged.sort(key=lambda entry: entry[0])
    spread = np.linspace(0, len(judged) - 1, min(columns, len(judged))).round().astype(int)
    shown = [judged[place] for place in dict.fromkeys(spread.tolist())]
    pairs = take(data.items(split), (index for _, index, _, _ in shown))
    stored = [
        [as_fractions(date) for date in read_dates(pair, data.preprocessing)[0]] for pair in pairs
    ]
    view = find_view([date for dates in stored for date in dates])
    look = looks(data.class_names)
    rows: list[tuple[str, list[NDArray[np.uint8]]]] = [
        (date, [panel(view(dates[place]), None, **look) for dates in stored])
        for place, date in enumerate(("before", "after"))
    ]
    for place, name in enumerate(names):
        under = 0 if name == "before" else 1
        label = "" if len(names) == 1 else f", {name}"
        for what, maps in (
            ("truth", [shown_map(kind, truth, name) for *_, truth in shown]),
            ("prediction", [found[place] for _, _, found, _ in shown]),
        ):
            images = [
                panel(view(dates[under]), m, **look) for dates, m in zip(stored, maps, strict=True)
            ]
            rows.append((f"{what}{label}", images))
    draw_grid(
        rows,
        [f"{Path(p.name).stem}: {1 - s[0]:.1%} wrong" for p, s in zip(pairs, shown, strict=True)],
        path,
        title=f"{split} pairs, the worst of {len(judged)} first",
        names=data.class_names,
        note=view.text(data.preprocessing.intensity, data.preprocessing.bands),
        ignored=any((truth == IGNORE).any() for *_, truth in shown),
    )
