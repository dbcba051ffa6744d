"""Predicted masks against true ones, case by case."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vimamba.cli.callbacks import write_rows
from vimamba.cli.errors import UsageError
from vimamba.cli.mask_jobs import Job, volume_jobs
from vimamba.cli.outputs import Unanswered, output_name, reason, shown
from vimamba.cli.runs import read_config
from vimamba.cli.segmenting import show_cases
from vimamba.cli.tables import say
from vimamba.data.csv_list import read_rows
from vimamba.data.labels import LabelTable
from vimamba.data.nifti import open_volume, volume_mask
from vimamba.data.pairs import some
from vimamba.data.pixels import read_mask
from vimamba.data.samples import list_images
from vimamba.data.splits import SPLITS
from vimamba.errors import VimambaError
from vimamba.tasks.mask_metrics import CaseTable

CASES = "cases.csv"
SPLIT_NAMES = {
    "train": "its training images",
    "val": "its validation images",
    "test": "its test images",
    "": "other images",
}


def find_truths(folder: Path, jobs: Sequence[Job], settings: dict[str, Any]) -> dict[str, Path]:
    """The true mask of each job, by name.

    Raises:
        UsageError: The folder is not there, or a mask is missing.
    """
    if not folder.is_dir():
        raise UsageError(f"--masks {folder} is not a folder")
    found: dict[str, Path] = {}
    for job in volume_jobs(folder, 1):
        found[job.name] = job.paths[0]
    for path in list_images(folder):
        found[output_name(str(path.relative_to(folder).with_suffix("")), ".png")] = path
    ending = settings.get("mask_suffix") or "_segmentation"
    matched = {}
    for job in jobs:
        # the last as nnU-Net names them: image case_0000, mask case
        names = (job.name, job.name + ending, job.name.removesuffix("_0000"))
        matched[job.name] = next((found[name] for name in names if name in found), None)
    missing = [name for name, path in matched.items() if path is None]
    if missing:
        raise UsageError(f"--masks {folder} has no mask for {some(missing)}")
    return cast(dict[str, Path], matched)


def read_classes(job: Job, path: Path, table: LabelTable) -> list[NDArray[np.uint8]]:
    """Classes of a mask file, (H, W); a volume's axial slices, an image alone."""
    stored = volume_mask(path, "axial") if job.is_volume else [read_mask(path)]
    return [table.indices(values, str(path)) for values in stored]


def score_files(
    task: Any,
    table: LabelTable,
    jobs: Sequence[Job],
    truths: dict[str, Path],
    out: Path,
    run: Path,
    unanswered: Unanswered,
) -> None:
    """Score every written mask against the truth; print the means, write cases.csv.

    Args:
        task: A segmentation task.
        table: Its classes and their values in masks.
        jobs: The images that have a mask.
        truths: The true mask of each by the job's name.
        out: Folder of the masks.
        run: The run, which may know what it was trained on.
        unanswered: Gets images whose truth cannot be read or does not fit.
    """
    cases: CaseTable = task.new_cases()
    for job in jobs:
        path = truths[job.name]
        found = read_classes(job, job.mask_file(out), table)
        try:
            truth = read_classes(job, path, table)
            sizes = [(len(masks), *masks[0].shape) for masks in (found, truth)]
            if sizes[0] != sizes[1]:
                differ = f"{sizes[0]}, {sizes[1]}"
                raise UsageError(f"{job.paths[0]} and {path} differ in size: {differ}")
        except VimambaError as error:
            unanswered.add(job.paths[0], f"no score of {shown(job.paths[0])}: {reason(error)}")
            continue
        spacing = open_volume(path).spacing[::-1] if job.is_volume else (1.0, 1.0)
        for one, other in zip(found, truth, strict=True):
            cases.add(job.name, one, other, spacing)
    cases.close()
    if not cases.rows:
        return
    splits = splits_of(run, jobs)
    rows = [{"case": row["case"], "split": splits[row["case"]], **row} for row in cases.rows]
    write_rows(out / CASES, rows if any(splits.values()) else cases.rows)
    _, per_class = cases.means()
    show_cases(per_class)
    show_splits(task, cases, splits)
    say(f"every case: {shown(out / CASES)}")


def show_splits(task: Any, cases: CaseTable, splits: dict[str, str]) -> None:
    """Say how the mean is made up of images that the run was trained on and others."""
    if not any(splits.values()):
        say("note: the run does not know which of these images it was trained on")
        return
    parts = []
    for split in (*SPLITS, ""):
        part = task.new_cases()
        part.rows = [row for row in cases.rows if splits[row["case"]] == split]
        means, _ = part.means()
        if part.rows and means:
            count = len({row["case"] for row in part.rows})
            parts.append(f"{means['dice']:.4f} over {count} of {SPLIT_NAMES[split]}")
    say(f"mean Dice by what the run knew: {', '.join(parts)}")


def splits_of(run: Path, jobs: Sequence[Job]) -> dict[str, str]:
    """The split of the run's data that each image was in, by the job's name; "" if not known."""
    known: dict[str, str] = {}
    path = run / "split.csv"
    if path.is_file():
        settings = read_config(run)["data"]["init_args"]
        root = Path(settings["root"])
        root = Path(settings.get("image_root") or (root if root.is_dir() else root.parent))
        for row in read_rows(path, ["path", "split"]):
            # slices are called by their volume and their place in it
            name = re.sub(r"\[\d+\]$", "", row["path"])
            known[os.path.realpath(root / name)] = row["split"]
    return {job.name: known.get(os.path.realpath(job.paths[0]), "") for job in jobs}
