"""Masks of images and volumes: files in the values of the training masks, overlays, scores."""

import json
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from vimamba.cli.callbacks import write_rows
from vimamba.cli.errors import UsageError
from vimamba.cli.mask_pictures import class_colours, overlay, viewable
from vimamba.cli.pictures import draw_contact_sheet, shorten
from vimamba.cli.recipe import quieten
from vimamba.cli.runs import find_checkpoint, load_task, read_config
from vimamba.cli.segmenting import show_cases
from vimamba.cli.tables import is_terminal, say, show_table
from vimamba.data.csv_list import read_rows
from vimamba.data.labels import LabelTable
from vimamba.data.masked import FilePair
from vimamba.data.nifti import (
    cut_volume,
    list_volumes,
    open_volume,
    save_labels,
    stem,
    volume_mask,
)
from vimamba.data.pairs import some
from vimamba.data.pixels import read_mask
from vimamba.data.preprocessing import Preprocessing
from vimamba.data.resizing import as_fractions
from vimamba.data.samples import IMAGE_SUFFIXES, list_images
from vimamba.tasks.mask_metrics import CaseTable

SHEET_IMAGES = 24
RECORD = "prediction.json"


@dataclass(frozen=True)
class Job:
    """One image or volume.

    Attributes:
        paths: Its file, or one file per channel of a volume.
        name: What its masks and overlays are called, below the folder to write, without ending.
    """

    paths: tuple[Path, ...]
    name: str

    @property
    def is_volume(self) -> bool:
        """Whether it is cut into slices."""
        return self.paths[0].name.lower().endswith((".nii", ".nii.gz"))

    def mask_file(self, out: Path) -> Path:
        """Where its mask belongs."""
        return out / f"{self.name}{'.nii.gz' if self.is_volume else '.png'}"

    def overlay_file(self, out: Path) -> Path:
        """Where its overlay belongs."""
        return out / "overlays" / f"{self.name}.png"


def segment(given: Namespace) -> int:
    """Segment images, or go on where an earlier call with the same options stopped.

    Args:
        given: Options of `vimamba predict`.

    Returns:
        Exit code.
    """
    quieten()
    out = given.out or given.run / "predictions"
    if out.suffix or (out.exists() and not out.is_dir()):
        raise UsageError(f"--out {out} must be a folder")
    checkpoint = find_checkpoint(given.run, given.ckpt)
    settings = read_config(given.run)["data"]["init_args"]
    jobs = find_jobs(given.inputs, settings["in_chans"])
    truths = find_truths(given.masks, jobs, settings) if given.masks else {}
    task = load_task(given.run, checkpoint)
    task.tta = given.tta
    if given.overlap is not None:
        if not 0 <= given.overlap < 1:
            raise UsageError(f"--overlap {given.overlap} must lie in [0, 1)")
        task.overlap = given.overlap
    labels = settings["labels"]
    colours = labels.get("colours")
    table = LabelTable(task.class_names, task.label_values, labels["ignore"], colours)
    writer = MaskWriter(task, table, settings, out, overlays=not given.no_overlays)
    keep_record(out, checkpoint, tta=given.tta, overlap=task.overlap)
    wanted = [job for job in jobs if not is_done(job, out)]
    bar = tqdm(total=len(wanted), unit="image", disable=not is_terminal())
    for batch in batches(wanted, given.batch_size or 8):
        writer.write(batch)
        bar.update(len(batch))
    bar.close()
    if not given.no_overlays:
        draw_sheet(jobs, out)
    show_parts(jobs, out, table)
    if truths:
        score_files(task, table, jobs, truths, out)
    done = len(jobs) - len(wanted)
    kept = f", {done} of them from before" if done else ""
    say(f"{len(jobs)} masks{kept}; written to {out}")
    return 0


def find_jobs(inputs: Sequence[Path], in_chans: int) -> list[Job]:
    """Images and volumes named directly, in folders and in CSV lists.

    Raises:
        UsageError: Something is not there, or two would get the same name.
    """
    jobs: list[Job] = []
    for given in inputs:
        if given.is_dir():
            found = [Job((p,), p.relative_to(given).with_suffix("").as_posix())
                     for p in list_images(given)]  # fmt: skip
            found += volume_jobs(given, in_chans)
            if not found:
                raise UsageError(f"folder {given} holds no image and no volume")
            jobs += found
        elif given.suffix.lower() == ".csv":
            rows = read_rows(given, [])
            column = next((c for c in ("image", "path") if c in rows[0]), None)
            if column is None:
                raise UsageError(f"{given} has neither a column image nor a column path")
            paths = [given.parent / row[column] for row in rows]
            jobs += [Job((p,), Path(row[column]).with_suffix("").as_posix().lstrip("/"))
                     for p, row in zip(paths, rows, strict=True)]  # fmt: skip
        elif given.is_file():
            if given.suffix.lower() not in (*IMAGE_SUFFIXES, ".nii", ".gz"):
                raise UsageError(f"{given} is no image and no volume")
            jobs.append(Job((given,), stem(given)))
        else:
            raise UsageError(f"{given} is neither a file nor a folder")
    taken: dict[str, Job] = {}
    for job in jobs:
        other = taken.setdefault(job.name, job)
        if other is not job:
            raise UsageError(
                f"{other.paths[0]} and {job.paths[0]} would get the same name; predict them apart"
            )
    return jobs


def volume_jobs(folder: Path, in_chans: int) -> list[Job]:
    """Volumes below a folder; with several channels, files `case_0000` and so on are one."""
    grouped: dict[str, list[Path]] = {}
    for below in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for path in list_volumes(below):
            name = (path.parent.relative_to(folder) / stem(path)).as_posix()
            if in_chans > 1 and name[-5:-4] == "_" and name[-4:].isdecimal():
                name = name[:-5]
            grouped.setdefault(name, []).append(path)
    return [Job(tuple(paths), name) for name, paths in grouped.items()]


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
        found[path.relative_to(folder).with_suffix("").as_posix()] = path
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


def keep_record(out: Path, checkpoint: Path, **options: Any) -> None:
    """Write down what the masks in a folder come from.

    Raises:
        UsageError: The folder holds masks of another checkpoint or with other options.
    """
    state = checkpoint.stat()
    record = {
        "checkpoint": str(checkpoint.resolve()),
        "size": state.st_size,
        "modified": state.st_mtime_ns,
        **options,
    }
    path = out / RECORD
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != record:
            raise UsageError(
                f"--out {out} holds masks of another checkpoint or with other options "
                f"(see {path}); name another folder or remove it"
            )
        return
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"--out {out} holds files that are no predictions; name another folder")
    out.mkdir(parents=True, exist_ok=True)
    part = out / f".{RECORD}.part"
    part.write_text(json.dumps(record, indent=2), encoding="utf-8")
    os.replace(part, path)


def is_done(job: Job, out: Path) -> bool:
    """Whether the mask is there and younger than the image."""
    mask = job.mask_file(out)
    return mask.is_file() and all(
        path.is_file() and mask.stat().st_mtime >= path.stat().st_mtime for path in job.paths
    )


def batches(jobs: Sequence[Job], size: int) -> Iterator[Sequence[Job]]:
    """Up to `size` images at a time; a volume, which has its own slices, alone."""
    batch: list[Job] = []
    for job in jobs:
        if batch and (job.is_volume or batch[0].is_volume or len(batch) == size):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


class MaskWriter:
    """Predicts jobs and writes their files, each whole or not at all.

    Args:
        task: A segmentation task.
        table: The classes' values in masks.
        settings: Arguments of the data set the task was trained on.
        out: Folder to write.
        overlays: Also write overlays.
    """

    def __init__(
        self, task: Any, table: LabelTable, settings: dict[str, Any], out: Path, *, overlays: bool
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.task = task.to(self.device)
        self.table = table
        self.prepare = Preprocessing.from_settings(settings)
        self.axis = settings.get("axis", "axial")
        self.out = out
        self.overlays = overlays
        colours = settings["labels"].get("colours")
        given = tuple(map(tuple, colours)) if colours else None
        self.colours = given or class_colours(len(task.class_names), task.background)

    def write(self, batch: Sequence[Job]) -> None:
        """Write the masks of one batch."""
        if batch[0].is_volume:
            self._write_volume(batch[0])
            return
        items = [FilePair(job.paths[0], None, job.paths[0].parent) for job in batch]
        pixels = [self.prepare.values(item) for item in items]
        tensors = [self.prepare.tensor(self.prepare.resize(p)).to(self.device) for p in pixels]
        found = self.task.segment(tensors, [p.shape[:2] for p in pixels])
        for job, image, mask in zip(batch, pixels, found, strict=True):
            self._write_overlay(job, as_fractions(image), mask)
            target = job.mask_file(self.out)
            save_image(self._palette_image(mask), target)

    def _write_overlay(self, job: Job, image: NDArray, mask: NDArray) -> None:
        if self.overlays:
            seen = overlay(viewable(image), mask, self.colours, self.task.background)
            save_image(Image.fromarray(seen), job.overlay_file(self.out))

    def _palette_image(self, mask: NDArray) -> Image.Image:
        """Classes as an image of stored values, in the classes' colours where values allow."""
        stored = self.table.stored(mask)
        image = Image.fromarray(stored)
        if stored.dtype == np.uint8:
            palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
            palette[self.table.values] = self.colours
            image.putpalette(palette.tobytes())
        return image

    def _write_volume(self, job: Job) -> None:
        """Slice after slice, then the whole at once."""
        slices = cut_volume(job.paths, None, self.axis, job.paths[0].parent)
        masks: list[NDArray[np.uint8]] = []
        step = 8
        bar = tqdm(total=len(slices), unit="slice", leave=False, disable=not is_terminal())
        for start in range(0, len(slices), step):
            part = slices[start : start + step]
            tensors = [self.prepare.image(item).to(self.device) for item in part]
            masks += self.task.segment(tensors, [item.size() for item in part])
            bar.update(len(part))
        bar.close()
        labels = np.stack(masks)
        shown = int(np.argmax((labels > 0).sum((1, 2))))
        self._write_overlay(job, self.prepare.pixels(slices[shown]), labels[shown])
        target = job.mask_file(self.out)
        target.parent.mkdir(parents=True, exist_ok=True)
        save_labels(self.table.stored(labels), job.paths[0], self.axis, target)


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG; a half-written file never appears."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    image.save(part, format="PNG")
    os.replace(part, path)


def read_classes(job: Job, path: Path, table: LabelTable) -> list[NDArray[np.uint8]]:
    """Classes of a mask file, (H, W); a volume's axial slices, an image alone."""
    stored = volume_mask(path, "axial") if job.is_volume else [read_mask(path)]
    return [table.indices(values, str(path)) for values in stored]


def show_parts(jobs: Sequence[Job], out: Path, table: LabelTable) -> None:
    """Print the part of the pixels that each class got."""
    counts = np.zeros(len(table.names), dtype=np.int64)
    holders = np.zeros(len(table.names), dtype=np.int64)
    for job in jobs:
        masks = read_classes(job, job.mask_file(out), table)
        found = sum(np.bincount(mask.ravel(), minlength=len(counts)) for mask in masks)
        counts += found
        holders += found > 0
    rows = [
        [name, int(held), f"{count / counts.sum():.2%}"]
        for name, held, count in zip(table.names, holders, counts, strict=True)
    ]
    show_table("predicted", ["class", "images", "pixels"], rows)


def draw_sheet(jobs: Sequence[Job], out: Path) -> None:
    """Overlays of the first images on one sheet."""
    shown = [job for job in jobs if job.overlay_file(out).is_file()][:SHEET_IMAGES]
    if not shown:
        return
    images = [np.asarray(Image.open(job.overlay_file(out))) for job in shown]
    captions = [shorten(Path(job.name).name, 22) for job in shown]
    draw_contact_sheet(images, captions, out / "contact_sheet.png", left_out=len(jobs) - len(shown))


def score_files(
    task: Any, table: LabelTable, jobs: Sequence[Job], truths: dict[str, Path], out: Path
) -> None:
    """Score every written mask against the truth; print the means, write cases.csv."""
    cases: CaseTable = task.new_cases()
    for job in jobs:
        path = truths[job.name]
        found = read_classes(job, job.mask_file(out), table)
        truth = read_classes(job, path, table)
        sizes = [(len(masks), *masks[0].shape) for masks in (found, truth)]
        if sizes[0] != sizes[1]:
            raise UsageError(f"{job.paths[0]} and {path} differ in size: {sizes[0]}, {sizes[1]}")
        spacing = open_volume(path).spacing[::-1] if job.is_volume else (1.0, 1.0)
        for one, other in zip(found, truth, strict=True):
            cases.add(job.name, one, other, spacing)
    cases.close()
    write_rows(out / "cases.csv", cases.rows)
    _, per_class = cases.means()
    show_cases(per_class)
    say(f"every case: {out / 'cases.csv'}")
