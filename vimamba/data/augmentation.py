"""The only door to albumentations: pixels and a seed in, a tensor out.

Every random number of an image comes from the seed handed in with it, so the result depends
neither on which worker process runs nor on what was drawn before.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimamba.data.samples import PIXEL_MODES

INTERPOLATIONS = {"nearest": 0, "bilinear": 1, "bicubic": 2, "area": 3, "lanczos": 4}

Transform = Callable[[NDArray[np.uint8], int], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """Random changes to a training image; 0 turns one off.

    Attributes:
        crop: Smallest part of the image's area that a random crop keeps, in (0, 1].
        aspect: Largest stretch of the crop's sides against each other, at least 1.
        hflip: Probability of mirroring left and right.
        vflip: Probability of mirroring top and bottom.
        rotate90: Probability of a random number of quarter turns.
        rotate: Largest rotation, degrees.
        shift: Largest translation, as a part of the side.
        zoom: Largest change of scale, as a part: 0.1 is 0.9 to 1.1.
        colour: Strength of brightness, contrast, saturation and hue changes, in [0, 1].
        blur: Probability of a slight Gaussian blur.
        noise: Probability of Gaussian noise.
        erase: Probability of erasing one rectangle.
    """

    crop: float = 0.35
    aspect: float = 1.33
    hflip: float = 0.5
    vflip: float = 0.0
    rotate90: float = 0.0
    rotate: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0
    colour: float = 0.3
    blur: float = 0.0
    noise: float = 0.0
    erase: float = 0.0


DEFAULT_AUGMENTATION = Augmentation()


def import_albumentations() -> Any:
    """Import the library without its look for updates on the network."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


class SeededTransform:
    """An albumentations pipeline, then normalisation and a tensor.

    Args:
        steps: albumentations transforms.
        mean: Per-channel mean, in [0, 1].
        std: Per-channel standard deviation, in [0, 1].
    """

    def __init__(self, steps: Sequence[Any], mean: Sequence[float], std: Sequence[float]) -> None:
        self.pipeline = import_albumentations().Compose(list(steps))
        self.mean = np.asarray(mean, dtype=np.float32) * 255
        self.scale = 1 / (np.asarray(std, dtype=np.float32) * 255)

    def __call__(self, image: NDArray[np.uint8], seed: int) -> Tensor:
        """(H, W, C) uint8 to (C, size, size) float32."""
        self.pipeline.set_random_seed(seed)
        pixels = self.pipeline(image=image)["image"]
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        normalised = (pixels.astype(np.float32) - self.mean) * self.scale
        return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))


def train_transform(
    augmentation: Augmentation,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
) -> Transform:
    """Random pipeline for training images.

    Args:
        augmentation: What to change and how much.
        size: Side of the square output, pixels.
        mean: Per-channel mean, in [0, 1].
        std: Per-channel standard deviation, in [0, 1].
        interpolation: A key of `INTERPOLATIONS`.
    """
    A, method, a = import_albumentations(), INTERPOLATIONS[interpolation], augmentation
    steps: list[Any] = []
    if a.crop < 1 or a.aspect > 1:
        scale, ratio = (a.crop, 1.0), (1 / a.aspect, a.aspect)
        steps.append(A.RandomResizedCrop((size, size), scale, ratio, interpolation=method))
    else:
        steps.append(A.Resize(size, size, interpolation=method))
    steps += [*placement(augmentation, method), *appearance(augmentation, len(mean))]
    return SeededTransform(steps, mean, std)


def placement(augmentation: Augmentation, method: int) -> list[Any]:
    """Mirroring, turning and shifting.

    Args:
        augmentation: What to change and how much.
        method: A value of `INTERPOLATIONS`.
    """
    A, a, steps = import_albumentations(), augmentation, []
    if a.hflip:
        steps.append(A.HorizontalFlip(p=a.hflip))
    if a.vflip:
        steps.append(A.VerticalFlip(p=a.vflip))
    if a.rotate90:
        steps.append(A.RandomRotate90(p=a.rotate90))
    if a.rotate or a.shift or a.zoom:
        steps.append(
            A.Affine(
                scale=(1 - a.zoom, 1 + a.zoom),
                translate_percent=(-a.shift, a.shift),
                rotate=(-a.rotate, a.rotate),
                interpolation=method if method < 3 else 1,
                border_mode=2,  # mirror what lies at the edge
                p=1.0,
            )
        )
    return steps


def appearance(augmentation: Augmentation, in_chans: int) -> list[Any]:
    """Changes of the values, which leave everything where it is.

    Args:
        augmentation: What to change and how much.
        in_chans: Channels; saturation and hue need three.
    """
    A, a, c = import_albumentations(), augmentation, augmentation.colour
    steps: list[Any] = []
    if c and in_chans in PIXEL_MODES:
        steps.append(A.ColorJitter((1 - c, 1 + c), (1 - c, 1 + c), (1 - c, 1 + c), (-c / 4, c / 4)))
    elif c:
        steps.append(A.RandomBrightnessContrast((-c, c), (-c, c)))
    if a.blur:
        steps.append(A.GaussianBlur(blur_limit=(3, 5), p=a.blur))
    if a.noise:
        steps.append(A.GaussNoise(std_range=(0.02, 0.1), p=a.noise))
    if a.erase:
        steps.append(A.Erasing(scale=(0.02, 0.2), p=a.erase))
    return steps


def eval_transform(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
) -> Transform:
    """Fixed pipeline for evaluation: resize the shorter side to size / crop_pct, cut the centre."""
    A, method = import_albumentations(), INTERPOLATIONS[interpolation]
    resize = A.SmallestMaxSize(round(size / crop_pct), interpolation=method)
    return SeededTransform([resize, A.CenterCrop(size, size)], mean, std)
