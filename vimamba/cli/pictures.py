"""Pictures of a run: curves, confusion matrix, samples and the contact sheet of predictions."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vimamba.data import ClassificationData

# Okabe and Ito's colours, told apart by colour-blind readers too
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; a half-written file never appears."""
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, dpi=150, format="png", facecolor="white")
    os.replace(part, path)


def read_columns(path: Path) -> dict[str, NDArray[np.float64]]:
    """Columns of metrics.csv; an empty cell is NaN."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = rows[0].keys() if rows else ()
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}


def draw_curves(metrics: Path, path: Path) -> None:
    """Losses, scores and learning rate against the epoch."""
    columns = read_columns(metrics)
    epoch = columns.get("epoch", np.zeros(0))
    panels = (
        ("Loss", (("train/loss", "train", BLUE), ("val/loss", "validation", ORANGE))),
        (
            "Validation scores",
            (
                ("val/dice", "mean Dice", ORANGE),
                ("val/miou", "mean IoU", GREEN),
                ("val/accuracy", "accuracy", BLUE),
                ("val/macro_f1", "macro F1", ORANGE),
                ("val/auroc", "AUROC", GREEN),
            ),
        ),
        ("Learning rate", (("lr", "", GREY),)),
    )
    mark = "o" if len(epoch) < 3 else ""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.3), layout="constrained")
        for axes, (title, lines) in zip(figure.subplots(1, 3), panels, strict=True):
            for name, label, colour in lines:
                if name in columns:
                    known = ~np.isnan(columns[name])
                    values = columns[name][known]
                    # often equal to the accuracy, which then shows between the dashes
                    style = "--" if label == "macro F1" else "-"
                    axes.plot(
                        epoch[known], values, style, color=colour, label=label, marker=mark, lw=1.8
                    )
            axes.set_title(title, loc="left", fontweight="bold")
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            if len(lines) > 1 and axes.lines:
                axes.legend()
        save(figure, path)


def draw_confusion(
    report: dict[str, Any],
    class_names: Sequence[str],
    path: Path,
    *,
    title: str | None = None,
    shares: bool = False,
) -> None:
    """Truth against prediction in parts of each row; for multi-label data, scores per class.

    Args:
        report: Holds the counts, `confusion`.
        class_names: In the order of the classes.
        path: PNG to write.
        title: Accuracy and number of images by default.
        shares: Write percentages, not counts, into the fields.
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
                colour = "white" if share[row, column] > 0.55 else "#222222"
                count_text = f"{confusion[row, column]:.0f}"
                text = f"{share[row, column]:.1%}" if shares else count_text
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
        step = max(1, count // 60)
        ticks, names = range(0, count, step), [shorten(name, 18) for name in class_names[::step]]
        upright = max(len(name) for name in names) > 3
        slanted = {"rotation": 55, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(ticks, names, **(slanted if upright else {}))
        axes.set_yticks(ticks, names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("truth")
        title = title or f"Accuracy {report['accuracy']:.2%}, {report['images']} images"
        axes.set_title(title, loc="left", fontweight="bold")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, shrink=0.75, label="part of the true class")
        save(figure, path)


def draw_class_scores(report: dict[str, Any], path: Path) -> None:
    """Precision, recall and F1 of each class as dots on a line."""
    rows = report["per_class"][::-1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 1.4 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for key, colour in (("precision", BLUE), ("recall", ORANGE), ("f1", GREEN)):
            values = [row[key] for row in rows]
            axes.plot(values, range(len(rows)), "o", color=colour, label=key.replace("f1", "F1"))
        axes.set_yticks(range(len(rows)), [f"{r['class']} ({r['images']})" for r in rows])
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_title("Scores of each class (images)", loc="left", fontweight="bold")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        save(figure, path)


def shorten(text: str, length: int) -> str:
    """Text cut to a length, the cut marked."""
    return text if len(text) <= length else text[: length - 1] + "…"


def show_image(axes: Axes, image: NDArray, title: str, colour: str = "#222222") -> None:
    """Draw one image with a line of text above it."""
    grey = image.ndim == 2 or image.shape[2] == 1
    axes.imshow(image.squeeze() if grey else image, cmap="gray" if grey else None)
    axes.set_title(title, fontsize=8, color=colour, pad=3)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(colour if colour != "#222222" else "#cccccc")
    axes.spines[:].set_linewidth(1.5 if colour != "#222222" else 0.5)


def as_pixels(image: torch.Tensor, data: ClassificationData) -> NDArray:
    """Undo the normalisation: (C, H, W) to (H, W, C) in [0, 1]."""
    pixels = image.permute(1, 2, 0).float().numpy() * np.asarray(data.std) + np.asarray(data.mean)
    return pixels.clip(0, 1)


def label_names(label: torch.Tensor, class_names: Sequence[str]) -> str:
    """Names of an index or of a multi-hot row."""
    chosen = [int(label)] if label.ndim == 0 else label.nonzero().flatten().tolist()
    return ", ".join(class_names[index] for index in chosen) or "none"


def draw_samples(task: Any, data: ClassificationData, split: str, path: Path) -> None:
    """Augmented training images above, evaluated images with the answers below.

    Args:
        task: A classification task.
        data: The data set.
        split: Split to evaluate; up to 512 images, the most mistaken first.
        path: PNG to write.
    """
    columns, names = 8, data.class_names
    train = data.dataset("train", augmented=True)
    rng = np.random.default_rng(0)
    shown = rng.permutation(len(train))[: 2 * columns]
    judged = data.dataset(split)
    chosen = rng.permutation(len(judged))[:512]
    batch = [judged[int(index)] for index in chosen]
    probabilities = classify(task, torch.stack([image for image, _ in batch]), data.batch_size)
    answers = [answer(p, label, names) for p, (_, label) in zip(probabilities, batch, strict=True)]
    order = sorted(range(len(batch)), key=lambda i: (answers[i][1], -answers[i][2]))
    wrong = sum(not right for _, right, _ in answers)
    # at most half the places for mistakes, the rest for a fair choice of what is right
    picked = order[: min(wrong, columns)]
    picked += [i for i in range(len(batch)) if answers[i][1]][: 2 * columns - len(picked)]
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(11, 7.4), layout="constrained")
        above, below = cast(Any, figure.subfigures(2, 1, hspace=0.03))
        above.suptitle("Training images as the network sees them", fontsize=11, fontweight="bold")
        verdict = (
            f"{wrong} of {len(batch)} wrong (orange, the surest first)" if wrong else "all right"
        )
        below.suptitle(f"Answers on {split} images: {verdict}", fontsize=11, fontweight="bold")
        for part in (above, below):
            for axes in part.subplots(2, columns).flat:
                axes.set_axis_off()
        for axes, index in zip(above.axes, shown, strict=False):
            image, label = train[0, int(index)]
            axes.set_axis_on()
            show_image(axes, as_pixels(image, data), shorten(label_names(label, names), 16))
        for axes, index in zip(below.axes, picked, strict=False):
            text, right, _ = answers[index]
            axes.set_axis_on()
            colour = GREEN if right else RED
            show_image(axes, as_pixels(batch[index][0], data), text, colour)
        save(figure, path)


def classify(task: Any, images: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Probabilities of images, (N, num_classes), on the CPU."""
    task = task.eval()
    device = next(task.parameters()).device
    with torch.inference_mode():
        parts = [
            task.predict_step((part.to(device),), 0).cpu() for part in images.split(batch_size)
        ]
    return torch.cat(parts)


def answer(
    probability: torch.Tensor, label: torch.Tensor, names: Sequence[str]
) -> tuple[str, bool, float]:
    """Text for an image, whether the answer is right, and how sure it is."""
    if label.ndim:
        found = probability >= 0.5
        right = bool((found == label.bool()).all())
        sure = float((probability - label).abs().max())
        said = shorten(label_names(found, names), 16)
        return (
            (said if right else f"{said}\nis {shorten(label_names(label, names), 14)}"),
            right,
            sure,
        )
    best = int(probability.argmax())
    sure = float(probability[best])
    said = f"{shorten(names[best], 12)} {sure:.0%}"
    right = best == int(label)
    return (said if right else f"{said}\nis {shorten(names[int(label)], 14)}"), right, sure


def draw_contact_sheet(
    images: Sequence[NDArray], captions: Sequence[str], path: Path, *, left_out: int = 0
) -> None:
    """Thumbnails with a caption each.

    Args:
        images: (H, W, C) uint8.
        captions: One per image.
        path: PNG to write.
        left_out: Number of further images, mentioned in the title.
    """
    columns = min(8, max(1, len(images)))
    rows = -(-len(images) // columns)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.45 * columns + 0.2, 1.75 * rows + 0.5), layout="constrained")
        more = f" ({left_out} more are in the list)" if left_out else ""
        count = "1 image" if len(images) == 1 else f"{len(images)} images"
        figure.suptitle(f"{count}{more}", fontsize=10, fontweight="bold")
        for axes in figure.subplots(rows, columns, squeeze=False).flat:
            axes.set_axis_off()
        for axes, image, caption in zip(figure.axes, images, captions, strict=False):
            axes.set_axis_on()
            show_image(axes, image, caption)
        save(figure, path)
