"""MambaVision (Hatamizadeh and Kautz 2024, arXiv:2407.08083): convolutions, scans, attention.

The first two stages convolve; the last two cut the map into windows, mix each by selective scans in
the first half of their blocks and by attention in the second. A scan's gate is not a factor but
half of the output's channels.

Written from the paper and the official model's outputs, without its code, which may not be used
commercially (https://github.com/NVlabs/MambaVision, NVIDIA Source Code License-NC). Neither may its
weights (CC-BY-NC-SA-4.0).
Sizes: N batch, H and W image or map, C channels, w side of a window, L = w * w tokens.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    ProjectedScan,
    SelectiveScan,
    Stage,
    VSSBlock,
    WindowStage,
    join_branches,
    split_paths,
)
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.models._builder import build_model, make_cfgs
from vimamba.models._staged import StagedBackbone, StagedParts
from vimamba.scan_orders import num_paths
from vimamba.timm_layers import Attention

__all__ = ["MambaVision"]


class ConvStem(nn.Module):
    """Two strided 3x3 convolutions: a quarter of the image's side."""

    def __init__(self, in_chans: int, dim: int, *, hidden: int, **dd: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, hidden, 3, stride=2, padding=1, bias=False, **dd)
        self.norm1 = nn.BatchNorm2d(hidden, eps=1e-4, **dd)
        self.conv2 = nn.Conv2d(hidden, dim, 3, stride=2, padding=1, bias=False, **dd)
        self.norm2 = nn.BatchNorm2d(dim, eps=1e-4, **dd)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C, ceil(H / 4), ceil(W / 4))."""
        x = self.act(self.norm1(self.conv1(x)))
        return self.act(self.norm2(self.conv2(x)))


class ConvBlock(nn.Module):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, dim: int, *, drop_path: float, **dd: Any) -> None:
        super().__init__()
        layers = {
            "conv1": nn.Conv2d(dim, dim, 3, padding=1, **dd),
            "norm1": nn.BatchNorm2d(dim, **dd),
            "act": nn.GELU(approximate="tanh"),
            "conv2": nn.Conv2d(dim, dim, 3, padding=1, **dd),
            "norm2": nn.BatchNorm2d(dim, **dd),
        }
        self.mixer = nn.Sequential(OrderedDict(layers))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        return x + self.drop_path(self.mixer(x))


class WindowScan(ProjectedScan):
    """Scan half of the channels inside a window; the other half bypasses the scan.

    Both halves are convolved first, with a kernel of three tokens in raster order.

    Args:
        dim: C.
        window: w.
        scan_order: Of the scan inside the window.
        d_state: States per channel of the scan.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self, dim: int, window: int, *, scan_order: str, d_state: int = 8, **dd: Any
    ) -> None:
        sizes = {"d_state": d_state, "dt_rank": math.ceil(dim / 16)}
        # the official code adds the step size bias in the projection and again in the scan
        super().__init__(
            dim // 2, num_paths=num_paths(scan_order, 2), bias_scale=2.0, **sizes, **dd
        )
        self.window = [window, window]
        self.scan_order = scan_order
        self.in_proj = nn.Linear(dim, dim, bias=False, **dd)
        self.conv = nn.Conv1d(dim, dim, 3, padding=1, groups=dim, bias=False, **dd)
        self.out_proj = nn.Linear(dim, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Windows (N, L, C) to (N, L, C)."""
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        # causal, so with the next token before it: the tokens of each output lie one ahead
        ahead = F.pad(self.in_proj(x), (0, 0, 0, 1))
        weight = self.conv.weight.view(1, -1, 3)
        x = torch.ops.vimamba.causal_conv_along_paths(ahead, weight, None, None, "silu", "auto")
        u, beside = x[:, 0, 1:].chunk(2, dim=-1)
        paths = torch.ops.vimamba.scan_paths(u, self.scan_order, self.window)
        y = self.scan.mix(u, self.x_proj(u), paths)
        return self.out_proj(torch.cat([y, beside], dim=-1))


class MambaVision(StagedBackbone):
    """MambaVision backbone with a classifier.

    Args:
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: As in timm.
        depths: Blocks per stage.
        dims: Channels per stage.
        windows: Side of the windows of each stage; 0 for a stage of convolutions. No shape depends
            on it, but weights are trained with one: the published dense models have larger windows.
        heads: Attention heads of each stage that has windows.
        stem_dim: Channels between the stem's convolutions.
        layer_scale: Initial value of learned factors on residual branches in windows; 0 for none.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum, inside each window; or a list of them, which the blocks that scan take in turn.
        stage_norm: A norm on each stage's output and no classifier: the layout of the published
            segmentation and detection backbones.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (1, 3, 8, 4),
        dims: tuple[int, ...] = (80, 160, 320, 640),
        windows: tuple[int, ...] = (0, 0, 14, 7),
        heads: tuple[int, ...] = (0, 0, 8, 16),
        stem_dim: int = 32,
        layer_scale: float = 0.0,
        scan_order: str | Sequence[str] = "raster",
        **options: Any,
    ) -> None:
        if not len(depths) == len(dims) == len(windows) == len(heads):
            sizes = f"depths={depths}, dims={dims}, windows={windows} and heads={heads}"
            raise ValueError(f"{sizes} must name the same stages")

        def block(
            stage: int, number: int, dim: int, rate: float, orders: Iterator[str], **dd: Any
        ) -> nn.Module:
            if not windows[stage]:
                return ConvBlock(dim, drop_path=rate, **dd)
            if number < (depths[stage] + 1) // 2:
                mixer = WindowScan(dim, windows[stage], scan_order=next(orders), **dd)
            else:
                mixer = Attention(dim, heads[stage], qkv_bias=True, **dd)
            scales = {"mlp_ratio": 4.0, "layer_scale": layer_scale}
            return VSSBlock(dim, mixer, drop_path=rate, **scales, **dd)

        def stage(
            number: int, downsample: nn.Module, blocks: list[nn.Module], **_dd: Any
        ) -> nn.Module:
            window = windows[number]
            if not window:
                return Stage(downsample, blocks)
            return WindowStage(downsample, blocks, window=window)

        parts = StagedParts(
            depths=depths,
            dims=dims,
            stem=partial(ConvStem, hidden=stem_dim),
            block=block,
            downsample=partial(nn.Conv2d, kernel_size=3, stride=2, padding=1, bias=False),
            stage=stage,
            scan_order=scan_order,
            norm=nn.BatchNorm2d,
            dense_norm=partial(LayerNorm2d, eps=1e-5),
            output_fmt="NCHW",
        )
        super().__init__(parts, **options)
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """All linear layers, including those of the step sizes, alike, as in the official code."""
        super().init_parameters()
        for module in self.modules():
            if isinstance(module, SelectiveScan):
                nn.init.zeros_(module.dt_bias)

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, give a path's parameters an axis, and join the convolutions of both halves."""
        return join_branches(split_paths(super().from_official(state_dict), num_paths=1))


def _stem(match: re.Match[str]) -> str:
    layers = {"0": "conv1", "1": "norm1", "3": "conv2", "4": "norm2"}
    return f"stem.{layers[match[1]]}.{match[2]}"


def _next_stage(match: re.Match[str]) -> str:
    """Official code downsamples at the end of a stage, ours at the start of the next."""
    return f"stages.{int(match[1]) + 1}.downsample.weight"


_BLOCK, _OURS = r"levels\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.blocks.\2."
RULES = {
    r"patch_embed\.conv_down\.([0134])\.(.*)": _stem,
    r"levels\.([01])\.blocks\.(\d+)\.((?:conv|norm)\d\..*)": r"stages.\1.blocks.\2.mixer.\3",
    _BLOCK + r"gamma_(\d)": _OURS + r"ls\3.gamma",
    _BLOCK + r"mixer\.(A_log|D)": _OURS + r"mixer.scan.\3",
    _BLOCK + r"mixer\.dt_proj\.weight": _OURS + "mixer.scan.dt_proj.0.weight",
    _BLOCK + r"mixer\.dt_proj\.bias": _OURS + "mixer.scan.dt_bias",
    _BLOCK + r"mixer\.conv\dd_x\.weight": _OURS + "mixer.conv.weight@0",
    _BLOCK + r"mixer\.conv\dd_z\.weight": _OURS + "mixer.conv.weight@1",
    _BLOCK + r"(norm\d|mixer\.[a-z_]+|mlp\.fc\d)\.(weight|bias)": _OURS + r"\3.\4",
    r"levels\.(\d+)\.downsample\.reduction\.0\.weight": _next_stage,
    r"norm\.(.*)": r"norm.\1",
    r"head\.(weight|bias)": r"head.fc.\1",
    r"outnorm(\d)\.(.*)": r"stage_norms.\1.\2",
}
_SQUASHED = {"size": 512, "crop_pct": 0.93, "crop_mode": "squash"}
# top-1 accuracy, repository and file of the weights, and what else is their own
_RELEASED: dict[str, tuple[float, str, str, dict[str, Any]]] = {
    "mambavision_t.in1k": (82.3, "T-1K", "tiny_1k", {}),
    "mambavision_t2.in1k": (82.7, "T2-1K", "tiny2_1k", {"crop_pct": 0.98}),
    "mambavision_s.in1k": (83.3, "S-1K", "small_1k", {"crop_pct": 0.93}),
    "mambavision_b.in1k": (84.2, "B-1K", "base_1k", {}),
    "mambavision_b.in21k_ft_in1k": (84.9, "B-21K", "base_21k", {}),
    "mambavision_l.in1k": (85.0, "L-1K", "large_1k", {}),
    "mambavision_l.in21k_ft_in1k": (86.1, "L-21K", "large_21k", {}),
    "mambavision_l2.in1k": (85.3, "L2-1K", "large2_1k", {}),
    "mambavision_l2_512.in21k_ft_in1k": (87.3, "L2-512-21K", "L2_21k_240m_512", _SQUASHED),
    "mambavision_l3_256.in21k_ft_in1k": (87.3, "L3-256-21K", "L3_21k_740m_256", {"size": 256}),
    "mambavision_l3_512.in21k_ft_in1k": (88.1, "L3-512-21K", "L3_21k_740m_512", _SQUASHED),
}
register_family(
    "MambaVision",
    MambaVision,
    RULES,
    layouts=({"stage_norm": True},),
    top1={name: top1 for name, (top1, *_) in _RELEASED.items()},
)

default_cfgs = make_cfgs(
    {
        **{
            name: {
                "hub": f"nvidia/MambaVision-{hub}",
                "file": f"mambavision_{file}.pth.tar",
                **own,
            }
            for name, (_, hub, file, own) in _RELEASED.items()
        },
        "test_mambavision.untrained": {"size": 96},
    },
    license="cc-by-nc-sa-4.0",
    crop_pct=1.0,
    first_conv="stem.conv1",
    classifier="head.fc",
    origin_url="https://github.com/NVlabs/MambaVision",
    paper_name="MambaVision: A Hybrid Mamba-Transformer Vision Backbone",
    paper_ids="arXiv:2407.08083",
    notes=("weights for non-commercial use only; so is the official code",),
)


def _dims(first: int) -> tuple[int, ...]:
    return tuple(first * 2**i for i in range(4))


_S: dict[str, Any] = {"depths": (3, 3, 7, 5), "dims": _dims(96), "stem_dim": 64}
_B: dict[str, Any] = {**_S, "depths": (3, 3, 10, 5), "dims": _dims(128), "layer_scale": 1e-5}
_L: dict[str, Any] = {**_B, "dims": _dims(196), "heads": (0, 0, 16, 32)}
_L2: dict[str, Any] = {**_L, "depths": (3, 3, 12, 5)}
_L3: dict[str, Any] = {**_L, "depths": (3, 3, 20, 10), "dims": _dims(256)}


@register_model
def mambavision_t(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-T: 31.8 M parameters."""
    return build_model(MambaVision, "mambavision_t", pretrained, kwargs)


@register_model
def mambavision_t2(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-T2, 11 blocks in stage 3: 35.1 M parameters."""
    return build_model(MambaVision, "mambavision_t2", pretrained, kwargs, depths=(1, 3, 11, 4))


@register_model
def mambavision_s(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-S: 50.1 M parameters."""
    return build_model(MambaVision, "mambavision_s", pretrained, kwargs, **_S)


@register_model
def mambavision_b(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-B: 97.7 M parameters."""
    return build_model(MambaVision, "mambavision_b", pretrained, kwargs, **_B)


@register_model
def mambavision_l(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L: 228.0 M parameters."""
    return build_model(MambaVision, "mambavision_l", pretrained, kwargs, **_L)


@register_model
def mambavision_l2(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L2, 12 blocks in stage 3: 241.6 M parameters."""
    return build_model(MambaVision, "mambavision_l2", pretrained, kwargs, **_L2)


@register_model
def mambavision_l2_512(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L2 with windows for images of 512 pixels: 241.6 M parameters."""
    sizes = {**_L2, "windows": (0, 0, 32, 16)}
    return build_model(MambaVision, "mambavision_l2_512", pretrained, kwargs, **sizes)


@register_model
def mambavision_l3_256(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L3 with windows for images of 256 pixels: 739.6 M parameters."""
    sizes = {**_L3, "windows": (0, 0, 16, 8)}
    return build_model(MambaVision, "mambavision_l3_256", pretrained, kwargs, **sizes)


@register_model
def mambavision_l3_512(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L3 with windows for images of 512 pixels: 739.6 M parameters."""
    sizes = {**_L3, "windows": (0, 0, 32, 16)}
    return build_model(MambaVision, "mambavision_l3_512", pretrained, kwargs, **sizes)


@register_model
def test_mambavision(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """A very small MambaVision for tests; no weights."""
    sizes: dict[str, Any] = {"depths": (1, 1, 3, 2), "dims": (8, 16, 24, 32), "stem_dim": 8}
    sizes |= {"windows": (0, 0, 4, 7), "heads": (0, 0, 4, 4)}
    return build_model(MambaVision, "test_mambavision", pretrained, kwargs, **sizes)
