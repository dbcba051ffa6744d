"""VSSD (Shi et al. 2024, arXiv:2407.18559): MLLA's pyramid with a scan that has no direction.

Without the decay from token to token, Mamba-2's scan adds all tokens to one state, in any order,
and all tokens read the sum: linear attention with keys B, queries C and the tokens times their step
sizes as values. The last stage has softmax attention. There is no scan order to choose.

Official code: https://github.com/YuHengsss/VSSD (no license file)
Sizes: N batch, H and W image or grid, L tokens, C channels, D = expand * C, S states. Everything is
channels-last.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import register_family
from vimamba.layers import init_step_bias_, mean_attention, positioned_rules
from vimamba.models._builder import NO_LICENSE, build_model, make_cfgs
from vimamba.models._staged import StagedBackbone, positioned_parts
from vimamba.timm_layers import Attention

__all__ = ["VSSD"]


class NonCausalSSD(nn.Module):
    """Mamba-2's mixer with one state that all tokens add to and read.

    Args:
        dim: C.
        heads: Heads that the D channels are split into, each with its own step size.
        d_state: S.
        expand: D / C.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self, dim: int, *, heads: int, d_state: int, expand: float = 2.0, **dd: Any
    ) -> None:
        super().__init__()
        inner = int(expand * dim)
        if inner % heads:
            raise ValueError(f"heads={heads} must divide the {inner} inner channels")
        self.heads = heads
        mixed = inner + 2 * d_state
        self.projected = [inner, mixed, heads]
        self.mixed = [inner, d_state, d_state]
        self.in_proj = nn.Linear(dim, inner + mixed + heads, bias=False, **dd)
        self.conv = nn.Conv2d(mixed, mixed, 3, padding=1, groups=mixed, **dd)
        self.dt_bias = nn.Parameter(torch.empty(heads, **dd))
        self.A_log = nn.Parameter(torch.empty(heads, **dd))
        self.D = nn.Parameter(torch.empty(heads, **dd))
        self.out_norm = nn.LayerNorm(inner, **dd)
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as Mamba-2 does."""
        init_step_bias_(self.dt_bias)
        with torch.no_grad():
            self.A_log.uniform_(1, 16).log_()
        nn.init.ones_(self.D)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same shape."""
        gate, x, dt = self.in_proj(x).split(self.projected, dim=-1)
        x = F.silu(self.conv(x.permute(0, 3, 1, 2))).flatten(2).transpose(1, 2)
        x, B, C = x.split(self.mixed, dim=-1)
        x = x.unflatten(-1, (self.heads, -1))
        weight = F.softplus(dt + self.dt_bias) * self.A_log.exp()
        read = mean_attention(C, B, (weight.flatten(1, 2).unsqueeze(-1) * x).flatten(-2))
        skip = (self.D[:, None] * x).flatten(-2)
        # under autocast the skip is in float32, and so is the sum
        y = self.out_norm(read.to(skip.dtype) * x.shape[1] + skip)
        return self.out_proj(y.view_as(gate) * gate)


class GridAttention(nn.Module):
    """Softmax attention between all cells of a grid."""

    def __init__(self, dim: int, heads: int, **dd: Any) -> None:
        super().__init__()
        self.attn = Attention(dim, heads, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same shape."""
        return self.attn(x.flatten(1, 2)).view_as(x)


class VSSD(StagedBackbone):
    """VSSD backbone with a classifier.

    Args:
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: As in timm.
        depths: Blocks per stage.
        dims: Channels per stage.
        heads: Heads of the mixers per stage.
        d_state: States of the mixers in all stages but the last.
        mlp_ratio: Hidden channels of the MLP divided by channels.
        stage_norm: A norm on each stage's output and no classifier: the layout of the published
            segmentation and detection backbones.
        device, dtype: Device and dtype of the parameters.
    """

    prefers_average = True

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (2, 4, 8, 4),
        dims: tuple[int, ...] = (64, 128, 256, 512),
        heads: tuple[int, ...] = (2, 4, 8, 16),
        d_state: int = 64,
        mlp_ratio: float = 4.0,
        **options: Any,
    ) -> None:
        def mixer(stage: int, dim: int, _orders: Iterator[str], **dd: Any) -> nn.Module:
            if stage == len(dims) - 1:
                return GridAttention(dim, heads[stage], **dd)
            return NonCausalSSD(dim, heads=heads[stage], d_state=d_state, **dd)

        super().__init__(positioned_parts(depths, dims, mixer, mlp_ratio), **options)
        self.init_weights(needs_reset=False)


_ATTENTION = r"layers\.(\d+)\.blocks\.(\d+)\.attn\."
RULES = {
    **positioned_rules(),
    _ATTENTION + r"(dt_bias|A_log|D|(?:in|out)_proj\.weight)": r"stages.\1.blocks.\2.mixer.\3",
    _ATTENTION + r"conv2d\.(.*)": r"stages.\1.blocks.\2.mixer.conv.\3",
    _ATTENTION + r"norm\.(.*)": r"stages.\1.blocks.\2.mixer.out_norm.\3",
    _ATTENTION + r"to_qkv\.(.*)": r"stages.\1.blocks.\2.mixer.attn.qkv.\3",
    _ATTENTION + r"to_out\.(.*)": r"stages.\1.blocks.\2.mixer.attn.proj.\3",
}
# file and top-1 accuracy
_RELEASED = {
    "vssd_micro.in1k": ("vssd_micro_best.pth", 82.5),
    "vssd_tiny.in1k": ("vssd_tiny_best_ema.pth", 83.6),
    "vssd_tiny.mesa_in1k": ("vssd_tiny_e300_with_mesa.pth", 84.1),
    "vssd_small.in1k": ("vssd_small_best_ema.pth", 84.1),
    "vssd_small.mesa_in1k": ("vssd_small_e300_with_mesa.pth", 84.5),
    "vssd_base.in1k": ("vssd_base_best_ema.pth", 84.7),
    "vssd_base.mesa_in1k": ("vssd_base_e300_with_mesa.pth", 85.4),
}
register_family(
    "VSSD",
    VSSD,
    RULES,
    layouts=({"stage_norm": True},),
    top1={name: top1 for name, (_, top1) in _RELEASED.items()},
)

default_cfgs = make_cfgs(
    {
        **{name: {"file": file} for name, (file, _) in _RELEASED.items()},
        "test_vssd.untrained": {"size": 96},
    },
    hub="YuhengSSS/VSSD",
    license="unknown",
    first_conv="stem.conv1.conv",
    classifier="head.fc",
    origin_url="https://github.com/YuHengsss/VSSD",
    paper_name="VSSD: Vision Mamba with Non-Causal State Space Duality",
    paper_ids="arXiv:2407.18559",
    notes=(NO_LICENSE,),
)


@register_model
def vssd_micro(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """VSSD-M: 13.5 M parameters."""
    sizes = {"depths": (2, 2, 8, 4), "dims": (48, 96, 192, 384), "d_state": 48}
    return build_model(VSSD, "vssd_micro", pretrained, kwargs, **sizes)


@register_model
def vssd_tiny(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """VSSD-T: 24.3 M parameters."""
    return build_model(VSSD, "vssd_tiny", pretrained, kwargs, depths=(2, 4, 8, 4))


@register_model
def vssd_small(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """VSSD-S: 40.1 M parameters."""
    return build_model(VSSD, "vssd_small", pretrained, kwargs, depths=(3, 4, 21, 5))


@register_model
def vssd_base(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """VSSD-B: 88.8 M parameters."""
    sizes = {"depths": (3, 4, 21, 5), "dims": (96, 192, 384, 768), "heads": (3, 6, 12, 24)}
    return build_model(VSSD, "vssd_base", pretrained, kwargs, **sizes)


@register_model
def test_vssd(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """A very small VSSD for tests; no weights."""
    sizes: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "heads": (4, 4, 8, 8)}
    sizes |= {"d_state": 8, "mlp_ratio": 2.0}
    return build_model(VSSD, "test_vssd", pretrained, kwargs, **sizes)
