"""Convolution of a map's Haar wavelet (Finder et al. 2024, arXiv:2407.05848), one level.

Sizes: N batch, H and W map, C channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimamba.timm_layers import LayerScale2d


def haar(x: Tensor) -> Tensor:
    """Haar wavelet of every four channels, the pixels of a square; its own inverse.

    Args:
        x: (N, 4 C, H, W): top left, top right, bottom left, bottom right; or what this gives.

    Returns:
        (N, 4 C, H, W), mean, difference of rows, of columns, of diagonals, each doubled.
    """
    a, b, c, d = x.unflatten(1, (-1, 4)).unbind(2)
    top, bottom, top_step, bottom_step = a + b, c + d, a - b, c - d
    bands = [top + bottom, top - bottom, top_step + bottom_step, top_step - bottom_step]
    # as in the official filters, the square of the float32 nearest to sqrt(1/2)
    return 0.4999999701976776 * torch.stack(bands, dim=2).flatten(1, 2)


class WaveletConv(nn.Module):
    """A depthwise convolution of the bands of a map's wavelet, scaled and transformed back.

    Args:
        dim: C.
        kernel: Side of the convolution, in cells of the bands, which are two cells of the map.
        scale: Initial value of the learned factors of the bands.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(self, dim: int, kernel: int, *, scale: float = 0.1, **dd: Any) -> None:
        super().__init__()
        bands = 4 * dim
        self.conv = nn.Conv2d(
            bands, bands, kernel, padding=kernel // 2, groups=bands, bias=False, **dd
        )
        self.conv_scale = LayerScale2d(bands, scale, **dd)

    def convolve(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape; an odd side is padded with zeros."""
        right, below = -x.shape[3] % 2, -x.shape[2] % 2
        bands = haar(F.pixel_unshuffle(F.pad(x, (0, right, 0, below)), 2))
        details = F.pixel_shuffle(haar(self.conv_scale(self.conv(bands))), 2)
        # not sliced: strides that depend on the size would need another program for odd sizes
        return F.pad(details, (0, -right, 0, -below))
