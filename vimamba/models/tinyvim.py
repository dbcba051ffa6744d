"""TinyViM (Ma et al. 2024, arXiv:2411.17473): convolutions, and scans of what is coarse in a map.

Most blocks are convolutions. The last block of a stage splits its channels: some become a one-level
pyramid, whose coarse level is scanned at 1/32 of the image's side and whose details bypass the
scan; the others pass through a depthwise convolution.

Official code: https://github.com/xwmaxwma/TinyViM (no license file). It takes images of multiples
of 32 pixels; this one, all. It averages two classifiers, one distilled from a teacher; here the
average of their weights, which is equivalent, is loaded.
Sizes: N batch, H and W image or map, C channels.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, average_classifiers, register_family
from vimamba.layers import (
    ChannelAffine,
    ConvNorm,
    MapScan,
    init_map_scans_,
    split_paths,
    ss2d_rules,
)
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.models._builder import NO_LICENSE, build_model, make_cfgs
from vimamba.models._staged import StagedBackbone, StagedParts
from vimamba.timm_layers import ConvNormAct, LayerScale2d

__all__ = ["TinyViM"]


def make_stem(in_chans: int, dim: int, **dd: Any) -> nn.Module:
    """Two strided 3x3 convolutions: a quarter of the image's side."""
    conv = partial(ConvNormAct, kernel_size=3, stride=2, act_layer=nn.GELU, **dd)
    return nn.Sequential(conv(in_chans, dim // 2), conv(dim // 2, dim))


class RepConv(nn.Module):
    """A depthwise convolution, a 1x1 convolution and the map itself, summed and normalized."""

    def __init__(self, dim: int, kernel: int | tuple[int, int] = 3, **dd: Any) -> None:
        super().__init__()
        self.conv = ConvNorm(dim, dim, kernel, groups=dim, **dd)  # type: ignore[arg-type]
        self.conv1 = ChannelAffine(dim, **dd)
        self.bn = nn.BatchNorm2d(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        return self.bn(self.conv(x) + self.conv1(x) + x)


class AxisConv(nn.Module):
    """Convolutions along columns on one half of the channels, along rows on the other."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.widths = [dim - dim // 2, dim // 2]
        self.dwconv_w = RepConv(self.widths[0], (7, 1), **dd)
        self.dwconv_h = RepConv(self.widths[1], (1, 7), **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        down, across = x.split(self.widths, dim=1)
        return torch.cat([self.dwconv_w(down), self.dwconv_h(across)], dim=1)


class LaplaceMixer(MapScan):
    """Scan the coarse part of some channels, convolve the others.

    Args:
        dim: C.
        low: Channels that are scanned.
        pool: Side of the squares whose means are the coarse part; 1 scans the map itself.
        scan_order: Of the scan.
        d_state: States per channel of the scan.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self, dim: int, low: int, pool: int, *, scan_order: str, d_state: int = 8, **dd: Any
    ) -> None:
        sizes = {"d_state": d_state, "dt_rank": math.ceil(dim / 16)}
        super().__init__(low, scan_order=scan_order, **sizes, **dd)
        self.widths, self.pool = [low, dim - low], pool
        self.in_proj = ConvNorm(dim, dim, **dd)
        self.conv = AxisConv(dim, **dd)
        self.act = nn.SiLU()
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
        """Scan means of squares, of which the last ones, right and below, may be partial."""
        coarse = F.avg_pool2d(x, self.pool, ceil_mode=True)
        flat = F.interpolate(coarse, scale_factor=scale, mode="nearest")
        change = F.interpolate(self.mix(coarse), scale_factor=scale, mode="bilinear") - flat
        below, right = x.shape[2] - change.shape[2], x.shape[3] - change.shape[3]
        # not sliced: strides that depend on the size would need another program for other sizes
        return x + F.pad(change, (0, right, 0, below))


def make_mlp(dim: int, **dd: Any) -> nn.Sequential:
    """Two 1x1 convolutions, each with a norm."""
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
    """A mixer, then an MLP, each in its own residual branch."""

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
        depths: Blocks per stage; the last of each scans.
        dims: Channels per stage.
        scans: For each stage, the blocks that scan in addition to the last.
        pools: Side of the squares whose means each stage scans.
        low_ratios: Share of the channels that each stage scans.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks that scan take in turn.
        stage_norm: A norm on each stage's output and no classifier: the layout of the published
            segmentation and detection backbones.
        drop_path_rate: As in timm; the published models were trained without.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (3, 3, 9, 6),
        dims: tuple[int, ...] = (48, 64, 168, 224),
        scans: tuple[tuple[int, ...], ...] = ((), (), (4,), ()),
        pools: tuple[int, ...] = (8, 4, 2, 1),
        low_ratios: tuple[float, ...] = (0.25, 0.5, 0.5, 0.75),
        scan_order: str | Sequence[str] = "cross",
        **options: Any,
    ) -> None:
        def block(
            stage: int, number: int, dim: int, rate: float, orders: Iterator[str], **dd: Any
        ) -> nn.Module:
            if number != depths[stage] - 1 and number not in scans[stage]:
                return LocalBlock(dim, drop_path=rate, **dd)
            low = int(dim * low_ratios[stage])
            mixer = LaplaceMixer(dim, low, pools[stage], scan_order=next(orders), **dd)
            return ScanBlock(dim, mixer, drop_path=rate, **dd)

        parts = StagedParts(
            depths=depths,
            dims=dims,
            stem=make_stem,
            block=block,
            downsample=partial(ConvNorm, kernel_size=3, stride=2),
            scan_order=scan_order,
            norm=nn.BatchNorm2d,
            dense_norm=nn.BatchNorm2d,
            output_fmt="NCHW",
        )
        super().__init__(parts, **options)
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Convolutions and linear layers alike, the scans as Mamba's."""
        init_map_scans_(self)

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, split each path's parameters into an axis or a layer, average the classifiers."""
        state: StateDict = {}
        for key, value in split_paths(super().from_official(state_dict)).items():
            name = re.sub(r"^network\.(\d)\.(\d+)", _place, key)
            name = re.sub(r"\.c\.weight$", ".conv.weight", name)
            state[name] = value.flatten() if name.endswith(".gamma") else value
        return average_classifiers(state)


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

# folders with the files
_FOLDERS = {
    "tinyvim_small.e1000_dist_in1k": "1cLgX_Mlk9W5_nMtgwmLC71ap-RlvT7eW",
    "tinyvim_base.e300_dist_in1k": "1eo9RBT186E11pJFOO8uOi9S5GoR0PosS",
    "tinyvim_base.e1000_dist_in1k": "1nZAz0nt8Ztk7YqXbrXW8BZyPZZ49HmVx",
    "tinyvim_large.e300_dist_in1k": "1BtxDPRyll8FVbZfbdjH-oDJU7dYKaSfY",
    "tinyvim_large.e1000_dist_in1k": "1-nfZiEMix8Xd625M2UVFXrujIIV-K2_2",
}
default_cfgs = make_cfgs(
    {
        "tinyvim_small.e300_dist_in1k": {"note": "weights: none"},
        **{
            name: {"by_hand": f"https://drive.google.com/drive/folders/{folder}"}
            for name, folder in _FOLDERS.items()
        },
        "test_tinyvim.untrained": {"size": 96},
    },
    license="unknown",
    first_conv="stem.0.conv",
    classifier="head.fc",
    origin_url="https://github.com/xwmaxwma/TinyViM",
    paper_name="TinyViM: Frequency Decoupling for Tiny Hybrid Vision Mamba",
    paper_ids="arXiv:2411.17473",
    notes=(NO_LICENSE,),
)


@register_model
def tinyvim_small(pretrained: bool = False, **kwargs: Any) -> TinyViM:
    """TinyViM-S: 5.7 M parameters."""
    return build_model(TinyViM, "tinyvim_small", pretrained, kwargs)


@register_model
def tinyvim_base(pretrained: bool = False, **kwargs: Any) -> TinyViM:
    """TinyViM-B: 11.1 M parameters."""
    sizes = {"depths": (4, 3, 10, 5), "dims": (48, 96, 192, 384), "scans": ((), (), (5,), ())}
    return build_model(TinyViM, "tinyvim_base", pretrained, kwargs, **sizes)


@register_model
def tinyvim_large(pretrained: bool = False, **kwargs: Any) -> TinyViM:
    """TinyViM-L: 31.9 M parameters."""
    sizes = {"depths": (4, 4, 12, 6), "dims": (64, 128, 384, 512), "scans": ((), (), (6,), ())}
    return build_model(TinyViM, "tinyvim_large", pretrained, kwargs, **sizes)


@register_model
def test_tinyvim(pretrained: bool = False, **kwargs: Any) -> TinyViM:
    """A very small TinyViM for tests; no weights."""
    sizes = {"depths": (2, 1, 3, 2), "dims": (16, 24, 32, 40), "scans": ((), (), (1,), ())}
    return build_model(TinyViM, "test_tinyvim", pretrained, kwargs, **sizes)
