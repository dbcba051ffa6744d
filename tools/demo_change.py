"""Trains a small change detection network on generated scenes; run by `make demo-change`.

The data are pairs of georeferenced scenes of four 16-bit bands (red, green, blue, near infrared):
terrain, fields, a river, buildings, and clouds, which hide the ground. Between the dates some
buildings appear or disappear, and everything else changes its color with the season, each field
differently, so that a difference of the images shows fields rather than buildings. The truth is
known exactly, and the network is compared with the obvious first attempt: the difference of both
dates with the best possible threshold.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rasterio
from demos import COMMAND, numbered, predict, train
from numpy.typing import NDArray
from rasterio.transform import from_origin
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.spatial import KDTree

PAIRS = Path("demo/growth")
RUN = Path("demo/growth_run")
FOUND = Path("demo/growth_found")
# pairs of each split and their height and width, pixels
SCENES = {"train": (96, (96, 96)), "val": (12, (96, 96)), "test": (2, (320, 448))}
CRS, PIXEL = "EPSG:32633", 2.0  # meters
# reflectances of red, green, blue and near infrared
SOIL, CROP, WATER = (0.16, 0.12, 0.09, 0.22), (0.05, 0.08, 0.04, 0.45), (0.04, 0.06, 0.06, 0.02)
ROOFS = ((0.23, 0.21, 0.20, 0.25), (0.22, 0.11, 0.10, 0.26), (0.32, 0.31, 0.30, 0.34))
NODATA = 0
NAMES = {"difference": "image differencing", "network": "small VMamba"}


def draw_ground(rng: np.random.Generator, size: tuple[int, int]) -> tuple[NDArray, NDArray]:
    """Index of the field of each pixel, (H, W), -1 for the river, and the shading of the slopes."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    count = max(6, height * width // 900)
    corners = rng.uniform(0, 1, (count, 2)) * size
    _, fields = KDTree(corners).query(np.stack([y, x], -1).reshape(-1, 2))
    terrain = gaussian_filter(rng.normal(0, 1, size), 12)
    light = 1 + 0.12 * np.gradient(terrain / terrain.std(), axis=1) * 8
    bends = sum(rng.uniform(4, 9) * np.sin(y / rng.uniform(12, 30) + rng.uniform(0, 6))
                for _ in range(3))  # fmt: skip
    river = np.abs(x - rng.uniform(0.1, 0.9) * width - bends) < rng.uniform(2, 4)
    return np.where(river, -1, fields.reshape(size)), light.clip(0.6, 1.4)


def draw_buildings(
    rng: np.random.Generator, ground: NDArray
) -> Iterator[tuple[slice, slice, NDArray, int]]:
    """Rectangles on dry land that do not touch, with their roof, and the dates at which they exist.

    The last number is 1 before, 2 after, 3 at both dates.
    """
    height, width = ground.shape
    taken = ground < 0
    for _ in range(height * width // 160):
        h, w = rng.integers(6, 15, 2)
        top, left = rng.integers(1, height - h - 1), rng.integers(1, width - w - 1)
        around = taken[top - 1 : top + h + 1, left - 1 : left + w + 1]
        if around.any():
            continue
        around[:] = True
        roof = np.asarray(ROOFS[rng.integers(len(ROOFS))]) * rng.uniform(0.85, 1.15)
        dates = int(rng.choice([1, 2, 3], p=[0.15, 0.25, 0.6]))
        yield slice(top, top + h), slice(left, left + w), roof, dates


def draw_pair(seed: int, size: tuple[int, int]) -> tuple[list[NDArray], NDArray]:
    """Before and after, (H, W, 4) uint16, 0 in clouds, and 255 where a building changed."""
    rng = np.random.default_rng(seed)
    ground, light = draw_ground(rng, size)
    buildings = list(draw_buildings(rng, ground))
    truth = np.zeros(size, dtype=np.uint8)
    for rows, columns, _, dates in buildings:
        truth[rows, columns] = 255 * (dates != 3)
    images = []
    for date in (1, 2):
        # green fraction of each field at this date, and brightness of its soil
        green = rng.uniform(0, 1, (ground.max() + 2, 1))
        soil = np.asarray(SOIL) * rng.uniform(0.6, 1.7, (ground.max() + 2, 1))
        colors = green * np.asarray(CROP) + (1 - green) * soil
        colors[-1] = np.asarray(WATER) * rng.uniform(0.7, 1.5)
        image = (
            colors[ground] * (1 + 0.08 * gaussian_filter(rng.normal(0, 3, size), 1.5))[..., None]
        )
        for rows, columns, roof, dates in buildings:
            if dates & date:
                image[rows, columns] = roof * rng.uniform(0.9, 1.1)
        # sun, atmosphere and sensor also differ
        image = image * light[..., None] ** rng.uniform(0.5, 1.2) * rng.uniform(0.75, 1.25, 4)
        image += rng.uniform(0, 0.03, 4) + rng.normal(0, 0.006, image.shape)
        stored = np.rint(image.clip(0.001, 1) * 10_000).astype(np.uint16)
        cloud = gaussian_filter(rng.normal(0, 1, size), 10)
        stored[cloud > 2.2 * cloud.std()] = NODATA
        images.append(stored)
    return images, truth


def write_raster(path: Path, pixels: NDArray, number: int, nodata: int | None) -> None:
    """(H, W, bands) as a GeoTIFF; every scene has a different location."""
    height, width, bands = pixels.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=bands, dtype=pixels.dtype,
        crs=CRS, transform=from_origin(400_000 + 1000 * number, 5_400_000, PIXEL, PIXEL),
        nodata=nodata, compress="deflate",
    ) as file:  # fmt: skip
        file.write(np.moveaxis(pixels, -1, 0))


def write_pairs(folder: Path) -> None:
    """Write `folder/{train,val,test}/{A,B,label}/<number>.tif`."""
    counts = {split: count for split, (count, _) in SCENES.items()}
    for split, number, seed in numbered(folder, counts):
        images, truth = draw_pair(seed, SCENES[split.name][1])
        for name, image in zip(("A", "B"), images, strict=True):
            write_raster(split / name / f"{number:03}.tif", image, seed, NODATA)
        write_raster(split / "label" / f"{number:03}.tif", truth[..., None], seed, None)


def read_raster(path: Path) -> NDArray:
    """(bands, H, W)."""
    with rasterio.open(path) as file:
        return file.read()


def difference(before: NDArray, after: NDArray, known: NDArray[np.bool_]) -> NDArray:
    """Norm of the difference of both dates, each band scaled to mean 0 and standard deviation 1."""
    dates = [
        (image - image[:, known].mean(1)[:, None, None]) / image[:, known].std(1)[:, None, None]
        for image in (before.astype(float), after.astype(float))
    ]
    return uniform_filter(np.linalg.norm(dates[1] - dates[0], axis=0), 3)


def f1(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """F1 of the changed pixels."""
    return float(2 * (found & truth).sum() / max(found.sum() + truth.sum(), 1))


def compare(folder: Path) -> dict[str, float]:
    """F1 of both methods over the pixels of all held-out scenes; maps are in `FOUND`.

    The threshold of the difference is the best possible for these scenes.
    """
    lengths, maps, truths = [], [], []
    for path in sorted((folder / "test" / "A").iterdir()):
        before, after = (read_raster(folder / "test" / n / path.name) for n in ("A", "B"))
        known = np.logical_and((before > NODATA).any(0), (after > NODATA).any(0))
        lengths.append(difference(before, after, known)[known])
        maps.append(read_raster(FOUND / path.name)[0][known] == 1)
        truths.append(read_raster(folder / "test" / "label" / path.name)[0][known] > 0)
    length, found, truth = (np.concatenate(parts) for parts in (lengths, maps, truths))
    thresholds = np.quantile(length, np.linspace(0.5, 0.999, 200))
    best = max(f1(length > threshold, truth) for threshold in thresholds)
    return {"difference": best, "network": f1(found, truth)}


def check_place(folder: Path) -> str:
    """Check that a map has the georeference of its scenes."""
    path = sorted((folder / "test" / "A").iterdir())[0]
    with rasterio.open(path) as scene, rasterio.open(FOUND / path.name) as found:
        if (found.crs, found.transform, found.shape) != (scene.crs, scene.transform, scene.shape):
            raise SystemExit(f"{FOUND / path.name} does not lie where {path} lies")
        place = ", ".join(f"{value:g}" for value in found.transform[:6])
        return f"{FOUND / path.name}: {found.crs}, transform ({place}), as its scenes have it"


def main() -> int:
    """Generate the scenes, train, map, compare, and print the results."""
    parser = argparse.ArgumentParser(description="Find new and vanished buildings.")
    parser.add_argument("--epochs", type=int, help="fewer are quicker and worse")
    given = parser.parse_args()
    write_pairs(PAIRS)
    count = sum(number for number, _ in SCENES.values())
    print(f"{count} pairs of scenes with known change written to {PAIRS}")
    print("Training takes some minutes on a CPU.", flush=True)
    epochs = ["--epochs", given.epochs] if given.epochs else []
    done, took = train("change/growth_small", PAIRS, RUN, *epochs)
    done = done or predict(RUN, *(PAIRS / "test" / name for name in ("A", "B")), out=FOUND)
    if done:
        return done
    print(f"\nF1 of changed pixels in {SCENES['test'][0]} held-out scenes")
    for name, value in compare(PAIRS).items():
        print(f"  {NAMES[name]:<20}{value:>8.3f}")
    print("  (the difference has the best threshold for these very scenes)\n")
    print(check_place(PAIRS))
    print(
        f"\nTrained in {took}. Look at {RUN}/samples.png first:\n"
        f"before, after, truth, prediction; {FOUND}/overlays has the maps of the scenes.\n"
        "Try next:\n"
        f"  {COMMAND} predict {RUN} {PAIRS}/test/A {PAIRS}/test/B --out cogs --cog\n"
        f"  {COMMAND} fit --task change --data FOLDER_WITH_A_B_AND_LABEL --model vmamba_tiny_s1l8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
