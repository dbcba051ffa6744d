"""GroupMamba (Shaker et al. 2024, arXiv:2407.13772): a pyramid that scans groups of channels.

Four groups of channels are each scanned along a different path, and a gate that reads the mean
token mixes them. The pooled vector passes through another block before the classifier. Official
models have two classifiers, one distilled from a teacher, and average their logits; here their
averaged weights are loaded.

Official code: https://github.com/Amshaker/GroupMamba (MIT)
Sizes: N batch, H and W image or grid, L cells, C channels of a stage, D = C / 4 of a group, K paths
of T steps, S states, R rank of the step size. Everything is channels-last.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, average_classifiers, register_family
from vimamba.layers import ConvMlp, NeckedHead, SelectiveScan, init_vss_, join_branches
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.models._builder import build_model, make_cfgs
from vimamba.models._staged import StagedBackbone, StagedParts
from vimamba.scan_orders import num_paths, order_of_block
from vimamba.timm_layers import ConvNormAct, Mlp

__all__ = ["GroupMamba"]

GROUPS = 4


class ConvStem(nn.Module):
    """Three convolutions at 1/2 of the image's side, and a strided one to 1/4."""

    def __init__(self, in_chans: int, dim: int, *, hidden: int, **dd: Any) -> None:
        super().__init__()
        self.patch_size = 1
        self.convs = nn.Sequential(
            ConvNormAct(in_chans, hidden, 7, stride=2, **dd),
            ConvNormAct(hidden, hidden, 3, **dd),
            ConvNormAct(hidden, hidden, 3, **dd),
        )
        self.proj = nn.Conv2d(hidden, dim, 3, stride=2, padding=1, **dd)
        self.norm = nn.LayerNorm(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, ceil(H / 4), ceil(W / 4), C)."""
        return self.norm(self.proj(self.convs(x)).permute(0, 2, 3, 1))


class Downsample(nn.Module):
    """The norm of the previous stage, a strided 3x3 convolution, a norm."""

    def __init__(self, dim_in: int, dim: int, **dd: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim_in, eps=1e-6, **dd)
        self.conv = nn.Conv2d(dim_in, dim, 3, stride=2, padding=1, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C_in) to (N, ceil(H / 2), ceil(W / 2), C)."""
        x = self.conv(self.norm1(x).permute(0, 3, 1, 2))
        return self.norm2(x.permute(0, 2, 3, 1))


class GroupScan(nn.Module):
    """A gated scan with convolution, as in SS2D, in each of four groups of channels.

    Group g scans along the paths g, g + 4, g + 8, ... of the order, and adds up; an order of fewer
    paths deals them to the groups in turn. The groups run side by side in one operator.

    Args:
        dim: C, a multiple of 4.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum.
        d_state: S.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(self, dim: int, *, scan_order: str, d_state: int = 1, **dd: Any) -> None:
        super().__init__()
        if dim % GROUPS:
            raise ValueError(f"dims=(…, {dim}, …) must be multiples of {GROUPS}, one part a group")
        inner = dim // GROUPS
        self.scan_order = scan_order
        self.num_paths = num_paths(scan_order)
        self.num_groups = GROUPS
        self.num_scans = max(self.num_paths, GROUPS)
        self.d_state = d_state
        self.dt_rank = math.ceil(inner / 16)
        rows = self.dt_rank + 2 * d_state
        self.in_proj = nn.ModuleList(
            nn.Linear(inner, 2 * inner, bias=False, **dd) for _ in range(GROUPS)
        )
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.act = nn.SiLU()
        self.x_proj = nn.ModuleList(
            nn.Linear(inner, rows, bias=False, **dd) for _ in range(self.num_scans)
        )
        self.scan = SelectiveScan(
            inner, num_paths=self.num_scans, d_state=d_state, dt_rank=self.dt_rank, **dd
        )
        self.out_norm = nn.ModuleList(nn.LayerNorm(inner, **dd) for _ in range(GROUPS))
        self.out_proj = nn.ModuleList(
            nn.Linear(inner, inner, bias=False, **dd) for _ in range(GROUPS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same shape."""
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        grid = x.shape[1:3]
        paths = torch.ops.vimamba.scan_paths(x, self.scan_order)
        if self.num_paths < self.num_groups:
            paths = paths.repeat(self.num_groups, 1)[: self.num_groups]
        parts = x.chunk(self.num_groups, dim=-1)
        tokens, gates = [], []
        for g, in_proj in enumerate(self.in_proj):
            u, gate = in_proj(parts[g]).chunk(2, dim=-1)
            tokens.append(u)
            gates.append(self.act(gate).flatten(1, 2))
        u = self.act(self.conv(torch.cat(tokens, dim=-1).permute(0, 3, 1, 2)))
        u = u.flatten(2).unflatten(1, (self.num_groups, -1)).transpose(2, 3)
        y = self.mix(u, paths)
        normed = []
        for g, out_norm in enumerate(self.out_norm):
            normed.append(out_norm(y[:, g :: self.num_groups].sum(1)) * gates[g])
        outputs = []
        for g, out_proj in enumerate(self.out_proj):
            outputs.append(out_proj(normed[g]))
        return torch.cat(outputs, dim=-1).unflatten(1, grid)

    def mix(self, u: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, 4, L, D) along paths to the result of every scan, (N, K, L, D), K >= 4."""
        if self.num_scans > self.num_groups:
            times = -(-self.num_scans // self.num_groups)
            u = u.repeat(1, times, 1, 1)[:, : self.num_scans]
        projected = []
        for k, x_proj in enumerate(self.x_proj):
            projected.append(x_proj(u[:, k]))
        sizes = [self.dt_rank, self.d_state, self.d_state]
        dt, B, C = torch.stack(projected, dim=1).split(sizes, dim=-1)
        return self.scan(u, dt, B, C, paths, merge=False)

    def reset_parameters(self) -> None:
        """Initialize the scan's parameters; other layers initialize themselves."""
        for x_proj in self.x_proj:
            x_proj.reset_parameters()  # type: ignore[operator]
        self.scan.reset_parameters()


class ModulatedGroups(nn.Module):
    """Normalize, scan in groups, and multiply by the tokens themselves and by a channel gate.

    Args:
        dim: C.
        scan_order: As of `GroupScan`.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(self, dim: int, *, scan_order: str, **dd: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, **dd)
        self.reduce = nn.Linear(dim, max(dim // 16, 1), **dd)
        self.act = nn.ReLU()
        self.select = nn.Linear(max(dim // 16, 1), dim, **dd)
        self.groups = GroupScan(dim, scan_order=scan_order, **dd)
        self.skip_scale = nn.Parameter(torch.ones(1, **dd))
        self.proj = nn.Linear(dim, dim, **dd)

    def reset_parameters(self) -> None:
        """Initialize the scale of the skip; other layers initialize themselves."""
        nn.init.ones_(self.skip_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same shape."""
        x = self.norm(x)
        mean = x.mean(dim=[1, 2], keepdim=True)
        gate = self.select(self.act(self.reduce(mean))).sigmoid()
        y = self.groups(x) * self.skip_scale * x * gate
        # the same norm once more
        return self.proj(self.norm(y))


class GroupBlock(nn.Module):
    """Residual block: the mixer, which has its own norm, then an MLP."""

    def __init__(
        self, dim: int, *, scan_order: str, mlp_ratio: float, drop_path: float, **dd: Any
    ) -> None:
        super().__init__()
        self.mixer = ModulatedGroups(dim, scan_order=scan_order, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to (N, H, W, C)."""
        x = x + self.drop_path(self.mixer(x))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ClassBlock(nn.Module):
    """Residual block of the pooled vector, as a map of one cell."""

    def __init__(self, dim: int, *, scan_order: str, mlp_ratio: float, **dd: Any) -> None:
        super().__init__()
        self.mixer = ModulatedGroups(dim, scan_order=scan_order, **dd)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) to (N, C)."""
        x = x[:, None, None]
        # the mixer's output is normalized, not its input
        x = x + self.norm1(self.mixer(x))
        return (x + self.mlp(self.norm2(x))).flatten(1)


def make_neck(dim: int, *, scan_order: str, mlp_ratio: float, **dd: Any) -> nn.Module:
    """The layers between pooling and the classifier."""
    post = ClassBlock(dim, scan_order=scan_order, mlp_ratio=mlp_ratio, **dd)
    return nn.Sequential(OrderedDict(post=post, norm=nn.LayerNorm(dim, eps=1e-6, **dd)))


class GroupMamba(StagedBackbone):
    """GroupMamba with a classifier.

    If H and W differ, the official code has wrong gradients along columns; here they are right.

    Args:
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: As in timm.
        depths: Blocks per stage.
        dims: Channels per stage, multiples of 4.
        stem_dim: Hidden channels of the stem.
        mlp_ratios: Hidden channels of the MLPs divided by channels, per stage.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn, that of the pooled vector last.
            The paths are dealt out to four groups of channels.
        device, dtype: Device and dtype of the parameters.
    """

    unsupported = frozenset({"stage_norm"})
    dense: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (3, 4, 9, 3),
        dims: tuple[int, ...] = (64, 128, 348, 448),
        stem_dim: int = 32,
        mlp_ratios: tuple[float, ...] = (8.0, 8.0, 4.0, 4.0),
        scan_order: str | Sequence[str] = "cross",
        **options: Any,
    ) -> None:
        def block(
            stage: int, _number: int, dim: int, rate: float, orders: Iterator[str], **dd: Any
        ) -> nn.Module:
            ratio = mlp_ratios[stage]
            return GroupBlock(dim, scan_order=next(orders), mlp_ratio=ratio, drop_path=rate, **dd)

        last = order_of_block(scan_order, sum(depths))
        neck = partial(make_neck, scan_order=last, mlp_ratio=mlp_ratios[-1])
        parts = StagedParts(
            depths=depths,
            dims=dims,
            stem=partial(ConvStem, hidden=stem_dim),
            block=block,
            downsample=Downsample,
            scan_order=scan_order,
            norm=nn.Identity,
            head=partial(NeckedHead, neck=neck),
        )
        super().__init__(parts, **options)
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Linear layers as in VMamba, convolutions by their fan-out, scans as in Mamba."""
        init_vss_(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, GroupScan):
                module.reset_parameters()

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, join the parameters of the groups, and average the classifiers."""
        state = super().from_official(state_dict)
        for key, value in state.items():
            if re.search(r"x_proj|dt_proj|dt_bias", key):
                state[key] = value.flatten(0, 1)  # one path
        return average_classifiers(join_branches(state))


# parts of a block; "{}" is the number of the group of channels
_PARTS = {
    r"attn\.GROUP\.in_proj": "mixer.groups.in_proj.{}",
    r"attn\.GROUP\.x_proj_weight": "mixer.groups.x_proj.{}.weight",
    r"attn\.GROUP\.dt_projs_weight": "mixer.groups.scan.dt_proj.{}.weight",
    r"attn\.GROUP\.dt_projs_bias": "mixer.groups.scan.dt_bias@{}",
    r"attn\.GROUP\.A_logs": "mixer.groups.scan.A_log@{}",
    r"attn\.GROUP\.Ds": "mixer.groups.scan.D@{}",
    r"attn\.GROUP\.conv2d\.weight": "mixer.groups.conv.weight@{}",
    r"attn\.GROUP\.conv2d\.bias": "mixer.groups.conv.bias@{}",
    r"attn\.GROUP\.out_norm": "mixer.groups.out_norm.{}",
    r"attn\.GROUP\.out_proj": "mixer.groups.out_proj.{}",
    r"attn\.fc1": "mixer.reduce",
    r"attn\.fc2": "mixer.select",
    r"attn(?=\.(?:skip_scale|norm|proj))": "mixer",
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp": "mlp",
}


def _part(match: re.Match[str], leaf: str) -> str:
    """Name of a part of a numbered block, or of the last one, which has no number."""
    block = f"stages.{int(match[1]) - 1}.blocks.{match[2]}" if match[1] else "head.neck.post"
    rest = match["rest"].replace("dwconv.dwconv", "conv")
    return f"{block}.{leaf.format(int(match['group'] or 0) - 1)}{rest}"


def _rule(theirs: str) -> str:
    """Pattern of a part of a block."""
    theirs = theirs.replace("GROUP", r"mamba_g(?P<group>\d)")
    theirs = theirs if "(?P<group>" in theirs else f"(?P<group>){theirs}"
    return rf"(?:block(\d)\.(\d+)|post_network\.0)\.{theirs}(?P<rest>(?:\.\w+)*)"


def _next(leaf: str, match: re.Match[str]) -> str:
    """Patch embedding 2 and norm 1 are in front of our stage 1, and so on."""
    stage = int(match[2]) - (match[1] == "patch_embed")
    return f"stages.{stage}.downsample.{leaf}.{match[3]}"


RULES: dict[str, Any] = {
    r"patch_embed1\.conv\.([036])\.(.*)": lambda m: f"stem.convs.{int(m[1]) // 3}.conv.{m[2]}",
    r"patch_embed1\.conv\.([147])\.(.*)": lambda m: f"stem.convs.{int(m[1]) // 3}.bn.{m[2]}",
    r"patch_embed1\.(proj|norm)\.(.*)": r"stem.\1.\2",
    r"(patch_embed)(\d)\.proj\.(.*)": partial(_next, "conv"),
    r"(patch_embed)(\d)\.norm\.(.*)": partial(_next, "norm2"),
    r"(norm)([123])\.(.*)": partial(_next, "norm1"),
    r"norm4\.(.*)": r"head.neck.norm.\1",
    r"head\.(.*)": r"head.fc.\1",
    r"dist_head\.(.*)": r"head.taught.\1",
    **{_rule(theirs): partial(_part, leaf=ours) for theirs, ours in _PARTS.items()},
}
# where the weights are, and top-1 accuracy
_RELEASED = {
    "groupmamba_tiny.in1k": ("1TrYYs0uGZbja_2ONQLyfiNdp8C5ZYP1o", 83.3),
    "groupmamba_small.in1k": ("1vTN9ynDcsDuOVrcT9GcQ5nBSk-hXySlh", 83.9),
    "groupmamba_base.in1k": ("1A_srBeDYpsinU5W3PAEADu1saoz413EU", 84.5),
}
register_family(
    "GroupMamba", GroupMamba, RULES, top1={name: top1 for name, (_, top1) in _RELEASED.items()}
)

default_cfgs = make_cfgs(
    {
        **{
            name: {"by_hand": f"https://drive.google.com/file/d/{place}"}
            for name, (place, _) in _RELEASED.items()
        },
        "test_groupmamba.untrained": {"size": 96},
    },
    license="mit",
    first_conv="stem.convs.0.conv",
    classifier="head.fc",
    origin_url="https://github.com/Amshaker/GroupMamba",
    paper_name="GroupMamba: Efficient Group-Based Visual State Space Model",
    paper_ids="arXiv:2407.13772",
)


@register_model
def groupmamba_tiny(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """GroupMamba-T: 22.9 M parameters; its weights are on Google Drive."""
    return build_model(GroupMamba, "groupmamba_tiny", pretrained, kwargs, depths=(3, 4, 9, 3))


@register_model
def groupmamba_small(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """GroupMamba-S: 34.3 M parameters; its weights are on Google Drive."""
    sizes = {"depths": (3, 4, 16, 3), "dims": (64, 128, 348, 512), "stem_dim": 64}
    return build_model(GroupMamba, "groupmamba_small", pretrained, kwargs, **sizes)


@register_model
def groupmamba_base(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """GroupMamba-B: 56.6 M parameters; its weights are on Google Drive."""
    sizes = {"depths": (3, 6, 21, 3), "dims": (96, 192, 424, 512), "stem_dim": 64}
    return build_model(GroupMamba, "groupmamba_base", pretrained, kwargs, **sizes)


@register_model
def test_groupmamba(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """A very small GroupMamba for tests; no weights."""
    sizes: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (48, 48, 32, 32), "stem_dim": 8}
    sizes |= {"mlp_ratios": (2.0, 2.0, 2.0, 2.0)}
    return build_model(GroupMamba, "test_groupmamba", pretrained, kwargs, **sizes)
