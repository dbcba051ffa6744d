"""Scores of a classifier: binary and multi-class (one label per image) and multi-label.

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
                "auroc": MultilabelAUROC(num_classes),
                "ece": FlatCalibrationError(n_bins=CALIBRATION_BINS),
            },
            compute_groups=False,
        )
    metrics: dict[str, Any] = {
        "confusion": ConfusionMatrix(task="multiclass", num_classes=num_classes),
        "auroc": MulticlassAUROC(num_classes),
        "ece": CalibrationError(
            task="multiclass", num_classes=num_classes, n_bins=CALIBRATION_BINS
        ),
    }
    if num_classes > 5:
        metrics["top5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
    return MetricCollection(metrics, compute_groups=False)


def confusion_scores(confusion: Tensor) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Accuracy, balanced accuracy and macro F1 from counts.

    Classes without an image of their own are left out of the two means.

    Args:
        confusion: (C, C), rows are the truth; or (C, 2, 2), one table per class, for multi-label.

    Returns:
        Scores over all classes, and per class images, precision, recall and F1.
    """
    confusion = confusion.double()
    if confusion.ndim == 3:
        hit, missed, false = confusion[:, 1, 1], confusion[:, 1, 0], confusion[:, 0, 1]
        right = confusion.diagonal(dim1=1, dim2=2).sum()
        specificity = confusion[:, 0, 0] / (confusion[:, 0, 0] + false).clamp(min=1)
    else:
        hit = confusion.diagonal()
        missed, false, right = confusion.sum(1) - hit, confusion.sum(0) - hit, hit.sum()
        specificity = None
    images = hit + missed
    precision = hit / (hit + false).clamp(min=1)
    recall = hit / images.clamp(min=1)
    f1 = 2 * hit / (2 * hit + missed + false).clamp(min=1)
    seen = images > 0
    balanced = recall if specificity is None else (recall + specificity) / 2
    scores = {
        "accuracy": float(right / confusion.sum().clamp(min=1)),
        "balanced_accuracy": float(balanced[seen].mean()) if seen.any() else 0.0,
        "macro_f1": float(f1[seen].mean()) if seen.any() else 0.0,
    }
    columns = {"images": images, "precision": precision, "recall": recall, "f1": f1}
    rows = [
        {name: float(values[index]) for name, values in columns.items()}
        for index in range(len(images))
    ]
    return scores, rows


def compute_report(metrics: MetricCollection, class_names: list[str]) -> dict[str, Any]:
    """Everything worth knowing about an evaluation, in plain numbers.

    Args:
        metrics: As made by `classification_metrics`, after its updates.
        class_names: In the order of the labels.

    Returns:
        Scores by name, `per_class` rows and the `confusion` counts.
    """
    with warnings.catch_warnings():
        # a class that is missing from a small split is no news here: the table shows it
        warnings.filterwarnings("ignore", message=".*(positive|negative) samples")
        values = metrics.compute()
    confusion = values.pop("confusion")
    scores, rows = confusion_scores(confusion)
    named = [{"class": name, **row} for name, row in zip(class_names, rows, strict=True)]
    for row in named:
        row["images"] = int(row["images"])
    scores.update({name: float(torch.nan_to_num(value)) for name, value in values.items()})
    return {**scores, "per_class": named, "confusion": confusion.long().tolist()}
