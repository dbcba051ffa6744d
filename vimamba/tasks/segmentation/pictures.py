"""Pictures of masks: samples of the data and of the predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from vimamba.data import SegmentationData
from vimamba.data.items import take
from vimamba.labels import IGNORE
from vimamba.tasks.overlays import (
    DARK,
    IGNORED,
    LIGHT,
    ZSCORES,
    Color,
    View,
    as_pixels,
    class_colors,
    find_view,
    legend_entries,
    panel,
    resize_image,
    resize_mask,
    square_size,
    stripes,
)
from vimamba.tasks.pictures import GREEN, RED, STYLE, save, shorten, show_image

# pixels of the longer side of a panel, about its size in the figure
LONGEST = 400


def hex_color(color: Color) -> str:
    """A color in matplotlib's format."""
    return "#" + bytes(color).hex()


def add_legend(
    figure: Any, entries: Sequence[tuple[str, Color | None]], *, ignored: bool, title: str = ""
) -> None:
    """Add the names of the classes below a figure.

    Args:
        figure: The figure.
        entries: See `legend_entries`.
        ignored: Whether ignored pixels are shown.
        title: Line above the names.
    """
    patches = [
        Patch(
            facecolor="none" if color is None else hex_color(color),
            label=shorten(name, 24),
            edgecolor="none" if color is None else "#555555",
        )
        for name, color in entries
    ]
    if ignored:
        kind = {"facecolor": hex_color(LIGHT), "edgecolor": hex_color(DARK), "hatch": "////"}
        patches.append(Patch(label=IGNORED, **cast(Any, kind)))
    columns = min(len(patches), 6)
    figure.legend(
        handles=patches,
        loc="outside lower center",
        ncols=columns,
        fontsize=8,
        title=title or None,
        title_fontsize=8,
    )


def pick(data: SegmentationData, split: str, count: int) -> list[int]:
    """Images of a split, those with classes other than the first one first."""
    items = data.items(split)
    order = np.random.default_rng(0).permutation(len(items)).tolist()
    holding, others = [], []
    for index in order[: 8 * count]:
        item = items[index]
        mask = data.table.indices(item.mask(), item.mask_name)
        (holding if ((mask > 0) & (mask != IGNORE)).any() else others).append(index)
        if len(holding) == count:
            break
    return (holding + others)[:count]


def aspect_of(item: Any) -> float:
    """Row spacing of an image divided by its column spacing."""
    rows, columns = item.spacing[-2:]
    return float(rows) / float(columns)


def view_of(data: SegmentationData, pixels: Sequence[NDArray]) -> tuple[View, str]:
    """The common view of some images of a data set, and its description."""
    view = find_view(pixels)
    return view, view.text(data.preprocessing.intensity, data.preprocessing.bands)


def draw_masked_data(data: SegmentationData, path: Path, columns: int = 6) -> None:
    """Training images and overlays of their masks as stored, and augmented as in training.

    Args:
        data: The data set.
        path: PNG to write.
        columns: Images to show.
    """
    colors = class_colors(data.num_classes, data.background)
    legend = legend_entries(data.class_names, colors, data.background)
    chosen = pick(data, "train", columns)
    items = take(data.items("train"), chosen)
    images = [data.preprocessing.pixels(item) for item in items]
    masks = [data.table.indices(item.mask(), item.mask_name) for item in items]
    changed = [cast(Any, data.dataset("train", augmented=True))[0, index] for index in chosen]
    view, note = view_of(data, images)
    seen = View(view.bands, view.channels) if data.preprocessing.intensity.zscore else view
    ignored = any((mask == IGNORE).any() for mask in (*masks, *(m.numpy() for _, m in changed)))
    look: dict[str, Any] = {"colors": colors, "background": data.background, "longest": LONGEST}
    heights = [square_size(i.shape, aspect_of(item), LONGEST) for i, item in
               zip(images, items, strict=True)]  # fmt: skip
    tall = max(height / width for height, width in heights)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        side = 1.9
        size = (side * max(len(chosen), 4), side * (2 * min(max(tall, 0.4), 1.6) + 1) + 1.5)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle("Training images: as stored, with masks, as the network sees them",
                        fontsize=11, fontweight="bold")  # fmt: skip
        rows = figure.subplots(3, len(chosen), squeeze=False).T
        for axes, item, image, mask, (pixels, drawn) in zip(
            rows, items, images, masks, changed, strict=True
        ):
            plain, aspect = view(image), aspect_of(item)
            name = shorten(Path(item.name).name, 22)
            show_image(axes[0], panel(plain, None, **look, aspect=aspect), name)
            show_image(axes[1], panel(plain, mask, **look, aspect=aspect), "")
            # the network's own grid: its rows and columns, whatever their spacing
            network = seen(as_pixels(pixels, data.preprocessing))
            square = aspect if data.preprocessing.fit == "window" else 1.0
            show_image(axes[2], panel(network, drawn.numpy(), **look, aspect=square), "")
        if data.preprocessing.intensity.zscore:
            note += f"; last row: z-scores from {ZSCORES[0]:g} to {ZSCORES[1]:g}"
        add_legend(figure, legend, ignored=ignored, title=note)
        save(figure, path)


def error_picture(image: NDArray[np.uint8], found: NDArray, truth: NDArray) -> NDArray[np.uint8]:
    """A pale gray image with wrong pixels in red; ignored ones are striped."""
    gray = image.mean(-1, keepdims=True).repeat(3, axis=-1) * 0.35 + 150
    wrong = (found != truth) & (truth != IGNORE)
    gray[wrong] = (213, 94, 0)
    ignored = truth == IGNORE
    pattern = np.where(stripes(*truth.shape)[..., None], LIGHT, DARK)
    gray[ignored] = pattern[ignored]
    return np.rint(gray).clip(0, 255).astype(np.uint8)


def draw_predictions(
    task: Any, data: SegmentationData, split: str, path: Path, *, rows: int = 5
) -> None:
    """Image, truth, prediction and error of some images, the worst of a sample first.

    Args:
        task: A segmentation task.
        data: The data set.
        split: Split to show.
        path: PNG to write.
        rows: Images to show.
    """
    colors = class_colors(data.num_classes, data.background)
    legend = legend_entries(data.class_names, colors, data.background)
    judged = []
    dataset = data.dataset(split)
    device = next(task.parameters()).device
    task.eval()
    for index in pick(data, split, 4 * rows):
        tensor, mask, _, _ = cast(Any, dataset)[index]
        truth = mask.numpy()
        found = task.segment([tensor.to(device)], [truth.shape])[0]
        counted = truth != IGNORE
        right = (found == truth)[counted].mean() if counted.any() else 1.0
        judged.append((float(right), index, found, truth))
    judged.sort(key=lambda entry: entry[0])
    # the two worst, the rest spread evenly over the better ones
    spread = np.linspace(2, len(judged) - 1, max(rows - 2, 0)).round().astype(int)
    chosen = judged[:2] + [judged[i] for i in dict.fromkeys(spread.tolist()) if i < len(judged)]
    chosen = chosen[: max(len(judged), 1)]
    items = take(data.items(split), (index for _, index, _, _ in chosen))
    images = [data.preprocessing.pixels(item) for item in items]
    view, note = view_of(data, images)
    ignored = any((truth == IGNORE).any() for *_, truth in chosen)
    sizes = [square_size(image.shape, aspect_of(item), LONGEST)
             for image, item in zip(images, items, strict=True)]  # fmt: skip
    side = 2.1
    tall = sum(side * min(max(height / width, 0.3), 1.6) + 0.25 for height, width in sizes)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(4 * side, tall + 1.4), layout="constrained")
        figure.suptitle(f"{split} images, the worst of {len(judged)} first", fontweight="bold")
        ratios = [min(max(height / width, 0.3), 1.6) for height, width in sizes]
        grid = figure.subplots(len(chosen), 4, squeeze=False, height_ratios=ratios)
        for axes, (right, _, found, truth), item, image, size in zip(
            grid, chosen, items, images, sizes, strict=True
        ):
            look: dict[str, Any] = {
                "colors": colors, "background": data.background, "aspect": aspect_of(item),
                "longest": LONGEST,
            }  # fmt: skip
            plain = view(image)
            show_image(axes[0], panel(plain, None, **look), shorten(Path(item.name).name, 22))
            show_image(axes[1], panel(plain, truth, **look), "truth")
            show_image(axes[2], panel(plain, found, **look), "prediction")
            color = GREEN if right > 0.98 else RED
            title = f"error: {1 - right:.1%} of the pixels"
            wrong = error_picture(
                resize_image(plain, size), resize_mask(found, size), resize_mask(truth, size)
            )
            show_image(axes[3], wrong, title, color)
        add_legend(figure, legend, ignored=ignored, title=note)
        save(figure, path)
