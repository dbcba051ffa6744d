"""TinyViM (Ma et al. 2024, arXiv:2411.17473): convolutions, and scans of what is coarse in a map.

Most blocks are convolutions. The last of a stage parts its channels: some become a pyramid of one
step, whose coarse level is scanned at a 32nd of the image's side and whose details go around the
scan; the others go through a depthwise convolution.

Official code: https://github.com/xwmaxwma/TinyViM (no licence file). It takes images of multiples
of 32 pixels; this, all. It has two classifiers, one of which learned from a teacher and which are
averaged; here the average of their weights, which is the same, is read from the file.
Sizes: N batch, H and W image or map, C channels.
"""

import itertools
import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, DropPath, LayerScale2d
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    SelectiveScan,
    Stage,
    drop_path_rates,
    init_convs_,
    split_paths,
    ss2d_rules,
)
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.models._builder import build_model
from vimamba.models._staged import StagedBackbone
from vimamba.scan_orders import num_paths, order_of_block

__all__ = ["TinyViM"]

ConvNorm = partial(ConvNormAct, apply_act=False)


class RepConv(nn.Module):
    """A depthwise convolution, one of single pixels and the map itself, added up and normed."""

    def __init__(self, dim: int, kernel: int | tuple[int, int] = 3, **dd: Any) -> None:
        super().__init__()
        self.conv = ConvNorm(dim, dim, kernel, groups=dim, **dd)  # type: ignore[arg-type]
        self.conv1 = nn.Conv2d(dim, dim, 1, groups=dim, **dd)
        self.bn = nn.BatchNorm2d(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        return self.bn(self.conv(x) + self.conv1(x) + x)


class AxisConv(nn.Module):
    """Convolutions along the columns of one half of the channels, along the rows of the other."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.widths = [dim - dim // 2, dim // 2]
        self.dwconv_w = RepConv(self.widths[0], (7, 1), **dd)
        self.dwconv_h = RepConv(self.widths[1], (1, 7), **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        down, across = x.split(self.widths, dim=1)
        return torch.cat([self.dwconv_w(down), self.dwconv_h(across)], dim=1)


class LaplaceMixer(nn.Module):
    """Scan the coarse part of some channels, convolve the others.

    Args:
        dim: C.
        low: Channels that are scanned.
        pool: Side of the squares whose means are the coarse part; 1 scans the map itself.
        scan_order: Of the scan.
        d_state: States per channel of the scan.
        device, dtype: Of the parameters.
    """

    def __init__(
        self, dim: int, low: int, pool: int, *, scan_order: str, d_state: int = 8, **dd: Any
    ) -> None:
        super().__init__()
        self.widths, self.pool, self.scan_order = [low, dim - low], pool, scan_order
        self.d_state, self.dt_rank = d_state, math.ceil(dim / 16)
        self.num_paths = num_paths(scan_order, 2)
        self.in_proj = ConvNorm(dim, dim, **dd)
        self.conv = AxisConv(dim, **dd)
        self.act = nn.SiLU()
        rows = self.num_paths * (self.dt_rank + 2 * d_state)
        self.x_proj = nn.Linear(low, rows, bias=False, **dd)
        self.scan = SelectiveScan(
            low, num_paths=self.num_paths, d_state=d_state, dt_rank=self.dt_rank, **dd
        )
        self.out_norm = nn.LayerNorm(low, **dd)
        self.local_conv = RepConv(dim - low, **dd)
        self.out_proj = ConvNorm(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        low, high = self.act(self.conv(self.in_proj(x))).split(self.widths, dim=1)
        low = self.mix(low) if self.pool == 1 else self.mix_coarse(low, float(self.pool))
        return self.out_proj(torch.cat([low, self.local_conv(high)], dim=1))

    def mix_coarse(self, x: Tensor, scale: float) -> Tensor:
        """Scan means of squares, of which those on the right and below may be cut off."""
        coarse = F.avg_pool2d(x, self.pool, ceil_mode=True)
        flat = F.interpolate(coarse, scale_factor=scale, mode="nearest")
        change = F.interpolate(self.mix(coarse), scale_factor=scale, mode="bilinear") - flat
        below, right = x.shape[2] - change.shape[2], x.shape[3] - change.shape[3]
        # not sliced: whether the memory has gaps then would be another program for other sizes
        return x + F.pad(change, (0, right, 0, below))

    def mix(self, x: Tensor) -> Tensor:
        """Scan (N, C, H, W) and norm to the same shape."""
        height, width = x.shape[2], x.shape[3]
        x = x.permute(0, 2, 3, 1)
        paths = torch.ops.vimamba.scan_paths(x, self.scan_order)
        u = x.flatten(1, 2)
        y = self.out_norm(self.scan.mix(u, self.x_proj(u), paths))
        return y.transpose(1, 2).unflatten(2, (height, width))

    def reset_parameters(self) -> None:
        """Start the parameters of the scan; the other layers start themselves."""
        self.x_proj.reset_parameters()
        self.scan.reset_parameters()


def make_mlp(dim: int, **dd: Any) -> nn.Sequential:
    """Two convolutions of single pixels, each with a norm."""
    fc1 = ConvNormAct(dim, 4 * dim, act_layer=nn.GELU, **dd)
    return nn.Sequential(OrderedDict(fc1=fc1, fc2=ConvNorm(4 * dim, dim, **dd)))


class LocalBlock(nn.Module):
    """A depthwise convolution and an MLP in one residual branch, with learned factors."""

    def __init__(self, dim: int, *, drop_path: float, **dd: Any) -> None:
        super().__init__()
        self.mixer = RepConv(dim, **dd)
        self.mlp = make_mlp(dim, **dd)
        self.ls = LayerScale2d(dim, 1.0, **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        return x + self.drop_path(self.ls(self.mlp(self.mixer(x))))


class ScanBlock(nn.Module):
    """A mixer, then an MLP, each in a residual branch of its own."""

    def __init__(self, dim: int, mixer: nn.Module, *, drop_path: float, **dd: Any) -> None:
        super().__init__()
        self.mixer = mixer
        self.mlp = make_mlp(dim, **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        x = x + self.drop_path(self.mixer(x))
        return x + self.drop_path(self.mlp(x))


class TinyViM(StagedBackbone):
    """TinyViM backbone with a classifier.

    Args:
        in_chans, num_classes, global_pool, drop_rate: As in timm.
        depths: Blocks per stage, the last of which scans.
        dims: Channels per stage.
        scans: For each stage, the blocks that scan besides the last.
        pools: Side of the squares whose means each stage scans.
        low_ratios: Share of the channels that each stage scans.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks that scan take by turns.
        stage_norm: A norm on each stage's output and no classifier: the layout of the published
            segmentation and detection backbones.
        drop_path_rate: As in timm; the published models were trained without.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        depths: tuple[int, ...] = (3, 3, 9, 6),
        dims: tuple[int, ...] = (48, 64, 168, 224),
        scans: tuple[tuple[int, ...], ...] = ((), (), (4,), ()),
        pools: tuple[int, ...] = (8, 4, 2, 1),
        low_ratios: tuple[float, ...] = (0.25, 0.5, 0.5, 0.75),
        scan_order: str | Sequence[str] = "cross",
        stage_norm: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        number = itertools.count()
        stages: list[nn.Module] = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            dim, blocks = dims[i], []
            for j, rate in enumerate(rates):
                if j == depths[i] - 1 or j in scans[i]:
                    order = order_of_block(scan_order, next(number))
                    low = int(dim * low_ratios[i])
                    mixer = LaplaceMixer(dim, low, pools[i], scan_order=order, **dd)
                    blocks.append(ScanBlock(dim, mixer, drop_path=rate, **dd))
                else:
                    blocks.append(LocalBlock(dim, drop_path=rate, **dd))
            downsample = ConvNorm(dims[i - 1], dim, 3, stride=2, **dd) if i else nn.Identity()
            stages.append(Stage(downsample, blocks))
        act = {"act_layer": nn.GELU}
        super().__init__(
            nn.Sequential(
                ConvNormAct(in_chans, dims[0] // 2, 3, stride=2, **act, **dd),
                ConvNormAct(dims[0] // 2, dims[0], 3, stride=2, **act, **dd),
            ),
            stages,
            dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            norm=nn.BatchNorm2d(dims[-1], **dd),
            stage_norms=[nn.BatchNorm2d(dim, **dd) for dim in dims] if stage_norm else None,
            output_fmt="NCHW",
            **dd,
        )
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Convolutions and linear layers alike, the scans as Mamba's."""
        init_convs_(self)
        for module in self.modules():
            if isinstance(module, LaplaceMixer):
                module.reset_parameters()

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, give each path's parameters an axis or a layer, and average the classifiers."""
        state: StateDict = {}
        for key, value in split_paths(super().from_official(state_dict)).items():
            name = re.sub(r"^network\.(\d)\.(\d+)", _place, key)
            name = re.sub(r"\.c\.weight$", ".conv.weight", name)
            state[name] = value.flatten() if name.endswith(".gamma") else value
        for leaf in ("weight", "bias"):
            if (taught := state.pop(f"head.taught.{leaf}", None)) is not None:
                state[f"head.fc.{leaf}"] = (state[f"head.fc.{leaf}"] + taught) / 2
        return state


def _place(match: re.Match[str]) -> str:
    return f"stages.{int(match[1]) // 2}.blocks.{match[2]}"


def _stem(match: re.Match[str]) -> str:
    return f"stem.{int(match[1]) // 2}.{match[2]}"


def _downsample(match: re.Match[str]) -> str:
    return f"stages.{int(match[1]) // 2 + 1}.downsample.{match[2]}"


def _stage_norm(match: re.Match[str]) -> str:
    return f"stage_norms.{int(match[1]) // 2}.{match[2]}"


_BLOCK = r"(network\.\d\.\d+)\."
RULES = {
    r"patch_embed\.(\d)\.(.*)": _stem,
    r"network\.(\d)\.proj\.(.*)": _downsample,
    _BLOCK + "layer_scale": r"\1.ls.gamma",
    _BLOCK + r"dwconv\.(.*)": r"\1.mixer.\2",
    _BLOCK + r"mlp\.(.*)": r"\1.mlp.\2",
    _BLOCK + r"op\.local_conv\.(.*)": r"\1.mixer.local_conv.\2",
    **ss2d_rules(_BLOCK + r"op\.", r"\1.mixer."),
    r"norm\.(.*)": r"norm.\1",
    r"norm(\d)\.(.*)": _stage_norm,
    r"head\.(.*)": r"head.fc.\1",
    r"dist_head\.(.*)": r"head.taught.\1",
}
# after 300 and after 1000 epochs
_TOP1 = {
    "tinyvim_small.e300_dist_in1k": 79.2,
    "tinyvim_small.e1000_dist_in1k": 80.3,
    "tinyvim_base.e300_dist_in1k": 81.2,
    "tinyvim_base.e1000_dist_in1k": 82.1,
    "tinyvim_large.e300_dist_in1k": 83.3,
    "tinyvim_large.e1000_dist_in1k": 83.6,
}
register_family("TinyViM", TinyViM, RULES, layouts=({"stage_norm": True},), top1=_TOP1)


def _cfg(name: str, drive: str = "", **kwargs: Any) -> Any:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "first_conv": "stem.0.conv",
        "classifier": "head.fc",
        "license": "unknown" if name in _TOP1 else None,
        "origin_url": "https://github.com/xwmaxwma/TinyViM",
        "paper_name": "TinyViM: Frequency Decoupling for Tiny Hybrid Vision Mamba",
        "paper_ids": "arXiv:2411.17473",
        "notes": (
            "family: TinyViM",
            f"top-1: {_TOP1.get(name, 'untrained')}",
            "licence: unstated, the official repository has no licence file",
            f"weights: {f'https://drive.google.com/drive/folders/{drive}' if drive else 'none'}",
        ),
        **kwargs,
    }


# folders with the files
_FOLDERS = {
    "tinyvim_small.e1000_dist_in1k": "1cLgX_Mlk9W5_nMtgwmLC71ap-RlvT7eW",
    "tinyvim_base.e300_dist_in1k": "1eo9RBT186E11pJFOO8uOi9S5GoR0PosS",
    "tinyvim_base.e1000_dist_in1k": "1nZAz0nt8Ztk7YqXbrXW8BZyPZZ49HmVx",
    "tinyvim_large.e300_dist_in1k": "1BtxDPRyll8FVbZfbdjH-oDJU7dYKaSfY",
    "tinyvim_large.e1000_dist_in1k": "1-nfZiEMix8Xd625M2UVFXrujIIV-K2_2",
}
default_cfgs = generate_default_cfgs(
    {name: _cfg(name, _FOLDERS.get(name, "")) for name in _TOP1}
    | {"test_tinyvim.untrained": _cfg("test_tinyvim", input_size=(3, 96, 96), pool_size=(3, 3))}
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> TinyViM:
    return build_model(TinyViM, variant, pretrained, **kwargs)


@register_model
def tinyvim_small(pretrained: bool = False, **kwargs: Any) -> TinyViM:
    """TinyViM-S: 5.7 M parameters."""
    return _create("tinyvim_small", pretrained, **kwargs)


@register_model
def tinyvim_base(pretrained: bool = False, **kwargs: Any) -> TinyViM:
    """TinyViM-B: 11.1 M parameters."""
    args = {"depths": (4, 3, 10, 5), "dims": (48, 96, 192, 384), "scans": ((), (), (5,), ())}
    return _create("tinyvim_base", pretrained, **{**args, **kwargs})


@register_model
def tinyvim_large(pretrained: bool = False, **kwargs: Any) -> TinyViM:
    """TinyViM-L: 31.9 M parameters."""
    args = {"depths": (4, 4, 12, 6), "dims": (64, 128, 384, 512), "scans": ((), (), (6,), ())}
    return _create("tinyvim_large", pretrained, **{**args, **kwargs})


@register_model
def test_tinyvim(pretrained: bool = False, **kwargs: Any) -> TinyViM:
    """A very small TinyViM for tests; no weights."""
    args = {"depths": (2, 1, 3, 2), "dims": (16, 24, 32, 40), "scans": ((), (), (1,), ())}
    return _create("test_tinyvim", pretrained, **{**args, **kwargs})
