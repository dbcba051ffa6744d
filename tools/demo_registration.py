"""Trains a small MambaMorph to register generated volumes; run by `make demo-registration`.

Every case is the same phantom, a body with two organs and a vessel, deformed by a different smooth
random field. The network never sees the labels of the organs: it learns from the similarity of the
images alone, and the overlap of the labels measures whether the right structures were aligned.
"""

import argparse
import sys
from pathlib import Path

import nibabel
import numpy as np
from demos import COMMAND, numbered, predict, train
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

CASES = Path("demo/phantoms")
RUN = Path("demo/registration_run")
FOUND = Path("demo/registered")
COUNTS = {"train": 10, "val": 3, "test": 4}
SHAPE = (32, 32, 24)
# millimeters between voxels
SPACING = (1.5, 1.5, 2.0)
# brightness of background, body, organs and vessel
BRIGHTNESS = (0.0, 0.35, 0.75, 0.55, 1.0)
# largest displacement of a case, in voxels
REACH = 4.0


def phantom(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Labels of the undeformed phantom: 1 body, 2 and 3 organs, 4 vessel."""
    axes = [np.linspace(-1, 1, side) for side in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    labels = np.zeros(shape, dtype=np.uint8)
    labels[np.hypot(np.hypot(x / 0.85, y / 0.8), z / 0.9) < 1] = 1
    labels[np.hypot(np.hypot((x + 0.35) / 0.38, (y - 0.1) / 0.45), z / 0.5) < 1] = 2
    labels[np.hypot(np.hypot((x - 0.4) / 0.3, (y + 0.15) / 0.35), (z - 0.1) / 0.45) < 1] = 3
    labels[(np.hypot(x - 0.02, y - 0.5) < 0.16) & (np.abs(z) < 0.7)] = 4
    return labels


def draw_case(
    seed: int, shape: tuple[int, int, int] = SHAPE, reach: float = REACH
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """An image and its labels: the phantom under a smooth random deformation, with noise."""
    rng = np.random.default_rng(seed)
    labels = phantom(shape)
    places = np.indices(shape).astype(np.float64)
    width = min(shape) / 5
    for axis in range(3):
        field = gaussian_filter(rng.normal(0, 1, shape), width)
        places[axis] += field * (reach / np.abs(field).max())
    sharp = np.asarray(BRIGHTNESS)[labels]
    image = map_coordinates(gaussian_filter(sharp, 0.7), places, order=1, mode="nearest")
    image = 1000 * image + rng.normal(0, 20, shape)
    return image.astype(np.float32), map_coordinates(labels, places, order=0, mode="nearest")


def write_case(folder: Path, name: str, image: NDArray, labels: NDArray) -> None:
    """Write `folder/{images,labels}/<name>.nii.gz`."""
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    for kind, values in (("images", image), ("labels", labels)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, affine), folder / kind / f"{name}.nii.gz")


def write_cases(folder: Path) -> None:
    """Write `folder/{train,val,test}/{images,labels}/<number>.nii.gz`."""
    for split, number, seed in numbered(folder, COUNTS):
        write_case(split, f"{number:02}", *draw_case(seed))


def main() -> int:
    """Generate the cases, train, register two of the test cases, and print the results."""
    parser = argparse.ArgumentParser(description="Register generated volumes.")
    parser.add_argument("--epochs", type=int, help="fewer are quicker and worse")
    given = parser.parse_args()
    write_cases(CASES)
    print(f"{sum(COUNTS.values())} deformed phantoms written to {CASES}")
    print("Training takes about two minutes on two CPU cores.", flush=True)
    epochs = ["--epochs", given.epochs] if given.epochs else []
    recipe = "registration/phantoms_mambamorph"
    done, took = train(recipe, CASES, RUN, *epochs, threads=None)
    images = CASES / "test" / "images"
    pair = (images / "00.nii.gz", images / "01.nii.gz")
    done = done or predict(RUN, *pair, out=FOUND, threads=None)
    if done:
        return done
    print(
        f"\nTrained in {took}. Everything lies in {RUN}; look at\n"
        f"{RUN}/samples.png first: moving, fixed, moved, checkerboards before and after, field.\n"
        f"{FOUND} has a warped volume, its field for ITK and ANTs, and a checkerboard.\n"
        "Try next:\n"
        f"  {COMMAND} test {RUN}\n"
        f"  {COMMAND} fit --task registration --data FOLDER_OF_VOLUMES --model mambamorph"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
