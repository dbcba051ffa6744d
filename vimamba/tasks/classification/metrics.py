"""Scores of a classifier: binary and multi-class (one label per image) and multi-label.

A class without images in a split has no scores there (None) and is left out of means; the same
holds for a class that all images have, in scores that need images without it.

N images, C classes.
"""

import warnings
from typing import Any

import torch
from torch import Tensor
from torchmetrics import CalibrationError, ConfusionMatrix, MetricCollection
from torchmetrics.classification import (
    BinaryCalibrationError,
    MulticlassAccuracy,
    MulticlassAUROC,
    MultilabelAUROC,
    MultilabelConfusionMatrix,
    MultilabelExactMatch,
)

# 15 bins, as in Guo et al. 2017, arXiv:1706.04599
CALIBRATION_BINS = 15


class FlatCalibrationError(BinaryCalibrationError):
    """Calibration error over all image-class pairs of multi-label data."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add (N, C) probabilities and (N, C) zeros and ones."""
        super().update(preds.flatten(), target.flatten())


def classification_metrics(num_classes: int, multi_label: bool) -> MetricCollection:
    """Metrics that take probabilities (N, C) and labels (N,) or (N, C)."""
    if multi_label:
        return MetricCollection(
            {
                "confusion": MultilabelConfusionMatrix(num_classes),
                "exact_match": MultilabelExactMatch(num_classes),
                "auroc": MultilabelAUROC(num_classes, average=None),
                "ece": FlatCalibrationError(n_bins=CALIBRATION_BINS),
            },
            compute_groups=False,
        )
    metrics: dict[str, Any] = {
        "confusion": ConfusionMatrix(task="multiclass", num_classes=num_classes),
        "auroc": MulticlassAUROC(num_classes, average=None),
        "ece": CalibrationError(
            task="multiclass", num_classes=num_classes, n_bins=CALIBRATION_BINS
        ),
    }
    if num_classes > 5:
        metrics["top5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
    return MetricCollection(metrics, compute_groups=False)


def confusion_scores(
    confusion: Tensor,
) -> tuple[dict[str, float | None], list[dict[str, float | None]]]:
    """Accuracy, balanced accuracy and macro F1 from counts.

    Args:
        confusion: (C, C), rows are the truth; or (C, 2, 2), one table per class, for multi-label.

    Returns:
        Scores over all classes, and per class images, precision, recall and F1; None if undefined.
    """
    confusion = confusion.double()
    if confusion.ndim == 3:
        hit, missed, false = confusion[:, 1, 1], confusion[:, 1, 0], confusion[:, 0, 1]
        right = confusion.diagonal(dim1=1, dim2=2).sum()
        # NaN where every image has the class
        specificity = confusion[:, 0, 0] / (confusion[:, 0, 0] + false)
    else:
        hit = confusion.diagonal()
        missed, false, right = confusion.sum(1) - hit, confusion.sum(0) - hit, hit.sum()
        specificity = None
    images = hit + missed
    recall = hit / images  # NaN without images
    seen = images > 0
    precision = (hit / (hit + false).clamp(min=1)).where(seen, torch.nan)
    f1 = (2 * hit / (2 * hit + missed + false).clamp(min=1)).where(seen, torch.nan)
    balanced = recall if specificity is None else (recall + specificity) / 2
    scores = {
        "accuracy": float_or_none(right / confusion.sum()),
        "balanced_accuracy": mean_of_known(balanced),
        "macro_f1": mean_of_known(f1),
    }
    columns = {"images": images, "precision": precision, "recall": recall, "f1": f1}
    rows = [
        {name: float_or_none(values[index]) for name, values in columns.items()}
        for index in range(len(images))
    ]
    return scores, rows


def class_aurocs(values: Tensor, confusion: Tensor) -> Tensor:
    """(C,) areas under the curves, NaN where all images or none have the class."""
    if confusion.ndim == 3:
        with_it, without = confusion[:, 1].sum(1), confusion[:, 0].sum(1)
    else:
        with_it = confusion.sum(1)
        without = confusion.sum() - with_it
    return values.where((with_it > 0) & (without > 0), torch.nan)


def float_or_none(value: Tensor) -> float | None:
    """The value as a float, or None if it is NaN."""
    return None if value.isnan() else float(value)


def mean_of_known(values: Tensor) -> float | None:
    """Mean of the values that are not NaN, or None if there are none."""
    return float_or_none(values.nanmean())


def compute_report(metrics: MetricCollection, class_names: list[str]) -> dict[str, Any]:
    """The full report of an evaluation, in plain numbers.

    Args:
        metrics: From `classification_metrics`, after all updates.
        class_names: In the order of the labels.

    Returns:
        Scores by name (None if undefined), `per_class` rows and the `confusion` counts.
    """
    with warnings.catch_warnings():
        # no warning for a class missing from a small split: the table shows it
        warnings.filterwarnings("ignore", message=".*(positive|negative) samples")
        values = metrics.compute()
    confusion = values.pop("confusion")
    scores, rows = confusion_scores(confusion)
    named = [{"class": name, **row} for name, row in zip(class_names, rows, strict=True)]
    for row in named:
        row["images"] = int(row["images"])
    scores["auroc"] = mean_of_known(class_aurocs(values.pop("auroc"), confusion))
    scores.update({name: float_or_none(value) for name, value in values.items()})
    return {**scores, "per_class": named, "confusion": confusion.long().tolist()}
