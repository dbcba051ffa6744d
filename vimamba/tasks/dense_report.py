"""Shared by the reports of tasks with per-pixel predictions."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vimamba.hub import save_pretrained


def export(task: Any, data: Any, folder: Path) -> None:
    """Write the scored network with all that is needed to build it again."""
    preprocessing = data.preprocessing
    save_pretrained(
        task.scored_net,
        folder,
        label_names=task.class_names,
        label_values=getattr(task, "label_values", None),
        license=None if task.hparams["pretrained"] else "unknown",
        data_config={
            "mean": tuple(preprocessing.mean or ()),
            "std": tuple(preprocessing.std or ()),
        },
        preprocessing=asdict(preprocessing),
    )


def draw_scored(
    task: Any,
    data: Any,
    split: str,
    report: dict[str, Any],
    out: Path,
    *,
    title: str,
    draw_predictions: Callable[[Any, Any, str, Path], None],
) -> None:
    """Draw the confusion matrix and samples into a run folder.

    Args:
        task: The task.
        data: The data set.
        split: What was scored.
        report: The scores.
        out: The folder.
        title: Of the confusion matrix.
        draw_predictions: Draws the samples: gets the task, the data, the split and the file.
    """
    from vimamba.tasks.pictures import draw_confusion

    path = out / "confusion_matrix.png"
    draw_confusion(report, data.class_names, path, title=title, shares=True)
    draw_predictions(task, data, split, out / "samples.png")
