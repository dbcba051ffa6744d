"""Trains a small 3-D Mamba network on generated phantoms; run by `make demo-volumes`.

The phantoms imitate abdominal scans: a body with a spine, an organ, a region of the same brightness
that is not an organ, a pair of organs, and small lesions that are darker or brighter than the organ
around them. They are stored in four orientations. Their truth is known exactly, so the network can
be compared with MONAI's SegResNet, trained on the same data for the same time, and with the obvious
first attempt, brightness thresholds.

As a module (`--import`) it registers SegResNet for `vimamba fit`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from demos import COMMAND, numbered, predict, train
from monai.networks.nets.segresnet import SegResNet
from nibabel import orientations
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from vimamba.networks.registry import register_network
from vimamba.networks.segmentation.segmenter import Segmenter

DATA, RUNS, FOUND = Path("demo/phantoms"), Path("demo/phantoms_run"), Path("demo/phantoms_found")
COUNTS = {"train": 13, "val": 2, "test": 5}
CLASSES = ("organ", "paired organ", "lesion")
STORED = ("LPS", "RAS", "ASR", "PIL")
BRIGHTNESS = {"body": 60.0, "spine": 200.0, "organ": 120.0, "pair": 95.0}


class SegResNetSegmenter(Segmenter):
    """MONAI's SegResNet (Myronenko 2018, arXiv:1810.11654) of 0.4 M parameters."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        cfg = {"architecture": "segresnet", "input_size": (in_chans, 64, 64, 64)}
        super().__init__((8, 8, 8), num_classes=num_classes, in_chans=in_chans, pretrained_cfg=cfg)
        self.net = SegResNet(
            in_channels=in_chans,
            out_channels=num_classes,
            init_filters=8,
            blocks_down=(1, 1, 1, 1),
            blocks_up=(1, 1, 1),
        )

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits of whole cells."""
        return [self.net(x)]

    def body_parameters(self) -> list[nn.Parameter]:
        """Parameters of the encoder."""
        parts = (self.net.convInit, self.net.down_layers)
        return [p for part in parts for p in part.parameters()]


@register_network(task="segmentation", replace=True)
def segresnet(num_classes: int, in_chans: int = 1, **kwargs: Any) -> SegResNetSegmenter:
    """The network; settings for deep supervision and sizes, which it does not have, are ignored."""
    return SegResNetSegmenter(num_classes, in_chans)


def ellipsoid(grid: NDArray, middle: tuple[float, ...], radii: tuple[float, ...]) -> NDArray:
    """Voxels of an ellipsoid; grid (D, H, W, 3), middle and radii in millimeters."""
    return (((grid - middle) / radii) ** 2).sum(-1) < 1


def draw_phantom(seed: int) -> tuple[NDArray, NDArray, tuple[float, ...]]:
    """A volume, (slices, rows, columns), its mask, and millimeters between voxels."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n + rng.integers(-3, 4)) for n in (32, 80, 100))
    spacing = (rng.uniform(2.6, 3.4), *([rng.uniform(1.3, 1.7)] * 2))
    steps = [(np.arange(n) - n / 2) * s for n, s in zip(shape, spacing, strict=True)]
    grid = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1)
    turn = rng.normal(0, 0.05)
    flat = grid[..., 1:] @ np.asarray([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    grid = np.concatenate([grid[..., :1], flat], axis=-1)

    def near(*place: float, by: float = 4.0) -> tuple[float, ...]:
        return tuple(np.asarray(place) + rng.normal(0, by, 3).clip(-2 * by, 2 * by))

    image = np.zeros(shape)
    mask = np.zeros(shape, np.uint8)
    image[ellipsoid(grid, (0, 0, 0), (200, 52, 68))] = BRIGHTNESS["body"]
    image[ellipsoid(grid, near(0, 34, 0, by=2), (200, 8, 9))] = BRIGHTNESS["spine"]
    organ = ellipsoid(grid, near(0, -8, -30), tuple(rng.uniform(0.85, 1.15, 3) * (30, 24, 22)))
    # as bright as the organ, on the other side, but background
    other = ellipsoid(grid, near(0, -18, 34), tuple(rng.uniform(0.85, 1.15, 3) * (22, 15, 14)))
    image[other] = image[organ] = BRIGHTNESS["organ"]
    mask[organ] = 1
    for side in (-1, 1):
        pair = ellipsoid(grid, near(0, 24, 26 * side, by=3), (20, 9, 8)) & ~organ & ~other
        image[pair], mask[pair] = BRIGHTNESS["pair"], 2
    inside = np.argwhere(organ)
    for _ in range(rng.integers(2, 6)):
        middle = grid[tuple(rng.choice(inside))]
        lesion = ellipsoid(grid, tuple(middle), tuple(rng.uniform(4.5, 8, 3))) & organ
        image[lesion] = BRIGHTNESS["organ"] + rng.choice([-55, 55])
        mask[lesion] = 3
    image = gaussian_filter(image, 0.6) + 12 * gaussian_filter(rng.normal(0, 1, shape), 0.7)
    return np.rint(image + rng.normal(0, 8)).astype(np.int16), mask, spacing


def store(path: Path, volume: NDArray, spacing: tuple[float, ...], axes: str) -> None:
    """Write (slices, rows, columns) along the axes of a file given by its affine."""
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    change = orientations.ornt_transform(
        orientations.axcodes2ornt(("L", "P", "S")), orientations.axcodes2ornt(tuple(axes))
    )
    stored = orientations.apply_orientation(volume.transpose(2, 1, 0), change)
    affine = affine @ orientations.inv_ornt_aff(change, volume.transpose(2, 1, 0).shape)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(stored), affine), path)


def write_phantoms(folder: Path) -> None:
    """Write `folder/{train,val,test}/{images,masks}/<number>.nii.gz`."""
    for split, number, seed in numbered(folder, COUNTS):
        *volumes, spacing = draw_phantom(seed)
        for name, volume in zip(("images", "masks"), volumes, strict=True):
            (split / name).mkdir(parents=True, exist_ok=True)
            path = split / name / f"{number:02}.nii.gz"
            store(path, volume, spacing, STORED[seed % len(STORED)])


def read(path: Path) -> NDArray:
    """Voxels of a file as stored."""
    return np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]


def learn_brightness(folder: Path) -> list[float]:
    """Mean brightness of each class in the training phantoms; class 0 is the body."""
    sums, counts = np.zeros(len(CLASSES) + 1), np.zeros(len(CLASSES) + 1)
    for path in sorted((folder / "train" / "images").iterdir()):
        image, mask = read(path).astype(float), read(folder / "train" / "masks" / path.name)
        body = image > BRIGHTNESS["body"] / 2
        for label in range(len(sums)):
            chosen = (mask == label) & body
            sums[label] += image[chosen].sum()
            counts[label] += chosen.sum()
    return (sums / counts).tolist()


def threshold(image: NDArray, means: list[float]) -> NDArray:
    """The class with the nearest mean brightness, after smoothing."""
    smooth = gaussian_filter(image.astype(float), 1)
    return np.abs(smooth[..., None] - np.asarray(means)).argmin(-1)


def dice(found: NDArray, truth: NDArray) -> float:
    """Overlap of two masks."""
    return float(2 * (found & truth).sum() / max(found.sum() + truth.sum(), 1))


def main() -> int:
    """Generate the phantoms, train both networks, predict, compare, and print the results."""
    parser = argparse.ArgumentParser(description="Segment generated volumes.")
    parser.add_argument("--minutes", type=float, default=3.5, help="of training, of each network")
    given = parser.parse_args()
    write_phantoms(DATA)
    print(f"{sum(COUNTS.values())} phantoms in four orientations written to {DATA}")
    print(f"Training takes {given.minutes:g} minutes for each of two networks.", flush=True)
    networks = {"vss_unet_3d_nano": "vss_unet_3d_nano", "MONAI SegResNet": "segresnet"}
    known = ("--import", __file__)  # registers SegResNet
    for model in networks.values():
        asked = ("--model", model, "--model.optim.minutes", given.minutes, *known)
        done, _ = train("volumes/phantoms_vss_unet_3d", DATA, RUNS / model, *asked)
        images = DATA / "test" / "images"
        done = done or predict(RUNS / model, images, *known, out=FOUND / model)
        if done:
            return done
    means = learn_brightness(DATA)
    print(f"\nDice in {COUNTS['test']} test phantoms, in their own geometry")
    print(f"  {'method':<20}" + "".join(f"{name:>14}" for name in CLASSES))
    for name in ("thresholds", *networks):
        scores = []
        for path in sorted((DATA / "test" / "images").iterdir()):
            truth = read(DATA / "test" / "masks" / path.name)
            model = networks.get(name)
            found = read(FOUND / model / path.name) if model else threshold(read(path), means)
            scores.append([dice(found == c, truth == c) for c in range(1, len(CLASSES) + 1)])
        print(f"  {name:<20}" + "".join(f"{value:>14.3f}" for value in np.mean(scores, 0)))
    print(
        f"\nEach network was trained for {given.minutes:g} minutes. Everything lies in {RUNS};\n"
        f"look at {RUNS / 'vss_unet_3d_nano' / 'samples.png'} first: truth and prediction.\n"
        "Try next:\n"
        f"  {COMMAND} fit --task volumes --data FOLDER_OF_VOLUMES_AND_MASKS"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
