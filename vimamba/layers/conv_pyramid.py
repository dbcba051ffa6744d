"""Convolutional parts of pyramids with channels-first maps.

DAMamba (arXiv:2502.12627) and A2Mamba (arXiv:2507.16624) share stem, downsampling and MLP.
Sizes: N batch, H and W image or map, C channels.
"""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn


class ConvStem(nn.Sequential):
    """Four 3x3 convolutions, each with a norm, with a total stride of 4."""

    def __init__(self, in_chans: int, dim: int, *, bias: bool = True, **dd: Any) -> None:
        layers: list[nn.Module] = []
        for dim_in, dim_out, stride in (
            (in_chans, dim // 2, 2),
            (dim // 2, dim // 2, 1),
            (dim // 2, dim, 2),
            (dim, dim, 1),
        ):
            conv = nn.Conv2d(dim_in, dim_out, 3, stride=stride, padding=1, bias=bias, **dd)
            layers += [conv, nn.BatchNorm2d(dim_out, **dd), nn.GELU()]
        super().__init__(*layers[:-1])


class ConvDownsample(nn.Sequential):
    """A strided 3x3 convolution and a norm."""

    def __init__(self, dim_in: int, dim: int, *, bias: bool = True, **dd: Any) -> None:
        conv = nn.Conv2d(dim_in, dim, 3, stride=2, padding=1, bias=bias, **dd)
        super().__init__(OrderedDict(conv=conv, norm=nn.BatchNorm2d(dim, **dd)))


class MapMlp(nn.Module):
    """An MLP with a residual depthwise convolution."""

    def __init__(self, dim: int, hidden: int, **dd: Any) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1, **dd)
        self.act = nn.GELU()
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, **dd)
        self.fc2 = nn.Conv2d(hidden, dim, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        x = self.act(self.fc1(x))
        return self.fc2(x + self.conv(x))
