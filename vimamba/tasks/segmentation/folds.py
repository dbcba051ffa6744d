"""All held-out cases of a cross-validation of segmentations, by class and overall."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from vimamba.console import number
from vimamba.tasks.folds import Folds, Pooled, Row, plus_minus, spread
from vimamba.tasks.pictures import draw_confusion
from vimamba.tasks.segmentation.metrics import CASE_SCORES, class_scores

WORST = 10
NAMES = {"dice": "Dice", "hd95": "HD95", "surface_dice": "surface Dice"}


def pool_masks(folds: Folds, out: Path, *, unit: str = "Pixel") -> Pooled:
    """Scores of every case, and of all pixels together; draws the confusion of these.

    Regions, which cases of volumes may have besides their classes, are in the tables and in no
    mean over classes.

    Args:
        folds: The scored folds.
        out: Folder to draw into.
        unit: What is counted, as the title of the picture has it.
    """
    cases = folds.numbers("case", "class")
    names = [row["class"] for row in folds.reports[0]["per_class"]]
    left_out = folds.reports[0].get("left_out", ())
    confusion = torch.from_numpy(np.sum([r["confusion"] for r in folds.reports], axis=0))
    scored = list(dict.fromkeys(row["class"] for row in cases))
    classes = [name for name in names if name in scored]
    means = case_means([row for row in cases if row["class"] in classes])
    per_class = []
    for name in scored:
        rows = [row for row in cases if row["class"] == name and row["dice"] is not None]
        found = {key: spread([row[key] for row in rows]) for key in CASE_SCORES if rows}
        per_class.append({"class": name, "cases": len(rows), **found})
    summary = {
        "cases": len({row["case"] for row in cases}),
        "over_cases": {key: spread([row[key] for row in means]) for key in CASE_SCORES if means},
        "per_class": per_class,
        "worst": sorted(means, key=lambda row: row["dice"])[:WORST],
        "pooled": class_scores(
            confusion, names, background=names[0] not in classes, left_out=left_out
        ),
    }
    title = f"{unit} accuracy {summary['pooled']['accuracy']:.2%}, all folds"
    draw_confusion(summary["pooled"], names, out / "confusion_matrix.png", title=title, shares=True)
    dice = plus_minus(summary["over_cases"].get("dice"))
    return Pooled(
        summary,
        tables=(class_table(summary), worst_table(summary["worst"])),
        headline=f"Dice {dice} over {summary['cases']} held-out cases",
        title=f"{summary['cases']} held-out cases, {len(folds.reports)} folds",
        axis="Dice of a held-out case",
        dots=[
            (name, [(row["fold"], row["dice"]) for row in cases if row["class"] == name])
            for name in scored
        ],
    )


def case_means(cases: Sequence[Row]) -> list[Row]:
    """Mean scores of each case over its classes."""
    by_case: dict[str, list[Row]] = {}
    for row in cases:
        by_case.setdefault(row["case"], []).append(row)
    means = []
    for case, rows in by_case.items():
        known = [row for row in rows if row["dice"] is not None]
        if known:
            found = {key: fmean(row[key] for row in known) for key in CASE_SCORES}
            means.append({"fold": rows[0]["fold"], "case": case, **found})
    return means


def class_table(summary: Row) -> tuple[str, list[str], list[list[object]]]:
    """Scores over the cases, for each class and overall."""
    rows: list[list[object]] = [
        [row["class"], row["cases"], *(plus_minus(row.get(key)) for key in CASE_SCORES)]
        for row in summary["per_class"]
    ]
    overall = [plus_minus(summary["over_cases"].get(key)) for key in CASE_SCORES]
    rows.append(["mean of a case", summary["cases"], *overall])
    title = "all held-out cases, mean ± standard deviation of the cases"
    return title, ["class", "cases", *(NAMES[key] for key in CASE_SCORES)], rows


def worst_table(worst: Sequence[Row]) -> tuple[str, list[str], list[list[object]]]:
    """The cases with the lowest Dice."""
    rows: list[list[object]] = [
        [row["case"], str(row["fold"]), *(number(row[key]) for key in CASE_SCORES)] for row in worst
    ]
    return "the worst cases", ["case", "fold", *(NAMES[key] for key in CASE_SCORES)], rows
