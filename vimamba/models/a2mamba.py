"""A2Mamba (Lou et al. 2025, arXiv:2507.16624): attention averages what a scan keeps of the tokens.

Half of a block's heads attend to the cells around each cell, the other half to the same number of
cells spread over the whole map; both sets of weights then also average the states of a scan. The
last stage attends to all cells instead. Neighborhood attention (arXiv:2204.07143) is written as
products of a row of queries with the rows of their neighbors.

The official code needs maps at least as large as the windows, that is, images of 224 pixels; here
cells of a smaller map have fewer neighbors.

Official code: https://github.com/LMMMEng/A2Mamba (no license)
Sizes: N batch, H and W image or map, C channels.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from timm.layers import DropPath, LayerNorm2d
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    ChannelAffine,
    ConvDownsample,
    ConvStem,
    MapMlp,
    ProjectedHead,
    init_map_scans_,
    split_paths,
    ss2d_rules,
    to_pair,
)
from vimamba.layers.attentive import AttentiveMixer, GlobalAverage, StateAverage, resample_biases
from vimamba.models._builder import NO_LICENSE, build_model, make_cfgs
from vimamba.models._staged import StagedBackbone, StagedParts

__all__ = ["A2Mamba"]


class Scale(ChannelAffine):
    """A learned factor and offset of every channel, which start as the same for all."""

    def __init__(self, dim: int, start: float, **dd: Any) -> None:
        self.start = start
        super().__init__(dim, **dd)

    def reset_parameters(self) -> None:
        """Set the same factor for all channels."""
        nn.init.constant_(self.weight, self.start)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]


class AttentiveBlock(nn.Module):
    """Mixer and MLP, each after a depthwise convolution.

    Args:
        dim: C.
        mixer: From (N, C, H, W) to the same shape.
        mlp_ratio: Hidden channels of the MLP divided by channels.
        scaled: What learned factors and offsets apply to: "branch", the outputs of mixer and MLP;
            "stream", the residual stream; or "none".
        scale: Initial value of the factors.
        drop_path: Probability of dropping the update.
        device, dtype: Device and dtype of the parameters.
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
        self.scale1 = nn.Identity() if scaled == "none" else Scale(dim, scale, **dd)
        self.position2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.norm2 = LayerNorm2d(dim, **dd)
        self.mlp = MapMlp(dim, int(dim * mlp_ratio), **dd)
        self.scale2 = nn.Identity() if scaled == "none" else Scale(dim, scale, **dd)
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
        img_size: Size of the images that the last stage's biases are learned for, pixels, or height
            and width; they are resampled for images of other sizes.
        depths: Blocks per stage.
        dims: Channels per stage.
        heads: Heads per stage.
        windows: Side of the windows in cells, per stage.
        mlp_ratios: Hidden channels of the MLPs divided by channels, per stage.
        scaled: What each stage's blocks scale; see `AttentiveBlock`.
        scales: Initial value of the factors, per stage.
        hidden: Channels of the pooled features.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks that scan take in turn.
        device, dtype: Device and dtype of the parameters.
    """

    unsupported = frozenset({"stage_norm"})
    dense: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
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
        **options: Any,
    ) -> None:
        height, width = (-(-side // 2 ** (len(dims) + 1)) for side in to_pair(img_size))

        def block(
            stage: int, _number: int, dim: int, rate: float, orders: Iterator[str], **dd: Any
        ) -> nn.Module:
            if stage == len(dims) - 1:
                average: nn.Module = GlobalAverage(heads[stage], (height, width), **dd)
            else:
                average = StateAverage(dim, heads[stage], scan_order=next(orders), **dd)
            mixer = AttentiveMixer(dim, heads[stage], windows[stage], average, **dd)
            kinds = {"scaled": scaled[stage], "scale": scales[stage]}
            ratio = mlp_ratios[stage]
            return AttentiveBlock(dim, mixer, mlp_ratio=ratio, drop_path=rate, **kinds, **dd)

        parts = StagedParts(
            depths=depths,
            dims=dims,
            stem=partial(ConvStem, bias=False),
            block=block,
            downsample=partial(ConvDownsample, bias=False),
            scan_order=scan_order,
            norm=nn.Identity,
            head=partial(ProjectedHead, hidden=hidden, act=nn.SiLU, bias=True),
            output_fmt="NCHW",
        )
        super().__init__(parts, **options)
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Convolutions and linear layers alike, the scans as Mamba's."""
        init_map_scans_(self)
        for module in self.modules():
            if isinstance(module, Scale):
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
    """Replacement for a name in a block; its groups start at the third."""

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
register_family(
    "A2Mamba",
    A2Mamba,
    RULES,
    top1={
        "a2mamba_nano.in1k": 78.7,
        "a2mamba_tiny.in1k": 83.0,
        "a2mamba_small.in1k": 84.7,
        "a2mamba_base.in1k": 85.7,
        "a2mamba_large.in1k": 86.1,
    },
)

_FILES = "a2mamba_pretrained_weights"
default_cfgs = make_cfgs(
    {
        "a2mamba_nano.in1k": {"file": f"{_FILES}/a2mamba_nano.pth"},
        "a2mamba_tiny.in1k": {"file": f"{_FILES}/a2mamba_tiny.pth"},
        "a2mamba_small.in1k": {"file": f"{_FILES}/a2mamba_small.pth"},
        "a2mamba_base.in1k": {"file": f"{_FILES}/a2mamba_base.pth", "crop_pct": 0.95},
        "a2mamba_large.in1k": {"file": f"{_FILES}/a2mamba_large.pth", "crop_pct": 0.975},
        "test_a2mamba.untrained": {"size": 96},
    },
    hub="LMMM2025/A2Mamba",
    license="unknown",
    crop_pct=0.9,
    first_conv="stem.0",
    classifier="head.fc",
    origin_url="https://github.com/LMMMEng/A2Mamba",
    paper_name="A2Mamba: Attention-augmented State Space Models for Visual Recognition",
    paper_ids="arXiv:2507.16624",
    notes=(NO_LICENSE,),
)


@register_model
def a2mamba_nano(pretrained: bool = False, **kwargs: Any) -> A2Mamba:
    """A2Mamba-N: 4.2 M parameters."""
    return build_model(A2Mamba, "a2mamba_nano", pretrained, kwargs)


@register_model
def a2mamba_tiny(pretrained: bool = False, **kwargs: Any) -> A2Mamba:
    """A2Mamba-T: 15.4 M parameters."""
    sizes = {"depths": (2, 2, 10, 2), "dims": (48, 96, 256, 448), "heads": (2, 4, 8, 16)}
    return build_model(A2Mamba, "a2mamba_tiny", pretrained, kwargs, **sizes)


@register_model
def a2mamba_small(pretrained: bool = False, **kwargs: Any) -> A2Mamba:
    """A2Mamba-S: 30.7 M parameters."""
    sizes: dict[str, Any] = {"depths": (2, 4, 12, 4), "dims": (64, 128, 320, 512)}
    sizes |= {"heads": (2, 4, 10, 16), "scaled": ("none", "none", "stream", "stream")}
    return build_model(A2Mamba, "a2mamba_small", pretrained, kwargs, **sizes)


_SCALED = {"scaled": ("branch",) * 4, "scales": (1.0, 1.0, 1e-6, 1e-6)}


@register_model
def a2mamba_base(pretrained: bool = False, **kwargs: Any) -> A2Mamba:
    """A2Mamba-B: 51.1 M parameters."""
    sizes: dict[str, Any] = {"depths": (4, 6, 12, 6), "dims": (96, 192, 384, 512), **_SCALED}
    sizes |= {"heads": (4, 8, 12, 16), "mlp_ratios": (4.0, 4.0, 3.75, 3.75)}
    return build_model(A2Mamba, "a2mamba_base", pretrained, kwargs, **sizes)


@register_model
def a2mamba_large(pretrained: bool = False, **kwargs: Any) -> A2Mamba:
    """A2Mamba-L: 93.7 M parameters."""
    sizes: dict[str, Any] = {"depths": (4, 6, 18, 6), "dims": (96, 192, 448, 672), **_SCALED}
    sizes |= {"heads": (4, 8, 16, 24), "mlp_ratios": (4.0, 4.0, 4.0, 4.0)}
    return build_model(A2Mamba, "a2mamba_large", pretrained, kwargs, **sizes)


@register_model
def test_a2mamba(pretrained: bool = False, **kwargs: Any) -> A2Mamba:
    """A very small A2Mamba for tests; no weights."""
    sizes: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (16, 16, 32, 32), "img_size": 96}
    sizes |= {"heads": (2, 2, 4, 4), "windows": (5, 3, 3, 3), "hidden": 48}
    return build_model(A2Mamba, "test_a2mamba", pretrained, kwargs, **sizes)
