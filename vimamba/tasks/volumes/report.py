"""Output of a volume run: the cases before training; scores, pictures and the export."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from vimamba.console import say
from vimamba.data import VolumeData
from vimamba.tasks.dense_report import draw_scored
from vimamba.tasks.folds import Folds, Pooled
from vimamba.tasks.segmentation.report import (
    FOLD_SCORES,
    INPUTS,
    export,
    export_hint,
    headline,
    show_classes,
    show_scores,
    write_results,
)
from vimamba.tasks.tools import FinishedRun

__all__ = [
    "FOLD_SCORES",
    "INPUTS",
    "export",
    "export_hint",
    "headline",
    "show_scores",
    "write_results",
]

RESULTS = (
    ("data.png", "training cases with their masks, in three planes"),
    ("samples.png", "truth and prediction in three planes; also curves.png, confusion_matrix.png"),
)
PREDICTIONS = "predictions"
PREDICT_OPTIONS = {"overlap": None, "masks": None, "no_overlays": False, "softmax": False}
FOLD_RESULTS = (("confusion_matrix.png", "the voxels of all folds together"),)


def show_data(data: VolumeData) -> None:
    """Check the data and print classes, their shares of the voxels, sizes, spacings and the plan.

    Raises:
        DataError: Cases cannot be used; the message names them.
    """
    data.check()
    show_classes(data, "voxels", "cases")
    for line in (*data.describe(), *data.notes()):
        say(line)


def draw_data(data: VolumeData, out: Path) -> None:
    """Training cases with their masks, in three planes."""
    from vimamba.tasks.volumes.pictures import draw_cases

    draw_cases(data, out / "data.png")


def draw_results(
    task: Any, data: VolumeData, split: str, report: dict[str, Any], out: Path
) -> None:
    """Confusion matrix and samples."""
    from vimamba.tasks.volumes.pictures import draw_predictions

    title = f"Voxel accuracy {report['accuracy']:.2%}"
    draw_scored(task, data, split, report, out, title=title, draw_predictions=draw_predictions)


def pool_folds(folds: Folds, out: Path) -> Pooled:
    """Score the held-out volumes of all folds together."""
    from vimamba.tasks.segmentation.folds import pool_masks

    return pool_masks(folds, out, unit="Voxel")


def predict(run: FinishedRun, given: Namespace) -> int:
    """Segment volumes, or continue where an earlier call with the same options stopped."""
    from functools import partial

    from vimamba.tasks.segmentation.predict import segment
    from vimamba.tasks.volumes.predict import VolumeWriter

    return segment(run, given, partial(VolumeWriter, softmax=bool(given.softmax)))
