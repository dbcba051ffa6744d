"""Tables, pictures and predictions of the task."""

import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from vimamba.console import say, show_table
from vimamba.data.labelled.classification import ImageDataset
from vimamba.data.preprocessing import Preprocessing
from vimamba.files import write_rows
from vimamba.hub import save_pretrained
from vimamba.tasks.classification.predict import gather
from vimamba.tasks.folds import Folds, Pooled, plus_minus, spread
from vimamba.tasks.outputs import FailedInputs
from vimamba.tasks.pictures import STYLE, save
from vimamba.tasks.reading import read_all
from vimamba.tasks.tools import FinishedRun

RESULTS = (("errors.png", "how far the angles are off"),)
INPUTS = ("IMAGE_OR_FOLDER",)
PREDICTIONS = "angles.csv"
PREDICT_OPTIONS: dict[str, Any] = {}
FOLD_SCORES = {"error": "mean error", "within_30": "within 30°"}
FOLD_RESULTS = (("errors.png", "how far the angles of all folds are off"),)


def show_data(data: Any) -> None:
    """Print the number of images."""
    data.check()
    rows = [[split, len(samples)] for split, samples in data.catalogue.splits.items()]
    show_table(str(data.root), ["split", "images"], rows)


def draw_data(data: Any, out: Path) -> None:
    """Nothing."""


def show_scores(split: str, report: dict[str, Any]) -> None:
    """Print the scores."""
    rows = [["mean error (degrees)", f"{report['error']:.1f}"]]
    show_table("", ["score", split], [*rows, ["within 30°", f"{report['within_30']:.1%}"]])


def headline(split: str, report: dict[str, Any]) -> str:
    """The mean error in one line."""
    return f"{split} error {report['error']:.1f} degrees on {report['images']} images"


def write_results(report: dict[str, Any], split: str, out: Path) -> dict[str, Any]:
    """Write every error; the report keeps the scores."""
    write_rows(out / f"cases_{split}.csv", [{"error": e} for e in report["errors"]])
    return {key: value for key, value in report.items() if key != "errors"}


def draw_results(task: Any, data: Any, split: str, report: dict[str, Any], out: Path) -> None:
    """A histogram of the errors."""
    draw_errors(report["errors"], out / "errors.png")


def draw_errors(errors: Sequence[float], path: Path) -> None:
    """A histogram of errors, degrees."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.subplots()
        axes.hist(errors, bins=18, range=(0, 180))
        axes.set_xlabel("error, degrees")
        save(figure, path)


def export(task: Any, data: Any, folder: Path) -> None:
    """Export a timm folder."""
    save_pretrained(task.scored_net, folder, label_names=["cos", "sin"], license="unknown")


def export_hint(folder: Path) -> str:
    """Print how to load it."""
    return f'timm.create_model("local-dir:{folder}", pretrained=True)'


def pool_folds(folds: Folds, out: Path) -> Pooled:
    """Pool the errors of all held-out images."""
    errors = [(row["fold"], row["error"]) for row in folds.numbers()]
    draw_errors([error for _, error in errors], out / "errors.png")
    mean = spread([error for _, error in errors])
    return Pooled(
        {"cases": len(errors), "over_cases": {"error": mean}},
        tables=[("all held-out images", ["images", "error"], [[len(errors), plus_minus(mean)]])],
        headline=f"error {plus_minus(mean)} degrees of {len(errors)} held-out images",
        title=f"{len(errors)} held-out images",
        axis="error of a held-out image, degrees",
        dots=[("error", errors)],
    )


def predict(run: FinishedRun, given: Namespace) -> int:
    """Write the angle of each image."""
    failed = FailedInputs()
    items = gather(given.inputs, failed)
    task = run.load()
    dataset = ImageDataset(items, Preprocessing.from_settings(run.data), None, seed=0)
    rows = []
    for batch in read_all(dataset, given.batch_size or 64, given.workers):
        for index, item in batch:
            with torch.inference_mode():
                angle = float(task.predict_step((item[0][None],), 0)[0])
            path = items[index].path
            rows.append({"path": path.as_posix(), "degrees": round(angle * 180 / math.pi, 2)})
    out = given.out or run.folder / PREDICTIONS
    write_rows(out, rows)
    say(f"{len(rows)} images; written to {out}")
    return failed.report(len(rows))
