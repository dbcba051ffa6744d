"""DAMamba (Li et al. 2025, arXiv:2502.12627): a scan of features that are fetched from elsewhere.

Before each scan, groups of channels are sampled anew at offsets that the map itself determines.
One scan then walks over the resampled map. Every stage ends in a norm of the stream itself.

Official code: https://github.com/ltzovo/DAMamba (Apache-2.0 by its README). Its deformable operator
is `grid_sample` here.
Sizes: N batch, H and W image or map, C channels, G groups of channels.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, LayerScale2d
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    ConvDownsample,
    ConvMlp,
    ConvStem,
    NormedStage,
    SelectiveScan,
    drop_path_rates,
    init_convs_,
    split_paths,
    ss2d_rules,
)
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.models._builder import build_model
from vimamba.models._staged import StagedBackbone
from vimamba.scan_orders import num_paths, order_of_block

__all__ = ["DAMamba"]


class Resample(nn.Module):
    """Fetch every group of channels from an offset that another map determines at each cell.

    Args:
        dim: C.
        head_dim: C / G.
        device, dtype: Of the parameters.
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
        """Sample x (N, C, H, W) bilinearly as the map `guide` of the same shape says."""
        height, width = x.shape[2], x.shape[3]
        offset = self.offset(self.act(self.norm(self.conv(guide).permute(0, 2, 3, 1))))
        # each group's steps along the width and the height, cells
        right, down = offset.unflatten(3, (self.groups, 2)).permute(0, 3, 1, 2, 4).unbind(4)
        # in float32 at least, since coordinates in half precision are whole cells off
        column = right + torch.arange(width, dtype=torch.float32, device=x.device)
        row = down + torch.arange(height, dtype=torch.float32, device=x.device).unsqueeze(1)
        place = torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], dim=4)
        place = place.flatten(0, 1)
        groups = x.unflatten(1, (self.groups, -1)).flatten(0, 1).type_as(place)
        sampled = F.grid_sample(groups, place, mode="bilinear", align_corners=False)
        return sampled.unflatten(0, (-1, self.groups)).flatten(1, 2).type_as(x)


class DynamicScan(nn.Module):
    """Scan a resampled map.

    Args:
        dim: C.
        head_dim: Channels that are fetched from one place.
        scan_order: Of the scan over the resampled map.
        device, dtype: Of the parameters.
    """

    def __init__(self, dim: int, head_dim: int, *, scan_order: str, **dd: Any) -> None:
        super().__init__()
        self.scan_order = scan_order
        self.d_state, self.dt_rank = 1, math.ceil(dim / 16)
        self.num_paths = num_paths(scan_order, 2)
        self.in_proj = nn.Conv2d(dim, dim, 1, bias=False, **dd)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.act = nn.SiLU()
        self.resample = Resample(dim, head_dim, **dd)
        rows = self.num_paths * (self.dt_rank + 2 * self.d_state)
        self.x_proj = nn.Linear(dim, rows, bias=False, **dd)
        self.scan = SelectiveScan(
            dim, num_paths=self.num_paths, d_state=self.d_state, dt_rank=self.dt_rank, **dd
        )
        self.out_norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.out_proj = nn.Conv2d(dim, dim, 1, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        height, width = x.shape[2], x.shape[3]
        x = self.resample(self.act(self.conv(self.in_proj(x))), x).permute(0, 2, 3, 1)
        paths = torch.ops.vimamba.scan_paths(x, self.scan_order)
        u = x.flatten(1, 2)
        y = self.out_norm(self.scan.mix(u, self.x_proj(u), paths))
        return self.out_proj(y.transpose(1, 2).unflatten(2, (height, width)))

    def reset_parameters(self) -> None:
        """Start the parameters of the scan; the other layers start themselves."""
        self.x_proj.reset_parameters()
        self.scan.reset_parameters()


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
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), **dd)
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
        mlp_ratios: Hidden channels of the MLPs over channels, for each stage.
        layer_scales: Start of learned factors of what the blocks of each stage add; 0 for none.
        head_dim: Channels that are fetched from one place.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum, over the resampled map; or a list of them, which the blocks take by turns.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        depths: tuple[int, ...] = (3, 4, 12, 5),
        dims: tuple[int, ...] = (80, 160, 320, 512),
        mlp_ratios: tuple[float, ...] = (4.0, 4.0, 3.0, 3.0),
        layer_scales: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
        head_dim: int = 16,
        scan_order: str | Sequence[str] = "raster",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        stages: list[nn.Module] = []
        number = 0
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            dim, blocks = dims[i], []
            for rate in rates:
                order = order_of_block(scan_order, number)
                mixer = DynamicScan(dim, head_dim, scan_order=order, **dd)
                sizes = {"mlp_ratio": mlp_ratios[i], "layer_scale": layer_scales[i]}
                blocks.append(DynamicBlock(dim, mixer, drop_path=rate, **sizes, **dd))
                number += 1
            downsample = ConvDownsample(dims[i - 1], dim, **dd) if i else nn.Identity()
            stages.append(NormedStage(downsample, blocks, LayerNorm2d(dim, **dd)))
        super().__init__(
            ConvStem(in_chans, dims[0], **dd),
            stages,
            dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            norm=nn.Identity(),
            output_fmt="NCHW",
            **dd,
        )
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Convolutions and linear layers alike, those of the offsets, too; the scans as Mamba's."""
        init_convs_(self)
        for module in self.modules():
            if isinstance(module, DynamicScan):
                module.reset_parameters()

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


def _cfg(name: str, file: str = "", **kwargs: Any) -> Any:
    return {
        "hf_hub_id": "ltzovo/DAMamba" if file else None,
        "hf_hub_filename": file or None,
        "custom_load": "hf" if file else False,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "first_conv": "stem.0",
        "classifier": "head.fc",
        "license": "apache-2.0" if file else None,
        "origin_url": "https://github.com/ltzovo/DAMamba",
        "paper_name": "DAMamba: Vision State Space Model with Dynamic Adaptive Scan",
        "paper_ids": "arXiv:2502.12627",
        "notes": (
            "family: DAMamba",
            f"top-1: {_TOP1.get(name, 'untrained')}",
            "licence: by the README; the file that it names is missing",
        ),
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "damamba_tiny.in1k": _cfg("damamba_tiny.in1k", "DAMamba-T.pth"),
        "damamba_small.in1k": _cfg("damamba_small.in1k", "DAMamba-S.pth"),
        "damamba_base.in1k": _cfg("damamba_base.in1k", "DAMamba-B.pth"),
        "test_damamba.untrained": _cfg("", input_size=(3, 96, 96), pool_size=(3, 3)),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> DAMamba:
    return build_model(DAMamba, variant, pretrained, **kwargs)


_SCALED = (0.0, 0.0, 1e-6, 1e-6)


@register_model
def damamba_tiny(pretrained: bool = False, **kwargs: Any) -> DAMamba:
    """DAMamba-T: 25.4 M parameters."""
    return _create("damamba_tiny", pretrained, **kwargs)


@register_model
def damamba_small(pretrained: bool = False, **kwargs: Any) -> DAMamba:
    """DAMamba-S: 45.0 M parameters."""
    args = {"depths": (4, 8, 20, 6), "dims": (96, 192, 384, 512), "layer_scales": _SCALED}
    return _create("damamba_small", pretrained, **{**args, **kwargs})


@register_model
def damamba_base(pretrained: bool = False, **kwargs: Any) -> DAMamba:
    """DAMamba-B: 85.7 M parameters."""
    args = {"depths": (4, 8, 25, 8), "dims": (112, 224, 448, 640), "layer_scales": _SCALED}
    args |= {"mlp_ratios": (4.0, 4.0, 3.0, 4.0)}
    return _create("damamba_base", pretrained, **{**args, **kwargs})


@register_model
def test_damamba(pretrained: bool = False, **kwargs: Any) -> DAMamba:
    """A very small DAMamba for tests; no weights."""
    args = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48), "head_dim": 8}
    return _create("test_damamba", pretrained, **{**args, **kwargs})
