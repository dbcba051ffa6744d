"""Trains a small VM-UNet to find nuclei in generated images; run by `make demo-segmentation`.

The images imitate stained tissue: touching nuclei of different sizes and stains, folds and debris
that are dark but not nuclei, uneven illumination, blur and noise. Their truth is known exactly, so
the network can be compared with the obvious first attempt, Otsu's threshold.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from demos import COMMAND, numbered, predict, train
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

IMAGES = Path("demo/nuclei")
RUN = Path("demo/nuclei_run")
FOUND = Path("demo/nuclei_found")
COUNTS = {"train": 96, "val": 16, "test": 32}
SIDE = 128  # pixels
# fractions of red, green and blue that hematoxylin and eosin transmit
TISSUE, NUCLEUS, DEBRIS = (0.87, 0.70, 0.83), (0.48, 0.36, 0.66), (0.66, 0.30, 0.45)


def blob(rng: np.random.Generator, center: NDArray, radius: float) -> NDArray[np.bool_]:
    """A rough ellipse, (SIDE, SIDE)."""
    y, x = np.mgrid[:SIDE, :SIDE] - center[:, None, None]
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.6)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    angle = np.arctan2(v, u)
    waves = sum(
        rng.uniform(-0.08, 0.08) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4)
    )
    return np.hypot(u / stretch, v * stretch) < radius * (1 + waves)


def draw_tissue(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image, (SIDE, SIDE, 3), and its mask with 255 on nuclei."""
    rng = np.random.default_rng(seed)
    stain = rng.normal(0, 0.03, 3)
    texture = gaussian_filter(rng.normal(0, 1, (SIDE, SIDE)), 6)
    image = np.asarray(TISSUE) + stain + 0.5 * texture[..., None] * np.asarray([0.4, 1.0, 0.5])
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    # debris and folds: as dark as nuclei, but flat and of another color or shape
    for _ in range(rng.integers(3, 7)):
        shape = blob(rng, rng.uniform(0, SIDE, 2), rng.uniform(4, 11))
        strength = gaussian_filter(shape.astype(float), 1.5)[..., None] * rng.uniform(0.6, 1.0)
        image += strength * (np.asarray(DEBRIS) + stain - image)
    center = rng.uniform(10, SIDE - 10, 2)
    for number in range(rng.integers(9, 18)):
        # every second nucleus is next to the previous one, so that they touch
        step = rng.normal(0, 1, 2)
        beside = center + step / np.linalg.norm(step) * rng.uniform(11, 15)
        center = beside if number % 2 else rng.uniform(6, SIDE - 6, 2)
        shape = blob(rng, center, rng.uniform(6, 9.5))
        chromatin = gaussian_filter(rng.normal(0, 1, (SIDE, SIDE)), 1.2)[..., None]
        weight = gaussian_filter(shape.astype(float), 0.8)[..., None] * rng.uniform(0.45, 1.0)
        image += weight * (np.asarray(NUCLEUS) + stain + 0.25 * chromatin - image)
        mask |= shape
    # illumination that decreases toward one side by up to half
    slope = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    direction = rng.uniform(0, 2 * np.pi)
    falloff = np.cos(direction) * slope[0] + np.sin(direction) * slope[1]
    light = 1 - rng.uniform(0.2, 0.5) * (falloff + 0.5)
    image = gaussian_filter(image * light[..., None], (rng.uniform(0.3, 1.0),) * 2 + (0,))
    image += rng.normal(0, rng.uniform(0.02, 0.05), image.shape)
    pixels = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
    return pixels, np.where(mask, 255, 0).astype(np.uint8)


def write_images(folder: Path) -> None:
    """Write `folder/{train,val,test}/{images,masks}/<number>.png`."""
    for split, number, seed in numbered(folder, COUNTS):
        for name, pixels in zip(("images", "masks"), draw_tissue(seed), strict=True):
            (split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(split / name / f"{number:03}.png")


def otsu(gray: NDArray) -> float:
    """The threshold that separates the values into the two most compact halves (Otsu 1979)."""
    counts, edges = np.histogram(gray, 256)
    centers = (edges[:-1] + edges[1:]) / 2
    below, sums = counts.cumsum(), (counts * centers).cumsum()
    above = below[-1] - below
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = sums / below - (sums[-1] - sums) / above
    return float(centers[np.nanargmax(below * above * gap**2)])


def threshold(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels that are dark in red, where nuclei differ most from the rest, by Otsu's threshold."""
    red = gaussian_filter(image[..., 0].astype(float), 1)
    return red < otsu(red)


def threshold_evened(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Like `threshold`, after dividing by the illumination, the mean of a wide neighborhood."""
    red = gaussian_filter(image[..., 0].astype(float), 1)
    even = red / gaussian_filter(red, SIDE / 4)
    return even < otsu(even)


def dice(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Overlap of two masks."""
    return float(2 * (found & truth).sum() / max(found.sum() + truth.sum(), 1))


def scores_of(folder: Path) -> dict[str, list[float]]:
    """Dice of each test image by each method; the network's masks are in `FOUND`."""
    methods = {"Otsu's threshold": threshold, "Otsu, light evened": threshold_evened}
    scores: dict[str, list[float]] = {name: [] for name in (*methods, "VM-UNet")}
    for path in sorted((folder / "test" / "images").iterdir()):
        image = np.asarray(Image.open(path))
        truth = np.asarray(Image.open(folder / "test" / "masks" / path.name)) > 0
        for name, method in methods.items():
            scores[name].append(dice(method(image), truth))
        scores["VM-UNet"].append(dice(np.asarray(Image.open(FOUND / path.name)) > 0, truth))
    return scores


def main() -> int:
    """Generate the images, train, predict, compare, and print the results."""
    parser = argparse.ArgumentParser(description="Find nuclei in generated images.")
    parser.add_argument("--epochs", type=int, help="fewer are quicker and worse")
    given = parser.parse_args()
    write_images(IMAGES)
    print(f"{sum(COUNTS.values())} images of tissue with known nuclei written to {IMAGES}")
    print("Training takes about two minutes on a CPU.", flush=True)
    epochs = ["--epochs", given.epochs] if given.epochs else []
    done, took = train("segmentation/nuclei_vm_unet", IMAGES, RUN, *epochs)
    done = done or predict(RUN, IMAGES / "test" / "images", out=FOUND)
    if done:
        return done
    print(f"\nDice of the nuclei in {COUNTS['test']} test images")
    print(f"  {'method':<20}{'mean':>8}{'worst':>8}")
    for name, values in scores_of(IMAGES).items():
        print(f"  {name:<20}{np.mean(values):>8.3f}{min(values):>8.3f}")
    print(
        f"\nTrained in {took}. Everything lies in {RUN}; look at\n"
        f"{RUN}/samples.png first: image, truth, prediction, error.\n"
        "Try next:\n"
        f"  {COMMAND} test {RUN} --tta flips\n"
        f"  {COMMAND} fit --task segmentation --data FOLDER_OF_IMAGES_AND_MASKS --model vm_unet"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
