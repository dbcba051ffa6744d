"""Random changes to an image and its mask together.

As for single images, every random number comes from the seed that is handed in. Masks are resized
and bent without mixing neighbours, so that they hold classes only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vimamba.data.augmentation import (
    INTERPOLATIONS,
    Augmentation,
    appearance,
    import_albumentations,
    placement,
)
from vimamba.data.labels import IGNORE

# OpenCV's plain nearest neighbour moves a mask by half a pixel against its image
NEAREST_EXACT = 6

Pair = tuple[NDArray[np.float32], NDArray[np.uint8]]
PairTransform = Callable[[NDArray[np.float32], NDArray[np.uint8], int], Pair]
Fit = Literal["squash", "window"]


@dataclass(frozen=True)
class PairedAugmentation(Augmentation):
    """Random changes to a training image and its mask; those of `Augmentation` and more.

    Attributes:
        crop: Smallest part of the image's area that a random crop keeps, where whole images are
            squashed to the network's size.
        scale: Smallest and largest factor an image is resized by before a window is cut out.
        foreground: Probability that the window is laid around a labelled pixel of class 1 or more.
        elastic: Probability of a slight elastic deformation.
        gamma: Probability of a change of gamma.
    """

    crop: float = 0.5
    scale: tuple[float, float] = (1.0, 1.0)
    foreground: float = 0.0
    elastic: float = 0.0
    gamma: float = 0.0


Preset = Literal["natural", "medical", "microscopy", "aerial", "none"]
PRESETS: dict[str, PairedAugmentation] = {
    # photographs: resize by 0.5 to 2, mirror and change colours, as for ADE20K in mmsegmentation
    "natural": PairedAugmentation(scale=(0.5, 2.0)),
    # scans of the body: left and right are told apart, so nothing is mirrored or turned round, only
    # tilted; amounts as in nnU-Net, weaker
    "medical": PairedAugmentation(
        crop=0.6, aspect=1.2, scale=(0.8, 1.25), hflip=0, rotate=15, zoom=0.1, colour=0.2, blur=0.1,
        noise=0.15, foreground=0.33, elastic=0.2, gamma=0.3,
    ),
    # tissue and cells on a slide have no upright; otherwise as above
    "microscopy": PairedAugmentation(
        crop=0.6, aspect=1.2, scale=(0.8, 1.25), hflip=0.5, vflip=0.5, rotate90=0.5, rotate=15,
        zoom=0.1, colour=0.2, blur=0.1, noise=0.15, foreground=0.33, elastic=0.2, gamma=0.3,
    ),
    # seen from above every orientation is as good as another, and the scale is nearly fixed
    "aerial": PairedAugmentation(
        crop=0.6, aspect=1.2, scale=(0.75, 1.33), hflip=0.5, vflip=0.5, rotate90=1.0, colour=0.2
    ),
    "none": PairedAugmentation(crop=1, aspect=1, hflip=0, colour=0),
}  # fmt: skip


class SeededPairTransform:
    """An albumentations pipeline for an image with its mask.

    Args:
        steps: albumentations transforms.
    """

    def __init__(self, steps: list[Any]) -> None:
        self.pipeline = import_albumentations().Compose(steps)

    def __call__(self, image: NDArray[np.float32], mask: NDArray[np.uint8], seed: int) -> Pair:
        """Change (H, W, C) in [0, 1] and (H, W) in the same way."""
        self.pipeline.set_random_seed(seed)
        done = self.pipeline(image=image, mask=mask)
        pixels = done["image"]
        return pixels.reshape(*pixels.shape[:2], -1), done["mask"]


def train_pair_transform(
    augmentation: PairedAugmentation,
    size: int,
    in_chans: int,
    *,
    fit: Fit,
    scale_to: int | None = None,
    interpolation: str = "bilinear",
) -> PairTransform:
    """Random pipeline for training.

    Args:
        augmentation: What to change and how much.
        size: Side of the square output, pixels.
        in_chans: Channels of the images.
        fit: Resize whole images ("squash") or cut windows out of them ("window").
        scale_to: Resize the shorter side to this before a window is cut out.
        interpolation: A key of `INTERPOLATIONS`, for the image.
    """
    A, method, a = import_albumentations(), INTERPOLATIONS[interpolation], augmentation
    resize: dict[str, Any] = {
        "interpolation": method,
        "area_for_downscale": "image",
        "mask_interpolation": NEAREST_EXACT,
    }
    steps: list[Any] = []
    if fit == "squash":
        if a.crop < 1 or a.aspect > 1:
            ratio = (1 / a.aspect, a.aspect)
            steps.append(A.RandomResizedCrop((size, size), (a.crop, 1.0), ratio, **resize))
        else:
            steps.append(A.Resize(size, size, **resize))
    else:
        if scale_to is not None:
            steps.append(A.SmallestMaxSize(scale_to, **resize))
        if tuple(a.scale) != (1, 1):
            low, high = a.scale
            steps.append(A.RandomScale((low - 1, high - 1), **resize, p=1.0))
        steps.append(A.PadIfNeeded(size, size, fill_mask=IGNORE))
        around = A.CropNonEmptyMaskIfExists(size, size, ignore_values=[IGNORE], p=a.foreground)
        anywhere = A.RandomCrop(size, size, p=1 - a.foreground)
        steps.append(A.OneOf([around, anywhere], p=1.0) if a.foreground else anywhere)
    steps += placement(augmentation, method)
    if a.elastic:
        # waves of a few pixels about as long as a tenth of the side
        alpha, sigma = size * 1.5, size * 0.08
        steps.append(A.ElasticTransform(alpha, sigma, border_mode=2, p=a.elastic))
    if a.gamma:
        steps.append(A.RandomGamma((70, 150), p=a.gamma))
    return SeededPairTransform([*steps, *appearance(augmentation, in_chans)])
