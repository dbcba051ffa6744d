"""A raster as network input, window by window.

Sizes: H x W pixels, h x w those of a window, C channels.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vimamba.data.items import StoredImage
from vimamba.data.pixels import percentile_limits
from vimamba.data.preprocessing import Preprocessing
from vimamba.data.rasters import Raster
from vimamba.data.resizing import as_fractions, resize


class _Window:
    """Values in memory as an image for preprocessing, with the limits of the scene."""

    def __init__(self, values: NDArray, scene: "Scene") -> None:
        self.values, self.scene = values, scene
        self.name = scene.raster.path.name

    def image(self, wanted: int | None = None) -> NDArray:
        """(h, w, C) as stored."""
        return self.values

    def limits(self, percentiles: tuple[float, float]) -> tuple[NDArray, NDArray]:
        """Percentiles over a sample of the scene."""
        return self.scene.limits


class Scene:
    """An open raster and how its values become a network's input.

    Args:
        raster: The raster, opened with the bands that `prepare` names.
        prepare: From stored values to the network's. Statistics of the whole image (percentiles,
            z-scores) come from a sample of the scene.
        window: Height and width of a window in the scene's pixels.
        size: Height and width of the network's input; None: that of the window.

    Attributes:
        limits: Values that become 0 and 1 if `prepare` uses percentiles, (C,) each.
    """

    def __init__(
        self,
        raster: Raster,
        prepare: Preprocessing,
        window: tuple[int, int],
        size: tuple[int, int] | None = None,
    ) -> None:
        self.raster, self.window, self.size = raster, window, size
        # `raster` returns only these bands
        self.prepare = replace(prepare, bands=None)
        self._centred = prepare.intensity.zscore
        if prepare.intensity.percentiles is None and not self._centred:
            return
        sample = self.raster.sample()
        if prepare.intensity.percentiles is not None:
            self.limits = percentile_limits(sample, prepare.intensity.percentiles)
        if self._centred:
            plain = replace(self.prepare, intensity=replace(prepare.intensity, zscore=False))
            known = as_fractions(plain.known(self._image(sample))).reshape(-1, self.channels)
            mean = np.nan_to_num(np.nanmean(known, 0, dtype=np.float64))
            std = np.nan_to_num(np.nanstd(known, 0, dtype=np.float64))
            std = np.where(std > 0, std, 1)
            self.prepare = replace(plain, mean=mean.tolist(), std=std.tolist())

    @property
    def channels(self) -> int:
        """C of the network's input."""
        return self.prepare.in_chans

    def _image(self, values: NDArray) -> StoredImage:
        return cast(StoredImage, _Window(values, self))

    def tensor(self, values: NDArray) -> Tensor:
        """A window's values to the network's input, (C, *) of the window or of `size`.

        Args:
            values: (h, w, C) as returned by `Raster.read`. If they are fewer than a window has,
                they are centered in it, as in `vimamba.tasks.windows.slide`.
        """
        if self.size is not None:
            values = pad_unknown(values, self.window)
        pixels = self.prepare.values(self._image(values))
        if self.size is not None:
            pixels = resize(pixels, self.size, self.prepare.interpolation)
        found = self.prepare.tensor(pixels)
        if self._centred and self.size is None:  # 0 is the mean, with which training fills gaps
            gaps = np.isnan(self.prepare.known(self._image(values)))
            found[torch.from_numpy(gaps).permute(2, 0, 1)] = 0
        return (
            found if self.size is not None else F.pad(found, padding(found.shape[1:], self.window))
        )

    def picture(self, values: NDArray) -> NDArray[np.float16]:
        """(h, w, 3): the first three channels in [0, 1], or the first repeated; NaN is kept."""
        known = as_fractions(self.prepare.known(self._image(values)))
        shown = known[:, :, :3] if known.shape[2] >= 3 else known[:, :, [0, 0, 0]]
        return shown.astype(np.float16)


def padding(size: Sequence[int], window: Sequence[int]) -> tuple[int, int, int, int]:
    """Padding that centers (h, w) in a window: left, right, top, bottom."""
    down, across = (whole - part for whole, part in zip(window, size, strict=True))
    return across // 2, across - across // 2, down // 2, down - down // 2


def pad_unknown(values: NDArray, window: Sequence[int]) -> NDArray:
    """(h, w, C) centered in a window whose other pixels are invalid."""
    left, right, top, bottom = padding(values.shape[:2], window)
    if not (left or right or top or bottom):
        return values
    if values.dtype.kind != "f":
        values = values.astype(np.float16 if values.dtype == np.uint8 else np.float32)
    edges = ((top, bottom), (left, right), (0, 0))
    return np.pad(values, edges, constant_values=np.nan)
