"""Resizing with the antialiasing filters of Pillow and timm.

The same code is used in training, evaluation and prediction, and documented in exports. Pixel
centers are at half-integers, so that masks, whose values are never interpolated, stay aligned with
their images.

Sizes: H x W pixels, C channels.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from vimamba.data.errors import DataError

# timm's names; area is timm's box
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
# computed by torch, with Pillow's coefficients but several times faster
OF_TORCH = ("bilinear", "bicubic")

Size = tuple[int, int]


def check_interpolation(name: str) -> None:
    """Fail on a name that is not one of `INTERPOLATIONS`."""
    if name not in INTERPOLATIONS:
        raise DataError(f"interpolation={name!r} must be one of {sorted(INTERPOLATIONS)}")


def resize(pixels: NDArray, size: Size, interpolation: str) -> NDArray:
    """Resize an image.

    Args:
        pixels: (H, W, C) uint8, or float32 in [0, 1].
        size: Target height and width.
        interpolation: A key of `INTERPOLATIONS`.

    Returns:
        (*size, C) with the same dtype and range.
    """
    if pixels.shape[:2] == size:
        return pixels
    if interpolation in OF_TORCH:
        # torch accepts neither arrays with negative strides nor read-only ones
        whole = np.require(pixels, requirements=["C", "W"])
        image = torch.from_numpy(whole).permute(2, 0, 1)[None]
        found = F.interpolate(image, size=size, mode=interpolation, antialias=True)
        resized = found[0].permute(1, 2, 0).contiguous().numpy()
    else:
        method = INTERPOLATIONS[interpolation]
        bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(pixels, 2, 0)]
        height, width = size
        resized = np.stack(
            [np.asarray(band.resize((width, height), method)) for band in bands], axis=-1
        )
    if resized.dtype.kind == "f":
        # bicubic and Lanczos overshoot at edges; 8-bit values saturate by themselves
        np.clip(resized, 0, 1, out=resized)
    return resized


def resize_mask(mask: NDArray, size: Size) -> NDArray:
    """Resize (H, W) or (H, W, maps): each pixel takes the value at its center."""
    if mask.shape[:2] == size:
        return mask
    rows, columns = (
        (np.arange(new) * 2 + 1) * old // (2 * new)
        for new, old in zip(size, mask.shape[:2], strict=True)
    )
    return mask[rows[:, None], columns]


def shorter_to(side: int, shape: Sequence[int]) -> Size:
    """Size of an image whose shorter side becomes `side`, rounded as torchvision does."""
    height, width = shape[:2]
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def cover(size: Size, shape: Sequence[int]) -> Size:
    """Smallest size at which an image covers another size, rounded as in timm's transforms."""
    if size[0] == size[1]:
        return shorter_to(size[0], shape)
    ratio = min(length / side for length, side in zip(shape, size, strict=False))
    height, width = (round(length / ratio) for length in shape[:2])
    return height, width


def crop_center(pixels: NDArray, size: Size) -> NDArray:
    """The center of (H, W, ...), at torchvision's offsets."""
    top, left = (round((a - b) / 2) for a, b in zip(pixels.shape, size, strict=False))
    return pixels[top : top + size[0], left : left + size[1]]


def random_box(
    shape: Sequence[int],
    least: float,
    stretch: float,
    rng: np.random.Generator,
    *,
    ratio: float = 1.0,
) -> tuple[slice, slice]:
    """A random crop of an image, as in torchvision's RandomResizedCrop.

    Args:
        shape: Height and width.
        least: Smallest fraction of the area, in (0, 1].
        stretch: Largest change of `ratio`, as a factor of at least 1.
        rng: Random generator.
        ratio: Width over height.

    Returns:
        Rows and columns.
    """
    height, width = shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(least, 1)
        drawn = ratio * np.exp(rng.uniform(-np.log(stretch), np.log(stretch)))
        w, h = round(np.sqrt(area * drawn)), round(np.sqrt(area / drawn))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return slice(top, top + h), slice(left, left + w)
    # the image is too narrow: take the largest centered crop of an allowed shape
    w = min(width, round(height * stretch * ratio))
    h = min(height, round(width * stretch / ratio))
    top, left = (height - h) // 2, (width - w) // 2
    return slice(top, top + h), slice(left, left + w)


def as_fractions(pixels: NDArray) -> NDArray[np.float32]:
    """Convert uint8 to float32 in [0, 1]; float32 is returned unchanged."""
    if pixels.dtype != np.uint8:
        return pixels
    return np.divide(pixels, np.float32(255), dtype=np.float32)
