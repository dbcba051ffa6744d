"""Spatial-Mamba (Xiao et al. 2024, arXiv:2410.15091): states of one scan, fused on the grid.

One path leaves a state at every token. Before they are read, dilated convolutions mix each state
with those around it on the grid, which the path visits much earlier or later. Stem, downsampling
and blocks are MLLA's.

The official code merges the convolutions' kernels in the first evaluation and keeps the merged
kernel even if the weights change; here nothing is cached.

Official code: https://github.com/EdwardChasel/Spatial-Mamba (Apache-2.0)
Sizes: N batch, H and W image or grid, L tokens, C channels, D = 2 C, K paths. Everything is
channels-last.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import ScanMixer, SelectiveScan, positioned_rules, split_paths, ss2d_rules
from vimamba.layers.given_paths import choose_paths
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.models._builder import build_model, make_cfgs
from vimamba.models._staged import StagedBackbone, positioned_parts

__all__ = ["SpatialMamba"]


class StateFusion(nn.Module):
    """A weighted sum of depthwise 3x3 convolutions with dilations of 1, 3 and 5 cells.

    The grid is padded with its edge values.
    """

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.dilations = [1, 3, 5]
        self.weight = nn.Parameter(torch.empty(len(self.dilations), dim, 1, 3, 3, **dd))
        self.alpha = nn.Parameter(torch.empty(len(self.dilations), **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as sums of all cells in reach."""
        nn.init.ones_(self.weight)
        nn.init.ones_(self.alpha)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W) to the same shape."""
        reach = max(self.dilations)
        x = F.pad(x, (reach, reach, reach, reach), mode="replicate")
        y = torch.zeros_like(x[:, :, reach:-reach, reach:-reach])
        for i, dilation in enumerate(self.dilations):
            kernel = self.alpha[i] * self.weight[i]
            spare = reach - dilation
            part = F.pad(x, (-spare, -spare, -spare, -spare))
            y = y + F.conv2d(part, kernel, dilation=dilation, groups=x.shape[1])
        return y


class FusedScan(ScanMixer):
    """A selective scan with one state per channel, which is fused on the grid before it is read.

    If an order has several paths, the states of each are fused and read, and the results summed.

    Args:
        dim: C.
        scan_order: As in `SS2D`.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(self, dim: int, *, scan_order: str = "raster", **dd: Any) -> None:
        inner = 2 * dim
        shell = {"scan_order": scan_order, "gated": True, "conv_bias": True, "dims": 2}
        super().__init__(dim, inner, nn.SiLU(), combine=None, dd=dd, **shell)
        self.dt_rank = math.ceil(dim / 16)
        self.x_proj = nn.Linear(inner, self.num_paths * (self.dt_rank + 2), bias=False, **dd)
        self.scan = SelectiveScan(
            inner, num_paths=self.num_paths, d_state=1, dt_rank=self.dt_rank, **dd
        )
        self.fusion = StateFusion(inner, **dd)

    def forward(self, x: Tensor, paths: Tensor | None = None) -> Tensor:
        """(N, H, W, C) to the same shape; `paths` as in `ScanMixer`."""
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        x = self.act(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        chosen = choose_paths(x, self.scan_order, self.num_paths, paths)
        y = self.mix_map(x, chosen)
        return self.out_proj(self.out_norm(y) * self.act(gate))

    def mix_map(self, x: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, H, W, D) along paths (K, T) or (N, K, T): (N, H, W, D)."""
        u = x.flatten(1, 2)
        states, C = self.scan.states(u, self.x_proj(u), paths)
        maps = states.flatten(0, 1).transpose(1, 2).unflatten(-1, x.shape[1:3])
        fused = self.fusion(maps).flatten(2).transpose(1, 2).unflatten(0, (-1, self.num_paths))
        y = (fused * C).sum(1) + self.scan.D.sum(0) * u
        return y.view_as(x)


class SpatialMamba(StagedBackbone):
    """Spatial-Mamba backbone with a classifier.

    Args:
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: As in timm.
        depths: Blocks per stage.
        dims: Channels per stage.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn.
        mlp_ratio: Hidden channels of the MLP divided by channels.
        stage_norm: A norm on each stage's output and no classifier: the layout of the published
            segmentation and detection backbones.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (2, 4, 8, 4),
        dims: tuple[int, ...] = (64, 128, 256, 512),
        scan_order: str | Sequence[str] = "raster",
        mlp_ratio: float = 4.0,
        **options: Any,
    ) -> None:
        def mixer(_stage: int, dim: int, orders: Iterator[str], **dd: Any) -> nn.Module:
            return FusedScan(dim, scan_order=next(orders), **dd)

        super().__init__(positioned_parts(depths, dims, mixer, mlp_ratio, scan_order), **options)
        self.init_weights(needs_reset=False)

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, give the scans' parameters an axis of paths, and stack the kernels."""
        state: StateDict = {}
        kernels: dict[str, list[Tensor]] = {}
        for key, value in sorted(super().from_official(state_dict).items()):
            name, _, leaf = key.rpartition(".")
            if name.endswith("fusion.weight"):
                kernels.setdefault(name, []).append(value)
            else:
                has_paths = leaf in ("dt_proj", "dt_bias", "A_log", "D")
                state[key] = value.unsqueeze(0) if has_paths else value
        state |= {name: torch.stack(parts) for name, parts in kernels.items()}
        return split_paths(state, num_paths=1)


_MIXER = r"layers\.(\d+)\.blocks\.(\d+)\.self_attention\."
_OURS = r"stages.\1.blocks.\2.mixer."
RULES = {
    **positioned_rules(),
    **ss2d_rules(_MIXER, _OURS),
    _MIXER + r"state_fusion\.kernel_3": _OURS + "fusion.weight.0",
    _MIXER + r"state_fusion\.kernel_3_(\d)": _OURS + r"fusion.weight.\3",
    _MIXER + r"state_fusion\.alpha": _OURS + "fusion.alpha",
}
# where the weights are, and top-1 accuracy
_RELEASED = {
    "spatialmamba_tiny.in1k": ("19kXoqGSTuKKs4AHbdUSrdKZTwTWenLIW", 83.5),
    "spatialmamba_small.in1k": ("1Wb3sYoWLpgmWrmHMYKwdgDwGPZaqM28O", 84.6),
    "spatialmamba_base.in1k": ("1k8dHp2QRCOqBSgAi36YkhZp_O8LqOPjM", 85.3),
}
register_family(
    "Spatial-Mamba",
    SpatialMamba,
    RULES,
    layouts=({"stage_norm": True},),
    top1={name: top1 for name, (_, top1) in _RELEASED.items()},
)

default_cfgs = make_cfgs(
    {
        **{
            name: {"by_hand": f"https://drive.google.com/file/d/{place}"}
            for name, (place, _) in _RELEASED.items()
        },
        "test_spatialmamba.untrained": {"size": 96},
    },
    license="apache-2.0",
    first_conv="stem.conv1.conv",
    classifier="head.fc",
    origin_url="https://github.com/EdwardChasel/Spatial-Mamba",
    paper_name="Spatial-Mamba: Effective Visual State Space Models via Structure-aware State "
    "Fusion",
    paper_ids="arXiv:2410.15091",
)


@register_model
def spatialmamba_tiny(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """Spatial-Mamba-T: 26.7 M parameters."""
    return build_model(SpatialMamba, "spatialmamba_tiny", pretrained, kwargs, depths=(2, 4, 8, 4))


@register_model
def spatialmamba_small(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """Spatial-Mamba-S: 43.1 M parameters."""
    return build_model(SpatialMamba, "spatialmamba_small", pretrained, kwargs, depths=(2, 4, 21, 5))


@register_model
def spatialmamba_base(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """Spatial-Mamba-B: 95.7 M parameters."""
    sizes = {"depths": (2, 4, 21, 5), "dims": (96, 192, 384, 768)}
    return build_model(SpatialMamba, "spatialmamba_base", pretrained, kwargs, **sizes)


@register_model
def test_spatialmamba(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """A very small Spatial-Mamba for tests; no weights."""
    sizes = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "mlp_ratio": 2.0}
    return build_model(SpatialMamba, "test_spatialmamba", pretrained, kwargs, **sizes)
