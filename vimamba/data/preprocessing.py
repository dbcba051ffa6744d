"""From stored pixels to what a network gets; kept with a run, its export and used in predict.

Sizes: H x W pixels, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vimamba.data.augmentation import normalize, resize_and_crop
from vimamba.data.errors import DataError
from vimamba.data.items import FileImage, StoredImage
from vimamba.data.pixels import percentile_limits, select_bands, wanted_bands
from vimamba.data.resizing import as_fractions, check_interpolation, resize, shorter_to
from vimamba.sizes import height_and_width, read_size

# resize whole images, or keep their resolution and take windows; classification crops the middle
Fit = Literal["squash", "window"]
# numbers from 0 to 255; the second with gaps
EIGHT_BITS = (np.uint8, np.float16)


@dataclass(frozen=True)
class Intensity:
    """How stored values become numbers in [0, 1]; what lies beyond is cut off.

    At most one of window, ranges and percentiles can be given. Without any, images of 8 bits end at
    255, and for all others a sample of the training images tells the ranges, which are then kept
    with the run; fractions that lie in [0, 1] stay as they are.

    Attributes:
        window: Low and high end of the values, such as [-125, 275] HU for abdominal CT.
        ranges: Low and high end for each channel; none ([]) where the training images had 8 bits.
            Images of 8 bits end at 255 whatever is said here.
        percentiles: The ends are these percentiles of each case and channel: [0.5, 99.5] for MRI
            and other images without a scale of their own, [0, 100] for the least and the greatest
            value.
        zscore: Give every image mean 0 and deviation 1 per channel, instead of `mean` and `std`.
    """

    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None
    zscore: bool = False
    ranges: list[tuple[float, float]] | None = None

    def __post_init__(self) -> None:
        named = ("window", "ranges", "percentiles")
        given = [f"intensity.{name}" for name in named if getattr(self, name) is not None]
        if len(given) > 1:
            raise DataError(f"{' and '.join(given)} exclude each other; set all but one to null")
        for name in ("window", "percentiles"):
            ends = getattr(self, name)
            if ends is not None and not (len(ends) == 2 and ends[0] < ends[1]):
                raise DataError(f"intensity.{name}={ends} must be a low and a high end")
        for ends in self.ranges or ():
            if not (len(ends) == 2 and ends[0] < ends[1]):
                raise DataError(f"intensity.ranges={self.ranges} must be low and high ends")

    @property
    def is_open(self) -> bool:
        """Whether the training images have to tell what becomes 0 and 1."""
        return self.window is None and self.ranges is None and self.percentiles is None


DEFAULT_INTENSITY = Intensity()


@dataclass(frozen=True)
class Preprocessing:
    """Arguments as in the data sets; `fit` is "crop" in classification.

    `mean` and `std` may be missing only while they are being found.
    """

    img_size: int | tuple[int, ...]
    in_chans: int
    bands: Sequence[int] | None
    fit: Fit | Literal["crop"]
    scale_to: int | None
    interpolation: str
    intensity: Intensity
    mean: Sequence[float] | None
    std: Sequence[float] | None
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        check_interpolation(self.interpolation)
        check_channels(self.in_chans, self.bands, self.intensity)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left for the training images to tell."""
        return not self.intensity.is_open and self.mean is not None and self.std is not None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Preprocessing":
        """From the arguments of a data set as a run's config.yaml or an export's config.json says.

        Args:
            settings: By name; of classification there is no `fit`.
        """
        names = cls.__dataclass_fields__.keys() - {"intensity", "fit", "crop_pct"}
        fields: dict[str, Any] = {name: settings.get(name) for name in names}
        fields["img_size"] = read_size(settings["img_size"], None)
        fields["fit"] = settings.get("fit") or "crop"
        fields["crop_pct"] = settings.get("crop_pct") or 1.0
        return cls(**fields, intensity=Intensity(**(settings.get("intensity") or {})))

    def file(self, path: str | Path) -> Tensor:
        """(C, h, w): an image file as evaluation gives it to the network."""
        return self.image(FileImage(Path(path)))

    def image(self, item: StoredImage) -> Tensor:
        """(C, h, w): the whole image as evaluation gives it to the network."""
        return self.tensor(self.resize(self.values(item)))

    def pixels(self, item: StoredImage) -> NDArray[np.float32]:
        """(H, W, in_chans) in [0, 1]."""
        return as_fractions(self.values(item))

    def values(self, item: StoredImage) -> NDArray:
        """Numbers that are fit to be resized and changed.

        Args:
            item: The image.

        Returns:
            (H, W, in_chans): uint8 as stored where 255 is white, else float32 in [0, 1]. What is
            not known is 0, or the mean of the channel where images are given mean 0.
        """
        return self.filled(self.known(item))

    def filled(self, known: NDArray) -> NDArray:
        """As `values`, from what `known` gave."""
        if known.dtype == np.uint8:
            return known
        filled = fill(known, mean=self.intensity.zscore)
        return filled.astype(np.uint8) if known.dtype == np.float16 else filled

    def known(self, item: StoredImage) -> NDArray:
        """As `values`, but NaN where nothing is known: uint8, float16 of 0 to 255, or float32."""
        stored = self.stored(item)
        limits = self._limits(item, stored)
        if limits is None and stored.dtype in EIGHT_BITS:
            return stored
        values = stored.astype(np.float32)
        return values if limits is None else scale(values, *limits)

    def stored(self, item: StoredImage) -> NDArray:
        """The channels that the network gets, (H, W, in_chans), with the file's values."""
        return self._select(item.image(wanted_bands(self.in_chans, self.bands)), item)

    def _select(self, stored: NDArray, item: StoredImage) -> NDArray:
        return select_bands(stored, self.in_chans, self.bands, f"image {item.name}")

    def _limits(self, item: StoredImage, stored: NDArray) -> tuple[NDArray, NDArray] | None:
        """What becomes 0 and 1, () or (in_chans,); None for what already is as it should be."""
        intensity = self.intensity
        if intensity.window is not None:
            low, high = intensity.window
            return np.asarray(low, np.float32), np.asarray(high, np.float32)
        if intensity.percentiles is not None:
            low, high = intensity.percentiles
            found = item.limits((low, high))
            if found is None:
                return percentile_limits(stored, (low, high))
            low, high = self._select(np.stack(found)[None], item)[0]
            return low, high
        if stored.dtype in EIGHT_BITS:
            return None
        if intensity.ranges:
            low, high = np.asarray(intensity.ranges, dtype=np.float32).T
            return low, high
        least, most = extremes(stored)
        if stored.dtype == np.uint16 or least < 0 or most > 1:
            raise DataError(
                f"image {item.name} holds values from {least:g} to {most:g}; say what is black and "
                "white: data.intensity.window, data.intensity.ranges or data.intensity.percentiles"
            )
        return None

    def tensor(self, pixels: NDArray) -> Tensor:
        """Normalize (H, W, C), uint8 or in [0, 1], to (C, H, W)."""
        return normalize(pixels, *self.normalization)

    @property
    def normalization(self) -> tuple[Sequence[float] | None, Sequence[float] | None]:
        """Mean and deviation to normalize with; None for each image's own."""
        if self.intensity.zscore:
            return None, None
        assert self.mean is not None, "the mean has not been found yet"
        return self.mean, self.std

    def resize(self, pixels: NDArray) -> NDArray:
        """Bring (H, W, C) to the size that evaluation gives to the network."""
        if self.fit == "crop":
            return resize_and_crop(pixels, self.img_size, self.crop_pct, self.interpolation)
        if self.fit == "squash":
            return resize(pixels, height_and_width(self.img_size), self.interpolation)
        if self.scale_to is not None:
            return resize(pixels, shorter_to(self.scale_to, pixels.shape), self.interpolation)
        return pixels

    def settled(
        self, ranges: list[tuple[float, float]] | None, mean: Sequence[float], std: Sequence[float]
    ) -> "Preprocessing":
        """The same with what the training images told.

        Args:
            ranges: Of each channel; None leaves the intensity as it is.
            mean: Per channel.
            std: Per channel.
        """
        intensity = self.intensity if ranges is None else replace(self.intensity, ranges=ranges)
        return replace(self, intensity=intensity, mean=self.mean or mean, std=self.std or std)


def check_channels(in_chans: int, bands: Sequence[int] | None, intensity: Intensity) -> None:
    """Fail on settings of channels that are not as many as the network's.

    Raises:
        DataError: Names the setting.
    """
    ranges = intensity.ranges
    if ranges and len(ranges) != in_chans:
        raise DataError(
            f"intensity.ranges has {len(ranges)} pairs; in_chans={in_chans} needs as many"
        )
    if bands is not None and len(bands) != in_chans:
        raise DataError(f"bands={bands} must name in_chans={in_chans} bands")


def scale(values: NDArray[np.float32], low: NDArray, high: NDArray) -> NDArray[np.float32]:
    """Bring (..., C) from between low and high to [0, 1], in place; NaN stays."""
    values -= low
    values /= np.where(high > low, high - low, 1).astype(np.float32)
    return np.clip(values, 0, 1, out=values)


def extremes(values: NDArray) -> tuple[float, float]:
    """The least and the greatest value that is known; 0 and 0 where none is."""
    with np.errstate(invalid="ignore"):
        least, most = float(np.fmin.reduce(values, None)), float(np.fmax.reduce(values, None))
    return (0.0, 0.0) if np.isnan(least) else (least, most)


def fill(values: NDArray, *, mean: bool) -> NDArray:
    """Replace NaN in (H, W, C), in place: by 0, or by the mean of what is known of the channel."""
    missing = np.isnan(values)
    if missing.any():
        middle = np.zeros(values.shape[2], dtype=np.float32)
        if mean:
            known = (~missing).sum((0, 1))
            middle = np.nansum(values, (0, 1), dtype=np.float64) / np.maximum(known, 1)
        values[missing] = np.broadcast_to(middle, values.shape)[missing]
    return values
