"""From a stored volume to the network's input, and from its outputs back to the stored voxels.

Sizes: D x H x W voxels as stored, d x h x w at the network's spacing, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vimamba.data.preprocessing import Preprocessing
from vimamba.data.volumes.cases import VolumeCase
from vimamba.data.volumes.planning import resampled_size


@dataclass(frozen=True)
class VolumePreprocessing(Preprocessing):
    """`Preprocessing` with the spacing that volumes are resampled to, mm along each axis.

    Voxels keep the orientation of the file's axes; only their number along each axis changes, so a
    prediction resampled to the stored number is exactly on the file's grid.
    """

    spacing: Sequence[float] = ()

    def volume(self, case: VolumeCase) -> Tensor:
        """(C, d, h, w) float32."""
        values = self.values(case)
        shape = case.shape
        flat = self.tensor(values)
        whole = flat.reshape(len(flat), *shape)
        size = self.size(case)
        if size == shape:
            return whole.contiguous()
        # channel by channel, to save memory
        return torch.cat([resize_linear(channel[None], size) for channel in whole])

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


def resize_linear(whole: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (C, D, H, W) by trilinear interpolation with aligned borders."""
    found = F.interpolate(whole[None], size=tuple(size), mode="trilinear", align_corners=False)
    return found[0]
