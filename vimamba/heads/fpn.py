"""Panoptic FPN's semantic branch (Kirillov et al. 2019, arXiv:1901.02446), as in mmseg.

A feature pyramid (Lin et al. 2017, arXiv:1612.03144) merges top-down; every level is then upsampled
to the finest, with a convolution per doubling, and all are added.
"""

from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from vimamba.heads.blocks import Classifier, ConvNormAct, check_pyramid
from vimamba.heads.registry import register_head
from vimamba.layers import resize


@register_head(name="fpn")
class FPNHead(nn.Module):
    """Merge a pyramid top-down and sum its levels at the finest.

    Args:
        channels, strides: Channels and strides of the pyramid, fine to coarse.
        num_classes: Output channels.
        pyramid_width: Channels of the merged pyramid.
        width: Channels on the way to the finest level.
        drop_rate: Rate of channel dropout before the classifier.
    """

    finest_stride: ClassVar[int] = 4

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        *,
        pyramid_width: int = 256,
        width: int = 128,
        drop_rate: float = 0.1,
    ) -> None:
        super().__init__()
        check_pyramid(channels, strides)
        self.laterals = nn.ModuleList(nn.Conv2d(c, pyramid_width, 1) for c in channels)
        self.outputs = nn.ModuleList(
            nn.Conv2d(pyramid_width, pyramid_width, 3, padding=1) for _ in channels
        )
        self.scales = nn.ModuleList()
        for level in range(len(channels)):
            widths = [pyramid_width, *[width] * max(level, 1)]
            self.scales.append(nn.ModuleList(ConvNormAct(a, b, 3) for a, b in pairwise(widths)))
        self.classifier = Classifier(width, num_classes, drop_rate=drop_rate)

    def forward(self, features: list[Tensor]) -> Tensor:
        """[(N, C_i, H_i, W_i), ...] to (N, num_classes, H_0, W_0)."""
        merged = [lateral(f) for lateral, f in zip(self.laterals, features, strict=True)]
        for i in reversed(range(len(merged) - 1)):
            size = merged[i].shape[2:]
            merged[i] = merged[i] + resize(merged[i + 1], size, mode="nearest")
        levels = []
        for i, (output, convs) in enumerate(zip(self.outputs, self.scales, strict=True)):
            x = output(merged[i])
            finer = reversed(features[:i])
            for conv, like in zip(convs, [*finer] or [features[0]], strict=True):  # type: ignore[arg-type]
                x = resize(conv(x), like.shape[2:])
            levels.append(x)
        return self.classifier(sum(levels))
