"""A2Mamba (Lou et al. 2025, arXiv:2507.16624): attention averages what a scan keeps of the tokens.

Half of a block's heads attend to the cells around each cell, the other half to as many that are
spread over the whole map; both sets of weights then average the states of a scan, too. The last
stage attends to all cells instead. Neighborhood attention (arXiv:2204.07143) is written as products
of a row of queries with the rows of their neighbors.

The official code needs maps of at least the windows' sides, images of 224 pixels; here cells of a
smaller map have fewer neighbors.

Official code: https://github.com/LMMMEng/A2Mamba (no licence)
Sizes: N batch, H and W image or map, L = H * W, C channels, h heads of d channels, w side of a
window, K paths.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    ConvDownsample,
    ConvMlp,
    ConvStem,
    ProjectedHead,
    SelectiveScan,
    Stage,
    drop_path_rates,
    init_convs_,
    split_paths,
    ss2d_rules,
    to_pair,
)
from vimamba.layers.neighborhood import NeighborWeights, neighbor_rows, turn, turn_by_cell
from vimamba.layers.tokens import resample_tokens
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.models._builder import build_model
from vimamba.models._staged import StagedBackbone
from vimamba.scan_orders import num_paths, order_of_block

__all__ = ["A2Mamba"]


class StateAverage(nn.Module):
    """A scan, whose states are averaged as a layer attends before they are read.

    Args:
        dim: C.
        heads: h.
        scan_order: Of the scan. Of an order with several paths the states of each are averaged
            and read, and the results added up.
        device, dtype: Of the parameters.
    """

    def __init__(self, dim: int, heads: int, *, scan_order: str, **dd: Any) -> None:
        super().__init__()
        self.heads, self.scan_order = heads, scan_order
        self.num_paths, dt_rank = num_paths(scan_order, 2), math.ceil(dim / 16)
        self.conv = nn.Conv2d(dim, dim, 5, padding=2, groups=dim, **dd)
        self.act = nn.SiLU()
        self.x_proj = nn.Linear(dim, self.num_paths * (dt_rank + 2), bias=False, **dd)
        self.scan = SelectiveScan(dim, num_paths=self.num_paths, d_state=1, dt_rank=dt_rank, **dd)
        self.fusion = nn.Conv2d(heads, heads, 1, **dd)

    def forward(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        near: tuple[Tensor, Tensor],
        far: tuple[Tensor, Tensor],
    ) -> Tensor:
        """(N, C, H, W) to (N, C, H, W).

        Args:
            x: What is scanned.
            q: Unused.
            k: Unused.
            near: Weights of the first half of the heads, and the rows that they are of.
            far: Those of the second half.
        """
        height, width = x.shape[2], x.shape[3]
        x = self.act(self.conv(x)).permute(0, 2, 3, 1)
        paths = torch.ops.vimamba.scan_paths(x, self.scan_order)
        u = x.flatten(1, 2)
        states, C = self.scan.states(u, self.x_proj(u), paths)
        # (N, K, L, C) to (N, K * h / 2, H, W, d) twice
        maps = states.unflatten(2, (height, width)).unflatten(4, (2, self.heads // 2, -1))
        close, distant = maps.permute(0, 4, 1, 5, 2, 3, 6).flatten(2, 3).unbind(1)
        parts = [self.average(close, near), self.average(distant, far)]
        maps = torch.stack(parts, dim=1).unflatten(2, (self.num_paths, -1)).transpose(1, 2)
        fused = self.fusion(maps.flatten(0, 1).flatten(1, 2).flatten(3))
        fused = fused.unflatten(0, (-1, self.num_paths)).unflatten(4, (width, -1))
        fused = fused.permute(0, 1, 3, 4, 2, 5).flatten(4).flatten(2, 3)
        y = (fused * C).sum(1) + self.scan.D.sum(0) * u
        return y.transpose(1, 2).unflatten(2, (height, width))

    def reset_parameters(self) -> None:
        """Start the parameters of the scan; the convolutions start themselves."""
        self.x_proj.reset_parameters()
        self.scan.reset_parameters()

    def average(self, maps: Tensor, attention: tuple[Tensor, Tensor]) -> Tensor:
        """States (N, K * h / 2, H, W, d), averaged."""
        weights, rows = attention
        return weights.repeat(1, self.num_paths, 1, 1, 1) @ neighbor_rows(maps, rows)


class GlobalAverage(nn.Module):
    """Attention of all cells to all.

    Args:
        heads: h.
        size: Height and width of the map that the biases are learned for; those of others are
            resampled, bicubic, as a picture of L x L.
        device, dtype: Of the parameters.
    """

    def __init__(self, heads: int, size: tuple[int, int], **dd: Any) -> None:
        super().__init__()
        self.cells = size[0] * size[1]
        self.bias = nn.Parameter(torch.empty(heads, self.cells, self.cells, **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start without a preference."""
        nn.init.zeros_(self.bias)

    def forward(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        near: tuple[Tensor, Tensor],
        far: tuple[Tensor, Tensor],
    ) -> Tensor:
        """(N, C, H, W) to (N, C, H, W).

        Args:
            x: What is averaged.
            q: (N, h, H, W, d).
            k: The same.
            near: Unused.
            far: Unused.
        """
        height, width = x.shape[2], x.shape[3]
        v = x.unflatten(1, (q.shape[1], -1)).flatten(3).transpose(2, 3)
        bias = resample_biases(self.bias, self.cells, height * width).type_as(q)
        scores = q.flatten(2, 3) @ k.flatten(2, 3).transpose(2, 3) + bias
        y = scores.softmax(dim=-1).type_as(v) @ v
        return y.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width))


def resample_biases(bias: Tensor, old: int, new: int) -> Tensor:
    """Biases (h, L, L) of as many cells as `old` for `new` ones."""
    picture = bias.flatten(1).T.unsqueeze(0)
    found = resample_tokens(picture, (old, old), (new, new), antialias=False)
    return found.squeeze(0).T.unflatten(1, (new, new))


class AttentiveMixer(nn.Module):
    """Attention to what is near and to what is far, then an average of all that is kept.

    Args:
        dim: C.
        heads: h, even.
        window: w, odd.
        average: From the attention's output, queries, keys and weights to a map.
        device, dtype: Of the parameters.
    """

    def __init__(self, dim: int, heads: int, window: int, average: nn.Module, **dd: Any) -> None:
        super().__init__()
        if heads % 2 or dim % (4 * heads):
            raise ValueError(f"heads={heads} must be even, and {dim} channels 4 times as many")
        if window % 2 == 0:
            raise ValueError(f"window={window} must be odd")
        self.heads, self.head_dim = heads, dim // heads
        self.gate = nn.Sequential(nn.Conv2d(dim, dim, 1, **dd), nn.BatchNorm2d(dim, **dd))
        self.act = nn.SiLU()
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, **dd)
        self.bias = nn.Parameter(torch.empty(heads // 2, 2 * window - 1, 2 * window - 1, **dd))
        self.near = NeighborWeights(window, dilated=False)
        self.far = NeighborWeights(window, dilated=True)
        self.average = average
        self.norm = LayerNorm2d(dim, **dd)
        self.lepe = nn.Conv2d(dim, dim, 5, padding=2, groups=dim, **dd)
        self.proj_norm = LayerNorm2d(dim, **dd)
        self.proj = nn.Conv2d(dim, dim, 1, **dd)
        nn.init.zeros_(self.bias)

    def reset_parameters(self) -> None:
        """Start without a preference for distances; the layers start themselves."""
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        gate = self.act(self.gate(x))
        qkv = self.qkv(x)
        lepe = self.lepe(qkv.chunk(3, dim=1)[2])
        # (N, 3 C, H, W) to (N, h, H, W, d) three times
        parts = qkv.unflatten(1, (3, self.heads, self.head_dim))
        q, k, v = parts.permute(0, 1, 2, 4, 5, 3).unbind(1)
        cos, sin = turn_by_cell(q)
        q, k = turn(q, cos, sin) * self.head_dim**-0.5, turn(k, cos, sin)
        (q1, q2), (k1, k2), (v1, v2) = q.chunk(2, dim=1), k.chunk(2, dim=1), v.chunk(2, dim=1)
        near, far = self.near(q1, k1, self.bias), self.far(q2, k2, self.bias)
        v1 = near[0] @ neighbor_rows(v1, near[1])
        # those far apart read what those nearby have gathered
        v2 = far[0] @ neighbor_rows(v1 + v2, far[1])
        y = torch.cat([v1, v2], dim=1).permute(0, 1, 4, 2, 3).flatten(1, 2)
        y = self.average(y, q, k, near, far)
        return self.proj(self.proj_norm(gate * (self.norm(y) + lepe)))


class Affine(nn.Conv2d):
    """A learned factor and offset of every channel."""

    def __init__(self, dim: int, start: float, **dd: Any) -> None:
        self.start = start
        super().__init__(dim, dim, 1, groups=dim, **dd)

    def reset_parameters(self) -> None:
        """Start with one factor for all."""
        nn.init.constant_(self.weight, self.start)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]


class AttentiveBlock(nn.Module):
    """Mixer and MLP, each behind a depthwise convolution.

    Args:
        dim: C.
        mixer: From (N, C, H, W) to the same shape.
        mlp_ratio: Hidden channels of the MLP over channels.
        scaled: What learned factors and offsets change: "branch", what mixer and MLP add, "stream",
            what they add it to, or "none".
        scale: Start of the factors.
        drop_path: Probability to leave out what mixer and MLP add.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        *,
        mlp_ratio: float,
        scaled: str,
        scale: float,
        drop_path: float,
        **dd: Any,
    ) -> None:
        super().__init__()
        if scaled not in ("none", "branch", "stream"):
            raise ValueError(f"scaled={scaled!r} is unknown; choose none, branch or stream")
        self.scales_stream = scaled == "stream"
        self.position1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.norm1 = LayerNorm2d(dim, **dd)
        self.mixer = mixer
        self.scale1 = nn.Identity() if scaled == "none" else Affine(dim, scale, **dd)
        self.position2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.norm2 = LayerNorm2d(dim, **dd)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), **dd)
        self.scale2 = nn.Identity() if scaled == "none" else Affine(dim, scale, **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        x = x + self.position1(x)
        y = self.mixer(self.norm1(x))
        if self.scales_stream:
            x = self.scale1(x) + self.drop_path(y)
        else:
            x = x + self.drop_path(self.scale1(y))
        x = x + self.position2(x)
        y = self.mlp(self.norm2(x))
        if self.scales_stream:
            return self.scale2(x) + self.drop_path(y)
        return x + self.drop_path(self.scale2(y))


class A2Mamba(StagedBackbone):
    """A2Mamba backbone with a classifier.

    Args:
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: As in timm.
        img_size: Of the images that the last stage's biases are learned for, pixels, or height and
            width; images of other sizes resample them.
        depths: Blocks per stage.
        dims: Channels per stage.
        heads: Heads per stage.
        windows: Side of the windows per stage, cells.
        mlp_ratios: Hidden channels of the MLPs over channels, per stage.
        scaled: What each stage's blocks scale; see `AttentiveBlock`.
        scales: Start of the factors, per stage.
        hidden: Channels that are pooled.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks that scan take by turns.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        img_size: int | tuple[int, int] = 224,
        depths: tuple[int, ...] = (2, 2, 8, 2),
        dims: tuple[int, ...] = (32, 64, 128, 192),
        heads: tuple[int, ...] = (2, 2, 4, 8),
        windows: tuple[int, ...] = (11, 9, 7, 7),
        mlp_ratios: tuple[float, ...] = (4.0, 4.0, 3.0, 3.0),
        scaled: tuple[str, ...] = ("none", "none", "none", "none"),
        scales: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
        hidden: int = 1024,
        scan_order: str | Sequence[str] = "raster",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        height, width = (-(-side // 2 ** (len(dims) + 1)) for side in to_pair(img_size))
        stages: list[nn.Module] = []
        number = 0
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            dim, blocks = dims[i], []
            for rate in rates:
                if i == len(dims) - 1:
                    average: nn.Module = GlobalAverage(heads[i], (height, width), **dd)
                else:
                    order = order_of_block(scan_order, number)
                    average = StateAverage(dim, heads[i], scan_order=order, **dd)
                    number += 1
                mixer = AttentiveMixer(dim, heads[i], windows[i], average, **dd)
                sizes = {"mlp_ratio": mlp_ratios[i], "scaled": scaled[i], "scale": scales[i]}
                blocks.append(AttentiveBlock(dim, mixer, drop_path=rate, **sizes, **dd))
            down = ConvDownsample(dims[i - 1], dim, bias=False, **dd) if i else nn.Identity()
            stages.append(Stage(down, blocks))
        super().__init__(
            ConvStem(in_chans, dims[0], bias=False, **dd),
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
        sizes = dims[-1], hidden, num_classes, global_pool, drop_rate
        self.head = ProjectedHead(*sizes, act=nn.SiLU(), bias=True, **dd)
        self.head_hidden_size = self.head.num_features
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Convolutions and linear layers alike, the scans as Mamba's."""
        init_convs_(self)
        for module in self.modules():
            if isinstance(module, StateAverage | Affine):
                module.reset_parameters()

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and give the scan's parameters an axis of paths; convolutions become linear."""
        state = split_paths(super().from_official(state_dict), num_paths=1)
        for key, value in state.items():
            if key == "head.fc.weight":
                state[key] = value.flatten(1)
            elif key.endswith("average.bias"):
                state[key] = value.squeeze(0)
        return state

    def adapt(self, state: StateDict) -> StateDict:
        """Resample the last stage's biases to this model's image size."""
        state = super().adapt(state)
        for name, module in self.named_modules():
            key = f"{name}.bias"
            if isinstance(module, GlobalAverage) and key in state:
                cells = state[key].shape[-1]
                if cells != module.cells:
                    state[key] = resample_biases(state[key], cells, module.cells)
        return state


def _downsample(match: re.Match[str]) -> str:
    part = ("conv", "norm")[int(match[2])]
    return f"stages.{(int(match[1]) + 1) // 2}.downsample.{part}.{match[3]}"


def _in_block(ours: str) -> Any:
    """Replacement for a name in a block; its own groups begin with the third."""

    def rename(match: re.Match[str]) -> str:
        return f"stages.{int(match[1]) // 2}.blocks.{match[2]}.{match.expand(ours)}"

    return rename


_BLOCK = r"layers\.(\d)\.blocks\.(\d+)\."
_MIXER = _BLOCK + r"token_mixer\."
_SSM = ss2d_rules(_MIXER + r"ssm\.", "mixer.average.")
RULES: dict[str, Any] = {
    r"patch_embed\.(.*)": r"stem.\1",
    r"layers\.(\d)\.([01])\.(.*)": _downsample,
    r"layers\.\d\.rope\.angle": None,
    _BLOCK + r"cpe(\d)\.(.*)": _in_block(r"position\3.\4"),
    _BLOCK + r"(norm\d\..*)": _in_block(r"\3"),
    _BLOCK + r"mlp\.dwconv\.(.*)": _in_block(r"mlp.conv.\3"),
    _BLOCK + r"(mlp\.fc\d\..*)": _in_block(r"\3"),
    _BLOCK + r"layer_scale(\d)\.(.*)": _in_block(r"scale\3.\4"),
    _MIXER + r"rpb\.0": _in_block("mixer.bias"),
    # the same tensor as rpb.0
    _MIXER + r"rpb\.1": None,
    _MIXER + r"rpb\.2": _in_block("mixer.average.bias"),
    _MIXER + r"proj\.0\.(.*)": _in_block(r"mixer.proj_norm.\3"),
    _MIXER + r"proj\.1\.(.*)": _in_block(r"mixer.proj.\3"),
    _MIXER + r"((?:qkv|gate\.\d|lepe|norm)\..*)": _in_block(r"mixer.\3"),
    _MIXER + r"ssm\.state_fusion\.(.*)": _in_block(r"mixer.average.fusion.\3"),
    _MIXER + r"ssm\.dt_projs_weight": _in_block("mixer.average.scan.dt_proj.0.weight"),
    **{theirs: _in_block(ours) for theirs, ours in _SSM.items()},
    r"classifier\.0\.(.*)": r"head.project.conv.\1",
    r"classifier\.1\.(.*)": r"head.project.norm.\1",
    r"classifier\.4\.(.*)": r"head.fc.\1",
}
_TOP1 = {
    "a2mamba_nano.in1k": 78.7,
    "a2mamba_tiny.in1k": 83.0,
    "a2mamba_small.in1k": 84.7,
    "a2mamba_base.in1k": 85.7,
    "a2mamba_large.in1k": 86.1,
}
register_family("A2Mamba", A2Mamba, RULES, top1=_TOP1)


def _cfg(name: str, **kwargs: Any) -> Any:
    file = f"a2mamba_pretrained_weights/{name.split('.')[0]}.pth" if name in _TOP1 else None
    return {
        "hf_hub_id": "LMMM2025/A2Mamba" if file else None,
        "hf_hub_filename": file,
        "custom_load": "hf" if file else False,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "first_conv": "stem.0",
        "classifier": "head.fc",
        "license": "unknown" if file else None,
        "origin_url": "https://github.com/LMMMEng/A2Mamba",
        "paper_name": "A2Mamba: Attention-augmented State Space Models for Visual Recognition",
        "paper_ids": "arXiv:2507.16624",
        "notes": (
            "family: A2Mamba",
            f"top-1: {_TOP1.get(name, 'untrained')}",
            "licence: unstated, the official repository has no licence file",
        ),
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "a2mamba_nano.in1k": _cfg("a2mamba_nano.in1k"),
        "a2mamba_tiny.in1k": _cfg("a2mamba_tiny.in1k"),
        "a2mamba_small.in1k": _cfg("a2mamba_small.in1k"),
        "a2mamba_base.in1k": _cfg("a2mamba_base.in1k", crop_pct=0.95),
        "a2mamba_large.in1k": _cfg("a2mamba_large.in1k", crop_pct=0.975),
        "test_a2mamba.untrained": _cfg("test", input_size=(3, 96, 96), pool_size=(3, 3)),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> A2Mamba:
    return build_model(A2Mamba, variant, pretrained, **kwargs)


@register_model
def a2mamba_nano(pretrained: bool = False, **kwargs: Any) -> A2Mamba:
    """A2Mamba-N: 4.2 M parameters."""
    return _create("a2mamba_nano", pretrained, **kwargs)


@register_model
def a2mamba_tiny(pretrained: bool = False, **kwargs: Any) -> A2Mamba:
    """A2Mamba-T: 15.4 M parameters."""
    args = {"depths": (2, 2, 10, 2), "dims": (48, 96, 256, 448), "heads": (2, 4, 8, 16)}
    return _create("a2mamba_tiny", pretrained, **{**args, **kwargs})


@register_model
def a2mamba_small(pretrained: bool = False, **kwargs: Any) -> A2Mamba:
    """A2Mamba-S: 30.7 M parameters."""
    args: dict[str, Any] = {"depths": (2, 4, 12, 4), "dims": (64, 128, 320, 512)}
    args |= {"heads": (2, 4, 10, 16), "scaled": ("none", "none", "stream", "stream")}
    return _create("a2mamba_small", pretrained, **{**args, **kwargs})


_SCALED = {"scaled": ("branch",) * 4, "scales": (1.0, 1.0, 1e-6, 1e-6)}


@register_model
def a2mamba_base(pretrained: bool = False, **kwargs: Any) -> A2Mamba:
    """A2Mamba-B: 51.1 M parameters."""
    args: dict[str, Any] = {"depths": (4, 6, 12, 6), "dims": (96, 192, 384, 512), **_SCALED}
    args |= {"heads": (4, 8, 12, 16), "mlp_ratios": (4.0, 4.0, 3.75, 3.75)}
    return _create("a2mamba_base", pretrained, **{**args, **kwargs})


@register_model
def a2mamba_large(pretrained: bool = False, **kwargs: Any) -> A2Mamba:
    """A2Mamba-L: 93.7 M parameters."""
    args: dict[str, Any] = {"depths": (4, 6, 18, 6), "dims": (96, 192, 448, 672), **_SCALED}
    args |= {"heads": (4, 8, 16, 24), "mlp_ratios": (4.0, 4.0, 4.0, 4.0)}
    return _create("a2mamba_large", pretrained, **{**args, **kwargs})


@register_model
def test_a2mamba(pretrained: bool = False, **kwargs: Any) -> A2Mamba:
    """A very small A2Mamba for tests; no weights."""
    args: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (16, 16, 32, 32), "img_size": 96}
    args |= {"heads": (2, 2, 4, 4), "windows": (5, 3, 3, 3), "hidden": 48}
    return _create("test_a2mamba", pretrained, **{**args, **kwargs})
