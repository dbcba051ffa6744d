"""Output of a classification run: the data before training; scores, pictures, the export."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vimamba.console import number, say, show_table
from vimamba.data import ClassificationData
from vimamba.data.inspection import describe_pixels, inspect_images
from vimamba.data.splits import SPLITS
from vimamba.hub import save_pretrained
from vimamba.sizes import height_and_width
from vimamba.tasks.folds import Folds, Pooled
from vimamba.tasks.tools import FinishedRun

RESULTS = (("samples.png", "inputs and predictions; also curves.png, confusion_matrix.png"),)
INPUTS = ("IMAGE_OR_FOLDER",)
PREDICTIONS = "predictions.csv"
PREDICT_OPTIONS = {"topk": 3}
FOLD_SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "exact_match": "all labels right",
    "auroc": "AUROC",
}
FOLD_RESULTS = (("confusion_matrix.png", "the images of all folds together"),)
CLASS_ROWS = 20
SCORES = {
    "accuracy": "accuracy",
    "top5": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "exact_match": "all labels right",
    "auroc": "AUROC",
    "ece": "calibration error",
    "loss": "loss",
}


def show_data(data: ClassificationData) -> None:
    """Check the data and print classes, counts, image sizes and channel means.

    Raises:
        DataError: Something is empty or unreadable.
    """
    data.check()
    splits = [split for split in SPLITS if split in data.catalogue.splits]
    counts = [data.count(split) for split in splits]
    rows: list[list[object]] = [
        [name, *(int(count[index]) for count in counts)]
        for index, name in enumerate(data.class_names[:CLASS_ROWS])
    ]
    if data.num_classes > CLASS_ROWS:
        rest = (int(count[CLASS_ROWS:].sum()) for count in counts)
        rows.append([f"({data.num_classes - CLASS_ROWS} more)", *rest])
    rows.append(["images", *(len(data.catalogue.splits[split]) for split in splits)])
    for what, found in data.tallies().items():
        rows.append([what, *(found[split] for split in splits)])
    kind = "labels per image: any number" if data.multi_label else "one label per image"
    show_table(f"{data.root} ({data.num_classes} classes, {kind})", ["class", *splits], rows)
    unseen = [
        f"{name} in {split}"
        for split, count in zip(splits, counts, strict=True)
        for name, images in zip(data.class_names, count, strict=True)
        if images == 0
    ]
    if unseen:
        shown = ", ".join(unseen[:6]) + (" …" if len(unseen) > 6 else "")
        say(f"note: no image of {shown}; scores of a split leave such classes out")
    for note in data.notes():
        say(note)
    seen = inspect_images(data)
    (low_h, low_w), (high_h, high_w) = seen.smallest, seen.largest
    size = f"{low_h}x{low_w}"
    size = size if seen.smallest == seen.largest else f"{size} to {high_h}x{high_w}"
    mean, std = (", ".join(f"{v:.3f}" for v in values) for values in (seen.mean, seen.std))
    share = "all" if seen.seen == seen.total else f"{seen.seen} of {seen.total}"
    say(f"image size {size}; channel mean {mean}, std {std} ({share} images read)")
    for line in describe_pixels(data, seen):
        say(line)


def draw_data(data: ClassificationData, out: Path) -> None:
    """Does nothing: samples.png shows the images at the end."""


def show_scores(split: str, report: dict[str, Any]) -> None:
    """Print the scores of a split, and those of each class."""
    rows = [
        [row["class"], row["images"], *(number(row[k]) for k in ("precision", "recall", "f1"))]
        for row in report["per_class"]
    ]
    head = ["class", "images", "precision", "recall", "F1"]
    show_table(f"{split}: {report['images']} images", head, rows)
    scores = [[name, number(report[key], 4)] for key, name in SCORES.items() if key in report]
    show_table("", ["score", split], scores)


def export(task: Any, data: Any, folder: Path) -> None:
    """Write the scored network for timm."""
    area = data.interpolation == "area"
    save_pretrained(
        task.scored_net,
        folder,
        label_names=data.class_names,
        license=None if task.hparams["pretrained"] else "unknown",
        data_config={
            "input_size": (len(data.mean), *height_and_width(data.img_size)),
            "mean": tuple(data.mean),
            "std": tuple(data.std),
            "interpolation": "box" if area else data.interpolation,  # timm's name
            "crop_pct": data.crop_pct,
            "crop_mode": "center",
        },
        preprocessing=asdict(data.preprocessing),
    )


def export_hint(folder: Path) -> str:
    """How to load the export."""
    return f'timm.create_model("local-dir:{folder}", pretrained=True)'


def headline(split: str, report: dict[str, Any]) -> str:
    """The accuracy in a line."""
    return f"{split} accuracy {report['accuracy']:.2%} on {report['images']} images"


def write_results(report: dict[str, Any], split: str, out: Path) -> dict[str, Any]:
    """Return the report unchanged: nothing is too long for metrics.json."""
    return report


def draw_results(
    task: Any, data: ClassificationData, split: str, report: dict[str, Any], out: Path
) -> None:
    """Draw the prediction for each image, confusion matrix and samples."""
    from vimamba.tasks.classification.cases import write_cases
    from vimamba.tasks.classification.pictures import draw_samples
    from vimamba.tasks.pictures import draw_confusion

    write_cases(task, data, split, out / f"cases_{split}.csv")
    draw_confusion(report, data.class_names, out / "confusion_matrix.png")
    draw_samples(task, data, split, out / "samples.png")


def pool_folds(folds: Folds, out: Path) -> Pooled:
    """Pool the scores of the held-out cases of all folds."""
    from vimamba.tasks.classification.folds import pool_classes

    return pool_classes(folds, out)


def predict(run: FinishedRun, given: Namespace) -> int:
    """Classify images and write the predictions."""
    from vimamba.tasks.classification.predict import classify

    return classify(run, given)
