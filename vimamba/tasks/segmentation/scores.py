"""Predicted masks against true ones, case by case."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vimamba.console import number, say
from vimamba.data.listing import composed, list_images
from vimamba.data.lists import read_rows
from vimamba.data.masked.items import MaskedFile, MaskedImage, read_mask
from vimamba.data.masked.labels import LabelTable, read_as_they_are
from vimamba.data.masked.nifti import cut_volume, volume_mask
from vimamba.data.masked.survey import MaskReader, join_surveys, survey_masks
from vimamba.data.remarks import some
from vimamba.data.splits import SPLITS
from vimamba.errors import UsageError, VimambaError
from vimamba.files import write_rows
from vimamba.tasks.outputs import FailedInputs, output_name, reason, shown
from vimamba.tasks.segmentation.jobs import Job, volume_jobs
from vimamba.tasks.segmentation.metrics import CaseTable
from vimamba.tasks.segmentation.report import show_cases
from vimamba.tasks.tools import FinishedRun

CASES = "cases.csv"
SPLIT_NAMES = {
    "train": "its training images",
    "val": "its validation images",
    "test": "its test images",
    "": "other images",
}
UNKNOWN_SPLITS = "note: the run does not know which of these images it was trained on"


def find_truths(
    folders: Sequence[Path], jobs: Sequence[Job], settings: dict[str, Any]
) -> dict[str, Path]:
    """The true mask of each job, by name.

    Args:
        folders: One folder.
        jobs: The images.
        settings: Arguments of the data set that the run was trained on.

    Raises:
        UsageError: The folder or a mask is missing.
    """
    if len(folders) != 1:
        named = ", ".join(map(shown, folders))
        raise UsageError(f"--masks {named}: a run of segmentation takes one folder")
    (folder,) = folders
    if not folder.is_dir():
        raise UsageError(f"--masks {folder} is not a folder")
    found: dict[str, Path] = {}
    for job in volume_jobs(folder, 1):
        found[composed(job.name)] = job.paths[0]
    for path in list_images(folder):
        name = output_name(str(path.relative_to(folder).with_suffix("")), ".png")
        found[composed(name)] = path
    ending = settings.get("mask_suffix") or "_segmentation"
    matched = {}
    for job in jobs:
        name = composed(job.name)
        # as BraTS names masks, and as nnU-Net does: image case_0000, mask case
        names = [name, name + ending, f"{name}_seg", f"{name}-seg", name.removesuffix("_0000")]
        matched[job.name] = next((found[name] for name in names if name in found), None)
    missing = [name for name, path in matched.items() if path is None]
    if missing:
        raise UsageError(f"--masks {folder} has no mask for {some(missing)}")
    return cast(dict[str, Path], matched)


def read_classes(job: Job, path: Path, table: LabelTable) -> list[NDArray[np.uint8]]:
    """Classes of a mask file, (H, W): one per axial slice of a volume, or one for an image."""
    stored = volume_mask(path, "axial") if job.is_volume else [read_mask(path)]
    return [table.indices(values, str(path)) for values in stored]


def open_truth(job: Job, path: Path, *, align: bool) -> Sequence[MaskedImage]:
    """An image with its true mask, a volume as its axial slices.

    Args:
        job: The image.
        path: The true mask, which must be on the image's grid.
        align: If it is not, resample it onto the image's grid.
    """
    if job.is_volume:
        return cut_volume(job.paths[:1], path, "axial", path.parent, align=align)
    return [MaskedFile(job.paths[0], path.parent, path, align=align)]


def fit_truths(
    table: LabelTable, jobs: Sequence[Job], truths: dict[str, Path], *, align: bool
) -> LabelTable:
    """The table of the true masks, whose values may differ from those of the training masks.

    Args:
        table: Table of the training masks.
        jobs: The images.
        truths: The true mask of each by the job's name.
        align: As in `open_truth`.

    Raises:
        DataError: Masks of two classes have 1 in some cases and 255 in others.
    """
    seen = []
    for job in jobs:
        try:
            items = open_truth(job, truths[job.name], align=align)
            seen.append(survey_masks({"truth": items}, MaskReader(table.colors, 0)))
        except VimambaError:  # reported when the case is scored
            continue
    survey = join_surveys(seen)
    own = read_as_they_are(table, survey.holders, survey.kinds, "--masks")
    if own.values != table.values:
        say(f"true masks hold {own.values} for {own.names}, those of training {table.values}")
    if note := survey.ignored(own):
        say(f"true masks, {note}")
    return own


def score_files(
    task: Any,
    table: LabelTable,
    jobs: Sequence[Job],
    truths: dict[str, Path],
    truth_table: LabelTable,
    out: Path,
    run: FinishedRun,
    failed: FailedInputs,
    *,
    align: bool,
) -> None:
    """Score every written mask against the truth; print the means, write cases.csv.

    Args:
        task: A segmentation task.
        table: Its classes and their values in masks.
        jobs: The images with a mask.
        truths: The true mask of each by the job's name.
        truth_table: Classes and values of the true masks.
        out: Folder of the masks.
        run: The run, which may know what it was trained on.
        failed: Receives images whose truth cannot be read or does not fit.
        align: As in `open_truth`.
    """
    cases: CaseTable = task.new_cases()
    for job in jobs:
        path = truths[job.name]
        found = read_classes(job, job.mask_file(out), table)
        try:
            items = open_truth(job, path, align=align)
            truth = [truth_table.indices(item.mask(), str(path)) for item in items]
            sizes = [(len(masks), *masks[0].shape) for masks in (found, truth)]
            if sizes[0] != sizes[1]:
                differ = f"{sizes[0]}, {sizes[1]}"
                raise UsageError(f"{job.paths[0]} and {path} differ in size: {differ}")
        except VimambaError as error:
            failed.add(job.paths[0], f"no score of {shown(job.paths[0])}: {reason(error)}")
            continue
        spacing = items[0].spacing
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
    """Print separate means for images that the run was trained on and others."""
    if not any(splits.values()):
        say(UNKNOWN_SPLITS)
        return
    parts = []
    for split in (*SPLITS, ""):
        part = task.new_cases()
        part.rows = [row for row in cases.rows if splits[row["case"]] == split]
        part.seen = cases.seen
        means, _ = part.means()
        if part.rows and means:
            count = len({row["case"] for row in part.rows})
            parts.append(f"{number(means['dice'], 4)} over {count} of {SPLIT_NAMES[split]}")
    say(f"mean Dice by split of the run: {', '.join(parts)}")


def splits_of(run: FinishedRun, jobs: Sequence[Job]) -> dict[str, str]:
    """The split of the run's data that each image was in, by the job's name; "" if not known."""
    known: dict[str, str] = {}
    path = run.folder / "split.csv"
    if path.is_file():
        settings = run.data
        root = Path(settings["root"])
        root = Path(settings.get("image_root") or (root if root.is_dir() else root.parent))
        for row in read_rows(path, ["path", "split"]):
            # slices are named after their volume and their index in it
            name = re.sub(r"\[\d+\]$", "", row["path"])
            known[os.path.realpath(root / name)] = row["split"]
    return {job.name: known.get(os.path.realpath(job.paths[0]), "") for job in jobs}
