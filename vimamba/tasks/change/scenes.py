"""`vimamba predict` on pairs of GeoTIFF scenes: change maps with the scenes' georeference."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vimamba.console import say, show_table
from vimamba.data.preprocessing import Preprocessing
from vimamba.data.rasters import Raster
from vimamba.progress import Progress
from vimamba.tasks.change.jobs import PairJob
from vimamba.tasks.outputs import FailedInputs, shown
from vimamba.tasks.overlays import class_colors
from vimamba.tasks.scenes import Legend, RasterReport, Scene, predict_raster
from vimamba.tasks.segmentation.scenes import Share, at_size, find_window, outputs_of
from vimamba.tasks.tools import FinishedRun


def map_scenes(
    run: FinishedRun,
    task: Any,
    jobs: Sequence[PairJob],
    out: Path,
    given: Namespace,
    failed: FailedInputs,
) -> list[PairJob]:
    """Write maps of pairs of scenes; each of several processes does its share.

    A pair that fails does not affect the others.

    Returns:
        The pairs with maps.
    """
    share = Share.of_process()
    task.to(share.device)
    own = jobs[share.rank :: share.count]
    bar, succeeded = Progress(len(own), "pair"), []
    pixels = np.zeros((len(own[0].maps) if own else 1, len(task.class_names)), dtype=np.int64)
    for job in own:
        try:
            with failed.collect(job.paths[0]):
                pixels += map_scene(run, task, job, out, given, bar).pixels
                succeeded.append(job)
        finally:
            bar.advance()
    bar.close()
    if succeeded:
        rows: list[list[object]] = []
        for name, counts in zip(own[0].maps, pixels, strict=True):
            for label, count in zip(task.class_names, counts, strict=True):
                rows.append([name, label, f"{count / max(counts.sum(), 1):.2%}"])
        show_table("predicted, share of valid pixels", ["map", "class", "pixels"], rows)
        count = "1 pair" if len(succeeded) == 1 else f"{len(succeeded)} pairs"
        say(f"maps of {count} of scenes; written to {shown(out)}")
    return succeeded


def map_scene(
    run: FinishedRun, task: Any, job: PairJob, out: Path, given: Namespace, bar: Progress
) -> RasterReport:
    """Write the maps of one pair and their other files.

    Raises:
        VimambaError: The pair failed; the message says why.
    """
    prepare = Preprocessing.from_settings(run.data)
    legend = Legend(
        task.class_names,
        list(range(len(task.class_names))),
        class_colors(len(task.class_names), True),
        background=True,
    )
    before, after = job.paths
    bands: dict[str, Any] = {"bands": prepare.bands, "wanted": prepare.in_chans}
    with (
        Raster(before, **bands) as first,
        Raster(after, onto=first, align=bool(given.align), **bands) as second,
    ):
        window, size = find_window(prepare, first.size, given.window_size)
        report = predict_raster(
            [Scene(raster, prepare, window, size) for raster in (first, second)],
            lambda windows: at_size(task.joint_logits(windows), window),
            dict.fromkeys(job.map_files(out), legend),
            num_scores=task.outputs.count,
            decide=lambda scores: decide_lines(task, scores),
            overlap=task.overlap,
            batch_size=task.window_batch,
            memory=given.memory * 1e9,
            outputs=outputs_of(job, out, given),
            origin={**run.origin(), "tta": given.tta},
            device=task.device,
            advance=lambda done, total: bar.part(done, total, "window"),
        )
    if report.finished_before:
        say(f"{shown(job.name)}: done before")
    return report


def decide_lines(task: Any, scores: Tensor) -> list[Tensor]:
    """Blended logits (K, n, W) of some lines to probabilities (C, n, W) of each map."""
    outputs = task.outputs
    return [found[0] for found in outputs.decide(outputs.probabilities(scores[None]))]
