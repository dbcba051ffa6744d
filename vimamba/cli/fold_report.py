"""What came out of a cross-validation: tables over all held-out cases, over classes and folds."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from vimamba.checkpoints import read_checkpoint
from vimamba.cli.folds import Record, fold_folder
from vimamba.console import command_line, number, say, show_table
from vimamba.files import write_rows, write_whole
from vimamba.tasks.classification.metrics import confusion_scores
from vimamba.tasks.segmentation.metrics import CASE_SCORES, class_scores

WORST = 10
Row = dict[str, Any]
NAMES = {
    "dice": "Dice", "hd95": "HD95", "surface_dice": "surface Dice", "case_dice": "Dice of a case",
    "case_hd95": "HD95 of a case", "case_surface_dice": "surface Dice of a case",
    "miou": "mean IoU", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1", "exact_match": "all labels right", "auroc": "AUROC",
}  # fmt: skip


def report_folds(out: Path, record: Record) -> None:
    """Write cases.csv, folds.csv, summary.json and the pictures; print what matters.

    Args:
        out: Folder of a cross-validation whose folds are finished.
        record: Its record.
    """
    from vimamba.cli.fold_pictures import draw_folds
    from vimamba.tasks.pictures import draw_confusion

    reports = [read_report(out, fold) for fold in range(record.folds)]
    cases = [row for fold in range(record.folds) for row in read_cases(out, fold)]
    per_fold = [fold_row(out, fold, report) for fold, report in enumerate(reports)]
    names = [row["class"] for row in reports[0]["per_class"]]
    pooled = torch.from_numpy(np.sum([report["confusion"] for report in reports], axis=0))
    segments = "dice" in cases[0]
    summary = {
        "task": "segmentation" if segments else "classification",
        "folds": record.folds,
        "choose": record.choose,
        "cases": len({row["case"] for row in cases}),
        "over_folds": over_folds(per_fold),
        "per_fold": per_fold,
    }
    tell = tell_masks if segments else tell_classes
    summary |= tell(cases, pooled, names)
    write_rows(out / "cases.csv", cases)
    write_rows(out / "folds.csv", per_fold)
    with write_whole(out / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    draw_folds(cases, per_fold, summary, out / "folds.png")
    answer = {**summary["pooled"], "images": sum(report["images"] for report in reports)}
    title = f"Pixel accuracy {answer['accuracy']:.2%}, all folds" if segments else None
    path = out / "confusion_matrix.png"
    draw_confusion(answer, names, path, title=title, shares=segments)
    show_summary(summary, record)
    for name, what in (
        ("cases.csv", "every held-out case with its fold"),
        ("folds.csv", "the scores of each fold; summary.json has means and deviations"),
        ("folds.png", "the held-out cases of all folds; also confusion_matrix.png"),
        ("fold0 ...", "a run for each fold"),
    ):
        say(f"  {out / name}: {what}")
    say(f"next: {command_line('predict', out, 'IMAGE_OR_FOLDER', '--out', 'predictions')}"
        f"{'' if segments else '.csv'}")  # fmt: skip


def read_report(out: Path, fold: int) -> Row:
    """The scores of a fold's held-out images."""
    path = fold_folder(out, fold) / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8"))["test"]


def read_cases(out: Path, fold: int) -> list[Row]:
    """The rows of a fold's held-out cases, with the fold; numbers as numbers."""
    path = fold_folder(out, fold) / "cases_test.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    words = ("case", "class", "truth", "answer")
    return [
        {"fold": fold}
        | {key: value if key in words else cell_value(value) for key, value in row.items()}
        for row in rows
    ]


def cell_value(text: str) -> float | None:
    """A cell as a number, None if it is empty."""
    if not text:
        return None
    return int(text) if text.isdecimal() else float(text)


def fold_row(out: Path, fold: int, report: Row) -> Row:
    """Scores of one fold in a row, with the epoch that they are of."""
    checkpoint = fold_folder(out, fold) / "checkpoints" / Path(report["checkpoint"]).name
    content = read_checkpoint(checkpoint)
    scores = {name: report[name] for name in NAMES if isinstance(report.get(name), float)}
    return {"fold": fold, "images": report["images"], "epoch": content["epoch"] + 1, **scores}


def spread(values: Sequence[float]) -> Row:
    """Number, mean and standard deviation (of a sample; None for a single value)."""
    deviation = stdev(values) if len(values) > 1 else None
    return {"n": len(values), "mean": fmean(values), "sd": deviation}


def over_folds(per_fold: Sequence[Row]) -> Row:
    """Mean and deviation of each score over the folds that have it."""
    found = {}
    for name in NAMES:
        values = [row[name] for row in per_fold if row.get(name) is not None]
        if values:
            found[name] = spread(values)
    return found


def tell_masks(cases: Sequence[Row], confusion: torch.Tensor, names: Sequence[str]) -> Row:
    """Scores over all cases, for each class and overall, and the worst cases.

    Args:
        cases: A row per case and class.
        confusion: (C, C) pixels of all folds.
        names: In the order of the classes.
    """
    by_case: dict[str, list[Row]] = {}
    for row in cases:
        by_case.setdefault(row["case"], []).append(row)
    means = []
    for case, rows in by_case.items():
        known = [row for row in rows if row["dice"] is not None]
        if known:
            found = {key: fmean(row[key] for row in known) for key in CASE_SCORES}
            means.append({"fold": rows[0]["fold"], "case": case, **found})
    scored = [name for name in names if any(row["class"] == name for row in cases)]
    per_class = []
    for name in scored:
        rows = [row for row in cases if row["class"] == name and row["dice"] is not None]
        found = {key: spread([row[key] for row in rows]) for key in CASE_SCORES if rows}
        per_class.append({"class": name, "cases": len(rows), **found})
    return {
        "over_cases": {key: spread([row[key] for row in means]) for key in CASE_SCORES if means},
        "per_class": per_class,
        "worst": sorted(means, key=lambda row: row["dice"])[:WORST],
        "pooled": class_scores(confusion, names, background=len(scored) < len(names)),
    }


def tell_classes(cases: Sequence[Row], confusion: torch.Tensor, names: Sequence[str]) -> Row:
    """Scores of all held-out images together, for each class, and the surest mistakes.

    Args:
        cases: A row per image.
        confusion: (C, C), or (C, 2, 2) for multi-label data: images of all folds.
        names: In the order of the classes.
    """
    scores, rows = confusion_scores(confusion)
    per_class = [{"class": name, **row} for name, row in zip(names, rows, strict=True)]
    for row in per_class:
        row["images"] = int(row["images"])
    wrong = [row for row in cases if not row["right"]]
    pooled = {**scores, "per_class": per_class, "confusion": confusion.tolist()}
    return {
        "over_cases": {"right": spread([row["right"] for row in cases])},
        "per_class": per_class,
        "worst": sorted(wrong, key=lambda row: row["probability_of_truth"])[:WORST],
        "pooled": pooled,
    }


def show_summary(summary: Row, record: Record) -> None:
    """Print the scores over cases, classes and folds, and the worst cases."""
    segments = summary["task"] == "segmentation"
    if segments:
        rows = [
            [row["class"], row["cases"], *(plus_minus(row.get(key)) for key in CASE_SCORES)]
            for row in summary["per_class"]
        ]
        overall = [plus_minus(summary["over_cases"].get(key)) for key in CASE_SCORES]
        rows.append(["mean of a case", summary["cases"], *overall])
        head = ["class", "cases", *(NAMES[key] for key in CASE_SCORES)]
        show_table("all held-out cases, mean ± standard deviation of the cases", head, rows)
    else:
        keys = ("precision", "recall", "f1")
        rows = [
            [row["class"], row["images"], *(number(row[key]) for key in keys)]
            for row in summary["per_class"]
        ]
        head = ["class", "images", "precision", "recall", "F1"]
        show_table("all held-out images", head, rows)
    show_worst(summary["worst"], segments)
    known = [name for name in NAMES if name in summary["over_folds"]]
    cells = [
        [str(row["fold"]), row["epoch"], row["images"], *(number(row.get(name)) for name in known)]
        for row in summary["per_fold"]
    ]
    means = (plus_minus(summary["over_folds"][name]) for name in known)
    cells.append(["mean ± sd", "", "", *means])
    head = ["fold", "epoch", "images", *(NAMES[name] for name in known)]
    chosen = "best on a val split of its own" if record.choose == "inner" else "last"
    show_table(f"the folds; the epoch of each is the {chosen}", head, cells)
    say(headline(summary))


def headline(summary: Row) -> str:
    """The score that matters most, in a line."""
    if summary["task"] == "segmentation":
        dice = plus_minus(summary["over_cases"].get("dice"))
        return f"cross-validation: Dice {dice} over {summary['cases']} held-out cases"
    accuracy = summary["pooled"]["accuracy"]
    folds = plus_minus(summary["over_folds"].get("accuracy"))
    return (
        f"cross-validation: accuracy {accuracy:.2%} of {summary['cases']} held-out images; "
        f"{folds} over the folds"
    )


def show_worst(rows: Sequence[Row], segments: bool) -> None:
    """Print the worst cases."""
    if segments:
        cells = [
            [row["case"], str(row["fold"]), *(number(row[key]) for key in CASE_SCORES)]
            for row in rows
        ]
        show_table("the worst cases", ["case", "fold", *(NAMES[k] for k in CASE_SCORES)], cells)
    elif rows:
        keys = ("truth", "answer")
        cells = [
            [row["case"], str(row["fold"]), *(row[key] or "none" for key in keys),
             number(row["probability"])] for row in rows
        ]  # fmt: skip
        head = ["image", "fold", "truth", "answer", "probability"]
        show_table("the mistakes that were surest of themselves", head, cells)


def plus_minus(found: Mapping[str, Any] | None) -> str:
    """Mean and deviation in a cell."""
    if found is None:
        return "-"
    return f"{found['mean']:.3f} ± {number(found['sd'])}"
