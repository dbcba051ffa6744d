"""Peak memory of `vimamba predict` on CTs: python tools/volume_memory.py --folder FOLDER.

A compressed int16 CT of 512 x 512 pixels is generated for each number of slices and predicted by a
tiny network with five classes in a separate process, at its own spacing, in non-overlapping
windows. "Private" is the memory that the process needs; it excludes pages of the mapped file for
large scores, which the system writes to disk if memory is short (Linux).
"""

import argparse
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import torch
from demos import COMMAND

from vimamba.console import show_table

SIDE, WINDOW, CLASSES = 512, (64, 128, 128), 5
SPACING = (0.8, 0.8, 1.0)
GIB = 2**30
NETWORK = "{dims: [4, 8], depths: [0, 1]}"


def write_volume(path: Path, values: np.ndarray) -> None:
    """(slices, rows, columns) as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), affine), path)


def draw_ct(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A body in air with layers of different densities: Hounsfield units and classes."""
    y, x = (np.linspace(-1, 1, side) for side in shape[1:])
    radius = np.hypot(y[:, None] / 0.7, x / 0.9)
    classes = (CLASSES * (1 - radius)).clip(0, CLASSES - 1).astype(np.uint8)
    units = np.asarray([-1000, -80, 40, 70, 300], dtype=np.int16)[classes]
    image = np.empty(shape, dtype=np.int16)
    rng = np.random.default_rng(0)
    noise = rng.integers(-15, 16, shape[1:], dtype=np.int16)
    for place in range(shape[0]):
        image[place] = units + np.roll(noise, 7 * place)
    return image, np.broadcast_to(classes, shape)


def train(folder: Path) -> Path:
    """A run of one short epoch."""
    run = folder / "run"
    if not (run / "export").is_dir():
        for number in range(5):
            image, mask = draw_ct(WINDOW)
            write_volume(folder / "data" / "images" / f"{number}.nii.gz", image + number)
            write_volume(folder / "data" / "masks" / f"{number}.nii.gz", mask)
        size = "x".join(map(str, WINDOW))
        arguments = ["--task", "volumes", "--data", folder / "data", "--out", run]
        arguments += ["--model", "vss_unet_3d_nano", "--model.model_kwargs", NETWORK]
        arguments += ["--patch-size", size, "--epochs", "1", "--data.patches", "1"]
        arguments += ["--data.test_fraction", "0", "--workers", "0"]
        subprocess.run([COMMAND, "fit", *map(str, arguments)], check=True)
    return run


def peaks(process: subprocess.Popen) -> dict[str, float]:
    """Peak memory of a process until it ends, GiB, by its names in /proc."""
    most = {"VmHWM": 0.0, "RssAnon": 0.0, "RssFile": 0.0}
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
        except OSError:
            break
        for name, _, value in (line.partition(":") for line in lines):
            if name in most:
                most[name] = max(most[name], int(value.split()[0]) * 1024 / GIB)
        time.sleep(0.02)
    return most


def main() -> int:
    """Generate, predict, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder for all files")
    parser.add_argument("--slices", type=int, nargs="+", default=[16, 250, 500, 1000])
    given = parser.parse_args()
    run = train(given.folder)
    rows = []
    for slices in given.slices:
        shape = (slices, SIDE, SIDE)
        path = given.folder / f"ct{slices}.nii.gz"
        write_volume(path, draw_ct(shape)[0])
        out = given.folder / f"found{slices}_{time.time_ns()}"
        command = [COMMAND, "predict", run, path, "--out", out, "--overlap", "0"]
        start = time.monotonic()
        # the mapped file goes to the folder, too, because /tmp may be in memory
        environment = {**os.environ, "TMPDIR": str(given.folder)}
        process = subprocess.Popen(list(map(str, [*command, "--batch-size", "1"])), env=environment)
        most = peaks(process)
        if process.wait():
            raise SystemExit(f"{path} was not predicted")
        seconds = time.monotonic() - start
        voxels = math.prod(shape)
        scores = 4 * CLASSES * voxels / GIB
        rows.append([
            slices, f"{2 * voxels / GIB:.2f}", f"{scores:.2f}",
            *(f"{most[name]:.2f}" for name in ("VmHWM", "RssAnon", "RssFile")), f"{seconds:.0f}",
        ])  # fmt: skip
    head = ["slices", "CT GiB", "scores GiB", "peak GiB", "private GiB", "mapped GiB", "s"]
    machine = f"{platform.machine()}, torch {torch.__version__}"
    show_table(f"{machine}, {SIDE} x {SIDE} pixels, {CLASSES} classes", head, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
