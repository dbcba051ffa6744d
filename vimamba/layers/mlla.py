"""Stem, downsampling, block and linear attention of MLLA, also used by VSSD and Spatial-Mamba.

MLLA (Han et al. 2024, arXiv:2405.16605). Sizes: N batch, H and W image or grid, C channels, L
tokens, S features of queries and keys, P of values. Maps are channels-last.
"""

import re
from typing import Any

from timm.layers import DropPath
from torch import Tensor, nn

from vimamba.timm_layers import ConvNormAct, Mlp


class ResidualStem(nn.Module):
    """Five convolutions with batch norms, two of them strided, two in a residual branch."""

    def __init__(self, in_chans: int, dim: int, **dd: Any) -> None:
        super().__init__()
        half = dim // 2
        self.conv1 = ConvNormAct(in_chans, half, 3, stride=2, **dd)
        self.conv2 = nn.Sequential(
            ConvNormAct(half, half, 3, **dd), ConvNormAct(half, half, 3, apply_act=False, **dd)
        )
        self.conv3 = nn.Sequential(
            ConvNormAct(half, 4 * dim, 3, stride=2, **dd),
            ConvNormAct(4 * dim, dim, 1, apply_act=False, **dd),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, ceil(H / 4), ceil(W / 4), C)."""
        x = self.conv1(x)
        return self.conv3(x + self.conv2(x)).permute(0, 2, 3, 1)


class BottleneckDownsample(nn.Module):
    """A strided depthwise convolution between two pointwise ones, with four times the channels."""

    def __init__(self, dim_in: int, dim: int, **dd: Any) -> None:
        super().__init__()
        hidden = 4 * dim
        self.expand = nn.Conv2d(dim_in, hidden, 1, **dd)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride=2, padding=1, groups=hidden, **dd)
        self.project = nn.Conv2d(hidden, dim, 1, **dd)
        self.norm = nn.BatchNorm2d(dim, **dd)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C_in) to (N, ceil(H / 2), ceil(W / 2), C)."""
        x = self.act(self.expand(x.permute(0, 3, 1, 2)))
        return self.norm(self.project(self.act(self.depthwise(x)))).permute(0, 2, 3, 1)


class DepthwiseConv(nn.Conv2d):
    """A depthwise 3x3 convolution of channels-last maps."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim, **dd)

    def forward(self, input: Tensor) -> Tensor:
        """(N, H, W, C) to the same shape."""
        x = input.permute(0, 3, 1, 2)
        return self._conv_forward(x, self.weight, self.bias).permute(0, 2, 3, 1)


class PositionedBlock(nn.Module):
    """Pre-norm residual block: a mixer and an MLP, each after a position-encoding convolution.

    Args:
        dim: C.
        mixer: Module from (N, H, W, C) to the same shape.
        mlp_ratio: Hidden channels of the MLP divided by C.
        drop_path: Rate of stochastic depth.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self, dim: int, mixer: nn.Module, *, mlp_ratio: float, drop_path: float, **dd: Any
    ) -> None:
        super().__init__()
        self.cpe1 = DepthwiseConv(dim, **dd)
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)
        self.cpe2 = DepthwiseConv(dim, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same shape."""
        x = x + self.cpe1(x)
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        x = x + self.cpe2(x)
        return x + self.drop_path(self.mlp(self.norm2(x)))


def mean_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention without a softmax, divided by the number of tokens: q (k^T v) / L.

    In half precision a mean is representable where the sum over many tokens is not.

    Args:
        q: (..., M, S).
        k: (..., L, S).
        v: (..., L, P).

    Returns:
        (..., M, P).
    """
    scale = k.shape[-2] ** -0.5
    return q @ ((k * scale).transpose(-2, -1) @ (v * scale))


def _downsample(match: re.Match[str]) -> str:
    """The official code downsamples at the end of a stage, ours at the start of the next."""
    layer = "norm" if match[3] == "norm" else ("expand", "depthwise", "project")[int(match[2])]
    return f"stages.{int(match[1]) + 1}.downsample.{layer}.{match[4]}"


def positioned_rules() -> dict[str, Any]:
    """Rules for everything except the mixers, for MLLA's names, which later networks kept."""
    block = r"layers\.(\d+)\.blocks\.(\d+)\."
    return {
        r"patch_embed\.(conv\d(?:\.\d)?)\.conv\.(.*)": r"stem.\1.conv.\2",
        r"patch_embed\.(conv\d(?:\.\d)?)\.norm\.(.*)": r"stem.\1.bn.\2",
        r"layers\.(\d+)\.downsample\.conv\.(\d)\.(conv|norm)\.(.*)": _downsample,
        block + r"(cpe\d|mlp\.fc\d)\.(.*)": r"stages.\1.blocks.\2.\3.\4",
        block + r"(?:norm|ln_)(\d)\.(.*)": r"stages.\1.blocks.\2.norm\3.\4",
        r"norm\.(.*)": r"norm.\1",
        r"head\.(weight|bias)": r"head.fc.\1",
        r"outnorm(\d)\.(.*)": r"stage_norms.\1.\2",
    }
