"""Scores of pairs, before and after: rows of one table, and their means.

Sizes: C channels, K classes, n axes, *grid the axes of an image.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vimamba.networks.registration import warp
from vimamba.tasks.registration.loss import ncc_loss
from vimamba.tasks.registration.metrics import (
    dice_scores,
    folded_share,
    hausdorff_distances,
    warp_labels,
)

Row = dict[str, Any]


def score_pair(
    images: Tensor,
    flow: Tensor,
    labels: Tensor | None,
    class_names: Sequence[str],
    *,
    spacing: Sequence[float] | None = None,
    window: int = 9,
) -> Row:
    """Scores of one pair, with and without its displacement.

    Args:
        images: (2, C, *grid), moving and fixed.
        flow: (n, *grid), cells.
        labels: (2, *grid), 0 for no class, i + 1 for the i-th.
        class_names: K.
        spacing: Spacing for surface distances, n; without it they are left out.
        window: Window of the local cross-correlation, cells.

    Returns:
        `folded`, the fraction of cells where the field folds; `ncc`, the squared local
        cross-correlation; for every class `dice NAME` and `hd95 NAME` in the unit of `spacing`,
        None if undefined; all but `folded` also with `_before`.
    """
    moving, fixed = images[:1], images[1:]
    field = flow[None]
    row: Row = {"folded": float(folded_share(field)[0])}
    moved = warp(moving, field)
    for name, image in (("ncc", moved), ("ncc_before", moving)):
        row[name] = -float(ncc_loss(image, fixed, window=window))
    if labels is None:
        return row
    moved_labels = warp_labels(labels[:1], field)
    for after, side in (("", moved_labels), ("_before", labels[:1])):
        both, count = (side, labels[1:]), len(class_names) + 1
        dice = dice_scores(*both, count)[0, 1:].tolist()
        row |= {f"dice{after} {n}": if_finite(v) for n, v in zip(class_names, dice, strict=True)}
        if spacing is not None:
            far = hausdorff_distances(*both, count, spacing=spacing)[0].tolist()
            row |= {f"hd95{after} {n}": if_finite(v) for n, v in zip(class_names, far, strict=True)}
    return row


def if_finite(value: float) -> float | None:
    """The value, or None if it is undefined because a class is absent."""
    return value if math.isfinite(value) else None


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the defined values; None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def summarize(rows: Sequence[Row], class_names: Sequence[str]) -> dict[str, Any]:
    """Means over pairs and classes.

    Returns:
        `pairs`, their number; `ncc`, `ncc_before`, `folded`; with labels `dice` and `dice_before`,
        and `hd95` and `hd95_before` if they were scored; `per_class` and `rows`.
    """
    report: dict[str, Any] = {"pairs": len(rows)}
    for key in ("ncc", "ncc_before", "folded"):
        report[key] = mean([row[key] for row in rows])
    per_class = []
    for name in class_names:
        scores = {
            key: mean([row[f"{key} {name}"] for row in rows])
            for key in ("dice", "dice_before", "hd95", "hd95_before")
            if any(f"{key} {name}" in row for row in rows)
        }
        per_class.append({"class": name, **scores})
    for key in per_class[0] if per_class else ():
        if key != "class":
            report[key] = mean([row[key] for row in per_class])
    return {**report, "per_class": per_class, "rows": list(rows)}
