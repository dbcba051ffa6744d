"""Masks of images and volumes: files in the values of the training masks, overlays, scores."""

import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vimamba.console import say, show_table
from vimamba.data.masked.labels import LabelTable
from vimamba.data.masked.nifti import VolumeSlice, cut_volume
from vimamba.data.preprocessing import Preprocessing
from vimamba.data.volume_files import save_labels
from vimamba.errors import UsageError
from vimamba.files import write_whole
from vimamba.progress import Progress
from vimamba.tasks.outputs import (
    FailedInputs,
    Target,
    check_apart,
    check_inside,
    check_no_input,
    concerns_input,
    reason,
    shown,
)
from vimamba.tasks.overlays import (
    View,
    card_info,
    choose_slices,
    class_colors,
    draw_card,
    find_view,
    legend_entries,
    panel,
    thumbnail,
)
from vimamba.tasks.pictures import draw_contact_sheet, shorten
from vimamba.tasks.reading import read_all
from vimamba.tasks.segmentation.inputs import JobImages, OpenImage
from vimamba.tasks.segmentation.jobs import Job, find_jobs
from vimamba.tasks.segmentation.pictures import add_legend
from vimamba.tasks.segmentation.record import RECORD, TABLE, claim, keep_record
from vimamba.tasks.segmentation.scores import (
    CASES,
    find_truths,
    fit_truths,
    read_classes,
    score_files,
)
from vimamba.tasks.tools import FinishedRun

SHEET_IMAGES = 24
SHEET = "contact_sheet.png"
# options for GeoTIFF files only
SCENE_OPTIONS = ("cog", "probabilities", "polygons", "window_size", "memory")
# GB for the scores and strips of a scene
DEFAULT_MEMORY = 0.5
# number of images from which the range of the overlays is taken
VIEW_IMAGES = 6
# pixels of an overlay's longer side: small images are enlarged, large ones reduced
PANEL_LEAST, PANEL_MOST = 512, 2048


def segment(
    run: FinishedRun, given: Namespace, make_writer: Callable[..., "MaskWriter"] | None = None
) -> int:
    """Segment images, or continue where an earlier call with the same options stopped.

    Args:
        run: The run to predict with.
        given: Options of `vimamba predict`.
        make_writer: Class of the writer.

    Returns:
        Exit code.
    """
    out = given.out or run.folder / "predictions"
    if out.suffix or (os.path.lexists(out) and not os.path.isdir(out)):
        raise UsageError(f"--out {shown(out)} must be a folder")
    settings = run.data
    failed = FailedInputs()
    jobs = find_jobs(given.inputs, settings["in_chans"], out=out, failed=failed)
    scenes, jobs = [j for j in jobs if j.is_scene], [j for j in jobs if not j.is_scene]
    check_scene_options(given, scenes)
    truths = find_truths(given.masks, [*jobs, *scenes], settings) if given.masks else {}
    check_targets(out, jobs, scenes, [*given.inputs, *truths.values()], given)
    task = run.load()
    task.tta = given.tta
    if given.overlap is not None:
        if not 0 <= given.overlap < 1:
            raise UsageError(f"--overlap {given.overlap} must lie in [0, 1)")
        task.overlap = given.overlap
    if given.batch_size is not None:
        task.window_batch = given.batch_size
    labels = settings["labels"]
    table = LabelTable(task.class_names, task.label_values, labels["ignore"], labels.get("colors"))
    succeeded: list[Job] = []
    if jobs:
        make = make_writer or MaskWriter
        succeeded = segment_images(run, task, table, jobs, truths, out, given, failed, make)
    if scenes:
        succeeded += segment_scenes(run, task, table, scenes, truths, out, given, failed)
    if not succeeded:
        say("no image could be processed; no mask is written")
    return failed.report(len(succeeded) + len(failed.reasons))


def segment_images(
    run: FinishedRun,
    task: Any,
    table: LabelTable,
    jobs: list[Job],
    truths: dict[str, Path],
    out: Path,
    given: Namespace,
    failed: FailedInputs,
    make_writer: Callable[..., "MaskWriter"],
) -> list[Job]:
    """Segment images and volumes; returns those with a mask."""
    settings, overlays = run.data, not given.no_overlays
    align = settings.get("align", False)
    truth_table = fit_truths(table, jobs, truths, align=align) if truths else table
    writer = make_writer(task, table, settings, out)
    options = {"tta": given.tta, "overlap": task.overlap, **writer.options}
    keep_record(out, *run.checkpoints, **options)
    wanted = claim(out, jobs, overlays=overlays)
    if overlays:
        writer.look(jobs)
    write_masks(writer, wanted, given.batch_size or 8, given.workers, failed)
    succeeded = [job for job in jobs if str(job.paths[0]) not in failed.reasons]
    if not succeeded:
        return []
    kept = len(succeeded) - sum(str(job.paths[0]) not in failed.reasons for job in wanted)
    if overlays:
        draw_sheet(succeeded, out, writer)
    show_parts(succeeded, out, table)
    if truths:
        truth = (truths, truth_table)
        score_files(task, table, succeeded, *truth, out, run, failed, align=align)
    before = f", {kept} of them from before" if kept else ""
    count = "1 mask" if len(succeeded) == 1 else f"{len(succeeded)} masks"
    say(f"{count}{before}; written to {shown(out)}")
    return succeeded


def segment_scenes(
    run: FinishedRun,
    task: Any,
    table: LabelTable,
    jobs: list[Job],
    truths: dict[str, Path],
    out: Path,
    given: Namespace,
    failed: FailedInputs,
) -> list[Job]:
    """Map this process's share of GeoTIFF scenes; returns those with a map."""
    # imported here, because only scenes need rasterio
    from vimamba.tasks.segmentation.scenes import Mapper, Share, map_scenes, score_scenes

    share = Share.of_process()
    origin = {**run.origin(), "tta": given.tta}
    mapper = Mapper(task.to(share.device), table, run.data, given, out, origin)
    succeeded = map_scenes(mapper, jobs[share.rank :: share.count], failed)
    if truths and succeeded:
        align = run.data.get("align", False)
        score_scenes(mapper, table, succeeded, truths, failed, align=align)
    if succeeded:
        count = "1 map" if len(succeeded) == 1 else f"{len(succeeded)} maps"
        say(f"{count}; written to {shown(out)}")
    return succeeded


def check_scene_options(given: Namespace, scenes: Sequence[Job]) -> None:
    """Fail on options for scenes if there is none, and on impossible sizes.

    Raises:
        UsageError: Names the option.
    """
    for name in SCENE_OPTIONS:
        value = getattr(given, name)
        if value not in (None, False) and not scenes:
            raise UsageError(
                f"--{name.replace('_', '-')} is for georeferenced GeoTIFF files, and none is given"
            )
    if given.memory is None:
        given.memory = DEFAULT_MEMORY
    if given.memory <= 0:
        raise UsageError(f"--memory {given.memory} must be greater than 0 (GB)")


def write_masks(
    writer: "MaskWriter", jobs: list[Job], batch_size: int, workers: int, failed: FailedInputs
) -> None:
    """Write the masks of jobs; one that fails does not affect the others."""
    bar = Progress(len(jobs), "image")
    images = JobImages(jobs, writer.prepare)
    for batch in batches(jobs, read_all(images, 1, workers), batch_size):
        found = writer.predict(batch, bar)
        for (job, opened), mask in zip(batch, found, strict=True):
            if isinstance(mask, str):
                failed.add(job.paths[0], mask)
            else:
                writer.write(job, opened, mask)
            bar.advance()
    bar.close()


def check_targets(
    out: Path,
    jobs: Sequence[Job],
    scenes: Sequence[Job],
    inputs: Sequence[Path],
    given: Namespace,
) -> None:
    """Fail if an output would overwrite an input or another output, or leave the folder."""
    targets = [
        Target(file(out), str(job.paths[0]))
        for job in (*jobs, *scenes)
        for file in (job.mask_file, job.overlay_file)
    ]
    if scenes:
        from vimamba.tasks.segmentation.scenes import outputs_of

        for job in scenes:
            _, *others = outputs_of(job, out, given).files(job.mask_file(out))
            targets += [Target(path, str(job.paths[0])) for path in others]
    ours = [Target(out / name, name) for name in (SHEET, RECORD, TABLE, CASES)]
    check_apart([*ours, *targets])
    check_inside(targets, out)
    read = [*inputs, *(path for job in (*jobs, *scenes) for path in job.paths)]
    check_no_input([*ours, *targets], read)


def batches(
    jobs: Sequence[Job], read: Iterator[list[tuple[int, Any]]], size: int
) -> Iterator[list[tuple[Job, OpenImage | str | None]]]:
    """Up to `size` images at a time; a volume, which has slices, or a large image by itself."""
    batch: list[tuple[Job, OpenImage | str | None]] = []
    alone = False
    for entries in read:
        for index, opened in entries:
            apart = not isinstance(opened, OpenImage) or opened.is_large
            if batch and (apart or alone or len(batch) == size):
                yield batch
                batch = []
            batch.append((jobs[index], opened))
            alone = apart
    if batch:
        yield batch


class MaskWriter:
    """Predicts and writes masks and overlays.

    Args:
        task: A segmentation task.
        table: Its classes and their values in masks.
        settings: Arguments of the data set it was trained on.
        out: Folder to write.

    Attributes:
        options: Other settings that the masks depend on, for the record.
    """

    preparation: type[Preprocessing] = Preprocessing

    def __init__(self, task: Any, table: LabelTable, settings: dict[str, Any], out: Path) -> None:
        self.options: dict[str, Any] = {}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.task = task.to(self.device)
        self.table = table
        self.prepare = self.preparation.from_settings(settings)
        self.axis = settings.get("axis", "axial")
        self.align = settings.get("align", False)
        self.out = out
        self.view: View | None = None
        colors = settings["labels"].get("colors")
        given = tuple(map(tuple, colors)) if colors else None
        self.colors = given or class_colors(len(task.class_names), task.background)
        self.legend = legend_entries(task.class_names, self.colors, task.background)

    def look(self, jobs: Sequence[Job]) -> None:
        """Choose the value range of overlays from some images; without it, none are drawn."""
        found = []
        for job in jobs[:: max(1, len(jobs) // VIEW_IMAGES)]:
            try:
                if job.is_volume:
                    slices = self._slices(job)
                    found.append(self.prepare.pixels(slices[len(slices) // 2]))
                else:
                    opened = JobImages([job], self.prepare).open(0)
                    found.append(opened.pixels(step_of(opened)))
            except ImportError:
                raise
            except Exception:  # reported when it is processed
                continue
        self.view = find_view(found)

    def predict(
        self, batch: Sequence[tuple[Job, OpenImage | str | None]], bar: Progress
    ) -> list[NDArray[np.uint8] | str]:
        """Classes of each image, (H, W) or (slices, H, W), or why there are none."""
        job, opened = batch[0]
        if isinstance(opened, str):
            return [opened]
        try:
            if opened is None:
                self.task.advance = None
                return [self._segment_volume(job, bar)]
            self.task.advance = lambda done, total: bar.part(done, total, "window")
            images = [image for _, image in batch if isinstance(image, OpenImage)]
            tensors = [image.network_input for image in images]
            moved = [t.to(self.device) if isinstance(t, torch.Tensor) else t for t in tensors]
            return list(self.task.segment(moved, [image.size for image in images]))
        except Exception as error:
            if not concerns_input(error):
                raise
            if len(batch) == 1:
                return [reason(error)]
            return [self.predict([entry], bar)[0] for entry in batch]

    def _slices(self, job: Job) -> list[VolumeSlice]:
        """A volume's slices along the axis used in training."""
        return cut_volume(job.paths, None, self.axis, job.paths[0].parent, align=self.align)

    def _segment_volume(self, job: Job, bar: Progress) -> NDArray[np.uint8]:
        """Segment a volume slice by slice."""
        slices = self._slices(job)
        masks: list[NDArray[np.uint8]] = []
        step = 8
        for start in range(0, len(slices), step):
            part = slices[start : start + step]
            tensors = [self._read_slice(item).to(self.device) for item in part]
            masks += self.task.segment(tensors, [item.size() for item in part])
            bar.part(len(masks), len(slices), "slice")
        return np.stack(masks)

    def _read_slice(self, item: Any) -> torch.Tensor:
        """Read a slice as network input (C, h, w)."""
        try:
            return self.prepare.image(item)
        except ImportError:
            raise
        except Exception as error:  # readers of damaged bytes may raise anything
            raise UsageError(reason(error)) from error

    def write(self, job: Job, opened: OpenImage | str | None, mask: NDArray[np.uint8]) -> None:
        """Write the overlay, then the mask: if there is a mask, the image is done."""
        target = job.mask_file(self.out)
        if self.view is not None:
            self._write_overlay(job, opened, mask, self.view)
        if job.is_volume:
            target.parent.mkdir(parents=True, exist_ok=True)
            save_labels(self.table.stored(mask), job.paths[0], self.axis, target)
        else:
            save_image(self._palette_image(mask), target)

    def _write_overlay(
        self, job: Job, opened: OpenImage | str | None, mask: NDArray[np.uint8], view: View
    ) -> None:
        look: dict[str, Any] = {"colors": self.colors, "background": self.task.background}
        panels, best = [], 0
        if isinstance(opened, OpenImage):
            step = step_of(opened)
            seen = view(opened.pixels(step))
            longest = max(PANEL_LEAST, min(PANEL_MOST, max(seen.shape[:2])))
            look["longest"] = longest
            if not self.task.background:  # then the classes cover the whole image
                panels.append((Path(job.name).name, panel(seen, None, **look)))
                best = 1
            panels.append((Path(job.name).name, panel(seen, mask, **look)))
        else:
            slices = self._slices(job)
            rows, columns = slices[0].spacing[-2:]
            look |= {"aspect": rows / columns, "longest": 320}
            chosen = choose_slices(mask, self.task.background)
            best = int(np.argmax([(mask[place] > 0).sum() for place in chosen]))
            for place in chosen:
                seen = view(self.prepare.pixels(slices[place]))
                caption = f"{self.axis} {place + 1} of {len(slices)}"
                panels.append((caption, panel(seen, mask[place], **look)))
        note = f"{shown(job.name)}: {view.text(self.prepare.intensity, self.prepare.bands)}"
        card = draw_card(panels, self.legend, note, best)
        save_image(card, job.overlay_file(self.out))

    def _palette_image(self, mask: NDArray[np.uint8]) -> Image.Image:
        """Classes as an image of stored values, in the classes' colors if the values allow it."""
        stored = self.table.stored(mask)
        image = Image.fromarray(stored)
        if stored.dtype == np.uint8:
            palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
            palette[self.table.values] = self.colors
            image.putpalette(palette.tobytes())
        return image


def step_of(opened: OpenImage) -> int:
    """Step between the rows and columns shown in an overlay."""
    return max(1, -(-max(opened.size) // PANEL_MOST))


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG, completely or not at all."""
    with write_whole(path) as part:
        image.save(part, format="PNG", pnginfo=card_info(image) if "panel" in image.info else None)


def show_parts(jobs: Sequence[Job], out: Path, table: LabelTable) -> None:
    """Print each class's share of the pixels."""
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


def draw_sheet(jobs: Sequence[Job], out: Path, writer: MaskWriter) -> None:
    """Overlays of the first images on one sheet, with their legend."""
    found = [job for job in jobs if job.overlay_file(out).is_file()][:SHEET_IMAGES]
    if not found:
        return
    images = [thumbnail(job.overlay_file(out)) for job in found]
    settings = writer.prepare
    note = writer.view.text(settings.intensity, settings.bands) if writer.view else ""
    captions = [shorten(shown(Path(job.name).name), 22) for job in found]
    draw_contact_sheet(
        images,
        captions,
        out / SHEET,
        left_out=len(jobs) - len(found),
        legend=lambda figure: add_legend(figure, writer.legend, ignored=False, title=note),
    )
