"""Peak memory of mapping scenes of several heights: python tools/scene_memory.py --folder FOLDER.

A scene of 20,000 columns and four 16-bit bands is generated for each height (tiles of 512 pixels,
deflate, partly nodata) and mapped by a network of three convolutions in a separate process. "Own"
is the memory of that process after the network has processed a batch of windows.

With --training, it measures the memory of an epoch of training data instead: windows of a scene of
6,000 x 6,000 pixels and 13 bands, checked, sampled and augmented as in `vimamba fit`, without a
network. "Own" is then the memory of the process before it reads the data.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from torch import nn

from vimamba.console import show_table
from vimamba.data import SceneFolder
from vimamba.data.preprocessing import Intensity, Preprocessing
from vimamba.data.rasters import Raster
from vimamba.tasks.scenes import Legend, Scene, predict_raster

BANDS, CLASSES, WINDOW, BATCH = 4, 3, 512, 4
BLOCK = 512


def write_scene(
    path: Path, height: int, width: int, bands: int = BANDS, labels: Path | None = None
) -> None:
    """Fields of a few brightness levels plus noise, nodata in the upper left, by block rows."""
    rng = np.random.default_rng(0)
    fields = np.arange(width) // 640 % 3
    shared = {
        "driver": "GTiff", "height": height, "width": width, "crs": "EPSG:32633",
        "transform": from_origin(500_000, 6_000_000, 0.5, 0.5), "tiled": True, "blockxsize": BLOCK,
        "blockysize": BLOCK, "compress": "deflate", "bigtiff": "if_safer",
    }  # fmt: skip
    profile = {**shared, "count": bands, "dtype": "uint16", "nodata": 0, "predictor": 2}
    with rasterio.open(path, "w", **profile) as file:
        for top in range(0, height, BLOCK):
            lines = min(BLOCK, height - top)
            values = 400 * (1 + fields) + rng.integers(0, 64, (bands, lines, width))
            if top < height // 4:
                values[:, :, : width // 4] = 0
            window = ((top, top + lines), (0, width))
            file.write(values.astype(np.uint16), window=window)
    if labels is not None:
        with rasterio.open(labels, "w", **shared, count=1, dtype="uint8") as file:
            file.write(np.broadcast_to(fields.astype(np.uint8), (height, width)), 1)


def peak() -> float:
    """Peak memory of this process, GB; `getrusage` would include its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024 / 1e9


def measure(path: Path) -> None:
    """Map a scene in this process and print time and memory as JSON."""
    torch.manual_seed(0)
    layers = nn.Conv2d(BANDS, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, CLASSES, 3, padding=1)
    net = nn.Sequential(*layers).eval()
    with torch.inference_mode():
        net(torch.zeros(BATCH, BANDS, WINDOW, WINDOW))
    prepare = Preprocessing(
        img_size=WINDOW, in_chans=BANDS, bands=None, fit="window", scale_to=None,
        interpolation="bilinear", intensity=Intensity(window=(0, 2000)), mean=[0.5] * BANDS,
        std=[0.25] * BANDS,
    )  # fmt: skip
    legend = Legend(["a", "b", "c"], [0, 1, 2], [(200, 0, 0), (0, 200, 0), (0, 0, 200)])
    own, start, spent = peak(), time.monotonic(), time.process_time()
    with Raster(path) as raster:
        scene = Scene(raster, prepare, (WINDOW, WINDOW))
        report = predict_raster(
            [scene], net, {path.with_name(f"{path.stem}_map.tif"): legend}, num_scores=CLASSES,
            overlap=0.25, batch_size=BATCH,
        )  # fmt: skip
    print(json.dumps({
        "own": own, "peak": peak(), "windows": report.windows, "skipped": report.skipped,
        "seconds": time.monotonic() - start, "cpu": time.process_time() - spent,
    }))  # fmt: skip


def measure_training(root: Path) -> None:
    """Iterate over an epoch of windows in this process and print time and memory as JSON."""
    own, start, spent = peak(), time.monotonic(), time.process_time()
    data = SceneFolder(
        str(root), img_size=WINDOW, batch_size=BATCH, workers=0, augmentation="aerial",
        labels={"background": False},
    )  # fmt: skip
    data.check()
    windows = sum(len(images) for images, _ in data.train_dataloader())
    print(json.dumps({
        "own": own, "peak": peak(), "windows": windows, "skipped": 0,
        "seconds": time.monotonic() - start, "cpu": time.process_time() - spent,
    }))  # fmt: skip


def write_training(root: Path, side: int, bands: int) -> None:
    """A training scene with its labels, and a small validation scene."""
    for split, size in (("train", side), ("val", 2 * WINDOW)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        name = f"{split}.tif"
        labels = root / split / "masks" / name
        write_scene(root / split / "images" / name, size, size, bands, labels)


def run_alone(*options: str) -> dict[str, float]:
    """The result of this script in a separate process."""
    command = [sys.executable, __file__, *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def as_row(what: str, found: dict[str, float]) -> list[object]:
    """A row of the table."""
    sizes = (found["peak"], found["own"], found["peak"] - found["own"])
    return [
        what, *(f"{size:.2f}" for size in sizes), found["windows"], found["skipped"],
        f"{found['seconds']:.0f}", f"{found['cpu']:.0f}",
    ]  # fmt: skip


def main() -> int:
    """Generate, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder for scenes and maps")
    parser.add_argument("--heights", type=int, nargs="+", default=[2000, 6000, 12000])
    parser.add_argument("--width", type=int, default=20_000)
    parser.add_argument("--training", action="store_true", help="measure an epoch of training")
    parser.add_argument("--side", type=int, default=6000, help="of the training scene")
    parser.add_argument("--bands", type=int, default=13, help="of the training scene")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        (measure_training if given.training else measure)(given.measure)
        return 0
    given.folder.mkdir(parents=True, exist_ok=True)
    folder, rows = ("--folder", str(given.folder)), []
    if given.training:
        root = given.folder / "training"
        write_training(root, given.side, given.bands)
        found = run_alone(*folder, "--training", "--measure", str(root))
        rows.append(as_row(f"{given.side} x {given.side} x {given.bands}", found))
    for height in () if given.training else given.heights:
        path = given.folder / f"{given.width}x{height}.tif"
        write_scene(path, height, given.width)
        rows.append(as_row(f"{given.width} x {height}", run_alone(*folder, "--measure", str(path))))
    head = ["scene", "peak GB", "own GB", "above GB", "windows", "skipped", "s", "CPU s"]
    versions = f"torch {torch.__version__}, GDAL {rasterio.__gdal_version__}"
    show_table(f"{platform.machine()}, {versions}", head, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
