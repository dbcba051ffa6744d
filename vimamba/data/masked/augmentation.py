"""Random augmentation of an image and its mask together.

As for single images, every random number comes from the given seed. Masks are resized and warped
with nearest-neighbor sampling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from vimamba.data.augmentation import (
    Augmentation,
    Cut,
    RandomCut,
    appearance,
    import_albumentations,
    placement,
    turning_first,
)
from vimamba.data.preprocessing import Fit, Preprocessing
from vimamba.data.resizing import as_fractions, resize, resize_mask, shorter_to
from vimamba.labels import IGNORE
from vimamba.sizes import ImageSize, height_and_width

T = TypeVar("T")
Pair = tuple[NDArray[np.float32], NDArray[np.uint8]]
MaskTransform = Callable[[NDArray, NDArray[np.uint8], int], Pair]


@dataclass(frozen=True)
class MaskedAugmentation(Augmentation):
    """Random changes to a training image and its mask, in addition to those of `Augmentation`.

    Attributes:
        crop: Smallest fraction of the image's area that a random crop keeps, if whole images are
            squashed to the network's size.
        scale: Smallest and largest factor an image is resized by before a window is cut out.
        foreground: Probability that the window is centered on a labeled pixel of class 1 or higher.
        elastic: Probability of a slight elastic deformation.
        gamma: Probability of a gamma change.
    """

    crop: float = 0.5
    scale: tuple[float, float] = (1.0, 1.0)
    foreground: float = 0.0
    elastic: float = 0.0
    gamma: float = 0.0


Preset = Literal["natural", "medical", "microscopy", "aerial", "none"]
PRESETS: dict[str, MaskedAugmentation] = {
    # photographs: resize by 0.5 to 2, mirror and change colors, as for ADE20K in mmsegmentation
    "natural": MaskedAugmentation(scale=(0.5, 2.0)),
    # scans of the body: left and right matter, so no flips or quarter turns, only small rotations;
    # amounts as in nnU-Net, weaker
    "medical": MaskedAugmentation(
        crop=0.6, aspect=1.2, scale=(0.8, 1.25), hflip=0, rotate=15, zoom=0.1, color=0.2, blur=0.1,
        noise=0.15, foreground=0.33, elastic=0.2, gamma=0.3,
    ),
    # tissue and cells on a slide have no orientation; otherwise as above
    "microscopy": MaskedAugmentation(
        crop=0.6, aspect=1.2, scale=(0.8, 1.25), hflip=0.5, vflip=0.5, rotate90=0.5, rotate=15,
        zoom=0.1, color=0.2, blur=0.1, noise=0.15, foreground=0.33, elastic=0.2, gamma=0.3,
    ),
    # seen from above, all orientations are equivalent, and the scale is nearly fixed
    "aerial": MaskedAugmentation(
        crop=0.6, aspect=1.2, scale=(0.75, 1.33), hflip=0.5, vflip=0.5, rotate90=1.0, color=0.2
    ),
    "none": MaskedAugmentation(crop=1, aspect=1, hflip=0, color=0),
}  # fmt: skip


@dataclass(frozen=True)
class RandomScale:
    """Resizes an image and its mask at random before a window is cut.

    Attributes:
        scale_to: Size to which the shorter side is resized first; None keeps it.
        scale: Smallest and largest factor.
        interpolation: A key of `vimamba.data.resizing.INTERPOLATIONS`, for the image.
    """

    scale_to: int | None
    scale: tuple[float, float]
    interpolation: str

    def __call__(
        self, image: NDArray, mask: NDArray | None, rng: np.random.Generator
    ) -> tuple[NDArray, NDArray | None]:
        """Resize (H, W, C) and (H, W)."""
        size = image.shape[:2]
        if self.scale_to is not None:
            size = shorter_to(self.scale_to, size)
        factor = rng.uniform(*self.scale)
        height, width = (max(1, round(side * factor)) for side in size)
        resized = resize(image, (height, width), self.interpolation)
        return resized, None if mask is None else resize_mask(mask, (height, width))


class SeededMaskTransform:
    """A random cut or scale, and an albumentations pipeline, for an image with its mask.

    Args:
        cut: The first step, including resizing.
        steps: albumentations transforms.
    """

    def __init__(self, cut: Cut, steps: list[Any]) -> None:
        self.cut = cut
        self.pipeline = import_albumentations().Compose(steps)

    def __call__(self, image: NDArray, mask: NDArray[np.uint8], seed: int) -> Pair:
        """Change (H, W, C), uint8 or in [0, 1], and (H, W) in the same way."""
        pixels, drawn = self.cut(image, mask, np.random.default_rng(seed))
        self.pipeline.set_random_seed(seed)
        done = self.pipeline(image=np.ascontiguousarray(as_fractions(pixels)), mask=drawn)
        pixels = done["image"]
        return pixels.reshape(*pixels.shape[:2], -1), done["mask"]


def train_mask_transform(
    augmentation: MaskedAugmentation,
    size: ImageSize,
    in_chans: int,
    *,
    fit: Fit,
    scale_to: int | None = None,
    interpolation: str = "bilinear",
) -> MaskTransform:
    """Random pipeline for training.

    Args:
        augmentation: What to change and how much.
        size: Side of the output, or height and width, pixels.
        in_chans: Channels of the images.
        fit: Resize whole images ("squash") or cut windows out of them ("window").
        scale_to: Resize the shorter side to this before a window is cut.
        interpolation: A key of `vimamba.data.resizing.INTERPOLATIONS`, for the image.
    """
    cut, steps = placing(
        augmentation, size, fit=fit, scale_to=scale_to, interpolation=interpolation
    )
    return SeededMaskTransform(cut, [*steps, *looking(augmentation, in_chans)])


def random_changes(
    make: Callable[..., T], augmentation: MaskedAugmentation, prepare: Preprocessing
) -> T:
    """Random changes whose results have the size that a preprocessing gives.

    Args:
        make: `train_mask_transform`, or another that takes the same.
        augmentation: What to change and how much.
        prepare: From stored values to the network's input.
    """
    return make(
        augmentation,
        prepare.img_size,
        prepare.in_chans,
        fit=prepare.fit,
        scale_to=prepare.scale_to,
        interpolation=prepare.interpolation,
    )


def placing(
    augmentation: MaskedAugmentation,
    size: ImageSize,
    *,
    fit: Fit,
    scale_to: int | None,
    interpolation: str,
) -> tuple[Cut, list[Any]]:
    """The geometric part of the pipeline: the cut and the following steps.

    Args:
        augmentation: What to change and how much.
        size: As in `train_mask_transform`.
        fit: Likewise.
        scale_to: Likewise.
        interpolation: Likewise.
    """
    A, a = import_albumentations(), augmentation
    sides = height_and_width(size)
    steps: list[Any] = []
    cut: Cut
    if fit == "squash":
        cut = RandomCut(sides, a.crop, a.aspect, interpolation)
    else:
        cut = RandomScale(scale_to, a.scale, interpolation)
        steps.append(A.PadIfNeeded(*sides, fill_mask=IGNORE))
        around = A.CropNonEmptyMaskIfExists(*sides, ignore_values=[IGNORE], p=a.foreground)
        anywhere = A.RandomCrop(*sides, p=1 - a.foreground)
        steps.append(A.OneOf([around, anywhere], p=1.0) if a.foreground else anywhere)
    steps += placement(augmentation, interpolation, sides)
    if a.elastic:
        # waves of a few pixels in amplitude, with a length of a tenth of the shorter side
        alpha, sigma = min(sides) * 1.5, min(sides) * 0.08
        steps.append(A.ElasticTransform(alpha, sigma, border_mode=2, p=a.elastic))
    return turning_first(cut, augmentation, sides), steps


def looking(augmentation: MaskedAugmentation, in_chans: int) -> list[Any]:
    """The part of the pipeline that changes values only.

    Args:
        augmentation: What to change and how much.
        in_chans: Channels of the images.
    """
    steps: list[Any] = []
    if augmentation.gamma:
        steps.append(import_albumentations().RandomGamma((70, 150), p=augmentation.gamma))
    return [*steps, *appearance(augmentation, in_chans)]
