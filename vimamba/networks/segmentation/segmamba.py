"""SegMamba (Xing et al. 2024, arXiv:2401.13560): Mamba in the encoder of a UNETR for volumes.

Every stage halves the volume, convolves (gated spatial convolution) and runs Mamba layers that read
the cells forwards, backwards and across slices and sum the results. An MLP computes the skip from
the stage's output.

Official code: https://github.com/ge-xing/SegMamba. It cuts the raster into 64, 32, 16 and 8 pieces
in its four stages, which are slices only if the volume has 128 of them. Here they are the slices of
any volume; weights trained on other volumes need the pieces with `scan_order=[".. +
interslice(pieces=64)", ...]`, one entry per block.

Sizes: N batch, C channels, *grid the three axes of a map.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vimamba.checkpoints import Rules, StateDict, rename_keys
from vimamba.layers import MambaMixer, join_branches, mamba_rules
from vimamba.networks.registry import register_network
from vimamba.networks.segmentation.segmenter import Segmenter
from vimamba.networks.segmentation.unetr import ResidualBlock, UpBlock, unetr_rules
from vimamba.scan_orders import num_paths, order_of_block


class GatedConv(nn.Module):
    """The paper's gated spatial convolution: the sum of two branches, with a residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv3d(dim, dim, 3, padding=1)
        self.conv3 = nn.Conv3d(dim, dim, 1)
        self.conv4 = nn.Conv3d(dim, dim, 1)
        self.norm = nn.InstanceNorm3d(dim)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *grid) to the same shape."""
        y = self.act(self.norm(self.conv1(x)))
        y = self.act(self.norm(self.conv2(y)))
        y = y + self.act(self.norm(self.conv3(x)))
        return self.act(self.norm(self.conv4(y))) + x


class MambaBlock(nn.Module):
    """Pre-norm residual block: the sum of Mamba mixers along every path of a scan order."""

    def __init__(self, dim: int, scan_order: str) -> None:
        super().__init__()
        self.scan_order = scan_order
        self.norm = nn.LayerNorm(dim)
        self.mixer = MambaMixer(dim, num_paths=num_paths(scan_order, 3), average_paths=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, *grid, C) to the same shape."""
        paths = torch.ops.vimamba.scan_paths(x, self.scan_order)
        return x + self.mixer(self.norm(x).flatten(1, -2), paths).view(x.shape)


class SkipMlp(nn.Module):
    """An instance norm and two projections of every cell."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(dim)
        self.fc1 = nn.Conv3d(dim, 2 * dim, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv3d(2 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *grid) to the same shape."""
        return self.fc2(self.act(self.fc1(self.norm(x))))


class Stage(nn.Module):
    """Halve the volume, convolve, run the Mamba blocks."""

    def __init__(self, downsample: nn.Module, dim: int, scan_orders: Sequence[str]) -> None:
        super().__init__()
        self.downsample = downsample
        self.gated_conv = GatedConv(dim)
        self.blocks = nn.Sequential(*(MambaBlock(dim, order) for order in scan_orders))
        self.mlp = SkipMlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *grid) to (N, C, *half)."""
        x = self.gated_conv(self.downsample(x))
        return self.blocks(x.movedim(1, -1)).movedim(-1, 1).contiguous()


class SegMamba(Segmenter):
    """SegMamba.

    Args:
        num_classes: Channels of the logits.
        in_chans: Channels of the volumes.
        depths: Mamba blocks per stage.
        dims: Channels of the stages.
        hidden_size: Channels of the bottleneck.
        scan_order: One of `vimamba.list_scan_orders(dims=3)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn. Every path has its own mixer.
    """

    fewest_cells = 2
    checkpoints_parts = True

    def __init__(
        self,
        num_classes: int,
        in_chans: int = 4,
        *,
        depths: Sequence[int] = (2, 2, 2, 2),
        dims: Sequence[int] = (48, 96, 192, 384),
        hidden_size: int = 768,
        scan_order: str | Sequence[str] = "raster + raster(reverse=True) + interslice",
    ) -> None:
        if len(depths) != len(dims):
            raise ValueError(f"depths={depths} and dims={dims} must have one entry per stage")
        super().__init__(
            (2 ** len(dims),) * 3,
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained_cfg={
                "architecture": "segmamba",
                "input_size": (in_chans, 128, 128, 128),
                "origin_url": "https://github.com/ge-xing/SegMamba",
                "paper_ids": "arXiv:2401.13560",
            },
        )
        self.stages = nn.ModuleList()
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            if i:
                halve = nn.Conv3d(dims[i - 1], dim, 2, stride=2)
                downsample = nn.Sequential(nn.InstanceNorm3d(dims[i - 1]), halve)
            else:
                downsample = nn.Sequential(nn.Conv3d(in_chans, dim, 7, stride=2, padding=3))
            before = sum(depths[:i])
            orders = [order_of_block(scan_order, before + j) for j in range(depth)]
            self.stages.append(Stage(downsample, dim, orders))
        inwards = pairwise((in_chans, *dims, hidden_size))
        self.skips = nn.ModuleList(ResidualBlock(a, b, dims=3) for a, b in inwards)
        upwards = pairwise((hidden_size, *reversed(dims)))
        self.ups = nn.ModuleList(UpBlock(a, b, dims=3) for a, b in upwards)
        self.refine = ResidualBlock(dims[0], dims[0], dims=3)
        self.classifier = nn.Conv3d(dims[0], num_classes, 1)

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits of the padded volume; see `Segmenter.predict`."""
        skips = [self.run(self.skips[0], x)]
        for stage, skip in zip(self.stages, self.skips[1:], strict=True):
            x = self.run(stage, x)
            skips.append(self.run(skip, stage.mlp(x)))  # type: ignore[operator]
        x = skips.pop()
        for up in self.ups:
            x = self.run(up, x, skips.pop())
        return [self.classifier(self.run(self.refine, x))]

    def body_parameters(self) -> list[nn.Parameter]:
        """Parameters of the encoder."""
        return [p for part in (self.stages, self.skips) for p in part.parameters()]

    def group_matcher(self, coarse: bool = False) -> Any:
        """The encoder's stages for layer-wise learning rates; everything else is the last group."""
        return {"stem": r"^stages\.0\.downsample", "blocks": r"^(?:stages|skips)\.(\d+)"}

    @classmethod
    def official_rules(cls) -> Rules:
        """Rules for renaming an official file's parameters."""
        return _OFFICIAL_KEYS

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename the parameters of an official file."""
        return join_branches(rename_keys(state_dict, self.official_rules()))


_OFFICIAL_KEYS: Rules = {
    r"vit\.downsample_layers\.(\d+)\.(.*)": r"stages.\1.downsample.\2",
    r"vit\.gscs\.(\d+)\.proj\.(.*)": r"stages.\1.gated_conv.conv1.\2",
    r"vit\.gscs\.(\d+)\.proj(\d)\.(.*)": r"stages.\1.gated_conv.conv\2.\3",
    r"vit\.stages\.(\d+)\.(\d+)\.norm\.(.*)": r"stages.\1.blocks.\2.norm.\3",
    **mamba_rules(
        r"vit\.stages\.(\d+)\.(\d+)\.mamba\.", r"stages.\1.blocks.\2.mixer.", ["", "_b", "_s"]
    ),
    r"vit\.mlps\.(\d+)\.(.*)": r"stages.\1.mlp.\2",
    **unetr_rules(5),
    r"out\.conv\.conv\.(.*)": r"classifier.\1",
}


@register_network(task="segmentation")
def segmamba(
    *,
    num_classes: int,
    in_chans: int = 4,
    pretrained: bool = False,
    img_size: int | None = None,
    aux: bool = False,
    **kwargs: Any,
) -> SegMamba:
    """SegMamba of published size for volumes of any size: 67.4 M parameters.

    `kwargs` are additional arguments of `vimamba.networks.SegMamba`.
    """
    if pretrained:
        raise ValueError("pretrained=True: there are no published weights of segmamba")
    if aux:
        raise ValueError("aux=True: segmamba has no auxiliary outputs")
    return SegMamba(num_classes, in_chans, **kwargs)
