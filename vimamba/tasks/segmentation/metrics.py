"""Scores of segmentations: over all pixels of a data set, and per case.

Over the data set, a class that is not in the truth has no scores (None) and is left out of means,
whether it is predicted or not; pixels where it is predicted count against their true class.

For each case (an image, or all slices of a volume) a class gets a Dice, a 95 % Hausdorff distance
(HD95) and a surface Dice (Nikolov et al. 2018, arXiv:1809.04430), with MONAI's distances in units
of the spacing:

| truth | prediction | Dice | HD95 | surface Dice |
|---|---|---|---|---|
| empty | empty | not scored | not scored | not scored |
| one of them empty | | 0 | diagonal of the case | 0 |
| both present | | as defined | as defined | as defined |

A class that is in the truth of no case is left out of means over the cases, too. Ignored pixels
belong to no class in either the truth or the prediction.
"""

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimamba.labels import IGNORE
from vimamba.tasks.classification.metrics import float_or_none, mean_of_known

CASE_SCORES = ("dice", "hd95", "surface_dice")
Row = dict[str, Any]


def class_scores(
    confusion: Tensor,
    class_names: Sequence[str],
    *,
    background: bool,
    left_out: Collection[str] = (),
) -> Row:
    """Dice, IoU and accuracy from pixel counts.

    Args:
        confusion: (C, C), rows are the truth.
        class_names: In the order of the classes.
        background: Leave the first class out of the mean Dice.
        left_out: Classes without a part in the means. Their pixels count against other classes and
            in the accuracy.

    Returns:
        `dice` (mean over the foreground classes), `miou` (mean over all classes), `accuracy`
        (fraction of the pixels), `per_class` rows and the `confusion` counts; None if undefined.
    """
    counts = confusion.double()
    hit = counts.diagonal()
    truth, found = counts.sum(1), counts.sum(0)
    columns = {
        "dice": 2 * hit / (truth + found),
        "iou": hit / (truth + found - hit),
        "precision": hit / found,
        "recall": hit / truth,
    }
    columns = {key: values.where(truth > 0, torch.nan) for key, values in columns.items()}
    rows = [
        {"class": name, "pixels": int(truth[index])}
        | {key: float_or_none(values[index]) for key, values in columns.items()}
        for index, name in enumerate(class_names)
    ]
    meant = torch.tensor(
        [name not in left_out for name in class_names], dtype=torch.bool, device=counts.device
    )
    first = int(background)
    return {
        "dice": mean_of_known(columns["dice"][first:][meant[first:]]),
        "miou": mean_of_known(columns["iou"][meant]),
        "accuracy": float_or_none(hit.sum() / counts.sum()),
        "per_class": rows,
        "confusion": confusion.long().tolist(),
    }


def variant_notes(left_out: Collection[str], border: int) -> list[str]:
    """What is particular about scores over all pixels, a line each."""
    notes = []
    if left_out:
        notes.append(f"means are without {', '.join(left_out)}")
    if border:
        notes.append(f"pixels up to {border} from another true class are not counted")
    return notes


def without_borders(truth: NDArray[np.uint8], border: int) -> NDArray[np.uint8]:
    """(H, W) classes, with `IGNORE` wherever a pixel of another class is `border` away or less.

    The distance is Euclidean, so with 3 a class is eroded by the disc of ISPRS's benchmark. Borders
    with what is ignored, and the edges of the image, are none.
    """
    if border == 0:
        return truth
    import cv2

    reach = np.arange(-border, border + 1) ** 2
    disc = (reach[:, None] + reach <= border**2).astype(np.uint8)
    unknown = truth == IGNORE
    highest = cv2.dilate(np.where(unknown, np.uint8(0), truth), disc)
    lowest = cv2.erode(np.where(unknown, np.uint8(IGNORE), truth), disc)
    return np.where(unknown | (highest != lowest), np.uint8(IGNORE), truth)


def confusion_counts(
    truth: NDArray[np.integer], found: NDArray[np.integer], num_classes: int
) -> NDArray[np.int64]:
    """Pixels by true class (rows) and predicted class, (C, C), where neither is `IGNORE`."""
    known = (truth != IGNORE) & (found != IGNORE)
    pairs = truth[known].astype(np.int64) * num_classes + found[known]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def case_scores(
    prediction: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    classes: Sequence[int | Sequence[int]],
    spacing: Sequence[float],
    tolerance: float,
) -> list[dict[str, float | None]]:
    """Scores of each class in one case.

    Args:
        prediction: (H, W) or (D, H, W) classes.
        truth: The same, with `IGNORE`.
        classes: Classes to score; several may be merged into one.
        spacing: Distance between neighbors along each axis.
        tolerance: Distance up to which a surface counts as matched, in units of the spacing.

    Returns:
        For each class `dice`, `hd95` and `surface_dice`; None if neither has the class.
    """
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    ignored = truth == IGNORE
    diagonal = math.dist(
        [0] * truth.ndim, [s * n for s, n in zip(spacing, truth.shape, strict=True)]
    )
    rows: list[dict[str, float | None]] = []
    for labels in classes:
        found, wanted = np.isin(prediction, labels) & ~ignored, np.isin(truth, labels)
        if not found.any() and not wanted.any():
            rows.append(dict.fromkeys(CASE_SCORES))
            continue
        if not found.any() or not wanted.any():
            rows.append({"dice": 0.0, "hd95": diagonal, "surface_dice": 0.0})
            continue
        pair = [torch.from_numpy(mask)[None, None] for mask in (found, wanted)]
        shared: dict[str, Any] = {
            "include_background": True,
            "spacing": [float(s) for s in spacing],
        }
        with warnings.catch_warnings():
            # a warning of one MONAI function about another
            warnings.filterwarnings("ignore", category=FutureWarning)
            distance = compute_hausdorff_distance(pair[0], pair[1], percentile=95, **shared)
            surface = compute_surface_dice(pair[0], pair[1], [tolerance], **shared)
        overlap = 2 * (found & wanted).sum() / (found.sum() + wanted.sum())
        rows.append(
            {"dice": float(overlap), "hd95": float(distance), "surface_dice": float(surface)}
        )
    return rows


class CaseTable:
    """Scores of cases whose slices arrive one after another.

    Args:
        class_names: In the order of the classes.
        background: Do not score the first class.
        tolerance: See `case_scores`.
        left_out: Further classes not to score.
        regions: Sets of classes that are also scored, by name.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        background: bool,
        tolerance: float,
        left_out: Collection[str] = (),
        regions: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        first = int(background)
        # what is scored, by name, and how many of these are classes
        self.parts: dict[str, Sequence[int]] = {
            name: (label,)
            for label, name in enumerate(class_names)
            if label >= first and name not in left_out
        }
        self.class_count = len(self.parts)
        self.parts |= regions or {}
        self.tolerance = tolerance
        self.rows: list[Row] = []
        self.case: str | None = None
        self.slices: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []
        self.spacing: Sequence[float] = ()
        self.seen: set[int] = set()

    def add(
        self,
        case: str,
        prediction: NDArray[np.uint8],
        truth: NDArray[np.uint8],
        spacing: Sequence[float],
    ) -> None:
        """Add the next image or slice, (H, W) classes each."""
        if case != self.case:
            self.close()
        self.case, self.spacing = case, spacing
        self.slices.append((prediction, truth))

    def close(self) -> None:
        """Score the case whose slices are complete."""
        if self.case is None:
            return
        volume = len(self.spacing) == 3
        prediction, truth = (
            np.stack(part) if volume else part[0] for part in zip(*self.slices, strict=True)
        )
        self.seen.update(np.unique(truth).tolist())
        parts = list(self.parts.values())
        scores = case_scores(prediction, truth, parts, self.spacing, self.tolerance)
        for name, found in zip(self.parts, scores, strict=True):
            self.rows.append({"case": self.case, "class": name, **found})
        self.case, self.slices = None, []

    def means(self) -> tuple[dict[str, float | None], list[Row]]:
        """Mean of each score over the cases: averaged over the classes, and for each class.

        None for a class that is in the truth of no case.
        """
        per_class: list[Row] = []
        for name, labels in self.parts.items():
            rows = [row for row in self.rows if row["class"] == name and row["dice"] is not None]
            rows = rows if self.seen.intersection(labels) else []
            means = {key: mean_or_none([row[key] for row in rows]) for key in CASE_SCORES}
            per_class.append({"class": name, "cases": len(rows), **means})
        seen = [row for row in per_class[: self.class_count] if row["cases"]]
        return {key: mean_or_none([row[key] for row in seen]) for key in CASE_SCORES}, per_class


def mean_or_none(values: Sequence[float]) -> float | None:
    """Mean of the values, or None if there are none."""
    return float(np.mean(values)) if values else None
