"""Pictures of a run: curves, confusion matrix, samples and the contact sheet of predictions."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from vimamba.files import write_whole
from vimamba.runs import curve, read_rows
from vimamba.tasks.overlays import resize_image, square_size

# metadata that marks our pictures
SOFTWARE = "vimamba"
# minimum pixels of the longer side of a thumbnail
LONGEST = 224
# Okabe and Ito's colors, which color-blind readers can distinguish
BLUE, ORANGE, GREEN, RED, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
COLORS = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#8C6D00", GRAY)
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    # dollar signs in a name are not math
    "text.parse_math": False,
}


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, completely or not at all; `is_ours` recognizes it."""
    with write_whole(path) as part:
        figure.savefig(
            part, dpi=150, format="png", facecolor="white", metadata={"Software": SOFTWARE}
        )


def is_ours(path: Path) -> bool:
    """Whether a picture was written by `save`."""
    try:
        with Image.open(path) as picture:
            return picture.info.get("Software") == SOFTWARE
    except (OSError, ValueError, SyntaxError):
        return False


def draw_curves(metrics: Path, path: Path, scores: Mapping[str, str]) -> None:
    """Losses, scores and learning rate against the epoch.

    Args:
        metrics: The run's metrics.csv.
        path: PNG to write.
        scores: Scores to draw, with their names.
    """
    rows = read_rows(metrics)
    # the second curve often covers the first, which then shows between its dashes
    drawn = tuple(
        (f"val/{score}", name, color)
        for (score, name), color in zip(scores.items(), (BLUE, ORANGE, GREEN, RED), strict=False)
    )
    panels = (
        ("Loss", (("train/loss", "train", BLUE), ("val/loss", "validation", ORANGE))),
        ("Validation scores", drawn),
        ("Learning rate", (("lr", "", GRAY),)),
    )
    mark = "o" if len(rows) < 3 else ""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.3), layout="constrained")
        for axes, (title, lines) in zip(figure.subplots(1, 3), panels, strict=True):
            for name, label, color in lines:
                epochs, values = curve(rows, name)
                if values:
                    style = "--" if (name, label, color) in drawn[1:2] else "-"
                    axes.plot(epochs, values, style, color=color, label=label, marker=mark, lw=1.8)
            axes.set_title(title, loc="left", fontweight="bold")
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            if len(lines) > 1 and axes.lines:
                axes.legend()
            elif not axes.lines:
                axes.text(0.5, 0.5, "no values", ha="center", color=GRAY, transform=axes.transAxes)
        save(figure, path)


def draw_confusion(
    report: dict[str, Any],
    class_names: Sequence[str],
    path: Path,
    *,
    title: str | None = None,
    shares: bool = False,
) -> None:
    """Truth against prediction as fractions of each row; for multi-label data, scores per class.

    Args:
        report: Has the counts, `confusion`.
        class_names: Class names, in order.
        path: PNG to write.
        title: Accuracy and number of images by default.
        shares: Write percentages, not counts, into the cells.
    """
    confusion = np.asarray(report["confusion"], dtype=np.float64)
    if confusion.ndim == 3:
        draw_class_scores(report, path)
        return
    count = len(class_names)
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = min(max(3.6, 1.9 + 0.42 * count), 16)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(side + 0.9, side), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        if count <= 30:
            size = 8 if count <= 15 else 6
            for row, column in np.argwhere(confusion > 0):
                color = "white" if share[row, column] > 0.55 else "#222222"
                count_text = f"{confusion[row, column]:.0f}"
                text = f"{share[row, column]:.1%}" if shares else count_text
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=size)
        for row in np.flatnonzero(confusion.sum(1) == 0):
            # no images of the class, which is not the same as a fraction of 0
            axes.axhspan(row - 0.5, row + 0.5, facecolor="none", edgecolor="#cccccc", hatch="///")
        step = max(1, count // 60)
        ticks, names = range(0, count, step), [shorten(name, 18) for name in class_names[::step]]
        upright = max(len(name) for name in names) > 3
        slanted = {"rotation": 55, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(ticks, names, **(slanted if upright else {}))
        axes.set_yticks(ticks, names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("truth")
        if title is None:
            accuracy = report["accuracy"]
            scored = "no accuracy" if accuracy is None else f"Accuracy {accuracy:.2%}"
            title = f"{scored}, {report['images']} images"
        if (confusion.sum(1) == 0).any():
            title += "\nhatched: not in the truth"
        axes.set_title(title, loc="left", fontweight="bold")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, shrink=0.75, label="fraction of the true class")
        save(figure, path)


def draw_class_scores(report: dict[str, Any], path: Path) -> None:
    """Precision, recall and F1 of each class as dots on a line."""
    rows = report["per_class"][::-1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 1.4 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for key, color in (("precision", BLUE), ("recall", ORANGE), ("f1", GREEN)):
            values = [np.nan if row[key] is None else row[key] for row in rows]
            axes.plot(values, range(len(rows)), "o", color=color, label=key.replace("f1", "F1"))
        axes.set_yticks(range(len(rows)), [f"{r['class']} ({r['images']})" for r in rows])
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_title("Scores of each class (images)", loc="left", fontweight="bold")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        save(figure, path)


def shorten(text: str, length: int) -> str:
    """Shorten text to a length, marking the cut."""
    return text if len(text) <= length else text[: length - 1] + "…"


def show_image(axes: Axes, image: NDArray[np.uint8], title: str, color: str = "#222222") -> None:
    """Draw one image, (H, W, 3), with a line of text above it."""
    axes.imshow(image)
    axes.set_title(title, fontsize=8, color=color, pad=3)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(color if color != "#222222" else "#cccccc")
    axes.spines[:].set_linewidth(1.5 if color != "#222222" else 0.5)


def enlarge(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Enlarge a small image by nearest neighbor, so that it stays sharp."""
    longest = max(LONGEST, *image.shape[:2])
    return resize_image(image, square_size(image.shape, 1.0, longest))


def draw_contact_sheet(
    images: Sequence[NDArray[np.uint8]],
    captions: Sequence[str],
    path: Path,
    *,
    left_out: int = 0,
    note: str = "",
    legend: Callable[[Figure], None] | None = None,
) -> None:
    """Thumbnails with a caption each.

    Args:
        images: (H, W, 3).
        captions: One per image.
        path: PNG to write.
        left_out: Number of other images, mentioned in the title.
        note: Line below the images.
        legend: Adds a legend below the images.
    """
    columns = min(8, max(1, len(images)))
    rows = -(-len(images) // columns)
    # wide enough for the title and the note
    width = max(1.45 * columns + 0.2, 4.4)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(width, 1.75 * rows + 0.9), layout="constrained")
        more = f" ({left_out} more are in the list)" if left_out else ""
        count = "1 image" if len(images) == 1 else f"{len(images)} images"
        figure.suptitle(f"{count}{more}", fontsize=10, fontweight="bold")
        for axes in figure.subplots(rows, columns, squeeze=False).flat:
            axes.set_axis_off()
        for axes, image, caption in zip(figure.axes, images, captions, strict=False):
            axes.set_axis_on()
            show_image(axes, enlarge(image), caption)
        if legend is not None:
            legend(figure)
        elif note:
            lines = "\n".join(textwrap.wrap(note, round(15 * width)))
            figure.supxlabel(lines, fontsize=7, color=GRAY)
        save(figure, path)
