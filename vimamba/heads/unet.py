"""U-Net's decoder (Ronneberger et al. 2015, arXiv:1505.04597) and that of Attention U-Net.

From the coarsest level up: upsample by 2, concatenate the skip, convolve twice. Beyond the finest
skip it continues without skips up to the image's own resolution.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimamba.heads.blocks import Classifier, ConvNormAct, check_pyramid
from vimamba.heads.registry import register_head
from vimamba.layers import resize
from vimamba.timm_layers import ConvNormAct as ConvNorm


class AttentionGate(nn.Module):
    """Weight the cells of a skip by attention from the coarser map (Oktay et al. 2018).

    Additive attention, arXiv:1804.03999, figure 2.

    Args:
        dim_skip, dim_gate: Channels of the skip and of the coarser map.
    """

    def __init__(self, dim_skip: int, dim_gate: int) -> None:
        super().__init__()
        inner = max(dim_skip // 2, 1)
        self.skip = ConvNorm(dim_skip, inner, apply_act=False)
        self.gate = ConvNorm(dim_gate, inner, apply_act=False)
        self.weight = ConvNorm(inner, 1, act_layer=nn.Sigmoid)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """(N, C, H, W) and the upsampled map (N, C_g, H, W) to (N, C, H, W)."""
        return skip * self.weight(F.relu(self.skip(skip) + self.gate(gate)))


class UpBlock(nn.Module):
    """Upsample by 2, concatenate the skip if there is one, convolve twice."""

    def __init__(self, dim_in: int, dim_skip: int, dim: int, *, attention: bool) -> None:
        super().__init__()
        gated = attention and dim_skip > 0
        self.attention = AttentionGate(dim_skip, dim_in) if gated else None
        self.convs = nn.Sequential(ConvNormAct(dim_in + dim_skip, dim, 3), ConvNormAct(dim, dim, 3))

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """(N, C_in, h, w) and (N, C_skip, H, W) to (N, C, H, W)."""
        if skip is None:
            return self.convs(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        x = resize(x, skip.shape[2:], mode="nearest")
        weighed = skip if self.attention is None else self.attention(skip, x)
        return self.convs(torch.cat([x, weighed], dim=1))


@register_head(name="unet")
class UNetHead(nn.Module):
    """A U-Net decoder up to the image's own resolution.

    Args:
        channels, strides: Channels and strides of the pyramid, fine to coarse.
        num_classes: Output channels.
        width: Channels at the coarsest skip; each step halves them.
        attention: Weight the skips by an attention gate.
    """

    finest_stride: ClassVar[int] = 2

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        *,
        width: int = 256,
        attention: bool = False,
    ) -> None:
        super().__init__()
        check_pyramid(channels, strides)
        skips = [*reversed(channels[:-1]), *[0] * round(math.log2(strides[0]))]
        self.blocks = nn.ModuleList()
        dim_in = channels[-1]
        for step, dim_skip in enumerate(skips):
            dim = max(width >> step, 16)
            self.blocks.append(UpBlock(dim_in, dim_skip, dim, attention=attention))
            dim_in = dim
        self.classifier = Classifier(dim_in, num_classes, drop_rate=0.0)

    def forward(self, features: list[Tensor]) -> Tensor:
        """[(N, C_i, H_i, W_i), ...] to (N, num_classes, H_0 * strides[0], W_0 * strides[0])."""
        x, skips = features[-1], features[-2::-1]
        for step, block in enumerate(self.blocks):
            x = block(x, skips[step] if step < len(skips) else None)
        return self.classifier(x)


@register_head(name="attention_unet")
class AttentionUNetHead(UNetHead):
    """Attention U-Net's decoder: `UNetHead` with attention gates on the skips."""

    def __init__(self, channels: list[int], strides: list[int], num_classes: int) -> None:
        super().__init__(channels, strides, num_classes, attention=True)
