"""`vimamba predict` on GeoTIFF scenes: maps with the scenes' georeference."""

import math
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimamba.console import number, say, show_table
from vimamba.data.masked.labels import LabelTable, read_as_they_are
from vimamba.data.preprocessing import Preprocessing
from vimamba.data.rasters import Raster
from vimamba.errors import UsageError, VimambaError
from vimamba.files import write_rows
from vimamba.layers import resize
from vimamba.progress import Progress
from vimamba.sizes import by_sides, height_and_width, read_size
from vimamba.tasks.outputs import FailedInputs, reason, shown
from vimamba.tasks.overlays import class_colors
from vimamba.tasks.scenes import Legend, Scene, predict_raster
from vimamba.tasks.scenes.maps import NODATA
from vimamba.tasks.scenes.plan import BLOCK
from vimamba.tasks.scenes.raster import Outputs
from vimamba.tasks.segmentation.inputs import LARGE
from vimamba.tasks.segmentation.jobs import Job
from vimamba.tasks.segmentation.metrics import (
    class_scores,
    confusion_counts,
    variant_notes,
    without_borders,
)

SCORES = "scenes.csv"


@dataclass(frozen=True)
class Share:
    """One process's share of a list, when torchrun starts several.

    Attributes:
        rank: Rank of this process.
        count: Number of processes.
        device: Its GPU, or the CPU.
    """

    rank: int
    count: int
    device: torch.device

    @classmethod
    def of_process(cls) -> "Share":
        """Read it from the environment."""
        rank, count, local = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        on_gpu = torch.cuda.is_available()
        device = f"cuda:{local % torch.cuda.device_count()}" if on_gpu else "cpu"
        return cls(rank, count, torch.device(device))


def outputs_of(job: Job, out: Path, given: Namespace) -> Outputs:
    """The requested outputs of a scene."""
    quicklook = None if given.no_overlays else job.overlay_file(out)
    return Outputs(bool(given.cog), bool(given.probabilities), given.polygons, quicklook)


def scene_legend(table: LabelTable, colors: Sequence[Any]) -> Legend:
    """A map's legend: the values of the training masks, or 0, 1, 2 ... if one of them is 255."""
    values = table.values if max(table.values) < NODATA else list(range(len(table.values)))
    return Legend(table.names, values, [(int(r), int(g), int(b)) for r, g, b in colors])


def find_window(
    prepare: Preprocessing, size: tuple[int, int], asked: str | None
) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Size of windows in scene pixels, and the size they are resized to for the network.

    Args:
        prepare: How the training images were prepared.
        size: Height and width of the scene.
        asked: Side, or height and width, of a window in scene pixels, if given.

    Raises:
        UsageError: The network was trained on whole images, and the scene is much larger.
    """
    sides = height_and_width(prepare.img_size)
    as_it_is = prepare.fit == "window" and prepare.scale_to is None
    if asked is not None:
        window = height_and_width(read_size(asked, name="--window-size"))
        return window, None if as_it_is else sides
    if as_it_is:
        return sides, None
    if prepare.scale_to is not None:
        factor = min(size) / prepare.scale_to
        height, width = (max(1, round(side * factor)) for side in sides)
        return (height, width), sides
    if math.prod(size) <= LARGE * math.prod(sides):
        return size, sides
    raise UsageError(
        f"it has {size[0]} x {size[1]} pixels, and the run squashes whole images to "
        f"{by_sides(sides)}; give the size of such an image in pixels of the scene as "
        "--window-size, or train with --data.fit window"
    )


class Mapper:
    """Writes the maps of scenes.

    Args:
        task: A segmentation task, on its device.
        table: Its classes and their values in masks.
        settings: Arguments of the data set it was trained on.
        given: Options of `vimamba predict`.
        out: Folder to write.
        origin: What else the maps depend on.
    """

    def __init__(
        self,
        task: Any,
        table: LabelTable,
        settings: Mapping[str, Any],
        given: Namespace,
        out: Path,
        origin: Mapping[str, Any],
    ) -> None:
        self.task, self.given, self.out, self.origin = task, given, out, origin
        self.prepare = Preprocessing.from_settings(settings)
        colors = table.colors or class_colors(len(table.names), task.background)
        plain = scene_legend(table, colors)
        self.legend = Legend(plain.names, plain.values, plain.colors, task.background)

    def write(self, job: Job, bar: Progress) -> list[int]:
        """Write a scene's map and its other files; returns the pixels of each class.

        Raises:
            VimambaError: The scene failed; the message says why.
        """
        prepare, task = self.prepare, self.task
        with Raster(job.paths[0], bands=prepare.bands, wanted=prepare.in_chans) as raster:
            window, size = find_window(prepare, raster.size, self.given.window_size)
            report = predict_raster(
                [Scene(raster, prepare, window, size)],
                lambda windows: at_size(task.joint_logits(windows), window),
                {job.mask_file(self.out): self.legend},
                num_scores=1 if task.binary else len(task.class_names),
                decide=lambda scores: [task.probabilities(scores[None])[0]],
                overlap=task.overlap,
                batch_size=task.window_batch,
                memory=self.given.memory * 1e9,
                outputs=outputs_of(job, self.out, self.given),
                origin=self.origin,
                device=task.device,
                advance=lambda done, total: bar.part(done, total, "window"),
            )
        if report.finished_before:
            say(f"{shown(job.name)}: done before")
        return report.pixels[0]


def at_size(logits: Tensor, window: tuple[int, int]) -> Tensor:
    """Resize (N, K, h, w) to the size of a window."""
    return logits if logits.shape[2:] == window else resize(logits, window, antialias=True)


def map_scenes(mapper: Mapper, jobs: Sequence[Job], failed: FailedInputs) -> list[Job]:
    """Write maps; a scene that fails does not affect the others.

    Returns:
        The scenes with a map.
    """
    bar, succeeded = Progress(len(jobs), "scene"), []
    pixels = np.zeros(len(mapper.legend.names), dtype=np.int64)
    holders = np.zeros_like(pixels)
    for job in jobs:
        try:
            with failed.collect(job.paths[0]):
                found = np.asarray(mapper.write(job, bar))
                pixels += found
                holders += found > 0
                succeeded.append(job)
        finally:
            bar.advance()
    bar.close()
    if succeeded:
        total = max(int(pixels.sum()), 1)
        columns = zip(mapper.legend.names, holders.tolist(), pixels.tolist(), strict=True)
        rows = [[name, held, f"{count / total:.2%}"] for name, held, count in columns]
        show_table("predicted, share of valid pixels", ["class", "scenes", "pixels"], rows)
    return succeeded


def score_scenes(
    mapper: Mapper,
    table: LabelTable,
    jobs: Sequence[Job],
    truths: Mapping[str, Path],
    failed: FailedInputs,
    *,
    align: bool,
) -> None:
    """Score maps against true ones, block row by block row; print the scores, write scenes.csv.

    Args:
        mapper: The writer of the maps.
        table: Classes and values of the training masks.
        jobs: The scenes with a map.
        truths: The true labels of each by the job's name.
        failed: Receives scenes whose truth cannot be read or does not fit.
        align: Warp labels on another grid onto the scene's, with the nearest pixel.
    """
    task, count = mapper.task, len(table.names)
    own = LabelTable(table.names, list(mapper.legend.values), NODATA)
    total, rows = np.zeros((count, count), dtype=np.int64), []
    for job in jobs:
        try:
            with (
                Raster(job.mask_file(mapper.out), role="labels") as found,
                Raster(truths[job.name], onto=found, align=align, role="labels") as truth,
            ):
                fitted = fit_table(truth, table)
                confusion = count_pairs(found, own, truth, fitted, border=task.border)
        except VimambaError as error:
            failed.add(job.paths[0], f"no score of {shown(job.paths[0])}: {reason(error)}")
            continue
        total += confusion
        scores = class_scores(torch.from_numpy(confusion), table.names, background=False)
        for row in scores["per_class"]:
            rows.append({"scene": job.name, **row})
    if not rows:
        return
    write_rows(mapper.out / SCORES, rows)
    report = class_scores(
        torch.from_numpy(total),
        table.names,
        background=mapper.legend.background,
        left_out=task.left_out,
    )
    keys = ("dice", "iou", "precision", "recall")
    cells = [
        [row["class"], row["pixels"], *(number(row[key]) for key in keys)]
        for row in report["per_class"]
    ]
    show_table("all scenes", ["class", "pixels", "Dice", "IoU", "precision", "recall"], cells)
    for note in variant_notes(task.left_out, task.border):
        say(note)
    means = f"mean Dice {number(report['dice'], 4)}, mean IoU {number(report['miou'], 4)}"
    say(f"{means}; every scene: {shown(mapper.out / SCORES)}")


def block_rows(raster: Raster) -> Iterator[tuple[slice, slice]]:
    """Full-width windows of a raster."""
    height, width = raster.size
    for top in range(0, height, BLOCK):
        yield slice(top, min(top + BLOCK, height)), slice(0, width)


def fit_table(truth: Raster, table: LabelTable) -> LabelTable:
    """The values of true labels: with two classes, 1 or 255 may be the second."""
    if len(table.values) != 2 or table.colors is not None:
        return table
    values = set()
    for window in block_rows(truth):
        values.update(np.unique(truth.load(*window)[0]).tolist())
    found = {int(value): str(truth.path) for value in values if np.isfinite(value)}
    return read_as_they_are(table, found, {frozenset(found): str(truth.path)}, "--masks")


def count_pairs(
    found: Raster, own: LabelTable, truth: Raster, table: LabelTable, *, border: int = 0
) -> NDArray[np.int64]:
    """Pixel counts by true class (rows) and map class, (C, C), where both are valid.

    Args:
        found: The map.
        own: Classes of its values.
        truth: The true labels, on the same grid.
        table: Classes of theirs.
        border: As in `without_borders`.
    """
    count = len(own.names)
    confusion = np.zeros((count, count), dtype=np.int64)
    for rows, columns in block_rows(found):
        top, bottom = max(rows.start - border, 0), min(rows.stop + border, found.size[0])
        around = truth.labels(slice(top, bottom), columns, table)
        there = without_borders(around, border)[rows.start - top : rows.stop - top]
        here = found.labels(rows, columns, own)
        confusion += confusion_counts(there, here, count)
    return confusion
