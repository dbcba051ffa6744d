"""Output of a segmentation run: the data before training; scores, pictures and the export."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from vimamba.console import number, say, show_table
from vimamba.data import SegmentationData
from vimamba.data.inspection import describe_pixels, inspect_images
from vimamba.files import write_rows
from vimamba.sizes import height_and_width
from vimamba.tasks.dense_report import draw_scored
from vimamba.tasks.dense_report import export as export
from vimamba.tasks.folds import Folds, Pooled
from vimamba.tasks.segmentation.metrics import variant_notes
from vimamba.tasks.tools import FinishedRun

RESULTS = (
    (
        "data.png",
        "training images with their masks, as stored and as the network sees them",
    ),
    ("samples.png", "image, truth, prediction, error; also curves.png, confusion_matrix.png"),
)
INPUTS = ("IMAGE_OR_FOLDER",)
PREDICTIONS = "predictions"
PREDICT_OPTIONS = {
    "overlap": None,
    "masks": None,
    "no_overlays": False,
    "cog": False,
    "probabilities": False,
    "polygons": None,
    "window_size": None,
    "memory": None,
}
FOLD_SCORES = {
    "dice": "Dice",
    "case_dice": "Dice of a case",
    "case_hd95": "HD95 of a case",
    "case_surface_dice": "surface Dice of a case",
    "miou": "mean IoU",
    "accuracy": "accuracy",
}
FOLD_RESULTS = (("confusion_matrix.png", "the pixels of all folds together"),)
CLASS_ROWS = 30
SCORES = {
    "dice": "mean Dice",
    "miou": "mean IoU",
    "accuracy": "pixel accuracy",
    "case_dice": "Dice, mean of the cases",
    "case_hd95": "HD95, mean of the cases",
    "case_surface_dice": "surface Dice, mean of the cases",
    "loss": "loss",
}


def show_data(data: SegmentationData) -> None:
    """Check the data and print classes, their shares of the pixels, and image sizes.

    Raises:
        DataError: Something is empty, unreadable or does not fit together.
    """
    data.check()
    show_classes(data)
    seen = data.survey
    (low_h, low_w), (high_h, high_w) = seen.smallest, seen.largest
    size = f"{low_h}x{low_w}"
    size = size if seen.smallest == seen.largest else f"{size} to {high_h}x{high_w}"
    fit = "squashed to" if data.preprocessing.fit == "squash" else "cut into windows of"
    height, width = height_and_width(data.img_size)
    say(f"image size {size}, {fit} {height}x{width}")
    for note in data.notes():
        say(note)
    # the masks and the headers of all images have been read: a sample of the values is enough
    for line in describe_pixels(data, inspect_images(data, budget=5.0)):
        say(line)


def show_classes(data: SegmentationData, unit: str = "pixels", many: str = "images") -> None:
    """Print the classes and their shares of the pixels, or voxels, of each split."""
    splits, seen = data.in_order, data.survey
    counts = {split: data.count(split) for split in splits}
    rows: list[list[object]] = []
    for index, (name, value) in enumerate(
        zip(data.class_names[:CLASS_ROWS], data.label_values, strict=False)
    ):
        images = seen.images["train"].get(value, 0)
        parts = (f"{count[index] / max(count.sum(), 1):.2%}" for count in counts.values())
        rows.append([name, value, images, *parts])
    if data.num_classes > CLASS_ROWS:
        rows.append([f"({data.num_classes - CLASS_ROWS} more)", "", "", *("" for _ in splits)])
    rows.append([many, "", len(splits["train"]), *map(len, splits.values())])
    for what, found in data.tallies().items():
        rows.append([what, "", found["train"], *(found[split] for split in splits)])
    head = ["class", "value", f"training {many}", *(f"{split} {unit}" for split in splits)]
    show_table(f"{data.root} ({data.num_classes} classes)", head, rows)


def draw_data(data: SegmentationData, out: Path) -> None:
    """Draw training images with their masks, before and after augmentation."""
    from vimamba.tasks.segmentation.pictures import draw_masked_data

    draw_masked_data(data, out / "data.png")


def show_scores(split: str, report: dict[str, Any]) -> None:
    """Print the scores of a split, and those of each class."""
    keys = ("dice", "iou", "precision", "recall")
    rows = [
        [row["class"], row["pixels"], *(number(row[key]) for key in keys)]
        for row in report["per_class"]
    ]
    head = ["class", "pixels", "Dice", "IoU", "precision", "recall"]
    show_table(f"{split}: {report['images']} images, over all pixels", head, rows)
    for note in variant_notes(report.get("left_out", ()), report.get("border", 0)):
        say(note)
    if "cases" in report:
        show_cases(report["cases"]["per_class"])
    scores = [[name, number(report[key], 4)] for key, name in SCORES.items() if key in report]
    show_table("", ["score", split], scores)


def show_cases(rows: list[dict[str, Any]]) -> None:
    """Print the means over the cases of each class."""
    keys = ("dice", "hd95", "surface_dice")
    cells = [[row["class"], row["cases"], *(number(row[key]) for key in keys)] for row in rows]
    head = ["class", "cases", "Dice", "HD95", "surface Dice"]
    show_table("mean over the cases with the class in the truth or the prediction", head, cells)


def headline(split: str, report: dict[str, Any]) -> str:
    """Mean Dice and mean IoU in a line."""
    scores = f"mean Dice {number(report['dice'], 4)}, mean IoU {number(report['miou'], 4)}"
    return f"{split} {scores} on {report['images']} images"


def write_results(report: dict[str, Any], split: str, out: Path) -> dict[str, Any]:
    """Write a row per case and class to cases.csv; the report keeps their means."""
    if "cases" not in report:
        return report
    write_rows(out / f"cases_{split}.csv", report["cases"]["rows"])
    return {**report, "cases": report["cases"]["per_class"]}


def draw_results(
    task: Any, data: SegmentationData, split: str, report: dict[str, Any], out: Path
) -> None:
    """Confusion matrix and samples."""
    from vimamba.tasks.segmentation.pictures import draw_predictions

    title = f"Pixel accuracy {report['accuracy']:.2%}"
    draw_scored(task, data, split, report, out, title=title, draw_predictions=draw_predictions)


def export_hint(folder: Path) -> str:
    """How to load the export."""
    return "for vimamba.load_segmenter, without Lightning"


def pool_folds(folds: Folds, out: Path) -> Pooled:
    """Pool the scores of the held-out cases of all folds."""
    from vimamba.tasks.segmentation.folds import pool_masks

    return pool_masks(folds, out)


def predict(run: FinishedRun, given: Namespace) -> int:
    """Segment images and volumes, or continue an earlier call with the same options."""
    from vimamba.tasks.segmentation.predict import segment

    return segment(run, given)
