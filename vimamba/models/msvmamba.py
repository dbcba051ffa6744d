"""MSVMamba (Shi et al. 2024, arXiv:2405.14174): VMamba that scans most paths at half resolution.

A block scans its full map along one path, and a map of half the height and width, which a strided
convolution makes, along the other three. These are chained: the final state of a path is the
initial state of the next. Squeeze-and-excitation and MLPs with a convolution complete the block.

Official code: https://github.com/YuHengsss/MSVMamba (no license file); the third version is on its
branch v2. Sizes: N batch, H and W image or grid, L tokens, C channels, D = expand * C, S states, K
paths. Everything is channels-last.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    ConvMlp,
    DepthwiseConv,
    OverlapDownsample,
    OverlapStem,
    PatchMerging,
    PatchStem,
    ProjectedScan,
    along_paths,
    ss2d_rules,
    sum_paths,
)
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.models._builder import NO_LICENSE, build_model, make_cfgs
from vimamba.models._staged import StagedBackbone, StagedParts
from vimamba.models.vmamba import next_stage
from vimamba.scan_orders import num_paths
from vimamba.timm_layers import Mlp

__all__ = ["MSVMamba"]

_RASTER_AND_THREE = "raster + raster(reverse=True) + columns + columns(reverse=True)"


class PathScan(ProjectedScan):
    """One selective scan of tokens."""

    def forward(self, u: Tensor, paths: Tensor | None) -> Tensor:
        """Tokens (N, L, D) along one path (1, T), or as they stand, to the same shape."""
        return self.scan.mix(u, self.x_proj(u), paths)


class MultiscaleSS2D(nn.Module):
    """A scan of the full map, scans of a map of half the size, and squeeze-and-excitation.

    Args:
        dim: C.
        scan_order: As in `SS2D`. Its first path scans the full map, the others the half-size map; a
            single path scans both.
        d_state: S.
        expand: D / C.
        gated: Multiply the output by a SiLU gate.
        version: 1 normalizes both maps and adds them, the smaller one upsampled bilinearly; 3
            upsamples it by repetition and normalizes the sum.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        *,
        scan_order: str,
        d_state: int,
        expand: float,
        gated: bool,
        version: int,
        **dd: Any,
    ) -> None:
        super().__init__()
        inner = int(expand * dim)
        self.scan_order = scan_order
        self.num_paths = num_paths(scan_order, 2)
        self.num_half = max(self.num_paths - 1, 1)
        self.gated = gated
        self.norms_sum = version == 3
        self.in_proj = nn.Linear(dim, 2 * inner if gated else inner, bias=False, **dd)
        self.conv = DepthwiseConv(inner, **dd)
        self.half_conv = nn.Conv2d(inner, inner, 7, stride=2, padding=3, groups=inner, **dd)
        sizes = {"d_state": d_state, "dt_rank": math.ceil(dim / 16)}
        self.full_scan = PathScan(inner, **sizes, **dd)
        self.half_scan = PathScan(inner, **sizes, **dd)
        self.out_norm = nn.LayerNorm(inner, **dd)
        self.squeeze = Mlp(inner, inner // 8, act_layer=nn.ReLU, bias=False, **dd)
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same shape."""
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        x = self.in_proj(x)
        gate = x
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
        half = F.silu(self.half_conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        x = F.silu(self.conv(x))
        y = self.mix(x, half)
        y = (y * self.squeeze(y.mean(1, keepdim=True)).sigmoid()).view_as(x)
        if self.gated:
            y = y * F.silu(gate)
        return self.out_proj(y)

    def mix(self, full: Tensor, half: Tensor) -> Tensor:
        """Maps (N, H, W, D) and (N, H / 2, W / 2, D) to tokens (N, L, D), scanned and normed."""
        paths: Tensor = torch.ops.vimamba.scan_paths(full, self.scan_order)
        fine = self.full_scan(full.flatten(1, 2), paths[:1])
        others: Tensor = torch.ops.vimamba.scan_paths(half, self.scan_order)[-self.num_half :]
        tokens = half.flatten(1, 2)
        # chained: one long sequence
        steps = self.half_scan(along_paths(tokens, others).flatten(1, 2), None)
        if not self.norms_sum:
            fine, steps = self.out_norm(fine), self.out_norm(steps)
        steps = steps.unflatten(1, (self.num_half, -1))
        coarse = sum_paths(steps, others, tokens.shape[1]).view_as(half).permute(0, 3, 1, 2)
        mode = "nearest" if self.norms_sum else "bilinear"
        coarse = F.interpolate(coarse, size=full.shape[1:3], mode=mode)
        y = fine + coarse.flatten(2).transpose(1, 2)
        return self.out_norm(y) if self.norms_sum else y


class MultiscaleBlock(nn.Module):
    """Residual block of a mixer and an MLP, normalized before; the MLP of version 3 after."""

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp: nn.Module,
        *,
        drop_path: float,
        post_norm: bool,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = mlp
        self.post_norm = post_norm

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same shape."""
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        y = self.norm2(self.mlp(x)) if self.post_norm else self.mlp(self.norm2(x))
        return x + self.drop_path(y)


class MSVMamba(StagedBackbone):
    """MSVMamba backbone with a classifier.

    Args:
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: As in timm.
        depths: Blocks per stage.
        dims: Channels per stage.
        version: 1, with patch embedding and patch merging, or 3, with strided convolutions and a
            different order of norms and sums; see `MultiscaleSS2D` and `MultiscaleBlock`.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn. The first path scans at full
            resolution, the others, chained, at half; a single path at both.
        d_state: States per channel of the scans.
        expand: Inner channels of the mixer divided by channels.
        mlp_ratio: Hidden channels of the MLP divided by channels.
        gated: Gate the mixer's output.
        stage_norm: A norm on each stage's output and no classifier: the layout of the published
            segmentation and detection backbones.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (1, 2, 9, 2),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        version: int = 1,
        scan_order: str | Sequence[str] = _RASTER_AND_THREE,
        d_state: int = 1,
        expand: float = 2.0,
        mlp_ratio: float = 2.0,
        gated: bool = True,
        **options: Any,
    ) -> None:
        if version not in (1, 3):
            raise ValueError(f"version={version!r} is unknown; choose 1 or 3")
        scan = {"d_state": d_state, "expand": expand, "gated": gated, "version": version}

        def block(
            _stage: int, _number: int, dim: int, rate: float, orders: Iterator[str], **dd: Any
        ) -> nn.Module:
            mixer = MultiscaleSS2D(dim, scan_order=next(orders), **scan, **dd)
            mlp = ConvMlp(dim, int(mlp_ratio * dim), residual=True, **dd)
            return MultiscaleBlock(dim, mixer, mlp, drop_path=rate, post_norm=version == 3, **dd)

        parts = StagedParts(
            depths=depths,
            dims=dims,
            stem=OverlapStem if version == 3 else PatchStem,
            block=block,
            downsample=OverlapDownsample if version == 3 else PatchMerging,
            scan_order=scan_order,
        )
        super().__init__(parts, **options)
        # of the two scans in the official files
        self.branches = ("full_scan", "half_scan") if version == 3 else ("half_scan", "full_scan")
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Linear layers as in VMamba, except those of the scans and VMamba's convolutions."""
        super().init_parameters()
        for module in self.modules():
            if isinstance(module, PathScan):
                module.reset_parameters()
            elif isinstance(module, ConvMlp):
                module.fc1.reset_parameters()
                module.fc2.reset_parameters()

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and split the stacked parameters between the two scans."""
        state: StateDict = {}
        for key, value in super().from_official(state_dict).items():
            mixer, is_scan, leaf = key.partition(".both.")
            if not is_scan:
                # a Linear2d stored as a 1x1 convolution
                is_linear = value.ndim == 4 and value.shape[2:] == (1, 1)
                state[key] = value.flatten(1) if is_linear else value
                continue
            for branch, part in zip(self.branches, value.chunk(2), strict=False):
                if leaf == "x_proj.weight":
                    state[f"{mixer}.{branch}.x_proj.weight"] = part[0]
                elif leaf == "scan.dt_proj":
                    state[f"{mixer}.{branch}.scan.dt_proj.0.weight"] = part[0]
                else:
                    has_paths = leaf == "scan.dt_bias"
                    state[f"{mixer}.{branch}.{leaf}"] = part if has_paths else part.unsqueeze(0)
        return state


_BLOCK, _OURS = r"layers\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.blocks.\2."
_OP = _BLOCK + r"(?:op|self_attention)\."
RULES = {
    r"patch_embed\.(?:0|proj)\.(.*)": r"stem.conv1.\1",
    r"patch_embed\.(?:2|norm)\.(.*)": r"stem.norm1.\1",
    r"patch_embed\.5\.(.*)": r"stem.conv2.\1",
    r"patch_embed\.7\.(.*)": r"stem.norm2.\1",
    _OP + "x_proj_weight": _OURS + "mixer.both.x_proj.weight",
    _OP + "dt_projs_weight": _OURS + "mixer.both.scan.dt_proj",
    _OP + "dt_projs_bias": _OURS + "mixer.both.scan.dt_bias",
    _OP + "A_logs": _OURS + "mixer.both.scan.A_log",
    _OP + "Ds": _OURS + "mixer.both.scan.D",
    _OP + r"conv2d_b1\.(.*)": _OURS + r"mixer.half_conv.\3",
    _OP + r"se\.fc\.0\.(.*)": _OURS + r"mixer.squeeze.fc1.\3",
    _OP + r"se\.fc\.2\.(.*)": _OURS + r"mixer.squeeze.fc2.\3",
    **ss2d_rules(_OP, _OURS + "mixer."),
    _BLOCK + r"(?:norm|ln_1)\.(.*)": _OURS + r"norm1.\3",
    _BLOCK + r"norm2\.(.*)": _OURS + r"norm2.\3",
    _BLOCK + r"convFFN\.linear(\d)\.(.*)": _OURS + r"mlp.fc\3.\4",
    _BLOCK + r"convFFN\.dwc\.(.*)": _OURS + r"mlp.conv.\3",
    r"layers\.(\d+)\.downsample\.(1|3|norm|reduction)\.(.*)": next_stage,
    r"(?:classifier\.)?norm\.(.*)": r"norm.\1",
    r"(?:classifier\.)?head\.(weight|bias)": r"head.fc.\1",
    r"outnorm(\d)\.(.*)": r"stage_norms.\1.\2",
}
_FOLDERS = "https://drive.google.com/drive/folders/"
# where the weights are, and top-1 accuracy
_RELEASED = {
    "msvmamba_nano.in1k": (f"{_FOLDERS}1J41w3ApitQhp2O3wHmJoOs4U032uqebK", 77.3),
    "msvmamba_micro.in1k": (f"{_FOLDERS}1jfl2GmuKcUB8sPwRlyHK_wT0MjqgljYk", 79.8),
    "msvmamba_tiny.in1k": (f"{_FOLDERS}1ddNWk89ohcxxMuVEaJ2Y5A6xeBKgA7lU", 82.8),
    "msvmambav3_tiny.in1k": ("msvmambav3_tiny_224.pth", 83.0),
    "msvmambav3_small.in1k": ("msvmambav3_small_224.pth", 84.1),
    "msvmambav3_base.in1k": ("msvmambav3_base_224.pth", 84.4),
}
register_family(
    "MSVMamba",
    MSVMamba,
    RULES,
    layouts=({"stage_norm": True},),
    top1={name: top1 for name, (_, top1) in _RELEASED.items()},
)

default_cfgs = make_cfgs(
    {
        **{
            name: {"file" if place.endswith(".pth") else "by_hand": place}
            for name, (place, _) in _RELEASED.items()
        },
        "test_msvmamba.untrained": {"size": 96},
        "test_msvmambav3.untrained": {"size": 96},
    },
    hub="YuhengSSS/MSVMamba",
    license="unknown",
    first_conv="stem.conv1",
    classifier="head.fc",
    origin_url="https://github.com/YuHengsss/MSVMamba",
    paper_name="Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model",
    paper_ids="arXiv:2405.14174",
    notes=(NO_LICENSE,),
)
_V3: dict[str, Any] = {"version": 3, "expand": 1.0, "mlp_ratio": 4.0, "gated": False}


@register_model
def msvmamba_nano(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-N: 6.9 M parameters."""
    sizes = {"depths": (1, 2, 5, 2), "dims": (48, 96, 192, 384)}
    return build_model(MSVMamba, "msvmamba_nano", pretrained, kwargs, **sizes)


@register_model
def msvmamba_micro(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-M: 11.9 M parameters."""
    sizes = {"depths": (1, 2, 5, 2), "dims": (64, 128, 256, 512)}
    return build_model(MSVMamba, "msvmamba_micro", pretrained, kwargs, **sizes)


@register_model
def msvmamba_tiny(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-T: 33.0 M parameters."""
    return build_model(MSVMamba, "msvmamba_tiny", pretrained, kwargs, depths=(1, 2, 9, 2))


@register_model
def msvmambav3_tiny(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-T, version 3: 32.3 M parameters."""
    return build_model(MSVMamba, "msvmambav3_tiny", pretrained, kwargs, depths=(2, 2, 9, 2), **_V3)


@register_model
def msvmambav3_small(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-S, version 3: 50.2 M parameters."""
    sizes = {"depths": (2, 3, 20, 2), **_V3}
    return build_model(MSVMamba, "msvmambav3_small", pretrained, kwargs, **sizes)


@register_model
def msvmambav3_base(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-B, version 3: 90.6 M parameters."""
    sizes = {"depths": (2, 4, 18, 2), "dims": (128, 256, 512, 1024), **_V3, "gated": True}
    return build_model(MSVMamba, "msvmambav3_base", pretrained, kwargs, **sizes)


@register_model
def test_msvmamba(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """A very small MSVMamba for tests; no weights."""
    sizes = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 40)}
    return build_model(MSVMamba, "test_msvmamba", pretrained, kwargs, **sizes)


@register_model
def test_msvmambav3(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """A very small MSVMamba of version 3 for tests; no weights."""
    sizes = {"depths": (1, 1, 2, 1), "dims": (32, 36, 40, 48), **_V3, "mlp_ratio": 2.0}
    return build_model(MSVMamba, "test_msvmambav3", pretrained, kwargs, **sizes)
