"""Pictures of masks: colours, overlays, samples of the data and of the answers."""

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from vimamba.cli.pictures import GREEN, RED, STYLE, save, shorten, show_image
from vimamba.data import SegmentationData
from vimamba.data.labels import IGNORE

# Okabe and Ito's colours, told apart by colour-blind readers too
DISTINCT = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip
OPACITY = 0.45
# of the legend
MOST_NAMES = 12


@cache
def class_colours(count: int, background: bool) -> tuple[tuple[int, int, int], ...]:
    """A colour for each class; black for a background.

    Args:
        count: Classes.
        background: The first class is a background.
    """
    wanted = count - int(background)
    colours = list(DISTINCT[:wanted])
    for index in range(len(colours), wanted):
        # steps of the golden ratio keep neighbours apart
        hue, light = index * 0.61803 % 1, 0.45 + 0.2 * (index % 3)
        red, green, blue = colorsys.hls_to_rgb(hue, light, 0.75)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return ((0, 0, 0), *colours) if background else tuple(colours)


def paint(mask: NDArray, colours: Sequence[tuple[int, int, int]]) -> NDArray[np.uint8]:
    """Classes (H, W) as colours (H, W, 3); ignored pixels are grey."""
    table = np.full((256, 3), 128, dtype=np.uint8)
    table[: len(colours)] = colours
    return table[mask]


def overlay(
    image: NDArray[np.uint8],
    mask: NDArray,
    colours: Sequence[tuple[int, int, int]],
    background: bool,
) -> NDArray[np.uint8]:
    """Lay the classes' colours over an image, outlines stronger; the background stays free.

    Args:
        image: (H, W, 3).
        mask: (H, W) classes.
        colours: One per class.
        background: The first class is a background.
    """
    painted = paint(mask, colours).astype(np.float32)
    weight = np.full(mask.shape, OPACITY, dtype=np.float32)
    weight[outlines(mask)] = 1
    if background:
        weight[mask == 0] = 0
    mixed = image + weight[..., None] * (painted - image)
    return np.rint(mixed).astype(np.uint8)


def outlines(mask: NDArray) -> NDArray[np.bool_]:
    """Pixels whose neighbour on the right or below, or left or above, is of another class."""
    edge = np.zeros(mask.shape, dtype=bool)
    across, down = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def viewable(pixels: NDArray) -> NDArray[np.uint8]:
    """(H, W, C) in [0, 1] as RGB: the first three channels, or the first one as grey.

    What is dark as a whole, as many satellite bands are, is brightened to its own range.
    """
    shown = pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
    low, high = np.percentile(shown, (0.5, 99.5))
    if high < 0.5 and high > low:
        shown = (shown - low) / (high - low)
    return np.rint(shown.clip(0, 1) * 255).astype(np.uint8)


def as_pixels(image: Any, data: SegmentationData) -> NDArray:
    """Undo the normalisation: (C, H, W) to (H, W, C) in [0, 1]."""
    pixels = image.permute(1, 2, 0).float().numpy()
    if data.preprocessing.intensity.zscore:
        low, high = pixels.min((0, 1)), pixels.max((0, 1))
        return (pixels - low) / np.maximum(high - low, 1e-6)
    return (pixels * np.asarray(data.std) + np.asarray(data.mean)).clip(0, 1)


def hex_colour(colour: tuple[int, int, int]) -> str:
    """A colour as matplotlib takes it."""
    return "#" + bytes(colour).hex()


def add_legend(figure: Any, names: Sequence[str], colours: Sequence[tuple[int, int, int]]) -> None:
    """Names of the classes below a figure; too many are cut."""
    shown = list(zip(names, colours, strict=True))[:MOST_NAMES]
    patches = [
        Patch(facecolor=hex_colour(colour), label=shorten(name, 18), edgecolor="#999999")
        for name, colour in shown
    ]
    if len(names) > MOST_NAMES:
        patches.append(Patch(alpha=0, label=f"and {len(names) - MOST_NAMES} more"))
    figure.legend(
        handles=patches, loc="outside lower center", ncols=min(len(patches), 6), fontsize=8
    )


def pick(data: SegmentationData, split: str, count: int) -> list[int]:
    """Images of a split, those that hold something but the first class before others."""
    samples = data.catalogue.splits[split]
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    holding, others = [], []
    for index in order[: 8 * count]:
        item = samples.items[index]
        mask = data.table.indices(item.mask(), item.mask_name)
        (holding if ((mask > 0) & (mask != IGNORE)).any() else others).append(index)
        if len(holding) == count:
            break
    return (holding + others)[:count]


def draw_masked_data(data: SegmentationData, path: Path, columns: int = 6) -> None:
    """Training images and overlays of their masks as stored, and changed as in training.

    Args:
        data: The data set.
        path: PNG to write.
        columns: Images to show.
    """
    colours = class_colours(data.num_classes, data.background)
    chosen = pick(data, "train", columns)
    changed = data.dataset("train", augmented=True)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.9 * columns, 6.6), layout="constrained")
        figure.suptitle("Training images: as stored, with masks, as the network sees them",
                        fontsize=11, fontweight="bold")  # fmt: skip
        rows = figure.subplots(3, len(chosen), squeeze=False).T
        for axes, index in zip(rows, chosen, strict=True):
            item = data.catalogue.splits["train"].items[index]
            image = viewable(data.preprocessing.pixels(item))
            mask = data.table.indices(item.mask(), item.mask_name)
            show_image(axes[0], image, shorten(Path(item.name).name, 22))
            show_image(axes[1], overlay(image, mask, colours, data.background), "")
            pixels, drawn = cast(Any, changed)[0, index]
            seen = viewable(as_pixels(pixels, data))
            show_image(axes[2], overlay(seen, drawn.numpy(), colours, data.background), "")
        add_legend(figure, data.class_names, colours)
        save(figure, path)


def error_picture(image: NDArray[np.uint8], found: NDArray, truth: NDArray) -> NDArray[np.uint8]:
    """A pale grey image with wrong pixels in red; ignored ones stay grey."""
    grey = image.mean(-1, keepdims=True).repeat(3, axis=-1) * 0.35 + 150
    wrong = (found != truth) & (truth != IGNORE)
    grey[wrong] = (213, 94, 0)
    return np.rint(grey).clip(0, 255).astype(np.uint8)


def draw_answers(
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
    colours = class_colours(data.num_classes, data.background)
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
    # the two worst, the rest spread evenly over those that are better
    spread = np.linspace(2, len(judged) - 1, max(rows - 2, 0)).round().astype(int)
    chosen = judged[:2] + [judged[i] for i in dict.fromkeys(spread.tolist()) if i < len(judged)]
    chosen = chosen[: max(len(judged), 1)]
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(8.4, 2.1 * len(chosen) + 0.8), layout="constrained")
        figure.suptitle(f"{split} images, the worst of {len(judged)} first", fontweight="bold")
        grid = figure.subplots(len(chosen), 4, squeeze=False)
        for axes, (right, index, found, truth) in zip(grid, chosen, strict=True):
            item = data.catalogue.splits[split].items[index]
            image = viewable(data.preprocessing.pixels(item))
            show_image(axes[0], image, shorten(Path(item.name).name, 22))
            show_image(axes[1], overlay(image, truth, colours, data.background), "truth")
            show_image(axes[2], overlay(image, found, colours, data.background), "prediction")
            colour = GREEN if right > 0.98 else RED
            title = f"error: {1 - right:.1%} of the pixels"
            show_image(axes[3], error_picture(image, found, truth), title, colour)
        add_legend(figure, data.class_names, colours)
        save(figure, path)
