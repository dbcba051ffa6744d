"""Pictures of a classification run: training images, and predictions with the errors first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from vimamba.data import ClassificationData
from vimamba.tasks.overlays import as_pixels, find_view
from vimamba.tasks.pictures import GRAY, GREEN, RED, STYLE, enlarge, save, shorten, show_image


def label_names(label: torch.Tensor, class_names: Sequence[str]) -> str:
    """Names of an index or of a multi-hot row."""
    chosen = [int(label)] if label.ndim == 0 else label.nonzero().flatten().tolist()
    return ", ".join(class_names[index] for index in chosen) or "none"


def draw_samples(task: Any, data: ClassificationData, split: str, path: Path) -> None:
    """Augmented training images above, evaluated images with predictions below.

    Args:
        task: A classification task.
        data: The data set.
        split: Split to evaluate; up to 512 images, the worst errors first.
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
    captions = [
        caption(p, label, names) for p, (_, label) in zip(probabilities, batch, strict=True)
    ]
    order = sorted(range(len(batch)), key=lambda i: (captions[i][1], -captions[i][2]))
    wrong = sum(not right for _, right, _ in captions)
    # at most half of the images are errors, the rest a random sample of correct ones
    picked = order[: min(wrong, columns)]
    picked += [i for i in range(len(batch)) if captions[i][1]][: 2 * columns - len(picked)]
    trained = [train[0, int(index)] for index in shown]
    above_images = [as_pixels(image, data.preprocessing) for image, _ in trained]
    below_images = [as_pixels(batch[index][0], data.preprocessing) for index in picked]
    view = find_view([*above_images, *below_images])
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        counts = [max(1, -(-len(part) // columns)) for part in (trained, picked)]
        figure = Figure(figsize=(11, 1.65 * sum(counts) + 1), layout="constrained")
        figure.supxlabel(view.network_text(data.preprocessing), fontsize=8, color=GRAY)
        above, below = cast(Any, figure.subfigures(2, 1, hspace=0.03, height_ratios=counts))
        above.suptitle("Training images as the network sees them", fontsize=11, fontweight="bold")
        verdict = (
            f"{wrong} of {len(batch)} wrong (orange, most confident first)"
            if wrong
            else "all correct"
        )
        below.suptitle(f"Predictions on {split} images: {verdict}", fontsize=11, fontweight="bold")
        for part, count in zip((above, below), counts, strict=True):
            for axes in part.subplots(count, columns, squeeze=False).flat:
                axes.set_axis_off()
        for axes, (_, label), image in zip(above.axes, trained, above_images, strict=False):
            axes.set_axis_on()
            show_image(axes, enlarge(view(image)), shorten(label_names(label, names), 16))
        for axes, index, image in zip(below.axes, picked, below_images, strict=False):
            text, right, _ = captions[index]
            axes.set_axis_on()
            show_image(axes, enlarge(view(image)), text, GREEN if right else RED)
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


def caption(
    probability: torch.Tensor, label: torch.Tensor, names: Sequence[str]
) -> tuple[str, bool, float]:
    """Caption of an image, whether the prediction is correct, and its confidence."""
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
