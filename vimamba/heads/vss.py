"""A U-shaped decoder of VSS blocks: that of Swin-UMamba-D (Liu et al. 2024, arXiv:2402.03302).

From the coarsest level up: expand every cell to four, concatenate the skip, project, mix with the
blocks of VMamba's first generation.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from vimamba.heads.blocks import check_pyramid
from vimamba.heads.registry import register_head
from vimamba.layers import GATED_SS2D, SS2D, PatchExpand, VSSBlock, drop_path_rates
from vimamba.scan_orders import order_of_block


class VSSUpBlock(nn.Module):
    """Expand, join the skip, mix.

    Args:
        dim_in, dim: Channels in, and of the skip and out.
        scan_orders, drop_path_rates: One for every block.
    """

    def __init__(
        self, dim_in: int, dim: int, *, scan_orders: list[str], drop_path_rates: list[float]
    ) -> None:
        super().__init__()
        self.upsample = PatchExpand(dim_in, dim)
        self.join = nn.Linear(2 * dim, dim)
        self.blocks = nn.Sequential(
            *(
                VSSBlock(
                    dim,
                    SS2D(dim, scan_order=order, **GATED_SS2D),
                    mlp_ratio=0.0,
                    drop_path=rate,
                )
                for rate, order in zip(drop_path_rates, scan_orders, strict=True)
            )
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, h, w, C_in) and (N, H, W, C) to (N, H, W, C)."""
        x = self.upsample(x)[:, : skip.shape[1], : skip.shape[2]]
        return self.blocks(self.join(torch.cat([x, skip], dim=-1)))


@register_head(name="vss_unet")
class VSSHead(nn.Module):
    """A decoder of VSS blocks up to the image's own resolution.

    Args:
        channels, strides: Of the pyramid, fine to coarse; neighboring strides differ by two.
        num_classes: Output channels.
        depth: Blocks per level.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn.
        drop_path_rate: Drop rate of the last block; earlier rates grow linearly to it.
        deep_supervision: Also classify the levels below the finest.
    """

    finest_stride: ClassVar[int] = 4

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        *,
        depth: int = 2,
        scan_order: str | Sequence[str] = "cross",
        drop_path_rate: float = 0.2,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_pyramid(channels, strides)
        for fine, coarse in pairwise(strides):
            if coarse != 2 * fine:
                raise ValueError(f"strides={strides} must double from level to level")
        ups = list(pairwise(reversed(channels)))
        rates = drop_path_rates(drop_path_rate, [depth] * len(ups))
        self.blocks = nn.ModuleList(
            VSSUpBlock(
                a,
                b,
                scan_orders=[order_of_block(scan_order, i * depth + j) for j in range(depth)],
                drop_path_rates=rates[i],
            )
            for i, (a, b) in enumerate(ups)
        )
        self.expand = PatchExpand(channels[0], channels[0], scale=strides[0])
        self.classifier = nn.Conv2d(channels[0], num_classes, 1)
        coarse = list(reversed(channels))[1:] if deep_supervision else []
        self.aux_classifiers = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in coarse)

    def forward_all(self, features: list[Tensor]) -> list[Tensor]:
        """Logits of `forward`; with `deep_supervision` also of every level, fine to coarse."""
        x, *skips = (f.permute(0, 2, 3, 1) for f in reversed(features))
        levels = []
        for block, skip in zip(self.blocks, skips, strict=True):
            x = block(x, skip)
            levels.append(x.permute(0, 3, 1, 2))
        coarse = levels[: len(self.aux_classifiers)]
        outputs = [c(level) for c, level in zip(self.aux_classifiers, coarse, strict=True)]
        return [self.classifier(self.expand(x).permute(0, 3, 1, 2)), *reversed(outputs)]

    def forward(self, features: list[Tensor]) -> Tensor:
        """[(N, C_i, H_i, W_i), ...] to (N, num_classes, H_0 * strides[0], W_0 * strides[0])."""
        return self.forward_all(features)[0]
