"""Peak memory of mapping scenes of several heights: python tools/scene_memory.py --folder FOLDER.

A scene of 20,000 columns and four bands of 16 bits is generated for each height (tiles of 512
pixels, deflate, a part of it nodata) and mapped by a network of three convolutions in a process of
its own. "Own" is what that process takes after the network has seen a batch of windows.
"""

import argparse
import json
import platform
import resource
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
from vimamba.data.preprocessing import Intensity, Preprocessing
from vimamba.data.rasters import Raster
from vimamba.tasks.scenes import Legend, Scene, predict_raster

BANDS, CLASSES, WINDOW, BATCH = 4, 3, 512, 4
BLOCK = 512


def write_scene(path: Path, height: int, width: int) -> None:
    """Fields of a few brightnesses with noise, nodata in the upper left, written by block rows."""
    rng = np.random.default_rng(0)
    profile = {
        "driver": "GTiff", "height": height, "width": width, "count": BANDS, "dtype": "uint16",
        "crs": "EPSG:32633", "transform": from_origin(500_000, 6_000_000, 0.5, 0.5), "nodata": 0,
        "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate",
        "predictor": 2, "bigtiff": "if_safer",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        for top in range(0, height, BLOCK):
            lines = min(BLOCK, height - top)
            fields = 400 * (1 + np.arange(width) // 640 % 3)
            values = fields + rng.integers(0, 64, (BANDS, lines, width))
            if top < height // 4:
                values[:, :, : width // 4] = 0
            window = ((top, top + lines), (0, width))
            file.write(values.astype(np.uint16), window=window)


def peak() -> float:
    """Peak memory of this process, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


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


def main() -> int:
    """Generate, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where scenes and maps go")
    parser.add_argument("--heights", type=int, nargs="+", default=[2000, 6000, 12000])
    parser.add_argument("--width", type=int, default=20_000)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        measure(given.measure)
        return 0
    given.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for height in given.heights:
        path = given.folder / f"{given.width}x{height}.tif"
        write_scene(path, height, given.width)
        command = [sys.executable, __file__, "--folder", str(given.folder), "--measure", str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        above = found["peak"] - found["own"]
        rows.append([
            f"{height:,}", *(f"{x:.2f}" for x in (found["peak"], found["own"], above)),
            found["windows"], found["skipped"], f"{found['seconds']:.0f}", f"{found['cpu']:.0f}",
        ])  # fmt: skip
    head = ["height", "peak GB", "own GB", "above GB", "windows", "skipped", "s", "CPU s"]
    versions = f"torch {torch.__version__}, GDAL {rasterio.__gdal_version__}"
    show_table(f"{platform.machine()}, {versions}, {given.width:,} columns", head, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
