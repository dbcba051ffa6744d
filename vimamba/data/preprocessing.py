"""From stored pixels to what a segmentation network gets; kept with a run and used in predict."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimamba.data.augmentation import INTERPOLATIONS, import_albumentations
from vimamba.data.errors import DataError
from vimamba.data.masked import MaskedImage
from vimamba.data.paired_augmentation import Fit
from vimamba.data.pixels import select_bands


@dataclass(frozen=True)
class Intensity:
    """How stored values become numbers in [0, 1].

    Attributes:
        window: Low and high end of the values, such as [-125, 275] HU for abdominal CT; what lies
            beyond is cut off.
        percentiles: The ends are these percentiles of each case and channel: [0.5, 99.5] for MRI
            and other images without a scale of their own, [0, 100] for the least and the greatest
            value. By default 8-bit images end at 255, 16-bit ones at 65535, and fractions must
            lie in [0, 1].
        zscore: Give every image mean 0 and deviation 1 per channel, instead of `mean` and `std`.
    """

    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None
    zscore: bool = False

    def __post_init__(self) -> None:
        if self.window is not None and self.percentiles is not None:
            raise DataError("intensity.window and intensity.percentiles exclude each other")
        for name in ("window", "percentiles"):
            ends = getattr(self, name)
            if ends is not None and not (len(ends) == 2 and ends[0] < ends[1]):
                raise DataError(f"intensity.{name}={ends} must be a low and a high end")


DEFAULT_INTENSITY = Intensity()


@dataclass(frozen=True)
class Preprocessing:
    """Arguments as in `SegmentationData`."""

    img_size: int
    in_chans: int
    bands: Sequence[int] | None
    fit: Fit
    scale_to: int | None
    interpolation: str
    intensity: Intensity
    mean: Sequence[float]
    std: Sequence[float]

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> "Preprocessing":
        """From the arguments of a data set as a run's config.yaml holds them, without the unset."""
        names = cls.__dataclass_fields__.keys() - {"intensity"}
        fields: dict[str, Any] = {name: settings.get(name) for name in names}
        return cls(**fields, intensity=Intensity(**settings["intensity"]))

    def pixels(self, item: MaskedImage) -> NDArray[np.float32]:
        """(H, W, in_chans) in [0, 1]; what is not a number becomes 0."""
        stored = item.image()
        limits = self._limits(item, stored)
        if limits is None:
            values = stored.astype(np.float32)
            if np.nanmin(values) < 0 or np.nanmax(values) > 1:
                raise DataError(
                    f"image {item.name} holds values from {np.nanmin(values):g} to "
                    f"{np.nanmax(values):g}; say what is black and white: data.intensity.window "
                    "or data.intensity.percentiles"
                )
        else:
            low, high = limits
            span = np.where(high > low, high - low, 1).astype(np.float32)
            values = ((stored.astype(np.float32) - low) / span).clip(0, 1)
        bands = select_bands(values, self.in_chans, self.bands, f"image {item.name}")
        return np.nan_to_num(bands, copy=False, nan=0.0).astype(np.float32)

    def _limits(self, item: MaskedImage, stored: NDArray) -> tuple[Any, Any] | None:
        """What becomes 0 and 1; None for fractions, which stay as they are."""
        if self.intensity.window is not None:
            low, high = self.intensity.window
            return np.float32(low), np.float32(high)
        if self.intensity.percentiles is not None:
            low, high = self.intensity.percentiles
            return item.limits((low, high))
        if stored.dtype == np.uint8 or stored.dtype == np.uint16:
            return np.float32(0), np.float32(np.iinfo(stored.dtype).max)
        return None

    def tensor(self, pixels: NDArray[np.float32]) -> Tensor:
        """Normalise (H, W, C) to (C, H, W)."""
        if self.intensity.zscore:
            mean, std = pixels.mean((0, 1)), pixels.std((0, 1))
            scaled = (pixels - mean) / np.maximum(std, 1e-6)
        else:
            scaled = (pixels - np.asarray(self.mean)) / np.asarray(self.std)
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1), dtype=np.float32))

    def image(self, item: MaskedImage) -> Tensor:
        """(C, h, w): the whole image as evaluation gives it to the network."""
        return self.tensor(self.resize(self.pixels(item)))

    def resize(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Squash to the network's size, or bring the shorter side to `scale_to`."""
        A, method = import_albumentations(), INTERPOLATIONS[self.interpolation]
        kind: dict[str, Any] = {"interpolation": method, "area_for_downscale": "image"}
        if self.fit == "squash":
            step = A.Resize(self.img_size, self.img_size, **kind)
        elif self.scale_to is not None:
            step = A.SmallestMaxSize(self.scale_to, **kind)
        else:
            return pixels
        resized = step(image=pixels)["image"]
        return resized.reshape(*resized.shape[:2], -1)
