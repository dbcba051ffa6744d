"""From stored pixels to a network's input; saved with a run and its export, used in predict.

Sizes: H x W pixels, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vimamba.data.augmentation import normalize, resize_and_crop
from vimamba.data.errors import DataError
from vimamba.data.items import FileImage, StoredImage
from vimamba.data.pixels import percentile_limits, select_bands, wanted_bands
from vimamba.data.resizing import as_fractions, check_interpolation, resize, shorter_to
from vimamba.sizes import height_and_width, read_size

# resize whole images, or keep their resolution and use windows; classification crops the center
Fit = Literal["squash", "window"]
Kind = TypeVar("Kind", bound="Preprocessing")
# values from 0 to 255; the second with invalid pixels
EIGHT_BITS = (np.uint8, np.float16)


@dataclass(frozen=True)
class Intensity:
    """How stored values become numbers in [0, 1]; values beyond are clipped.

    At most one of window, ranges and percentiles can be given. Without any, 8-bit images range up
    to 255, and for all others the ranges are estimated from a sample of the training images and
    saved with the run; fractions in [0, 1] are left unchanged.

    Attributes:
        window: Low and high end, such as [-125, 275] HU for abdominal CT.
        ranges: Low and high end for each channel; none ([]) if the training images had 8 bits.
            8-bit images always range up to 255.
        percentiles: The ends are these percentiles of each case and channel: [0.5, 99.5] for MRI
            and other images without a scale of their own, [0, 100] for the minimum and the maximum.
        zscore: Give every image mean 0 and standard deviation 1 per channel, instead of `mean` and
            `std`.
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
        """Whether the values that become 0 and 1 depend on the training images."""
        return self.window is None and self.ranges is None and self.percentiles is None


DEFAULT_INTENSITY = Intensity()


@dataclass(frozen=True)
class Preprocessing:
    """Arguments as in the data sets; `fit` is "crop" in classification.

    `mean` and `std` may be missing only until they are estimated.
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
    def is_complete(self) -> bool:
        """Whether nothing is left to estimate from the training images."""
        return not self.intensity.is_open and self.mean is not None and self.std is not None

    @classmethod
    def from_settings(cls: type[Kind], settings: Mapping[str, Any]) -> Kind:
        """Build from the data arguments in a run's config.yaml or an export's config.json.

        Args:
            settings: Settings by name; without `fit` for classification.
        """
        names = cls.__dataclass_fields__.keys() - {"intensity", "fit", "crop_pct"}
        fields: dict[str, Any] = {name: settings.get(name) for name in names}
        fields["img_size"] = read_size(settings["img_size"], None)
        fields["fit"] = settings.get("fit") or "crop"
        fields["crop_pct"] = settings.get("crop_pct") or 1.0
        return cls(**fields, intensity=Intensity(**(settings.get("intensity") or {})))

    def file(self, path: str | Path) -> Tensor:
        """The network's input (C, h, w) in evaluation, from an image file."""
        return self.image(FileImage(Path(path)))

    def image(self, item: StoredImage) -> Tensor:
        """The network's input (C, h, w) in evaluation, from a whole image."""
        return self.tensor(self.resize(self.values(item)))

    def pixels(self, item: StoredImage) -> NDArray[np.float32]:
        """(H, W, in_chans) in [0, 1]."""
        return as_fractions(self.values(item))

    def values(self, item: StoredImage) -> NDArray:
        """Values ready for resizing and augmentation.

        Args:
            item: The image.

        Returns:
            (H, W, in_chans), uint8 as stored if 255 is white, else float32 in [0, 1]. Invalid
            pixels are 0, or the mean of the channel if images are normalized to mean 0.
        """
        return self.filled(self.known(item))

    def filled(self, known: NDArray) -> NDArray:
        """As `values`, from the result of `known`."""
        if known.dtype == np.uint8:
            return known
        filled = fill(known, mean=self.intensity.zscore)
        return filled.astype(np.uint8) if known.dtype == np.float16 else filled

    def known(self, item: StoredImage) -> NDArray:
        """As `values`, but NaN for invalid pixels: uint8, float16 of 0 to 255, or float32."""
        stored = self.stored(item)
        limits = self._limits(item, stored)
        if limits is None and stored.dtype in EIGHT_BITS:
            return stored
        values = stored.astype(np.float32)
        return values if limits is None else scale(values, *limits)

    def stored(self, item: StoredImage) -> NDArray:
        """The network's input channels, (H, W, in_chans), with the file's values."""
        return self._select(item.image(wanted_bands(self.in_chans, self.bands)), item)

    def _select(self, stored: NDArray, item: StoredImage) -> NDArray:
        return select_bands(stored, self.in_chans, self.bands, f"image {item.name}")

    def _limits(self, item: StoredImage, stored: NDArray) -> tuple[NDArray, NDArray] | None:
        """Values that become 0 and 1, () or (in_chans,); None if no scaling is needed."""
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
                f"image {item.name} has values from {least:g} to {most:g}; set black "
                "and white with data.intensity.window, .ranges or .percentiles"
            )
        return None

    def tensor(self, pixels: NDArray) -> Tensor:
        """Normalize (H, W, C), uint8 or in [0, 1], to (C, H, W)."""
        return normalize(pixels, *self.normalization)

    @property
    def normalization(self) -> tuple[Sequence[float] | None, Sequence[float] | None]:
        """Mean and standard deviation for normalization; None for each image's own."""
        if self.intensity.zscore:
            return None, None
        assert self.mean is not None, "the mean has not been found yet"
        return self.mean, self.std

    def resize(self, pixels: NDArray) -> NDArray:
        """Resize (H, W, C) to the network's size in evaluation."""
        if self.fit == "crop":
            return resize_and_crop(pixels, self.img_size, self.crop_pct, self.interpolation)
        if self.fit == "squash":
            return resize(pixels, height_and_width(self.img_size), self.interpolation)
        if self.scale_to is not None:
            return resize(pixels, shorter_to(self.scale_to, pixels.shape), self.interpolation)
        return pixels

    def completed(
        self, ranges: list[tuple[float, float]] | None, mean: Sequence[float], std: Sequence[float]
    ) -> "Preprocessing":
        """The same with estimates from the training images.

        Args:
            ranges: Range of each channel; None leaves the intensity unchanged.
            mean: Mean per channel.
            std: Standard deviation per channel.
        """
        intensity = self.intensity if ranges is None else replace(self.intensity, ranges=ranges)
        return replace(self, intensity=intensity, mean=self.mean or mean, std=self.std or std)


def check_channels(in_chans: int, bands: Sequence[int] | None, intensity: Intensity) -> None:
    """Fail on per-channel settings whose length is not the network's channels.

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
    """Scale (..., C) from [low, high] to [0, 1], in place; NaN is kept."""
    values -= low
    values /= np.where(high > low, high - low, 1).astype(np.float32)
    return np.clip(values, 0, 1, out=values)


def extremes(values: NDArray) -> tuple[float, float]:
    """The minimum and maximum of the valid values; 0 and 0 if there are none."""
    with np.errstate(invalid="ignore"):
        least, most = float(np.fmin.reduce(values, None)), float(np.fmax.reduce(values, None))
    return (0.0, 0.0) if np.isnan(least) else (least, most)


def fill(values: NDArray, *, mean: bool) -> NDArray:
    """Replace NaN in (H, W, C), in place: by 0, or by the mean of the channel's valid values."""
    missing = np.isnan(values)
    if missing.any():
        middle = np.zeros(values.shape[2], dtype=np.float32)
        if mean:
            known = (~missing).sum((0, 1))
            middle = np.nansum(values, (0, 1), dtype=np.float64) / np.maximum(known, 1)
        values[missing] = np.broadcast_to(middle, values.shape)[missing]
    return values
