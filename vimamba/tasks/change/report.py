"""Output of a change run: the data before training; scores, pictures and the export."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from vimamba.console import number, say, show_table
from vimamba.data import ChangeFolder
from vimamba.data.inspection import describe_pixels, inspect_images
from vimamba.sizes import by_sides
from vimamba.tasks.dense_report import draw_scored
from vimamba.tasks.dense_report import export as export
from vimamba.tasks.folds import Folds, Pooled
from vimamba.tasks.tools import FinishedRun

RESULTS = (
    ("data.png", "training pairs with their labels, as stored and as the network sees them"),
    ("samples.png", "before, after, truth, prediction; also curves.png, confusion_matrix.png"),
)
INPUTS = ("BEFORE", "AFTER")
PREDICTIONS = "predictions"
PREDICT_OPTIONS: dict[str, Any] = {
    "overlap": None,
    "masks": None,
    "no_overlays": False,
    "align": False,
    "cog": False,
    "probabilities": False,
    "polygons": None,
    "window_size": None,
    "memory": None,
}
FOLD_SCORES = {
    "score": "score",
    "sek": "SeK",
    "fscd": "Fscd",
    "f1_building": "F1 of buildings",
    "f1_damage": "F1 of damage",
    "f1": "F1",
    "iou": "IoU",
    "accuracy": "OA",
    "kappa": "kappa",
}
FOLD_RESULTS = (("confusion_matrix.png", "the pixels of all folds together"),)
SCORES = {
    "score": "score",
    "sek": "SeK",
    "fscd": "Fscd",
    "miou": "mIoU of unchanged and changed",
    "f1_building": "F1 of buildings",
    "f1_damage": "F1 of damage, harmonic mean",
    "f1": "F1 of change",
    "iou": "IoU of change",
    "precision": "precision of change",
    "recall": "recall of change",
    "accuracy": "accuracy of pixels (OA)",
    "kappa": "kappa",
    "loss": "loss",
}


def show_data(data: ChangeFolder) -> None:
    """Check the data and print classes, their shares of the pixels, and notes.

    Raises:
        DataError: Something is empty, unreadable or does not fit together.
    """
    data.check()
    counts, names, maps = data.counts, data.class_names, data.truths.maps
    rows: list[list[object]] = []
    for place, name in enumerate(maps):
        classes = names if place or len(maps) == 1 else [f"no {name}", name]
        for index, label in enumerate(classes):
            parts = (
                f"{count[place, index] / max(count[place].sum(), 1):.2%}"
                for count in counts.values()
            )
            rows.append([name, label, *parts])
    rows.append(["pairs", "", *(len(pairs) for pairs in data.in_order.values())])
    head = ["labels", "class", *(f"{split} pixels" for split in counts)]
    show_table(f"{data.root} ({data.kind} change)", head, rows)
    fit = "squashed to" if data.preprocessing.fit == "squash" else "cut into windows of"
    say(f"pairs are {fit} {by_sides(data.img_size)}")
    for note in data.notes():
        say(note)
    for line in describe_pixels(data, inspect_images(data, budget=5.0)):
        say(line)


def draw_data(data: ChangeFolder, out: Path) -> None:
    """Training pairs with their labels, before and after augmentation."""
    from vimamba.tasks.change.pictures import draw_pairs

    draw_pairs(data, out / "data.png")


def show_scores(split: str, report: dict[str, Any]) -> None:
    """Print the scores of a split, and those of each class."""
    title = f"{split}: {report['images']} pairs, over all pixels"
    show_table(title, *class_cells(report))
    building = "f1_building" in report
    names = {
        k: v.replace("of change", "of buildings") if building else v for k, v in SCORES.items()
    }
    scores = [[name, number(report[key], 4)] for key, name in names.items() if key in report]
    show_table("", ["score", split], scores)


def class_cells(report: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Heads and rows of a table of the classes."""
    keys = ("f1", "iou", "precision", "recall")
    rows: list[list[object]] = [
        [row["class"], row["pixels"], *(number(row[key]) for key in keys)]
        for row in report["per_class"]
    ]
    return ["class", "pixels", "F1", "IoU", "precision", "recall"], rows


def headline(split: str, report: dict[str, Any]) -> str:
    """The most important scores in a line."""
    keys = [key for key in ("score", "sek", "fscd", "f1_damage") if key in report] or ["f1", "iou"]
    scores = ", ".join(f"{SCORES[key]} {number(report[key], 4)}" for key in keys)
    return f"{split} {scores} on {report['images']} pairs"


def write_results(report: dict[str, Any], split: str, out: Path) -> dict[str, Any]:
    """There are no lists to write."""
    return report


def draw_results(
    task: Any, data: ChangeFolder, split: str, report: dict[str, Any], out: Path
) -> None:
    """Confusion matrix and samples."""
    from vimamba.tasks.change.pictures import draw_predictions

    title = headline(split, report)
    draw_scored(task, data, split, report, out, title=title, draw_predictions=draw_predictions)


def export_hint(folder: Path) -> str:
    """How to load the export."""
    return "for vimamba.load_change_detector, without Lightning"


def pool_folds(folds: Folds, out: Path) -> Pooled:
    """Score the held-out pixels of all folds together."""
    from vimamba.tasks.change.folds import pool_pairs

    return pool_pairs(folds, out)


def predict(run: FinishedRun, given: Namespace) -> int:
    """Map the change between two images, or the pairs of two folders."""
    from vimamba.tasks.change.predict import map_changes

    return map_changes(run, given)
