"""MambaTree, in code GrootV (Xiao et al. 2024, arXiv:2406.02395): a scan along a tree of the map.

The tree connects the most similar neighboring cells of the map. Every cell sums all others, each
multiplied by the decays on the path between the two; the sums run up to the root and down again.
The tree itself has no gradient.

Official code: https://github.com/EasonXiao-888/GrootVL (MIT by its README)
Sizes: N batch, H and W image or map, L = H * W, C channels, D = 2 C. Everything is channels-last.
"""

import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    NormedStage,
    OverlapDownsample,
    OverlapStem,
    ProjectedHead,
    ProjectedScan,
    VSSBlock,
    init_vss_,
    split_paths,
    ss2d_rules,
)
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.models._builder import build_model, make_cfgs
from vimamba.models._staged import StagedBackbone, StagedParts

__all__ = ["MambaTree"]


class TreeMixer(ProjectedScan):
    """Mix tokens along the tree of their map, gated; there are no paths.

    Args:
        dim: C.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(self, dim: int, **dd: Any) -> None:
        inner = 2 * dim
        super().__init__(inner, d_state=1, dt_rank=math.ceil(dim / 16), **dd)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False, **dd)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False, **dd)
        self.act = nn.SiLU()
        self.state_norm = nn.LayerNorm(inner, **dd)
        self.out_norm = nn.LayerNorm(inner, **dd)
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same shape."""
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        x = self.act(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        parents = similarity_tree(x.detach())
        u = x.flatten(1, 2)
        dt, B, C = self.x_proj(u).split([self.dt_rank, 1, 1], dim=-1)
        # a product of many decays close to 1 is inaccurate in half precision
        step = F.softplus(widened(self.scan.dt_proj[0](dt)) + self.scan.dt_bias)
        decay = torch.exp(-step * self.scan.A_log.squeeze(-1).exp())
        states = filter_tree(step * B * u, decay, parents).type_as(x)
        y = self.state_norm(states) * C + self.scan.D * u
        y = self.out_norm(y).view_as(x)
        return self.out_proj(y * self.act(gate))


# kept as a call in symbolic traces, which have no dtypes
@torch.fx.wrap
def widened(x: Tensor) -> Tensor:
    """The tensor in float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def similarity_tree(x: Tensor) -> Tensor:
    """Parents (N, L) of the cells of a map (N, H, W, D) in the tree of most similar neighbors."""
    x = widened(x)
    down = torch.exp(-F.cosine_similarity(x, x.roll(-1, 1), dim=-1, eps=1e-8))
    right = torch.exp(-F.cosine_similarity(x, x.roll(-1, 2), dim=-1, eps=1e-8))
    return torch.ops.vimamba.grid_tree(down[:, :-1], right[:, :, :-1])


def filter_tree(x: Tensor, decay: Tensor, parents: Tensor) -> Tensor:
    """For each token the sum of all tokens, each multiplied by the decays on the path to it.

    Args:
        x: (N, L, D).
        decay: (N, L, D), on the way from each token to its parent.
        parents: (N, L), -1 at the root.
    """
    decay = decay.masked_fill((parents < 0).unsqueeze(-1), 0.0)
    below = torch.ops.vimamba.tree_sum(x, decay, parents, True)
    # the parent's sum contains the token's own share
    return torch.ops.vimamba.tree_sum((1 - decay * decay) * below, decay, parents, False)


class MambaTree(StagedBackbone):
    """MambaTree backbone with a classifier.

    Args:
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: As in timm.
        depths: Blocks per stage.
        dims: Channels per stage.
        mlp_ratio: Hidden channels of the MLPs divided by channels.
        layer_scale: Initial value of learned factors on the residual branches; 0 for none.
        device, dtype: Device and dtype of the parameters.
    """

    # the official configurations average the weights
    prefers_average = True
    unsupported = frozenset({"stage_norm"})
    dense: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (2, 2, 9, 2),
        dims: tuple[int, ...] = (80, 160, 320, 640),
        mlp_ratio: float = 4.0,
        layer_scale: float = 0.0,
        **options: Any,
    ) -> None:
        def block(
            _stage: int, _number: int, dim: int, rate: float, _orders: Iterator[str], **dd: Any
        ) -> nn.Module:
            sizes = {"mlp_ratio": mlp_ratio, "layer_scale": layer_scale, "eps": 1e-6}
            return VSSBlock(dim, TreeMixer(dim, **dd), drop_path=rate, **sizes, **dd)

        def stage(
            number: int, downsample: nn.Module, blocks: list[nn.Module], **dd: Any
        ) -> nn.Module:
            return NormedStage(downsample, blocks, nn.LayerNorm(dims[number], eps=1e-6, **dd))

        hidden = int(1.5 * dims[-1])
        parts = StagedParts(
            depths=depths,
            dims=dims,
            stem=partial(OverlapStem, eps=1e-6),
            block=block,
            downsample=partial(OverlapDownsample, bias=False, eps=1e-6),
            stage=stage,
            norm=nn.Identity,
            head=partial(ProjectedHead, hidden=hidden, act=nn.GELU, bias=False),
        )
        super().__init__(parts, **options)
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Linear layers as in VMamba, scans as in Mamba; convolutions initialize themselves."""
        init_vss_(self)
        for module in self.modules():
            if isinstance(module, TreeMixer):
                module.reset_parameters()

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and give the scan's parameters an axis of paths."""
        return split_paths(super().from_official(state_dict), num_paths=1)


def _downsample(match: re.Match[str]) -> str:
    return f"stages.{int(match[1]) + 1}.downsample.{match[2]}.{match[3]}"


_BLOCK, _OURS = r"levels\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.blocks.\2."
RULES = {
    r"patch_embed\.(conv\d\..*)": r"stem.\1",
    r"patch_embed\.(norm\d)\.1\.(.*)": r"stem.\1.\2",
    r"levels\.(\d+)\.norm\.0\.(.*)": r"stages.\1.norm.\2",
    r"levels\.(\d+)\.downsample\.(conv|norm)\.(?:1\.)?(.*)": _downsample,
    _BLOCK + r"(norm\d)\.0\.(.*)": _OURS + r"\3.\4",
    _BLOCK + r"(mlp\..*)": _OURS + r"\3",
    _BLOCK + r"gamma(\d)": _OURS + r"ls\3.gamma",
    _BLOCK + r"TreeSSM\.h_norm\.(.*)": _OURS + r"mixer.state_norm.\3",
    **ss2d_rules(_BLOCK + r"TreeSSM\.", _OURS + "mixer."),
    r"conv_head\.0\.(.*)": r"head.project.conv.\1",
    r"conv_head\.1\.0\.(.*)": r"head.project.norm.\1",
    r"head\.(weight|bias)": r"head.fc.\1",
}
# where the weights are, and top-1 accuracy
_RELEASED = {
    "mambatree_tiny.in1k": ("1OIiMBxk92WhPssRg0pv0U5y8ZBtHq2eQ", 83.4),
    "mambatree_small.in1k": ("1G6DdEI3JDSltfbmZmcqz79rxM1t01K_8", 84.2),
    "mambatree_base.in1k": ("1-8rwMVinj_fV9YMlzx6fGwdjxyLcjd3w", 84.8),
}
register_family(
    "MambaTree", MambaTree, RULES, top1={name: top1 for name, (_, top1) in _RELEASED.items()}
)

default_cfgs = make_cfgs(
    {
        **{
            name: {"by_hand": f"https://drive.google.com/file/d/{place}"}
            for name, (place, _) in _RELEASED.items()
        },
        "test_mambatree.untrained": {"size": 96},
    },
    license="mit",
    crop_pct=1.0,
    first_conv="stem.conv1",
    classifier="head.fc",
    origin_url="https://github.com/EasonXiao-888/GrootVL",
    paper_name="MambaTree: Tree Topology is All You Need in State Space Model",
    paper_ids="arXiv:2406.02395",
    notes=("the license is that of the README; there is no license file",),
)


@register_model
def mambatree_tiny(pretrained: bool = False, **kwargs: Any) -> MambaTree:
    """MambaTree-T: 30.0 M parameters."""
    return build_model(MambaTree, "mambatree_tiny", pretrained, kwargs)


@register_model
def mambatree_small(pretrained: bool = False, **kwargs: Any) -> MambaTree:
    """MambaTree-S: 51.3 M parameters."""
    sizes = {"depths": (2, 2, 13, 2), "dims": (96, 192, 384, 768)}
    return build_model(MambaTree, "mambatree_small", pretrained, kwargs, **sizes)


@register_model
def mambatree_base(pretrained: bool = False, **kwargs: Any) -> MambaTree:
    """MambaTree-B: 90.6 M parameters."""
    sizes = {"depths": (2, 2, 13, 2), "dims": (128, 256, 512, 1024)}
    return build_model(MambaTree, "mambatree_base", pretrained, kwargs, **sizes)


@register_model
def test_mambatree(pretrained: bool = False, **kwargs: Any) -> MambaTree:
    """A very small MambaTree for tests; no weights."""
    sizes = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
    return build_model(MambaTree, "test_mambatree", pretrained, kwargs, **sizes)
