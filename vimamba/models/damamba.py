"""DAMamba (Li et al. 2025, arXiv:2502.12627): a scan of features that are fetched from elsewhere.

Before each scan, groups of channels are resampled at offsets that the map itself determines. One
scan then visits the resampled map. Every stage ends with a norm of the residual stream.

Official code: https://github.com/ltzovo/DAMamba (Apache-2.0 by its README). Its deformable operator
is `grid_sample` here.
Sizes: N batch, H and W image or map, C channels, G groups of channels.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    ConvDownsample,
    ConvStem,
    MapMlp,
    MapScan,
    NormedStage,
    init_map_scans_,
    split_paths,
    ss2d_rules,
)
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.models._builder import build_model, make_cfgs
from vimamba.models._staged import StagedBackbone, StagedParts
from vimamba.timm_layers import LayerScale2d

__all__ = ["DAMamba"]


class Resample(nn.Module):
    """Sample every group of channels at offsets that another map determines for each cell.

    Args:
        dim: C.
        head_dim: C / G.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(self, dim: int, head_dim: int, **dd: Any) -> None:
        super().__init__()
        if dim % head_dim:
            raise ValueError(f"head_dim={head_dim} must divide the {dim} channels")
        self.groups = dim // head_dim
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.act = nn.GELU()
        self.offset = nn.Linear(dim, 2 * self.groups, **dd)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Sample x (N, C, H, W) bilinearly at offsets from the map `guide` of the same shape."""
        height, width = x.shape[2], x.shape[3]
        offset = self.offset(self.act(self.norm(self.conv(guide).permute(0, 2, 3, 1))))
        # each group's steps along the width and the height, cells
        right, down = offset.unflatten(3, (self.groups, 2)).permute(0, 3, 1, 2, 4).unbind(4)
        # at least float32: coordinates in half precision are off by whole cells
        column = right + torch.arange(width, dtype=torch.float32, device=x.device)
        row = down + torch.arange(height, dtype=torch.float32, device=x.device).unsqueeze(1)
        place = torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], dim=4)
        place = place.flatten(0, 1)
        groups = x.unflatten(1, (self.groups, -1)).flatten(0, 1).type_as(place)
        sampled = F.grid_sample(groups, place, mode="bilinear", align_corners=False)
        return sampled.unflatten(0, (-1, self.groups)).flatten(1, 2).type_as(x)


class DynamicScan(MapScan):
    """Scan a resampled map.

    Args:
        dim: C.
        head_dim: Channels that are fetched from one place.
        scan_order: Of the scan over the resampled map.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(self, dim: int, head_dim: int, *, scan_order: str, **dd: Any) -> None:
        sizes = {"d_state": 1, "dt_rank": math.ceil(dim / 16), "eps": 1e-6}
        super().__init__(dim, scan_order=scan_order, **sizes, **dd)
        self.in_proj = nn.Conv2d(dim, dim, 1, bias=False, **dd)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.act = nn.SiLU()
        self.resample = Resample(dim, head_dim, **dd)
        self.out_proj = nn.Conv2d(dim, dim, 1, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        fetched = self.resample(self.act(self.conv(self.in_proj(x))), x)
        return self.out_proj(self.mix(fetched))


class DynamicBlock(nn.Module):
    """A depthwise convolution, a mixer and an MLP, each added to what it reads."""

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        *,
        mlp_ratio: float,
        layer_scale: float,
        drop_path: float,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.norm1 = LayerNorm2d(dim, **dd)
        self.mixer = mixer
        self.ls1 = LayerScale2d(dim, layer_scale, **dd) if layer_scale else nn.Identity()
        self.norm2 = nn.BatchNorm2d(dim, **dd)
        self.mlp = MapMlp(dim, int(dim * mlp_ratio), **dd)
        self.ls2 = LayerScale2d(dim, layer_scale, **dd) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        x = x + self.position(x)
        x = x + self.drop_path(self.ls1(self.mixer(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class DAMamba(StagedBackbone):
    """DAMamba backbone with a classifier.

    Args:
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: As in timm.
        depths: Blocks per stage.
        dims: Channels per stage.
        mlp_ratios: Hidden channels of the MLPs divided by channels, for each stage.
        layer_scales: Initial value of learned factors on each stage's residual branches; 0 for
            none.
        head_dim: Channels that are fetched from one place.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum, over the resampled map; or a list of them, which the blocks take in turn.
        device, dtype: Device and dtype of the parameters.
    """

    unsupported = frozenset({"stage_norm"})
    dense: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (3, 4, 12, 5),
        dims: tuple[int, ...] = (80, 160, 320, 512),
        mlp_ratios: tuple[float, ...] = (4.0, 4.0, 3.0, 3.0),
        layer_scales: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
        head_dim: int = 16,
        scan_order: str | Sequence[str] = "raster",
        **options: Any,
    ) -> None:
        def block(
            stage: int, _number: int, dim: int, rate: float, orders: Iterator[str], **dd: Any
        ) -> nn.Module:
            mixer = DynamicScan(dim, head_dim, scan_order=next(orders), **dd)
            sizes = {"mlp_ratio": mlp_ratios[stage], "layer_scale": layer_scales[stage]}
            return DynamicBlock(dim, mixer, drop_path=rate, **sizes, **dd)

        def stage(
            number: int, downsample: nn.Module, blocks: list[nn.Module], **dd: Any
        ) -> nn.Module:
            return NormedStage(downsample, blocks, LayerNorm2d(dims[number], **dd))

        parts = StagedParts(
            depths=depths,
            dims=dims,
            stem=ConvStem,
            block=block,
            downsample=ConvDownsample,
            stage=stage,
            scan_order=scan_order,
            norm=nn.Identity,
            output_fmt="NCHW",
        )
        super().__init__(parts, **options)
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """All convolutions and linear layers alike, also those of offsets; scans as in Mamba."""
        init_map_scans_(self)

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and give the scan's parameters an axis of paths."""
        return split_paths(super().from_official(state_dict), num_paths=1)


def _stage_norm(match: re.Match[str]) -> str:
    return f"stages.{int(match[1]) - 1}.norm.{match[2]}"


def _downsample(match: re.Match[str]) -> str:
    return f"stages.{match[1]}.downsample.{('conv', 'norm')[int(match[2])]}.{match[3]}"


_BLOCK, _OURS = r"stages\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.blocks.\2."
_MIXER = _BLOCK + r"token_mixer\."
RULES = {
    r"stem\.(.*)": r"stem.\1",
    r"stages\.(\d+)\.downsample\.([01])\.(.*)": _downsample,
    _BLOCK + r"(?:mlp\.conv|pos_embed)\.conv_constant": None,
    _BLOCK + r"pos_embed\.conv\.(.*)": _OURS + r"position.\3",
    _BLOCK + r"mlp\.conv\.conv\.(.*)": _OURS + r"mlp.conv.\3",
    _BLOCK + r"mlp\.(fc\d\..*)": _OURS + r"mlp.\3",
    _BLOCK + r"norm(\d)\.(?:norm\.)?(.*)": _OURS + r"norm\3.\4",
    _BLOCK + r"layer_scale_(\d)": _OURS + r"ls\3.gamma",
    _MIXER + r"da_scan\.dw_conv\.\d\.(?:\d\.)(.*)": _OURS + r"mixer.resample.norm.\3",
    _MIXER + r"da_scan\.dw_conv\.\d\.(.*)": _OURS + r"mixer.resample.conv.\3",
    _MIXER + r"da_scan\.(offset\..*)": _OURS + r"mixer.resample.\3",
    _MIXER + r"out_norm\.norm\.(.*)": _OURS + r"mixer.out_norm.\3",
    _MIXER + r"dt_projs_weight": _OURS + "mixer.scan.dt_proj.0.weight",
    **ss2d_rules(_MIXER, _OURS + "mixer."),
    r"norm(\d)\.norm\.(.*)": _stage_norm,
    r"head\.fc\.(.*)": r"head.fc.\1",
}
_TOP1 = {"damamba_tiny.in1k": 83.8, "damamba_small.in1k": 84.8, "damamba_base.in1k": 85.2}
register_family("DAMamba", DAMamba, RULES, top1=_TOP1)

default_cfgs = make_cfgs(
    {
        "damamba_tiny.in1k": {"file": "DAMamba-T.pth"},
        "damamba_small.in1k": {"file": "DAMamba-S.pth"},
        "damamba_base.in1k": {"file": "DAMamba-B.pth"},
        "test_damamba.untrained": {"size": 96},
    },
    hub="ltzovo/DAMamba",
    license="apache-2.0",
    first_conv="stem.0",
    classifier="head.fc",
    origin_url="https://github.com/ltzovo/DAMamba",
    paper_name="DAMamba: Vision State Space Model with Dynamic Adaptive Scan",
    paper_ids="arXiv:2502.12627",
    notes=("the license is that of the README; the file that it names is missing",),
)
_SCALED = (0.0, 0.0, 1e-6, 1e-6)


@register_model
def damamba_tiny(pretrained: bool = False, **kwargs: Any) -> DAMamba:
    """DAMamba-T: 25.4 M parameters."""
    return build_model(DAMamba, "damamba_tiny", pretrained, kwargs)


@register_model
def damamba_small(pretrained: bool = False, **kwargs: Any) -> DAMamba:
    """DAMamba-S: 45.0 M parameters."""
    sizes = {"depths": (4, 8, 20, 6), "dims": (96, 192, 384, 512), "layer_scales": _SCALED}
    return build_model(DAMamba, "damamba_small", pretrained, kwargs, **sizes)


@register_model
def damamba_base(pretrained: bool = False, **kwargs: Any) -> DAMamba:
    """DAMamba-B: 85.7 M parameters."""
    sizes: dict[str, Any] = {"depths": (4, 8, 25, 8), "dims": (112, 224, 448, 640)}
    sizes |= {"layer_scales": _SCALED, "mlp_ratios": (4.0, 4.0, 3.0, 4.0)}
    return build_model(DAMamba, "damamba_base", pretrained, kwargs, **sizes)


@register_model
def test_damamba(pretrained: bool = False, **kwargs: Any) -> DAMamba:
    """A very small DAMamba for tests; no weights."""
    sizes = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48), "head_dim": 8}
    return build_model(DAMamba, "test_damamba", pretrained, kwargs, **sizes)
