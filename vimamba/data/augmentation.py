"""Seeded albumentations pipelines: pixels and a seed in, a tensor out.

Every random number of an image comes from the seed passed with it, so the result depends neither on
the worker process nor on earlier images.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimamba.data.resizing import Size, cover, crop_center, random_box, resize, resize_mask
from vimamba.sizes import ImageSize, height_and_width

# OpenCV's interpolation for rotations and warps; bilinear for names it does not have
CV_INTERPOLATIONS = {"nearest": 0, "bilinear": 1, "bicubic": 2}

Transform = Callable[[NDArray, int], Tensor]
Cut = Callable[[NDArray, NDArray | None, np.random.Generator], tuple[NDArray, NDArray | None]]


@dataclass(frozen=True)
class Augmentation:
    """Random changes to a training image; 0 disables one.

    Attributes:
        crop: Smallest fraction of the image's area that a random crop keeps, in (0, 1].
        aspect: Largest change of the crop's aspect ratio, at least 1.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        rotate90: Probability of a random number of quarter turns.
        rotate: Largest rotation, degrees.
        shift: Largest translation, as a fraction of the side.
        zoom: Largest change of scale, as a fraction: 0.1 is 0.9 to 1.1.
        color: Strength of brightness, contrast, saturation and hue changes, in [0, 1].
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
    color: float = 0.3
    blur: float = 0.0
    noise: float = 0.0
    erase: float = 0.0


DEFAULT_AUGMENTATION = Augmentation()


def import_albumentations() -> Any:
    """Import the library without its online check for updates."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def normalize(pixels: NDArray, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """Normalize pixels for a network.

    Args:
        pixels: (H, W, C) uint8, or float32 in [0, 1].
        mean: Per-channel mean, in [0, 1]; None for the image's own.
        std: Per-channel standard deviation, in [0, 1]; None for the image's own.

    Returns:
        (C, H, W) float32.
    """
    values = np.array(pixels.transpose(2, 0, 1), dtype=np.float32, order="C")
    if mean is None or std is None:
        middle, spread = values.mean((1, 2)), np.maximum(values.std((1, 2)), 1e-6)
    else:
        scale = np.float32(255 if pixels.dtype == np.uint8 else 1)
        middle = np.asarray(mean, dtype=np.float32) * scale
        spread = np.asarray(std, dtype=np.float32) * scale
    values -= middle[:, None, None]
    values /= spread[:, None, None]
    return torch.from_numpy(values)


@dataclass(frozen=True)
class RandomCut:
    """Crops a random part of an image and its mask and resizes it to the network's size.

    Attributes:
        size: Height and width of the output, pixels.
        crop: As in `Augmentation`.
        aspect: As in `Augmentation`.
        interpolation: A key of `vimamba.data.resizing.INTERPOLATIONS`, for the image.
    """

    size: Size
    crop: float
    aspect: float
    interpolation: str

    def __call__(
        self, image: NDArray, mask: NDArray | None, rng: np.random.Generator
    ) -> tuple[NDArray, NDArray | None]:
        """(H, W, C) and (H, W) to `size`, cut in the same way."""
        box = (slice(None), slice(None))
        if self.crop < 1 or self.aspect > 1:
            height, width = self.size
            box = random_box(image.shape, self.crop, self.aspect, rng, ratio=width / height)
        cut = None if mask is None else resize_mask(mask[box], self.size)
        return resize(image[box], self.size, self.interpolation), cut


@dataclass(frozen=True)
class QuarterTurn:
    """Rotates an image and its mask by a random number of quarter turns before they are cut.

    Crops with unequal sides cannot be rotated afterwards.

    Attributes:
        probability: Probability of turning.
        cut: The cut that follows.
    """

    probability: float
    cut: Cut

    def __call__(
        self, image: NDArray, mask: NDArray | None, rng: np.random.Generator
    ) -> tuple[NDArray, NDArray | None]:
        """(H, W, C) and (H, W), rotated in the same way and cut."""
        turns = int(rng.integers(4)) if rng.random() < self.probability else 0
        rotated = None if mask is None else np.ascontiguousarray(np.rot90(mask, turns))
        return self.cut(np.ascontiguousarray(np.rot90(image, turns)), rotated, rng)


def turning_first(cut: Cut, augmentation: Augmentation, size: Size) -> Cut:
    """A cut to `size`, after quarter turns if these have to come first."""
    if size[0] == size[1] or not augmentation.rotate90:
        return cut
    return QuarterTurn(augmentation.rotate90, cut)


class TrainTransform:
    """A random cut, an albumentations pipeline, normalization and a tensor.

    Args:
        cut: The random cut.
        steps: albumentations transforms.
        mean: Per-channel mean, in [0, 1]; None for the image's own.
        std: Per-channel standard deviation, in [0, 1]; None for the image's own.
    """

    def __init__(
        self,
        cut: Cut,
        steps: Sequence[Any],
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        self.cut = cut
        self.pipeline = import_albumentations().Compose(list(steps))
        self.mean, self.std = mean, std

    def __call__(self, image: NDArray, seed: int) -> Tensor:
        """(H, W, C) uint8, or float32 in [0, 1], to (C, height, width) float32."""
        pixels, _ = self.cut(image, None, np.random.default_rng(seed))
        self.pipeline.set_random_seed(seed)
        pixels = self.pipeline(image=np.ascontiguousarray(pixels))["image"]
        return normalize(pixels.reshape(*pixels.shape[:2], -1), self.mean, self.std)


def train_transform(
    augmentation: Augmentation,
    size: ImageSize,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    interpolation: str = "bicubic",
    *,
    in_chans: int | None = None,
) -> Transform:
    """Random pipeline for training images.

    Args:
        augmentation: What to change and how much.
        size: Side of the output, or height and width, pixels.
        mean: Per-channel mean, in [0, 1]; None for each image's own.
        std: Per-channel standard deviation, in [0, 1]; None for each image's own.
        interpolation: A key of `vimamba.data.resizing.INTERPOLATIONS`.
        in_chans: Channels, if `mean` is None.
    """
    a, sides = augmentation, height_and_width(size)
    channels = in_chans or len(mean or ())
    steps = [*placement(a, interpolation, sides), *appearance(a, channels)]
    cut = turning_first(RandomCut(sides, a.crop, a.aspect, interpolation), a, sides)
    return TrainTransform(cut, steps, mean, std)


def placement(augmentation: Augmentation, interpolation: str, size: Size) -> list[Any]:
    """Flips, rotations and shifts.

    Args:
        augmentation: What to change and how much.
        interpolation: A key of `vimamba.data.resizing.INTERPOLATIONS`.
        size: Height and width of the images; see `turning_first`.
    """
    A, a, steps = import_albumentations(), augmentation, []
    if a.hflip:
        steps.append(A.HorizontalFlip(p=a.hflip))
    if a.vflip:
        steps.append(A.VerticalFlip(p=a.vflip))
    if a.rotate90 and size[0] == size[1]:
        steps.append(A.RandomRotate90(p=a.rotate90))
    if a.rotate or a.shift or a.zoom:
        steps.append(
            A.Affine(
                scale=(1 - a.zoom, 1 + a.zoom),
                translate_percent=(-a.shift, a.shift),
                rotate=(-a.rotate, a.rotate),
                interpolation=CV_INTERPOLATIONS.get(interpolation, 1),
                border_mode=2,  # reflect at the edge
                p=1.0,
            )
        )
    return steps


def appearance(augmentation: Augmentation, in_chans: int) -> list[Any]:
    """Changes of the values that do not move pixels.

    Args:
        augmentation: What to change and how much.
        in_chans: Channels; saturation and hue need three.
    """
    A, a, c = import_albumentations(), augmentation, augmentation.color
    steps: list[Any] = []
    if c and in_chans in (1, 3):
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


def resize_and_crop(
    pixels: NDArray, size: ImageSize, crop_pct: float, interpolation: str
) -> NDArray:
    """Resize to cover size / crop_pct and crop the center, exactly as timm does.

    Args:
        pixels: (H, W, C) uint8, or float32 in [0, 1].
        size: Side of the output, or height and width, pixels.
        crop_pct: Fraction of the resized image's shorter side that is kept, in (0, 1].
        interpolation: A key of `vimamba.data.resizing.INTERPOLATIONS`.
    """
    height, width = height_and_width(size)
    whole = math.floor(height / crop_pct), math.floor(width / crop_pct)
    return crop_center(resize(pixels, cover(whole, pixels.shape), interpolation), (height, width))
