"""UPerNet's semantic head (Xiao et al. 2018, arXiv:1807.10221), as mmseg's `UPerHead`.

The coarsest level is pooled to a few grids (PSPNet, arXiv:1612.01105); a feature pyramid carries it
down to the finest level, where all levels are concatenated.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimamba.heads.blocks import Classifier, ConvNormAct, check_pyramid
from vimamba.heads.registry import register_head
from vimamba.layers import resize


class PyramidPooling(nn.Module):
    """Concatenate a map with versions of it pooled to several coarse grids.

    Args:
        dim_in, dim: Channels in and out.
        scales: Sides of the grids, cells.
    """

    def __init__(self, dim_in: int, dim: int, scales: tuple[int, ...]) -> None:
        super().__init__()
        self.scales = scales
        self.convs = nn.ModuleList(ConvNormAct(dim_in, dim, 1) for _ in scales)
        self.bottleneck = ConvNormAct(dim_in + len(scales) * dim, dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C, H, W)."""
        pooled = (F.adaptive_avg_pool2d(x, s) for s in self.scales)
        size = x.shape[2:]
        grids = [resize(conv(p), size) for conv, p in zip(self.convs, pooled, strict=True)]
        return self.bottleneck(torch.cat([x, *grids], dim=1))


@register_head(name="upernet")
class UPerNetHead(nn.Module):
    """Pyramid pooling, top-down merge, and concatenation of all levels at the finest.

    Args:
        channels, strides: Channels and strides of the pyramid, fine to coarse.
        num_classes: Output channels.
        width: Channels inside the head.
        pool_scales: Sides of the pooled grids, cells.
        drop_rate: Rate of channel dropout before the classifier.
    """

    finest_stride: ClassVar[int] = 4

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        *,
        width: int = 512,
        pool_scales: tuple[int, ...] = (1, 2, 3, 6),
        drop_rate: float = 0.1,
    ) -> None:
        super().__init__()
        check_pyramid(channels, strides)
        self.pooling = PyramidPooling(channels[-1], width, pool_scales)
        self.laterals = nn.ModuleList(ConvNormAct(c, width, 1) for c in channels[:-1])
        self.outputs = nn.ModuleList(ConvNormAct(width, width, 3) for _ in channels[:-1])
        self.fuse = ConvNormAct(len(channels) * width, width, 3)
        self.classifier = Classifier(width, num_classes, drop_rate=drop_rate)

    def forward(self, features: list[Tensor]) -> Tensor:
        """[(N, C_i, H_i, W_i), ...] to (N, num_classes, H_0, W_0)."""
        coarsest = self.pooling(features[-1])
        laterals = [lateral(f) for lateral, f in zip(self.laterals, features[:-1], strict=True)]
        x, merged = coarsest, []
        for lateral in reversed(laterals):
            x = lateral + resize(x, lateral.shape[2:])
            merged.insert(0, x)
        levels = [output(m) for output, m in zip(self.outputs, merged, strict=True)]
        size = levels[0].shape[2:]
        together = [resize(level, size) for level in [*levels, coarsest]]
        return self.classifier(self.fuse(torch.cat(together, dim=1)))
