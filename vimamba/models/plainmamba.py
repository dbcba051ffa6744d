"""PlainMamba (Yang et al. 2024, arXiv:2403.17695): one scan's parameters along four snakes.

Tokens are mixed along serpentine rows and columns and their reverses. A learned vector for the
direction of each step is added to its B.

Two details follow the training of the published weights. Only the scan's input follows a path: step
t reads the step size, B and C of the t-th token in raster order. And the step size bias is added
twice.

Official code: https://github.com/ChenhongyiYang/PlainMamba (Apache-2.0)
Sizes: N batch, h and w grid, L = h * w tokens, C channels, D = 2 C, K paths of T steps, S states.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    GridEmbed,
    SelectiveScan,
    along_paths,
    init_linear_,
    sum_paths,
    to_pair,
)
from vimamba.models._builder import build_model, make_cfgs
from vimamba.models._plain import PlainBackbone, PlainOptions, PlainParts
from vimamba.timm_layers import ConvNormAct

__all__ = ["PlainMamba"]


class ConvStem(GridEmbed):
    """Convolutions at half the image's size, then patches of 8 x 8, zero-padded."""

    def __init__(
        self, img_size: tuple[int, int], in_chans: int, dim: int, num_convs: int, **dd: Any
    ) -> None:
        super().__init__(img_size, 16, 16, dynamic_img_size=True)
        self.stem = ConvNormAct(in_chans, 64, 7, stride=2, **dd)
        self.convs = nn.Sequential(*(ConvNormAct(64, 64, 3, **dd) for _ in range(num_convs)))
        self.proj = nn.Conv2d(64, dim, 8, stride=8, **dd)

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Grid of an image of this size."""
        return (img_size[0] + 15) // 16, (img_size[1] + 15) // 16

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, h, w, C)."""
        x = self.convs(self.stem(x))
        bottom, right = (8 - x.shape[2] % 8) % 8, (8 - x.shape[3] % 8) % 8
        return self.proj(F.pad(x, (0, right, 0, bottom))).permute(0, 2, 3, 1)


def directions(paths: Tensor, width: int) -> Tensor:
    """The direction of every step: 0 a start, 1 right, 2 left, 3 up, 4 down.

    A step to a cell that is not a neighbor counts along the axis with the larger distance.

    Args:
        paths: (K, T); a step after a zero token, -1, counts as a start.
        width: Width of the grid.

    Returns:
        (K, T) int64.
    """
    row = paths.div(width, rounding_mode="floor")
    column = paths - row * width  # ONNX has no remainder by a dynamic size
    down, right = row[:, 1:] - row[:, :-1], column[:, 1:] - column[:, :-1]
    last, here = paths[:, :-1], paths[:, 1:]
    across = torch.where(right > 0, 1, 2)
    along = torch.where(down > 0, 4, 3)
    way = torch.where(right.abs() >= down.abs(), across, along)
    way = torch.where((last < 0) | (here < 0), 0, way)
    return F.pad(way, (1, 0))


class SnakeMixer(nn.Module):
    """A wide convolution, the same selective scan along every path, a gate.

    Args:
        dim: C.
        d_state: S.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(self, dim: int, *, d_state: int = 16, **dd: Any) -> None:
        super().__init__()
        inner = 2 * dim
        self.d_state = d_state
        self.dt_rank = math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * inner, **dd)
        self.conv = nn.Conv2d(inner, inner, 7, padding=3, groups=inner, **dd)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False, **dd)
        self.direction_B = nn.Parameter(torch.empty(5, d_state, **dd))
        sizes = {"d_state": d_state, "dt_rank": self.dt_rank, "bias_scale": 2.0}
        self.scan = SelectiveScan(inner, num_paths=1, **sizes, **dd)
        self.out_proj = nn.Linear(inner, dim, **dd)
        nn.init.trunc_normal_(self.direction_B, std=0.02)

    def reset_parameters(self) -> None:
        """Initialize the direction vectors; other layers initialize themselves."""
        nn.init.trunc_normal_(self.direction_B, std=0.02)

    def forward(self, x: Tensor, paths: Tensor, ways: Tensor) -> Tensor:
        """(N, h, w, C) along paths (K, T), with their `directions` (K, T), to (N, h, w, C)."""
        grid = x.shape[1:3]
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        x = F.silu(self.conv(x.permute(0, 3, 1, 2))).flatten(2).transpose(1, 2)
        length, count, steps = x.shape[1], paths.shape[0], paths.shape[1]
        # if paths have more or fewer steps than there are tokens, the token at the same fraction
        token = torch.arange(steps, device=x.device, dtype=torch.int64) * length
        token = token.div(steps, rounding_mode="floor")
        projected = self.x_proj(x)[:, token].unsqueeze(1).expand(-1, count, -1, -1)
        dt, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        B = B + self.direction_B[ways]
        # the paths share all parameters, so they become part of the batch
        y = self.scan(
            along_paths(x, paths).flatten(0, 1),
            dt.flatten(0, 1).unsqueeze(1),
            B.flatten(0, 1).unsqueeze(1),
            C.flatten(0, 1).unsqueeze(1),
            None,
        ).unflatten(0, (-1, count))
        y = sum_paths(y, paths, length).unflatten(1, grid)
        return self.out_proj(y * F.silu(gate))


class PlainMambaBlock(nn.Module):
    """Pre-norm residual block, optionally followed by a depthwise convolution."""

    def __init__(
        self, dim: int, *, d_state: int, convolve: bool, drop_path: float, **dd: Any
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, **dd)
        self.mixer = SnakeMixer(dim, d_state=d_state, **dd)
        self.drop_path = DropPath(drop_path)
        self.conv: nn.Module = nn.Identity()
        if convolve:
            self.conv = ConvNormAct(dim, dim, 3, groups=dim, act_layer=nn.GELU, **dd)

    def forward(self, x: Tensor, paths: Tensor) -> Tensor:
        """A map (N, h, w, C), paths and their directions (2, K, T), to tokens (N, L, C)."""
        x = x + self.drop_path(self.mixer(self.norm(x), paths[0], paths[1]))
        return self.conv(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)


class PlainMamba(PlainBackbone):
    """PlainMamba backbone with a classifier, for images of any size.

    Args:
        img_size: Height and width that fix the position embedding; it is resampled for others.
        in_chans, num_classes, drop_rate, drop_path_rate: As in timm.
        global_pool: "avg" or "".
        embed_dim: C.
        depth: Blocks.
        stem_convs: Stem convolutions that keep the size.
        conv_blocks: Blocks with a depthwise convolution.
        d_state: States per channel of the scan.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn.
        stage_norm: A norm on the last features of each quarter of the blocks and no classifier:
            the layout of the published segmentation and detection backbones.
        device, dtype: Device and dtype of the parameters.
    """

    unsupported = frozenset({"patch_size", "dynamic_img_size"})
    dense: ClassVar[Mapping[str, Any]] = {"stage_norm": True}

    def __init__(
        self,
        *,
        embed_dim: int = 192,
        depth: int = 24,
        stem_convs: int = 2,
        conv_blocks: tuple[int, ...] = (),
        d_state: int = 16,
        scan_order: str | Sequence[str] = "serpentine",
        stage_norm: bool = False,
        **options: Any,
    ) -> None:
        def block(number: int, rate: float, _paths: int, dd: dict[str, Any]) -> PlainMambaBlock:
            sizes = {"d_state": d_state, "convolve": number in conv_blocks}
            return PlainMambaBlock(embed_dim, drop_path=rate, **sizes, **dd)

        def embed(given: PlainOptions, dim: int) -> ConvStem:
            size = to_pair(given.img_size)
            return ConvStem(size, given.in_chans, dim, stem_convs, **given.dd)

        norm = partial(nn.LayerNorm, eps=1e-6)
        parts = PlainParts(
            depth=depth,
            dim=embed_dim,
            block=block,
            scan_order=scan_order,
            embed=embed,
            norm=norm,
            dense_norm=norm if stage_norm else None,
            antialias=False,
        )
        super().__init__(parts, **options)
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Linear layers as in DeiT, which makes step sizes softplus(0) at first; the classifier."""
        super().init_parameters()
        init_linear_(self)
        for block in self.blocks:
            nn.init.zeros_(block.mixer.scan.dt_bias)  # type: ignore[union-attr]
        if isinstance(self.head, nn.Linear):
            nn.init.normal_(self.head.weight, std=0.01)

    def no_weight_decay(self) -> set[str]:
        """Names of the position embedding, the direction vectors and the scans' parameters."""
        rows = {name for name, _ in self.named_parameters() if name.endswith("direction_B")}
        return super().no_weight_decay() | rows

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and give the parameters that all paths share an axis of one path.

        Raises:
            CheckpointError: A key matches no rule.
        """
        state = super().from_official(state_dict)
        shared = (".A_log", ".D", ".dt_bias")
        return {k: v[None] if k.endswith(shared) else v for k, v in state.items()}

    def adapt(self, state: StateDict) -> StateDict:
        """A dense backbone norms its last features as the classifier does what it reads."""
        if self.has_tap_norms:
            last = f"tap_norms.{len(self.tap_norms) - 1}."
            state = {re.sub(r"^norm\.", last, key): value for key, value in state.items()}
        return super().adapt(state)

    def prepare(
        self, x: Tensor, paths: dict[str, Tensor], grid: tuple[int, int]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Paths with the directions of their steps, (2, K, T)."""
        for order, table in paths.items():
            paths[order] = torch.stack([table, directions(table, grid[1])])
        return paths, torch.jit.annotate(list[Tensor], [])

    def enter_block(
        self,
        block: int,
        x: Tensor,
        paths: dict[str, Tensor],
        context: list[Tensor],
        grid: tuple[int, int],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The tokens as a map (N, h, w, C)."""
        return x.unflatten(1, grid), paths


_PREFIX = r"(?:backbone\.)?"
_LAYER = _PREFIX + r"layers\.(\d+)\."
_MIXER = r"blocks.\1.mixer."
RULES = {
    _PREFIX + r"pos_embed": "pos_embed",
    _PREFIX + r"patch_embed\.stem\.0\.(.*)": r"patch_embed.stem.conv.\1",
    _PREFIX + r"patch_embed\.stem\.1\.(.*)": r"patch_embed.stem.bn.\1",
    _PREFIX + r"patch_embed\.convs\.(\d)\.(.*)": lambda m: (
        f"patch_embed.convs.{int(m[1]) // 3}.{'bn' if int(m[1]) % 3 else 'conv'}.{m[2]}"
    ),
    _PREFIX + r"patch_embed\.projection\.(.*)": r"patch_embed.proj.\1",
    _LAYER + r"norm\.(.*)": r"blocks.\1.norm.\2",
    _LAYER + r"dw\.0\.(.*)": r"blocks.\1.conv.conv.\2",
    _LAYER + r"dw\.1\.(.*)": r"blocks.\1.conv.bn.\2",
    _LAYER + r"mamba\.(A_log|D)": _MIXER + r"scan.\2",
    _LAYER + r"mamba\.dt_proj\.weight": _MIXER + "scan.dt_proj.0.weight",
    _LAYER + r"mamba\.dt_proj\.bias": _MIXER + "scan.dt_bias",
    _LAYER + r"mamba\.direction_Bs": _MIXER + "direction_B",
    _LAYER + r"mamba\.conv2d\.(.*)": _MIXER + r"conv.\2",
    _LAYER + r"mamba\.((?:in|x|out)_proj\..*)": _MIXER + r"\2",
    _PREFIX + r"ln1\.(.*)": r"norm.\1",
    _PREFIX + r"norm_layer(\d)\.(.*)": r"tap_norms.\1.\2",
    r"head\.fc\.(.*)": r"head.\1",
    # averages of all weights; the other entries are copies of them
    r"ema_.*": None,
}
_TOP1 = {"plainmamba_l1.in1k": 77.9, "plainmamba_l2.in1k": 81.6, "plainmamba_l3.in1k": 82.3}
register_family("PlainMamba", PlainMamba, RULES, layouts=({"stage_norm": True},), top1=_TOP1)

default_cfgs = make_cfgs(
    {
        "plainmamba_l1.in1k": {"file": "l1.pth"},
        "plainmamba_l2.in1k": {"file": "l2.pth"},
        "plainmamba_l3.in1k": {"file": "l3.pth"},
        "test_plainmamba.untrained": {"size": 64},
    },
    hub="ChenhongyiYang/PlainMamba",
    license="apache-2.0",
    cell=None,
    first_conv="patch_embed.stem.conv",
    classifier="head",
    origin_url="https://github.com/ChenhongyiYang/PlainMamba",
    paper_name="PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition",
    paper_ids="arXiv:2403.17695",
)


@register_model
def plainmamba_l1(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L1: 7.6 M parameters, 196 tokens."""
    sizes = {"embed_dim": 192, "stem_convs": 1, "conv_blocks": (0,)}
    return build_model(PlainMamba, "plainmamba_l1", pretrained, kwargs, **sizes)


@register_model
def plainmamba_l2(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L2: 26.1 M parameters, 196 tokens."""
    return build_model(PlainMamba, "plainmamba_l2", pretrained, kwargs, embed_dim=384)


@register_model
def plainmamba_l3(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L3: 51.0 M parameters, 196 tokens."""
    return build_model(PlainMamba, "plainmamba_l3", pretrained, kwargs, embed_dim=448, depth=36)


@register_model
def test_plainmamba(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """A very small PlainMamba for tests; no weights."""
    sizes: dict[str, Any] = {"img_size": 64, "embed_dim": 24, "depth": 4, "stem_convs": 0}
    sizes |= {"conv_blocks": (0,), "d_state": 8}
    return build_model(PlainMamba, "test_plainmamba", pretrained, kwargs, **sizes)
