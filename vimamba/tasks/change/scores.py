"""Predicted maps of change against true labels, pair by pair.

Sizes: M maps of the labels, h x w pixels of a part of a pair.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vimamba.console import say
from vimamba.data.errors import DataError
from vimamba.data.listing import composed, list_images
from vimamba.data.masked.labels import LabelTable
from vimamba.data.masked.matching import by_stem
from vimamba.data.paired.agreement import different_labels
from vimamba.data.paired.items import DatePair
from vimamba.data.paired.truths import Truths
from vimamba.data.remarks import some
from vimamba.data.splits import SPLITS
from vimamba.errors import UsageError
from vimamba.files import write_rows
from vimamba.labels import IGNORE
from vimamba.tasks.change.jobs import PairJob
from vimamba.tasks.change.metrics import TABLES, counted, score_tables
from vimamba.tasks.change.report import FOLD_SCORES, headline, show_scores
from vimamba.tasks.outputs import FailedInputs, shown
from vimamba.tasks.segmentation.metrics import confusion_counts
from vimamba.tasks.segmentation.scores import SPLIT_NAMES, UNKNOWN_SPLITS, splits_of
from vimamba.tasks.tools import FinishedRun

SCORES = "pairs.csv"
# the labels that are scored against, for each kind
ROLES = {
    "binary": ("change",),
    "semantic": ("labels before", "labels after"),
    "damage": ("damage",),
}
# endings of labels after the name of a pair, besides none: of xBD
ENDINGS = ("", "_target")

Tables = dict[str, Tensor]
Part = tuple[list[NDArray[np.uint8]], NDArray[np.uint8]]


def find_truths(
    places: Sequence[Path], jobs: Sequence[PairJob], kind: str
) -> dict[str, dict[str, Path]]:
    """The label files of each pair, by the pair's name and the kind of label.

    Args:
        places: Folders whose files have the names of the pairs, or files for a single pair: one of
            change or damage, or two of land cover, before and after.
        jobs: The pairs.
        kind: "binary", "semantic" or "damage".

    Raises:
        UsageError: The number of folders is wrong, or a pair has no label.
    """
    roles = ROLES[kind]
    if len(places) != len(roles):
        wanted = {1: "one folder, of labels", 2: 'two, "[BEFORE, AFTER]", of labels of each date'}
        named = ", ".join(map(shown, places))
        raise UsageError(f"--masks {named}: a run of {kind} change takes {wanted[len(roles)]}")
    found: dict[str, dict[str, Path]] = {job.name: {} for job in jobs}
    for role, place in zip(roles, places, strict=True):
        if place.is_file() and len(jobs) == 1:
            found[jobs[0].name][role] = place
            continue
        if not place.is_dir():
            raise UsageError(f"--masks {shown(place)} is not a folder")
        files = by_stem(list_images(place), place)
        for job in jobs:
            names = (name + ending for name in label_names(job) for ending in ENDINGS)
            path = next((files[name] for name in names if name in files), None)
            if path is not None:
                found[job.name][role] = path
        if missing := [job.name for job in jobs if role not in found[job.name]]:
            raise UsageError(f"--masks {shown(place)} has no labels for {some(missing)}")
    return found


def label_names(job: PairJob) -> list[str]:
    """Names of a pair's labels: that of the pair, or of its second image."""
    name = composed(job.name)
    return [name, Path(name).with_name(composed(job.paths[1].stem)).as_posix()]


def score_pairs(
    run: FinishedRun,
    task: Any,
    jobs: Sequence[PairJob],
    files: Mapping[str, Mapping[str, Path]],
    out: Path,
    failed: FailedInputs,
    *,
    align: bool,
) -> None:
    """Score written maps, print the scores of all pixels, write those of each pair.

    Args:
        run: The run, which may know what it was trained on.
        task: A change task.
        jobs: The pairs with maps.
        files: The result of `find_truths`.
        out: Folder of the maps.
        failed: Receives pairs whose labels cannot be read or do not fit.
        align: Warp labels of scenes on another grid onto it.
    """
    truths = Truths(task.kind, task.class_names, run.data.get("colors"))
    splits, rows = splits_of(run, jobs), []
    totals: dict[str, list[Tables]] = {}
    for job in jobs:
        with failed.collect(f"labels of {job.name}"):
            its = files[job.name]
            parts = (
                scene_parts(truths, job, its, out, align=align)
                if job.is_scene
                else [plain_part(truths, job, its, out)]
            )
            tables = count_parts(task.kind, parts, len(task.class_names))
            report = score_tables(task.kind, tables, task.class_names)
            scores = {key: report[key] for key in FOLD_SCORES if key in report}
            rows.append({"pair": job.name, "split": splits[job.name], **scores})
            totals.setdefault(splits[job.name], []).append(tables)
    if not rows:
        return
    write_rows(out / SCORES, rows)
    report = total_report(task, [tables for part in totals.values() for tables in part])
    show_scores("given labels", report)
    if list(totals) == [""]:
        say(UNKNOWN_SPLITS)
    else:
        for split in (name for name in (*SPLITS, "") if name in totals):
            say(headline(SPLIT_NAMES[split], total_report(task, totals[split])))
    say(f"every pair: {shown(out / SCORES)}")


def total_report(task: Any, tables: Sequence[Tables]) -> dict[str, Any]:
    """The scores of all pixels of some pairs."""
    summed = {name: torch.stack([one[name] for one in tables]).sum(0) for name in tables[0]}
    return {**score_tables(task.kind, summed, task.class_names), "images": len(tables)}


def plain_part(truths: Truths, job: PairJob, files: Mapping[str, Path], out: Path) -> Part:
    """The written maps of a pair of images, and its labels.

    Raises:
        DataError: Labels cannot be read, or differ from the maps in size.
    """
    maps = [np.array(Image.open(path)) for path in job.map_files(out)]
    pair = DatePair(job.name, {**job.pair.files, **files}, job.paths[0].parent)
    truth = truths.read(pair)
    if truth.shape[1:] != maps[0].shape:
        raise DataError(different_labels(pair, maps[0].shape, truth.shape[1:]))
    return maps, truth


def scene_parts(
    truths: Truths, job: PairJob, files: Mapping[str, Path], out: Path, *, align: bool
) -> Iterator[Part]:
    """The written maps of a pair of scenes, and its labels, a few rows at a time.

    Raises:
        DataError: Labels cannot be read, or are on another grid without `align`.
    """
    # imported here, because only scenes need rasterio
    from vimamba.data.rasters import Raster
    from vimamba.tasks.segmentation.scenes import block_rows

    count = len(truths.names)
    own = LabelTable(list(truths.names), list(range(count)), IGNORE)
    with ExitStack() as opened:
        maps = [opened.enter_context(Raster(p, role="labels")) for p in job.map_files(out)]
        labels = {
            role: opened.enter_context(Raster(path, onto=maps[0], align=align, role="labels"))
            for role, path in files.items()
        }
        for window in block_rows(maps[0]):
            read = {
                role: raster.stored_labels(*window, is_class=range(count).__contains__, fill=0)
                for role, raster in labels.items()
            }
            truth = truths.maps_of({role: values for role, (values, _) in read.items()}, files)
            for _, gaps in read.values():
                truth[:, gaps] = IGNORE
            yield [found.labels(*window, own) for found in maps], truth


def count_parts(kind: str, parts: Iterable[Part], num_classes: int) -> Tables:
    """The tables of a pair, true classes by predicted ones, of pixels known in maps and labels."""
    first, *others = TABLES[kind]
    sides = {first: 2, **dict.fromkeys(others, num_classes)}
    tables = {
        name: torch.zeros(side, side, dtype=torch.int64, device="cpu")
        for name, side in sides.items()
    }
    for maps, truth in parts:
        for found in maps:
            truth[:, found == IGNORE] = IGNORE
        classes = [torch.from_numpy(found).long() for found in maps]
        for name, found, wanted in counted(kind, classes, torch.from_numpy(truth).long()):
            counts = confusion_counts(wanted.numpy(), found.numpy(), sides[name])
            tables[name] += torch.from_numpy(counts)
    return tables
