"""Blocks of VMamba's first generation, used by most medical networks.

Sizes: N batch, H and W image or grid, P patch, C channels. Everything is channels-last.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import checkpoint_seq
from torch import Tensor, nn

from vimamba.layers.init_linear import init_linear_
from vimamba.layers.slabs import by_slabs, slab_size
from vimamba.layers.ss2d import ScanMixer
from vimamba.timm_layers import LayerScale, Mlp

# arguments of SS2D in that generation
GATED_SS2D: dict[str, Any] = {"d_state": 16, "expand": 2.0, "gated": True, "conv_bias": True}


class PatchStem(nn.Module):
    """A convolution with nonoverlapping patches, and a norm.

    Incomplete patches at the right and bottom are dropped, as in the official code; to cover every
    pixel, pad the image to multiples of `patch_size` first.
    """

    def __init__(self, in_chans: int, dim: int, *, patch_size: int = 4, **dd: Any) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.conv1 = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size, **dd)
        self.norm1 = nn.LayerNorm(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, floor(H / P), floor(W / P), C)."""
        return self.norm1(self.conv1(x).permute(0, 2, 3, 1))


class OverlapStem(nn.Module):
    """Two strided 3x3 convolutions, each with a norm, with a total stride of 4."""

    def __init__(self, in_chans: int, dim: int, *, eps: float = 1e-5, **dd: Any) -> None:
        super().__init__()
        self.patch_size = 1
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, **dd)
        self.norm1 = nn.LayerNorm(dim // 2, eps=eps, **dd)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=eps, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, H / 4, W / 4, C)."""
        x = self.act(self.norm1(self.conv1(x).permute(0, 2, 3, 1)))
        return self.norm2(self.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class OverlapDownsample(nn.Module):
    """Strided 3x3 convolution, then norm."""

    def __init__(
        self, dim_in: int, dim: int, *, bias: bool = True, eps: float = 1e-5, **dd: Any
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim, 3, stride=2, padding=1, bias=bias, **dd)
        self.norm = nn.LayerNorm(dim, eps=eps, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C_in) to (N, ceil(H / 2), ceil(W / 2), C)."""
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Concatenate 2x2 neighbors, norm, project (Swin, arXiv:2103.14030).

    An odd side is padded with zeros, as in VMamba's current code. The code used for its training,
    and MedMamba's, drop the last row instead: nothing would be left of images of 28 pixels.
    """

    def __init__(self, dim_in: int, dim: int, **dd: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim_in, **dd)
        self.reduction = nn.Linear(4 * dim_in, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C_in) to (N, ceil(H / 2), ceil(W / 2), C); an odd side gets a zero row."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat([x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
        return self.reduction(self.norm(x))


class PatchExpand(nn.Module):
    """Project every cell to a square of finer cells, then norm: the inverse of merging.

    Swin-Unet (Cao et al. 2021, arXiv:2105.05537).

    Args:
        dim_in, dim: Channels in and out.
        scale: Side of the square, cells.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(self, dim_in: int, dim: int, *, scale: int = 2, **dd: Any) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(dim_in, scale * scale * dim, bias=False, **dd)
        self.norm = nn.LayerNorm(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C_in) to (N, H * scale, W * scale, C)."""
        x = self.expand(x).unflatten(-1, (self.scale, self.scale, -1))
        return self.norm(x.transpose(2, 3).flatten(1, 2).flatten(2, 3))


class VSSBlock(nn.Module):
    """Pre-norm residual block: a mixer, then an MLP (if `mlp_ratio` is not 0).

    Args:
        dim: C.
        mixer: Module from tokens (N, ..., C) to the same shape.
        mlp_ratio: Hidden channels of the MLP divided by C; 0 for no MLP.
        drop_path: Probability of dropping the mixer's and the MLP's update.
        layer_scale: Initial value of learned factors of the updates; 0 for no factors.
        eps: Epsilon of the norms.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        *,
        mlp_ratio: float,
        drop_path: float,
        layer_scale: float = 0.0,
        eps: float = 1e-5,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps, **dd)
        self.mixer = mixer
        self.ls1 = LayerScale(dim, layer_scale, **dd) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)
        self.has_mlp = mlp_ratio > 0
        self.norm2 = nn.LayerNorm(dim, eps=eps, **dd) if self.has_mlp else nn.Identity()
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd) if self.has_mlp else nn.Identity()
        scaled = self.has_mlp and layer_scale
        self.ls2 = LayerScale(dim, layer_scale, **dd) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, ..., C) to the same shape."""
        x = x + self.drop_path(self.ls1(self.mixer(self.norm1(x))))
        if self.has_mlp:
            if not torch.jit.is_scripting():
                size = slab_size(x, [self.norm2, self.mlp, self.ls2, self.drop_path])
                if size > 0:
                    return by_slabs(self._add_mlp, x, size)
            x = self._add_mlp(x)
        return x

    def _add_mlp(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class Stage(nn.Module):
    """Halve the grid (except in the first stage), then run the blocks."""

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C_in) to (N, H / 2, W / 2, C)."""
        return self.mix(self.downsample(x))

    def mix(self, x: Tensor) -> Tensor:
        """Run the blocks: (N, H, W, C) to the same shape."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class NormedStage(Stage):
    """A stage whose output is normalized, also as input of the next one."""

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module], norm: nn.Module) -> None:
        super().__init__(downsample, blocks)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """As `Stage`, in the channel layout of its parts."""
        return self.norm(self.mix(self.downsample(x)))


def init_vss_(module: nn.Module) -> None:
    """Initialize linear layers and scans in a module as in VMamba's code."""
    init_linear_(module)
    for layer in module.modules():
        if isinstance(layer, ScanMixer):
            layer.reset_parameters()
