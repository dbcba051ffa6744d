"""All held-out images of a cross-validation of classifiers, by class and overall."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vimamba.console import number
from vimamba.tasks.classification.metrics import confusion_scores
from vimamba.tasks.folds import Folds, Pooled, Row, plus_minus, spread
from vimamba.tasks.pictures import draw_confusion

WORST = 10
DOTS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
}


def pool_classes(folds: Folds, out: Path) -> Pooled:
    """Pooled scores of all held-out images, and the most confident errors; draws the confusion."""
    cases = folds.numbers("case", "truth", "prediction")
    names = [row["class"] for row in folds.reports[0]["per_class"]]
    confusion = torch.from_numpy(np.sum([r["confusion"] for r in folds.reports], axis=0))
    scores, rows = confusion_scores(confusion)
    per_class = [{"class": name, **row} for name, row in zip(names, rows, strict=True)]
    for row in per_class:
        row["images"] = int(row["images"])
    wrong = [row for row in cases if not row["right"]]
    pooled = {**scores, "per_class": per_class, "confusion": confusion.tolist()}
    summary = {
        "cases": len({row["case"] for row in cases}),
        "over_cases": {"right": spread([row["right"] for row in cases])},
        "per_class": per_class,
        "worst": sorted(wrong, key=lambda row: row["probability_of_truth"])[:WORST],
        "pooled": pooled,
    }
    total = {**pooled, "images": sum(report["images"] for report in folds.reports)}
    draw_confusion(total, names, out / "confusion_matrix.png")
    tables = [class_table(per_class)]
    if summary["worst"]:
        tables.append(worst_table(summary["worst"]))
    return Pooled(
        summary,
        tables=tables,
        headline=f"accuracy {pooled['accuracy']:.2%} of {summary['cases']} held-out images; "
        f"{plus_minus(folds.over_folds.get('accuracy'))} over the folds",
        title=f"{len(folds.reports)} folds, {summary['cases']} held-out images",
        axis="score of a fold on its held-out images",
        dots=[
            (name, [(row["fold"], row[key]) for row in folds.per_fold])
            for key, name in DOTS.items()
            if key in folds.over_folds
        ],
    )


def class_table(per_class: Sequence[Row]) -> tuple[str, list[str], list[list[object]]]:
    """Scores of all images, for each class."""
    keys = ("precision", "recall", "f1")
    rows: list[list[object]] = [
        [row["class"], row["images"], *(number(row[key]) for key in keys)] for row in per_class
    ]
    return "all held-out images", ["class", "images", "precision", "recall", "F1"], rows


def worst_table(worst: Sequence[Row]) -> tuple[str, list[str], list[list[object]]]:
    """The wrong predictions with the lowest probability of the truth."""
    rows: list[list[object]] = [
        [row["case"], str(row["fold"]), *(row[key] or "none" for key in ("truth", "prediction")),
         number(row["probability"])] for row in worst
    ]  # fmt: skip
    title = "the most confident errors"
    return title, ["image", "fold", "truth", "prediction", "probability"], rows
