"""`predict_raster`: maps a scene of any size, with memory that does not grow with its height.

Sizes: H x W pixels of the scene, h x w of a window, B windows, K scores, C classes.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimamba.data.rasters import Strips
from vimamba.errors import UsageError
from vimamba.files import lock_folder, write_whole
from vimamba.tasks.scenes import legends, maps
from vimamba.tasks.scenes.blending import Band
from vimamba.tasks.scenes.maps import CERTAIN, NODATA, Legend
from vimamba.tasks.scenes.parts import ENDING, Parts
from vimamba.tasks.scenes.plan import BLOCK, Plan, Stripe, make_plan
from vimamba.tasks.scenes.polygons import ENDINGS, write_polygons
from vimamba.tasks.scenes.quicklook import draw_quicklook
from vimamba.tasks.scenes.scene import Scene

# lines decided at a time
LINES = 32
# pixels of a quick look's longer side, at most
LOOK = 1024

Score = Callable[[Tensor], Tensor]
Decide = Callable[[Tensor], Sequence[Tensor]]


def softmax(scores: Tensor) -> list[Tensor]:
    """One map with a class per score."""
    return [scores.softmax(0)]


@dataclass(frozen=True)
class Outputs:
    """Outputs in addition to the maps.

    Attributes:
        cog: Maps are Cloud Optimized GeoTIFFs.
        probabilities: A file with a band per class next to each map, `_probabilities.tif`.
        polygons: Vectors next to each map, in a format of `ENDINGS`.
        quicklook: A picture of scene and map.
    """

    cog: bool = False
    probabilities: bool = False
    polygons: Literal["geojson", "gpkg"] | None = None
    quicklook: Path | None = None

    def files(self, path: Path) -> list[Path]:
        """All files of a map, except the quick look."""
        found = [path, legends.names_file(path), legends.style_file(path)]
        if self.probabilities:
            found.append(probability_file(path))
        if self.polygons:
            found.append(path.with_suffix(ENDINGS[self.polygons]))
        return found


@dataclass(frozen=True)
class RasterReport:
    """Report of a map.

    Attributes:
        windows: Windows of the scene.
        skipped: Windows without valid pixels, which the network did not process; since the last
            start.
        seconds: Since the last start.
        pixels: Pixels of each class of each map.
        finished_before: The map was already finished.
    """

    windows: int
    skipped: int
    seconds: float
    pixels: list[list[int]]
    finished_before: bool = False


def probability_file(path: Path) -> Path:
    """Path of a map's probabilities."""
    return path.with_name(f"{path.stem}_probabilities.tif")


def predict_raster(
    scenes: Sequence[Scene],
    score: Score,
    targets: Mapping[Path, Legend],
    *,
    num_scores: int,
    decide: Decide = softmax,
    overlap: float = 0.5,
    batch_size: int = 4,
    memory: float = 5e8,
    outputs: Outputs | None = None,
    origin: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    advance: Callable[[int, int], None] | None = None,
) -> RasterReport:
    """Slide windows over a scene, blend their scores, write the most likely classes as GeoTIFF.

    After an interruption it continues at the first missing block row; a map appears only when it is
    complete. Pixels that are invalid in one of the dates are 255, the map's nodata.

    Args:
        scenes: The dates of the scene, on one grid and with equal windows.
        score: Function from windows of all dates, (B, k * channels, h, w), or at the network's own
            size, to scores (B, K, h, w).
        targets: Maps to write, with their legends.
        num_scores: K.
        decide: Blended scores (K, n, W) of some lines to probabilities (C, n, W) for each map.
        overlap: Overlap of neighboring windows, a fraction in [0, 1).
        batch_size: Windows at a time.
        memory: Bytes for scores and strips of the scene, in addition to the network. If they are
            too few for all columns, the scene is processed in stripes, from left to right.
        outputs: Outputs in addition to the maps; none by default.
        origin: What else the maps depend on, such as the checkpoint, as plain values.
        device: Device of the network.
        advance: Called with the number of windows done and their total number.

    Raises:
        UsageError: The memory is too little for one stripe, or an existing file is not from this
            scene, checkpoint and options.
        WriteError: A file cannot be written, or another process writes this map.
    """
    if not 0 <= overlap < 1:
        raise UsageError(f"overlap={overlap} must lie in [0, 1)")
    outputs = outputs or Outputs()
    files = [scene.raster.path for scene in scenes]
    states = [file.stat() for file in files]
    job = {
        "scenes": [str(file.resolve()) for file in files],
        "bytes": [state.st_size for state in states],
        "modified": [state.st_mtime_ns for state in states],
        "window": list(scenes[0].window), "overlap": overlap,
        "options": {k: str(v) for k, v in asdict(outputs).items() if k != "quicklook" and v},
        **(origin or {}),
    }  # fmt: skip
    text = json.dumps(job, sort_keys=True)
    start, paths = time.monotonic(), list(targets)
    finished = [maps.is_finished(path, text) for path in paths]  # checks every path
    if all(finished):
        pixels = [maps.count_values(path, legend).tolist() for path, legend in targets.items()]
        return RasterReport(0, 0, 0.0, pixels, finished_before=True)
    plan = make_plan(
        [scene.raster for scene in scenes],
        scenes[0].window,
        overlap,
        num_scores=num_scores,
        out_bytes=sum(1 + outputs.probabilities * len(t.names) for t in targets.values()),
        memory=memory,
    )
    folder = paths[0].with_name(f"{paths[0].stem}{ENDING}")
    with lock_folder(folder):
        stripes = [stripe.columns.stop for stripe in plan.stripes]
        parts = Parts(folder, {**job, "maps": [path.name for path in paths], "stripes": stripes})
        sweep = Sweep(scenes, score, decide, plan, parts, num_scores, batch_size, device, advance)
        sweep.names = [f"map{place}" for place in range(len(targets))]
        sweep.legends, sweep.probabilities = list(targets.values()), outputs.probabilities
        for number in range(len(plan.stripes)):
            sweep.run(number)
        pixels = Finish(scenes, plan, parts, outputs, text).write(targets)
        parts.remove()
    seconds = time.monotonic() - start
    return RasterReport(plan.num_windows, sweep.skipped, seconds, pixels)


class Sweep:
    """Processes the stripes of a scene, window by window, and saves finished block rows.

    Args:
        scenes: As in `predict_raster`, like all others.
        score: From windows to scores.
        decide: From scores to probabilities.
        plan: The windows.
        parts: Where finished block rows go.
        num_scores: K.
        batch_size: Windows at a time.
        device: Device of the network.
        advance: Progress callback.
    """

    names: Sequence[str]
    legends: Sequence[Legend]
    probabilities: bool

    def __init__(
        self,
        scenes: Sequence[Scene],
        score: Score,
        decide: Decide,
        plan: Plan,
        parts: Parts,
        num_scores: int,
        batch_size: int,
        device: torch.device | str,
        advance: Callable[[int, int], None] | None,
    ) -> None:
        self.scenes, self.score, self.decide = scenes, score, decide
        self.plan, self.parts, self.num_scores = plan, parts, num_scores
        self.batch_size, self.device, self.advance = batch_size, device, advance
        self.look_step = look_step(plan.size)
        self.done = self.skipped = 0

    def run(self, number: int) -> None:
        """Process one stripe, from where an earlier process stopped."""
        stripe, (height, _) = self.plan.stripes[number], self.plan.size
        first = self.parts.count(number)
        rows = self.plan.rows_from(min(first * BLOCK, height))
        if first * BLOCK >= height:
            rows = []
        self._count((len(self.plan.rows) - len(rows)) * len(stripe.windows))
        if not rows:
            return
        lines = min(self.plan.window[0], height)
        width = stripe.span.stop - stripe.span.start
        band = Band(self.num_scores, self.plan.window, (lines, width), stripe.span.start)
        strips = [Strips(scene.raster, stripe.span) for scene in self.scenes]
        block = BlockRow(self, number, first)
        seen = rows[0]
        for row, below in zip(rows, [*rows[1:], height], strict=True):
            band.move(row)
            for held in strips:
                held.hold(slice(row, row + lines))
            self._look(slice(max(seen, row), row + lines), band, strips, block)
            seen = row + lines
            self._add_row(row, band, strips, stripe)
            block.take(band, slice(max(row, block.line), below))

    def _look(self, rows: slice, band: Band, strips: list[Strips], block: "BlockRow") -> None:
        """Find the valid pixels of new lines, and keep some lines for the quick look."""
        for top in range(rows.start, rows.stop, LINES):
            part = slice(top, min(top + LINES, rows.stop))
            known = np.logical_and.reduce([held.known(part) for held in strips])
            band.known[part.start - band.top : part.stop - band.top] = known
        step = self.look_step
        own = self.plan.stripes[block.number].columns
        places = slice(-own.start % step, None, step)
        for line in range(-(-rows.start // step) * step, rows.stop, step):
            pairs = zip(self.scenes, strips, strict=True)
            block.looks[line] = [
                scene.picture(held.cut(slice(line, line + 1), own)[:, places])[0]
                for scene, held in pairs
            ]

    def _add_row(self, row: int, band: Band, strips: list[Strips], stripe: Stripe) -> None:
        """Score the windows of a row."""
        lines, width = band.weights.shape
        waiting: list[int] = []
        cuts: list[Tensor] = []
        for column in stripe.windows:
            if band.is_known(column):
                place = slice(row, row + lines), slice(column, column + width)
                pairs = zip(self.scenes, strips, strict=True)
                cuts.append(torch.cat([scene.tensor(held.cut(*place)) for scene, held in pairs]))
                waiting.append(column)
            else:
                self.skipped += 1
            if cuts and (len(cuts) == self.batch_size or column == stripe.windows[-1]):
                with torch.inference_mode():
                    found = self.score(torch.stack(cuts).to(self.device)).float().cpu()
                for place, scores in zip(waiting, found, strict=True):
                    band.add(place, scores)
                waiting, cuts = [], []
            self._count(1)

    def _count(self, windows: int) -> None:
        self.done += windows
        if self.advance is not None and windows:
            self.advance(self.done, self.plan.num_windows)


class BlockRow:
    """Collects finished lines of a stripe until a block row of them can be written.

    Args:
        sweep: The sweep of the lines.
        number: Number of the stripe.
        block: The first missing block row.

    Attributes:
        line: The next line to come.
        looks: Lines read for the quick look, (p, 3) for each date.
    """

    def __init__(self, sweep: Sweep, number: int, block: int) -> None:
        self.sweep, self.number, self.block = sweep, number, block
        self.line = block * BLOCK
        self.looks: dict[int, list[NDArray[np.float16]]] = {}
        self._arrays: dict[str, NDArray[np.uint8]] = {}

    def take(self, band: Band, rows: slice) -> None:
        """Take lines that are final."""
        columns = self.sweep.plan.stripes[self.number].columns
        while self.line < rows.stop:
            end = min(self.line + LINES, (self.block + 1) * BLOCK, rows.stop)
            self._decide(*band.lines(slice(self.line, end), columns), end)
            self.line = end
            if end == self.bottom:
                self._write()

    @property
    def bottom(self) -> int:
        """Line after the end of the block row."""
        return min((self.block + 1) * BLOCK, self.sweep.plan.size[0])

    def _decide(self, scores: Tensor, known: NDArray[np.bool_], end: int) -> None:
        """Decide the classes of some lines, and their probabilities if requested."""
        sweep, top = self.sweep, self.block * BLOCK
        rows = slice(self.line - top, end - top)
        for name, legend, found in zip(
            sweep.names, sweep.legends, sweep.decide(scores), strict=True
        ):
            values = np.asarray(legend.values, dtype=np.uint8)[found.argmax(0).numpy()]
            self._array(name, values.shape)[rows] = np.where(known, values, NODATA)
            if sweep.probabilities:
                scaled = (found * CERTAIN).round().to(torch.uint8).numpy()
                target = self._array(f"{name}_probabilities", scaled.shape)
                target[:, rows] = np.where(known, scaled, NODATA)

    def _array(self, name: str, shape: Sequence[int]) -> NDArray[np.uint8]:
        """The block row of an output, (..., lines, columns)."""
        if name not in self._arrays:
            whole = (*shape[:-2], self.bottom - self.block * BLOCK, shape[-1])
            self._arrays[name] = np.empty(whole, dtype=np.uint8)
        return self._arrays[name]

    def _write(self) -> None:
        arrays: dict[str, NDArray] = dict(self._arrays)
        lines = [self.looks.pop(line) for line in sorted(self.looks) if line < self.bottom]
        for date in range(len(self.sweep.scenes)):
            if lines:  # lines and columns last, as in all arrays of a part
                arrays[f"look{date}"] = np.stack([line[date] for line in lines]).transpose(2, 0, 1)
        self.sweep.parts.write(self.number, self.block, arrays)
        self._arrays = {}
        self.block += 1


@dataclass(frozen=True)
class Finish:
    """Writes the files from finished block rows.

    Attributes:
        scenes: The dates.
        plan: The windows.
        parts: The block rows.
        outputs: The requested outputs.
        job: Source of the maps, as text.
    """

    scenes: Sequence[Scene]
    plan: Plan
    parts: Parts
    outputs: Outputs
    job: str

    def write(self, targets: Mapping[Path, Legend]) -> list[list[int]]:
        """Write all files, each map last; returns the pixels of its classes."""
        like, cog, pixels = self.scenes[0].raster, self.outputs.cog, []
        for place, (path, legend) in enumerate(targets.items()):
            rest = {"legend": legend, "cog": cog, "job": self.job}
            with write_whole(path) as part:
                counts = maps.write_map(part, like, self.rows(f"map{place}"), **rest)
                pixels.append(counts.tolist())
                if self.outputs.probabilities:
                    rows = self.rows(f"map{place}_probabilities")
                    with write_whole(probability_file(path)) as beside:
                        maps.write_probabilities(beside, like, rows, **rest)
                if self.outputs.polygons:
                    with write_whole(path.with_suffix(ENDINGS[self.outputs.polygons])) as beside:
                        write_polygons(part, beside, legend)
                if self.outputs.quicklook is not None and place == 0:
                    self.draw(part, legend, self.outputs.quicklook)
                legends.write_names(path, legend)
                legends.write_style(path, legend)
        return pixels

    def rows(self, name: str) -> Iterator[NDArray]:
        """The block rows of an output, from the top."""
        for block in range(-(-self.plan.size[0] // BLOCK)):
            yield self.parts.row(len(self.plan.stripes), block, name)

    def draw(self, map_file: Path, legend: Legend, path: Path) -> None:
        """Write the quick look."""
        step = look_step(self.plan.size)
        blocks = [
            block
            for block in range(-(-self.plan.size[0] // BLOCK))
            if -(-block * BLOCK // step) * step < min((block + 1) * BLOCK, self.plan.size[0])
        ]
        dates = [
            np.concatenate(
                [self.parts.row(len(self.plan.stripes), b, f"look{date}") for b in blocks], axis=1
            ).transpose(1, 2, 0)
            for date in range(len(self.scenes))
        ]
        draw_quicklook(dates, map_file, legend, path, step=step)


def look_step(size: Sequence[int]) -> int:
    """Step between the lines and columns shown in a quick look."""
    return max(1, -(-max(size) // LOOK))
