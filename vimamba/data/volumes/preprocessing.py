"""From a stored volume to the network's input, and from its outputs back to the stored voxels.

Sizes: D x H x W voxels as stored, d x h x w at the network's spacing, C channels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vimamba.data.preprocessing import Preprocessing
from vimamba.data.volumes.cases import VolumeCase
from vimamba.data.volumes.planning import resampled_size

# slices that are prepared at a time
SLAB = 16


@dataclass(frozen=True)
class VolumePreprocessing(Preprocessing):
    """`Preprocessing` with the spacing that volumes are resampled to, mm along each axis.

    Voxels keep the orientation of the file's axes; only their number along each axis changes, so a
    prediction resampled to the stored number is exactly on the file's grid.
    """

    spacing: Sequence[float] = ()

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "VolumePreprocessing":
        """As for images, but `fit` is not a choice: windows are taken from volumes."""
        return super().from_settings({**settings, "fit": "window"})

    def volume(self, case: VolumeCase) -> Tensor:
        """(C, d, h, w) float32, of which little more is held than that at any time."""
        shape, size = case.shape, self.size(case)
        whole = np.empty((self.in_chans, *shape), dtype=np.float32)
        for start in range(0, shape[0], SLAB):
            rows = slice(start, start + SLAB)
            values = self.pixels(case.part(rows))
            whole[:, rows] = np.moveaxis(values.reshape(-1, *shape[1:], self.in_chans), -1, 0)
        means, deviations = self.normalization
        for place, channel in enumerate(whole):
            if means is None or deviations is None:
                middle, spread = mean_and_deviation(channel)
            else:
                middle, spread = means[place], deviations[place]
            channel -= np.float32(middle)
            channel /= np.float32(spread)
        found = torch.from_numpy(whole)
        if size == shape:
            return found
        # channel by channel, to save memory
        parts = [resize_linear(channel[None], size) for channel in found]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def mask(self, classes: NDArray[np.uint8], case: VolumeCase) -> NDArray[np.uint8]:
        """Resample (D, H, W) classes to the network's spacing, (d, h, w), by the nearest voxel."""
        size = self.size(case)
        if size == classes.shape:
            return classes
        whole = torch.from_numpy(np.ascontiguousarray(classes))[None, None]
        return F.interpolate(whole, size=size, mode="nearest-exact")[0, 0].numpy()

    def size(self, case: VolumeCase) -> tuple[int, ...]:
        """(d, h, w) of a case."""
        return resampled_size(case.shape, case.spacing, self.spacing)


def mean_and_deviation(channel: NDArray[np.float32]) -> tuple[float, float]:
    """Of (D, H, W) values, the deviation 1e-6 at least; summed in float64, slice by slice."""
    middle = float(channel.mean(dtype=np.float64))
    squares = sum(float(np.square(part - middle, dtype=np.float64).sum()) for part in channel)
    return middle, max(math.sqrt(squares / channel.size), 1e-6)


def resize_linear(whole: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (C, D, H, W) by trilinear interpolation with aligned borders."""
    found = F.interpolate(whole[None], size=tuple(size), mode="trilinear", align_corners=False)
    return found[0]
