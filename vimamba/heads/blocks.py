"""Blocks shared by several heads."""

from typing import Any

from torch import Tensor, nn

from vimamba.layers import SS2D, VSSBlock
from vimamba.timm_layers import ConvNormAct as ConvNormActBase


def check_pyramid(channels: list[int], strides: list[int]) -> None:
    """Fail on a pyramid that no head can use.

    Raises:
        ValueError: Fewer than two levels, or `strides` that do not grow.
    """
    if len(channels) != len(strides) or len(channels) < 2:
        raise ValueError(f"channels={channels} and strides={strides} must name two levels or more")
    if list(strides) != sorted(set(strides)):
        raise ValueError(f"strides={strides} must grow from level to level")


class ConvNormAct(ConvNormActBase):
    """Convolution, BatchNorm and ReLU, initialized as in mmcv's ConvModule."""

    def __init__(self, dim_in: int, dim: int, kernel_size: int) -> None:
        super().__init__(dim_in, dim, kernel_size)
        weight: Tensor = self.conv.weight  # type: ignore[assignment]
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


class Classifier(nn.Module):
    """Channel dropout, then a projection of every pixel to classes.

    Args:
        dim: Channels in.
        num_classes: Channels out.
        drop_rate: Rate of channel dropout.
    """

    def __init__(self, dim: int, num_classes: int, *, drop_rate: float = 0.1) -> None:
        super().__init__()
        self.drop = nn.Dropout2d(drop_rate)
        self.conv = nn.Conv2d(dim, num_classes, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, num_classes, H, W)."""
        return self.conv(self.drop(x))


class ScanBlock(nn.Module):
    """A block of VMamba's second generation on channels-first maps.

    Args:
        dim_in, dim: Channels in and out.
        project: First project every cell to `dim` channels.
        mlp_ratio, drop_path: See `VSSBlock`.
        **scan: To `SS2D`.
    """

    def __init__(
        self,
        dim_in: int,
        dim: int,
        *,
        project: bool = True,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        **scan: Any,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim_in, dim, 1) if project else nn.Identity()
        mixer = SS2D(dim, **scan)
        self.block = VSSBlock(dim, mixer, mlp_ratio=mlp_ratio, drop_path=drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C, H, W)."""
        return self.block(self.proj(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
