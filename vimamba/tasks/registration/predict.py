"""Pairs in; warped images, displacement fields and checkerboards out.

Sizes: C channels, n axes, *grid the axes of an image.
"""

import csv
import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vimamba.console import say
from vimamba.data.lists import LIST_SUFFIXES
from vimamba.data.paired.cases import (
    Case,
    Pair,
    is_volume,
    limits_of,
    read_labels,
    read_values,
)
from vimamba.data.paired.pair_csv import read_pairs
from vimamba.data.paired.registration import ListedPairs, PairDataset, PairTensors
from vimamba.data.volume_files import stem
from vimamba.errors import UsageError
from vimamba.files import write_rows, write_whole
from vimamba.networks.registration import warp
from vimamba.progress import Progress
from vimamba.tasks.outputs import (
    FailedInputs,
    Target,
    check_apart,
    check_inside,
    check_no_input,
    output_name,
    shown,
)
from vimamba.tasks.reading import read_all
from vimamba.tasks.registration.fields import write_field, write_volume
from vimamba.tasks.registration.metrics import warp_labels
from vimamba.tasks.registration.pictures import PLANES, draw_pairs
from vimamba.tasks.registration.report import look_at
from vimamba.tasks.registration.scores import score_pair
from vimamba.tasks.tools import FinishedRun

TABLE = "pairs.csv"


@dataclass(frozen=True)
class Job:
    """A pair and the names of its outputs.

    Attributes:
        pair: The files.
        name: Path relative to the output folder, without suffix.
    """

    pair: Pair
    name: str

    def file(self, what: str, out: Path) -> Path:
        """Path of an output: "warped", "field", "labels" or "checkerboard"."""
        volume = is_volume(self.pair.fixed.path)
        ending = ".nii.gz" if what == "field" or volume else ".tif"
        if what == "labels" and not volume:
            ending = ".png"
        return out / f"{self.name}_{what}{'.png' if what == 'checkerboard' else ending}"

    def files(self, out: Path) -> dict[str, Path]:
        """All outputs of the pair."""
        labelled = self.pair.moving.label_path is not None
        names = ("warped", "field", "checkerboard", *(["labels"] if labelled else []))
        return {name: self.file(name, out) for name in names}


def register(run: FinishedRun, given: Namespace) -> int:
    """Register pairs.

    Args:
        run: The run to predict with.
        given: Options of `vimamba predict`; its inputs are two files, or lists of pairs.

    Returns:
        Exit code.

    Raises:
        UsageError: The inputs are not pairs, or an output would overwrite a file that is not ours.
    """
    out = given.out or run.folder / "registered"
    if out.suffix or (os.path.lexists(out) and not os.path.isdir(out)):
        raise UsageError(f"--out {shown(out)} must be a folder")
    if given.tta != "none":
        raise UsageError(f"--tta {given.tta} is for classification and segmentation runs")
    jobs = find_jobs(given.inputs)
    check_targets(jobs, out, given.inputs)
    task = run.load().to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if len(run.checkpoints) > 1:
        say(f"fields of {len(run.checkpoints)} networks: {task.net.rule}")
    writer = FieldWriter(task, run.data, out)
    dataset = writer.reader([job.pair for job in jobs])
    failed, rows = FailedInputs(), []
    bar = Progress(len(jobs), "pair")
    for batch in read_all(dataset, 1, given.workers):
        for index, found in batch:
            job = jobs[index]
            if isinstance(found, str):
                failed.add(job.pair.name, found)
            else:
                with failed.collect(job.pair.name):
                    rows.append(writer.register(job, found))
            bar.advance()
    bar.close()
    if rows:
        write_rows(out / TABLE, rows)
    count = "1 pair" if len(rows) == 1 else f"{len(rows)} pairs"
    say(f"{count}; written to {shown(out)}")
    return failed.report(len(jobs))


def find_jobs(inputs: Sequence[Path]) -> list[Job]:
    """The given pairs.

    Raises:
        UsageError: They are neither lists nor two files.
    """
    pairs: list[Pair] = []
    if all(path.suffix.lower() in LIST_SUFFIXES for path in inputs):
        for path in inputs:
            pairs += read_pairs(path, path.parent, labels=False)[1]
    elif len(inputs) == 2 and all(os.path.isfile(path) for path in inputs):
        moving, fixed = (Case(path, path.parent) for path in inputs)
        pairs = [Pair(moving, fixed)]
    else:
        raise UsageError(
            f"{' '.join(shown(path) for path in inputs)}: name two files, MOVING and FIXED, or "
            "CSV lists with the columns moving and fixed"
        )
    jobs = []
    for pair in pairs:
        moving, fixed = (case.path for case in pair.cases)
        name = f"{stem(moving)}_to_{stem(fixed)}"
        jobs.append(Job(pair, output_name(name, "_checkerboard.png")))
    return jobs


def check_targets(jobs: Sequence[Job], out: Path, inputs: Sequence[Path]) -> None:
    """Fail if an output would overwrite an input, another output, or a file that is not ours."""
    targets = [Target(path, job.pair.name) for job in jobs for path in job.files(out).values()]
    check_apart([Target(out / TABLE, TABLE), *targets])
    check_inside(targets, out)
    cases = [case for job in jobs for case in job.pair.cases]
    read = [path for case in cases for path in (case.path, case.label_path) if path is not None]
    check_no_input([Target(out / TABLE, TABLE), *targets], [*inputs, *read])
    ours: set[str] = set()
    if (out / TABLE).is_file():
        with (out / TABLE).open(newline="", encoding="utf-8") as file:
            ours = {name for row in csv.DictReader(file) for name in row.values()}
    for target in targets:
        if target.path.exists() and target.path.name not in ours:
            raise UsageError(
                f"{shown(target.path)} is there and was not written by `vimamba predict`; name "
                "another --out"
            )


class FieldWriter:
    """Registers pairs and writes the outputs.

    Args:
        task: A registration task.
        settings: Arguments of the data set it was trained on.
        out: Folder to write.
    """

    def __init__(self, task: Any, settings: dict[str, Any], out: Path) -> None:
        self.task, self.out = task, out
        self.percentiles = settings.get("percentiles", (0.0, 100.0))
        self.in_chans = settings["in_chans"]
        self.align = settings.get("align", False)
        self.values = task.hparams["label_values"] or []

    def reader(self, pairs: Sequence[Pair], *, labels: bool = False) -> PairDataset:
        """Some pairs as tensors."""
        return PairDataset(
            ListedPairs(pairs),
            percentiles=self.percentiles,
            label_values=self.values if labels else None,
            in_chans=self.in_chans,
            align=self.align,
        )

    def register(self, job: Job, found: PairTensors) -> dict[str, Any]:
        """Register a pair and write its files; returns its row of the table."""
        with torch.inference_mode():
            registered = self.task.register(found.images[None].to(self.task.device))
        flow = registered.flow.float().cpu()
        look = look_at(found, flow[0], registered.moved[0])
        files = job.files(self.out)
        self._write_image(job, flow, files["warped"])
        write_field(flow[0].numpy(), job.pair.fixed.path, files["field"])
        draw_pairs([look], files["checkerboard"], planes=list(PLANES))
        if "labels" in files:
            self._write_labels(job, flow, files["labels"])
        labelled = bool(self.values) and all(c.label_path is not None for c in job.pair.cases)
        labels = self.reader([job.pair], labels=True)[0].labels if labelled else None
        scores = score_pair(
            found.images,
            flow[0],
            labels,
            self.task.class_names,
            spacing=found.spacing.tolist(),
            window=self.task.objective.ncc_window,
        )
        named = {what: path.name for what, path in files.items()}
        moving, fixed = (case.path.as_posix() for case in job.pair.cases)
        return {"moving": moving, "fixed": fixed, **named, **scores}

    def _onto(self, job: Job) -> Path | None:
        """The file whose grid a pair is read on, if any."""
        fixed = job.pair.fixed.path
        return fixed if is_volume(fixed) else None

    def _write_image(self, job: Job, flow: torch.Tensor, path: Path) -> None:
        """Write the moving image's own values; points outside it get its minimum."""
        values = read_values(job.pair.moving.path, self._onto(job))
        low = limits_of(values, (0.0, 100.0))[0]
        moved = warp(torch.from_numpy(values - low)[None], flow)[0].numpy() + low
        if is_volume(job.pair.fixed.path):
            write_volume(moved, job.pair.fixed.path, path)
        else:
            write_tiff(moved, path)

    def _write_labels(self, job: Job, flow: torch.Tensor, path: Path) -> None:
        """Write the moving image's labels at the fixed one's cells."""
        assert job.pair.moving.label_path is not None
        labels = torch.from_numpy(read_labels(job.pair.moving.label_path, self._onto(job)))
        moved = warp_labels(labels[None], flow)[0].numpy()
        kind = np.uint8 if moved.min() >= 0 and moved.max() < 256 else np.int32
        if is_volume(job.pair.fixed.path):
            write_volume(moved[None].astype(kind), job.pair.fixed.path, path)
        else:
            with write_whole(path) as part:
                Image.fromarray(moved.astype(kind)).save(part, format="PNG")


def write_tiff(values: NDArray, path: Path) -> None:
    """Write (C, H, W) float32 as a TIFF, channels last."""
    import tifffile

    stored = values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)
    with write_whole(path) as part:
        tifffile.imwrite(part, stored.astype(np.float32))
