"""ChangeMamba's top-down decoder (Chen et al. 2024, arXiv:2404.03425).

From the coarsest level to the finest: resize, add the next level, convolve in a residual block.
"""

from typing import ClassVar

from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from vimamba.heads.blocks import check_pyramid
from vimamba.heads.registry import register_head
from vimamba.layers import resize
from vimamba.timm_layers import ConvNormAct as ConvNorm


@register_head(name="top_down")
class TopDownHead(nn.Module):
    """Sum the levels from coarse to fine, with a residual block after each addition.

    Args:
        channels, strides: Channels and strides of the pyramid, fine to coarse.
        num_classes: Output channels.
        width: Channels inside the head; levels with other channels are projected.
    """

    finest_stride: ClassVar[int] = 4

    def __init__(
        self, channels: list[int], strides: list[int], num_classes: int, *, width: int = 128
    ) -> None:
        super().__init__()
        check_pyramid(channels, strides)
        self.laterals = nn.ModuleList(
            nn.Identity() if c == width else ConvNorm(c, width, 1, bias=True) for c in channels
        )
        self.smooths = nn.ModuleList(BasicBlock(width, width) for _ in channels[:-1])
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """[(N, C_i, H_i, W_i), ...] to (N, num_classes, H_0, W_0)."""
        levels = [lateral(f) for lateral, f in zip(self.laterals, features, strict=True)]
        x = levels.pop()
        for smooth, level in zip(reversed(self.smooths), reversed(levels), strict=True):
            x = smooth(resize(x, level.shape[2:]) + level)
        return self.classifier(x)
