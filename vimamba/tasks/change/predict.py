"""`vimamba predict` for change: maps of one pair, or of all pairs of two folders."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vimamba.console import say, show_table
from vimamba.data.paired.change_folder import read_dates
from vimamba.data.preprocessing import Preprocessing
from vimamba.data.resizing import as_fractions
from vimamba.errors import UsageError
from vimamba.labels import IGNORE
from vimamba.progress import Progress
from vimamba.tasks.change.channels import WRITTEN
from vimamba.tasks.change.jobs import PairJob, find_pair_jobs
from vimamba.tasks.change.scores import SCORES, find_truths, score_pairs
from vimamba.tasks.outputs import (
    FailedInputs,
    Target,
    check_apart,
    check_inside,
    check_no_input,
    shown,
)
from vimamba.tasks.overlays import class_colors, draw_card, find_view, legend_entries, panel
from vimamba.tasks.segmentation.predict import check_scene_options, save_image
from vimamba.tasks.segmentation.record import RECORD, TABLE, claim, keep_record
from vimamba.tasks.tools import FinishedRun


def map_changes(run: FinishedRun, given: Namespace) -> int:
    """Map pairs, or continue where an earlier call with the same options stopped.

    Args:
        run: The run to predict with.
        given: Options of `vimamba predict`.

    Returns:
        Exit code.
    """
    out = given.out or run.folder / "predictions"
    if out.suffix or (os.path.lexists(out) and not os.path.isdir(out)):
        raise UsageError(f"--out {shown(out)} must be a folder")
    task = run.load()
    jobs = find_pair_jobs(given.inputs, WRITTEN[task.kind])
    truths = find_truths(given.masks, jobs, task.kind) if given.masks else {}
    label_files = [path for files in truths.values() for path in files.values()]
    check_targets(out, jobs, [*given.inputs, *label_files])
    scenes, jobs = [j for j in jobs if j.is_scene], [j for j in jobs if not j.is_scene]
    check_scene_options(given, scenes)
    task.tta = given.tta
    if given.overlap is not None:
        if not 0 <= given.overlap < 1:
            raise UsageError(f"--overlap {given.overlap} must lie in [0, 1)")
        task.overlap = given.overlap
    if given.batch_size is not None:
        task.window_batch = given.batch_size
    failed = FailedInputs()
    succeeded: list[PairJob] = []
    if jobs:
        succeeded = map_images(run, task, jobs, out, given, failed)
    if scenes:
        # imported here, because only scenes need rasterio
        from vimamba.tasks.change.scenes import map_scenes

        succeeded += map_scenes(run, task, scenes, out, given, failed)
    if not succeeded:
        say("no pair could be processed; no map is written")
    elif truths:
        score_pairs(run, task, succeeded, truths, out, failed, align=bool(given.align))
    return failed.report(len(succeeded) + len(failed.reasons))


def check_targets(out: Path, jobs: Sequence[PairJob], inputs: Sequence[Path]) -> None:
    """Fail if an output would overwrite an input or another output, or leave the folder."""
    targets = [
        Target(path, str(job.paths[0]))
        for job in jobs
        for path in (*job.map_files(out), job.overlay_file(out))
    ]
    ours = [Target(out / name, name) for name in (RECORD, TABLE, SCORES)]
    check_apart([*ours, *targets])
    check_inside(targets, out)
    check_no_input([*ours, *targets], [*inputs, *(path for job in jobs for path in job.paths)])


def map_images(
    run: FinishedRun,
    task: Any,
    jobs: Sequence[PairJob],
    out: Path,
    given: Namespace,
    failed: FailedInputs,
) -> list[PairJob]:
    """Write PNG maps of plain images; returns the pairs with maps."""
    keep_record(out, *run.checkpoints, tta=given.tta, overlap=task.overlap)
    writer = PairWriter(task, run.data, out, overlays=not given.no_overlays)
    bar, wanted = Progress(len(jobs), "pair"), claim(out, jobs, overlays=writer.overlays)
    for job in jobs:
        if job in wanted:
            task.advance = lambda done, total: bar.part(done, total, "window")
            with failed.collect(job.paths[0]):
                writer.write(job)
        bar.advance()
    bar.close()
    succeeded = [job for job in jobs if str(job.paths[0]) not in failed.reasons]
    if succeeded:
        show_parts(succeeded, out, task.class_names)
        count = "1 pair" if len(succeeded) == 1 else f"{len(succeeded)} pairs"
        say(f"maps of {count}; written to {shown(out)}")
    return succeeded


class PairWriter:
    """Predicts and writes maps and overlays.

    Args:
        task: A change task.
        settings: Arguments of the data set it was trained on.
        out: Folder to write.
        overlays: Also write pictures of both dates and the maps.
    """

    def __init__(self, task: Any, settings: dict[str, Any], out: Path, *, overlays: bool) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.task, self.out, self.overlays = task.to(device), out, overlays
        self.prepare = Preprocessing.from_settings(settings)
        self.colors = class_colors(len(task.class_names), True)

    def write(self, job: PairJob) -> None:
        """Write the overlay, then the maps, of which the last one marks the pair as done."""
        dates, known = read_dates(job.pair, self.prepare)
        tensors = [self.prepare.tensor(self.prepare.resize(date)) for date in dates]
        image = torch.cat(tensors).to(self.task.device)
        maps = [found.numpy() for found in self.task.compare(image, known.shape)]
        for found in maps:
            found[~known] = IGNORE
        if self.overlays:
            self._write_overlay(job, [as_fractions(date) for date in dates], maps)
        for path, found in zip(job.map_files(self.out), maps, strict=True):
            save_image(self._palette_image(found), path)

    def _write_overlay(
        self, job: PairJob, dates: Sequence[NDArray], maps: Sequence[NDArray[np.uint8]]
    ) -> None:
        look: dict[str, Any] = {"colors": self.colors, "background": True}
        view = find_view(dates)
        panels = [
            (f"{name}: {path.name}", panel(view(date), None, **look))
            for name, path, date in zip(("before", "after"), job.paths, dates, strict=True)
        ]
        for name, found in zip(job.maps, maps, strict=True):
            under = dates[0] if name == "before" else dates[1]
            panels.append((name, panel(view(under), found, **look)))
        legend = legend_entries(self.task.class_names, self.colors, True)
        note = f"{shown(job.name)}: {view.text(self.prepare.intensity, self.prepare.bands)}"
        card = draw_card(panels, legend, note, len(panels) - 1)
        save_image(card, job.overlay_file(self.out))

    def _palette_image(self, found: NDArray[np.uint8]) -> Image.Image:
        """Classes as an image of 0, 1, 2 ... in the classes' colors; 255 is invalid."""
        image = Image.fromarray(found)
        palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
        palette[: len(self.colors)] = self.colors
        image.putpalette(palette.tobytes())
        return image


def show_parts(jobs: Sequence[PairJob], out: Path, names: Sequence[str]) -> None:
    """Print the share of the pixels of each class in each map."""
    rows: list[list[object]] = []
    for place, title in enumerate(jobs[0].maps):
        counts = np.zeros(len(names), dtype=np.int64)
        for job in jobs:
            found = np.asarray(Image.open(job.map_files(out)[place]))
            counts += np.bincount(found.ravel(), minlength=256)[: len(names)]
        total = max(int(counts.sum()), 1)
        for name, count in zip(names, counts, strict=True):
            rows.append([title, name, f"{count / total:.2%}"])
    show_table("predicted, share of valid pixels", ["map", "class", "pixels"], rows)
