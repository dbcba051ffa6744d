"""Output of a registration run: the data before training; scores, pictures and the export."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vimamba.console import number, say, show_table
from vimamba.data import RegistrationData
from vimamba.data.paired.registration import PairTensors
from vimamba.files import write_rows
from vimamba.hub import save_pretrained
from vimamba.tasks.folds import Folds, Pooled
from vimamba.tasks.registration.pictures import PLANES, Look, draw_pairs, draw_scores
from vimamba.tasks.tools import FinishedRun

RESULTS = (
    ("data.png", "training pairs before registration"),
    ("samples.png", "pairs before and after, and their fields; also scores.png, curves.png"),
)
INPUTS = ("MOVING", "FIXED")
PREDICTIONS = "registered"
PREDICT_OPTIONS: dict[str, Any] = {}
FOLD_SCORES = {
    "dice_before": "Dice before",
    "dice": "Dice after",
    "hd95_before": "HD95 before",
    "hd95": "HD95 after",
    "ncc_before": "NCC before",
    "ncc": "NCC after",
    "folded": "folded",
}
FOLD_RESULTS = (("scores.png", "every held-out pair, before and after"),)
CLASS_ROWS = 30
SAMPLES = 3
# of each label
LABEL_SCORES = ("dice_before", "dice", "hd95_before", "hd95")
IMAGE_SCORES = ("ncc_before", "ncc")


def show_data(data: RegistrationData) -> None:
    """Check the data and print cases, pairs and classes.

    Raises:
        DataError: Something is unreadable or does not fit together.
    """
    data.check()
    splits = data.catalogue.splits
    rows: list[list[object]] = [
        [split, len(data.cases(split)), len(data.pairs_to_score(split))] for split in splits
    ]
    show_table(str(data.root), ["split", "cases", "pairs to score"], rows)
    for what, found in data.tallies().items():
        say(f"{what}: {', '.join(f'{split} {count}' for split, count in found.items())}")
    say(f"first case: {data.every_case[0].grid.text}; {data.in_chans} channels")
    if not data.label_values:
        say("no labels: training and scores use image similarity only")
    else:
        total = sum(data.label_voxels.values())
        shares = (f"{data.label_voxels.get(v, 0) / total:.2%}" for v in data.label_values)
        named = zip(data.class_names, data.label_values, shares, strict=True)
        show_table("", ["class", "value", "share of all cells"], list(named)[:CLASS_ROWS])
    for note in data.notes():
        say(note)


def look_at(found: PairTensors, flow: torch.Tensor, moved: torch.Tensor) -> Look:
    """The first channel of a pair, to draw."""
    moving, fixed = found.images[:, 0].numpy()
    shown = moved[0].float().cpu().numpy()
    return Look(
        found.name, moving, fixed, shown, flow.float().cpu().numpy(), found.spacing.tolist()
    )


def draw_data(data: RegistrationData, out: Path) -> None:
    """Draw training pairs, not registered."""
    dataset = data.dataset("train", augmented=True)
    looks = []
    for index in range(min(SAMPLES, len(dataset))):
        found = dataset[index]
        still = torch.zeros(data.dims, *found.images.shape[2:], dtype=None, device="cpu")
        looks.append(look_at(found, still, found.images[0]))
    draw_pairs(looks, out / "data.png", planes=list(PLANES)[:1])


def show_scores(split: str, report: dict[str, Any]) -> None:
    """Print the scores of a split, and those of each class."""
    keys = [key for key in LABEL_SCORES if key in report]
    if keys:
        rows = [
            [row["class"], *(number(row[key]) for key in keys)]
            for row in report["per_class"][:CLASS_ROWS]
        ]
        rows.append(["mean", *(number(report[key]) for key in keys)])
        title = f"{split}: mean of {report['pairs']} pairs"
        show_table(title, ["class", *(FOLD_SCORES[key] for key in keys)], rows)
    rows = [[FOLD_SCORES[key], number(report[key], 4)] for key in IMAGE_SCORES]
    rows.append(["folded (determinant of 0 or less)", f"{report['folded']:.4%}"])
    show_table("", ["score", split], rows)


def headline(split: str, report: dict[str, Any]) -> str:
    """Dice, or image similarity, before and after in a line."""
    key, name = ("dice", "Dice") if "dice" in report else ("ncc", "NCC")
    before, after = number(report[f"{key}_before"]), number(report[key])
    return f"{split} {name} {before} before, {after} after, mean of {report['pairs']} pairs"


def write_results(report: dict[str, Any], split: str, out: Path) -> dict[str, Any]:
    """Write a row per pair to cases_SPLIT.csv; the report keeps the means."""
    write_rows(out / f"cases_{split}.csv", report["rows"])
    return {key: value for key, value in report.items() if key != "rows"}


def draw_results(
    task: Any, data: RegistrationData, split: str, report: dict[str, Any], out: Path
) -> None:
    """Draw pairs before and after, and every pair's score."""
    dataset = data.dataset(split)
    looks = []
    for index in spread(len(dataset), SAMPLES):
        found = dataset[index]
        with torch.inference_mode():
            registered = task.register(found.images[None].to(task.device))
        looks.append(look_at(found, registered.flow[0], registered.moved[0]))
    draw_pairs(looks, out / "samples.png", planes=list(PLANES)[:2])
    names = [row["class"] for row in report["per_class"]]
    draw_scores(report["rows"], names, out / "scores.png")


def spread(count: int, wanted: int) -> Sequence[int]:
    """Indices of `wanted` of `count` items, evenly spread."""
    return sorted({round(i * (count - 1) / max(wanted - 1, 1)) for i in range(min(count, wanted))})


def export(task: Any, data: RegistrationData, folder: Path) -> None:
    """Write the scored network with everything needed to rebuild it."""
    save_pretrained(task.scored_net, folder, license="unknown")


def export_hint(folder: Path) -> str:
    """How to load the export."""
    return "for vimamba.load_network, without Lightning"


def pool_folds(folds: Folds, out: Path) -> Pooled:
    """Score the held-out pairs of all folds together."""
    from vimamba.tasks.registration.folds import pool_pairs

    return pool_pairs(folds, out)


def predict(run: FinishedRun, given: Namespace) -> int:
    """Register pairs."""
    from vimamba.tasks.registration.predict import register

    return register(run, given)
