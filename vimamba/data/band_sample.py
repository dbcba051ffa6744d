"""Statistics of the bands in a sample of the training images: ranges, means, deviations.

Sizes: N values, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vimamba.data.items import Item, StoredImage
from vimamba.data.pixels import percentile_limits
from vimamba.data.preprocessing import EIGHT_BITS, Preprocessing, extremes, scale

# mean and standard deviation of ImageNet's training images, as in torchvision and timm
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# limits of the sample: images, evenly spread, and pixels of each, on a grid
MOST_IMAGES, MOST_PIXELS = 200, 10_000
# percentiles that become 0 and 1: robust against single hot pixels and clouds
PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class BandSample:
    """Statistics of the sample.

    Attributes:
        images: Number of images opened.
        ranges: Low and high end for each channel; none if all images had 8 bits, or if the
            intensity was given.
        reach: The minimum and the maximum of each channel.
        mean: Per channel, in [0, 1].
        std: Per channel, in [0, 1].
        is_measured: Mean and standard deviation are those of the images rather than ImageNet's.
    """

    images: int
    ranges: list[tuple[float, float]]
    reach: list[tuple[float, float]]
    mean: list[float]
    std: list[float]
    is_measured: bool


def sample_bands(items: Sequence[Item], prepare: Preprocessing) -> BandSample:
    """Estimate from training images what the arguments leave open.

    Args:
        items: Training items.
        prepare: The given arguments.

    Raises:
        DataError: An image cannot be read; the message names it.
    """
    images = [image for place in spread(len(items)) for image in items[place].images()]
    intensity, channels = prepare.intensity, prepare.in_chans
    plain = intensity.is_open and all(map(is_eight_bit, images))
    known_mean = prepare.mean is not None and prepare.std is not None
    imagenet = (list(IMAGENET_MEAN), list(IMAGENET_STD)) if channels == 3 else None
    if intensity.zscore:
        imagenet = [0.0] * channels, [1.0] * channels
    if (
        not images
        or (plain and (known_mean or imagenet is not None))
        or (not intensity.is_open and (known_mean or intensity.zscore))
    ):
        mean, std = imagenet or ([0.5] * channels, [0.25] * channels)
        return BandSample(len(images), [], [], mean, std, is_measured=False)
    return measure(images, prepare, imagenet)


def spread(count: int) -> list[int]:
    """Up to `MOST_IMAGES` of `count` indices, evenly spread."""
    places = np.linspace(0, count - 1, min(count, MOST_IMAGES)).round().astype(int)
    return places.tolist()


def is_eight_bit(image: StoredImage) -> bool:
    """Whether an image has 8-bit values; for a file the header decides."""
    head = image.head()
    return image.image().dtype in EIGHT_BITS if head is None else not head.deep


def measure(
    items: list[StoredImage],
    prepare: Preprocessing,
    usual: tuple[list[float], list[float]] | None,
) -> BandSample:
    """Read the images.

    Args:
        items: The sample.
        prepare: The given arguments.
        usual: Mean and standard deviation of images that need no scaling.
    """
    channels, is_open = prepare.in_chans, prepare.intensity.is_open
    deep, light = [], []  # values as stored, and values already in [0, 1]
    whole_numbers = False
    bar = tqdm(items, desc="looking at the bands", unit="image", leave=False, disable=None)
    for item in bar:
        pixels = prepare.stored(item) if is_open else prepare.known(item)
        eight, values = pixels.dtype in EIGHT_BITS, thin(pixels)
        whole_numbers |= pixels.dtype == np.uint16
        if eight:
            values /= 255
        (light if eight or not is_open else deep).append(values)
    ranges: list[tuple[float, float]] = []
    reach: list[tuple[float, float]] = []
    is_scaled = not is_open
    if deep:
        stored = np.concatenate(deep)
        reach = [extremes(band) for band in stored.T]
        least, most = extremes(stored)
        if not whole_numbers and least >= 0 and most <= 1:
            ranges = [(0.0, 1.0)] * channels
        else:
            is_scaled = True
            ranges = pairs(*percentile_limits(stored, PERCENTILES))
        light.append(scale(stored, *np.asarray(ranges, dtype=np.float32).T))
    if usual is not None and not is_scaled:
        return BandSample(len(items), ranges, reach, *usual, is_measured=False)
    mean, std = moments(light, channels)
    return BandSample(len(items), ranges, reach, mean, std, is_measured=True)


def thin(pixels: NDArray) -> NDArray[np.float32]:
    """Values on a grid of (H, W, C), at most about `MOST_PIXELS` of them, (N, C)."""
    step = max(1, int(np.sqrt(pixels.shape[0] * pixels.shape[1] / MOST_PIXELS)))
    chosen = pixels[::step, ::step]
    return chosen.astype(np.float32).reshape(-1, chosen.shape[2])


def pairs(low: NDArray, high: NDArray) -> list[tuple[float, float]]:
    """Ends of each channel, to six digits; those of a constant or invalid channel are widened."""
    ends = ((float(f"{x:.6g}"), float(f"{y:.6g}")) for x, y in zip(low, high, strict=True))
    return [(least, most if most > least else least + 1) for least, most in ends]


def moments(parts: list[NDArray[np.float32]], channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over valid pixels, to four digits."""
    values = np.concatenate(parts)
    found: list[tuple[float, float]] = []
    for band in values.T:
        known = band[np.isfinite(band)]
        if known.size == 0:
            found.append((0.0, 1.0))
            continue
        mean, std = known.mean(dtype=np.float64), known.std(dtype=np.float64)
        # a constant channel is left alone rather than divided by almost 0
        found.append((float(f"{mean:.4g}"), float(f"{std:.4g}") if std > 1e-6 else 1.0))
    assert len(found) == channels, (len(found), channels)
    return [mean for mean, _ in found], [std for _, std in found]
