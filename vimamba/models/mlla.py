"""MLLA, also MILA (Han et al. 2024, arXiv:2405.16605): linear attention in Mamba's block.

The paper reads Mamba as linear attention with a forget gate and keeps of it the block: a
convolution before the mixing and a gate after it. Positions (a rotary embedding and convolutions)
do what the forget gate does, so there is no scan, and no scan order to be exchanged.

The official code holds the rotary embedding in buffers of one size, for square images of 224
pixels; here it is computed for the image at hand.

Official code: https://github.com/LeapLabTHU/MLLA (MIT)
Sizes: N batch, H and W image or grid, L tokens, C channels. Everything is channels-last.
"""

from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from vimamba.checkpoints import register_family
from vimamba.layers import (
    BottleneckDownsample,
    DepthwiseConv,
    PositionedBlock,
    ResidualStem,
    RotaryEmbed,
    drop_path_rates,
    mean_attention,
    positioned_rules,
)
from vimamba.models._builder import build_model
from vimamba.models._staged import StagedBackbone, make_stages

__all__ = ["MLLA"]


class GatedLinearAttention(nn.Module):
    """A convolution, linear attention of positive features with rotary positions, and a gate.

    Args:
        dim: C.
        heads: Of the attention.
        device, dtype: Of the parameters.
    """

    def __init__(self, dim: int, *, heads: int, **dd: Any) -> None:
        super().__init__()
        if dim % heads or dim % 4:
            raise ValueError(f"heads={heads} and 4 must divide the {dim} channels")
        self.heads = heads
        self.in_proj = nn.Linear(dim, dim, **dd)
        self.gate_proj = nn.Linear(dim, dim, **dd)
        self.conv = DepthwiseConv(dim, **dd)
        self.qk = nn.Linear(dim, 2 * dim, **dd)
        self.rotary = RotaryEmbed(dim, cells=None)
        self.lepe = DepthwiseConv(dim, **dd)
        self.out_proj = nn.Linear(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same shape."""
        v = F.silu(self.conv(self.in_proj(x)))
        angles = self.rotary.angles(x.shape[1], x.shape[2], x).unsqueeze(1)
        qk = (F.elu(self.qk(v)) + 1).flatten(1, 2).unflatten(-1, (2, -1))
        q, k = self.split(qk).unbind(0)
        turned_q, turned_k = self.split(self.rotary(qk, angles)).unbind(0)
        values = self.split(v.flatten(1, 2).unsqueeze(2))[0]
        # a sum of what was not turned, and is positive
        total = (q * k.mean(-2, keepdim=True)).sum(-1, keepdim=True)
        y = mean_attention(turned_q, turned_k, values) / (total + 1e-6)
        y = y.transpose(1, 2).flatten(2).view_as(v) + self.lepe(v)
        return self.out_proj(y * F.silu(self.gate_proj(x)))

    def split(self, x: Tensor) -> Tensor:
        """J tensors (N, L, J, C) to their heads (J, N, heads, L, C / heads)."""
        return x.unflatten(-1, (self.heads, -1)).permute(2, 0, 3, 1, 4)


class MLLA(StagedBackbone):
    """MLLA backbone with a classifier.

    Args:
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: As in timm.
        depths: Blocks per stage.
        dims: Channels per stage, multiples of 4.
        heads: Heads of the attention per stage.
        mlp_ratio: Hidden channels of the MLP over channels.
        stage_norm: A norm on each stage's output and no classifier: the layout of the published
            segmentation and detection backbones.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        depths: tuple[int, ...] = (2, 4, 8, 4),
        dims: tuple[int, ...] = (64, 128, 256, 512),
        heads: tuple[int, ...] = (2, 4, 8, 16),
        mlp_ratio: float = 4.0,
        stage_norm: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}

        def make_block(stage: int, dim: int, rate: float, _order: str) -> nn.Module:
            mixer = GatedLinearAttention(dim, heads=heads[stage], **dd)
            return PositionedBlock(dim, mixer, mlp_ratio=mlp_ratio, drop_path=rate, **dd)

        downsample = partial(BottleneckDownsample, **dd)
        rates = drop_path_rates(drop_path_rate, depths)
        super().__init__(
            ResidualStem(in_chans, dims[0], **dd),
            make_stages(depths, dims, "", rates, make_block=make_block, make_downsample=downsample),
            dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            norm=nn.LayerNorm(dims[-1], **dd),
            stage_norms=[nn.LayerNorm(dim, **dd) for dim in dims] if stage_norm else None,
            **dd,
        )
        self.init_weights(needs_reset=False)


_BLOCK, _OURS = r"layers\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.blocks.\2.mixer."
RULES = {
    **positioned_rules(),
    _BLOCK + r"((?:in|out)_proj)\.(.*)": _OURS + r"\3.\4",
    _BLOCK + r"act_proj\.(.*)": _OURS + r"gate_proj.\3",
    _BLOCK + r"dwc\.(.*)": _OURS + r"conv.\3",
    _BLOCK + r"attn\.(qk|lepe)\.(.*)": _OURS + r"\3.\4",
    _BLOCK + r"attn\.rope\.rotations": None,
    r"norm(\d)\.(.*)": r"stage_norms.\1.\2",
}
# where the weights are, and top-1 accuracy
_RELEASED = {
    "mlla_tiny.in1k": ("7a19712877cb4242889c", 83.5),
    "mlla_small.in1k": ("0e5d0b1409d540aaa80c", 84.4),
    "mlla_base.in1k": ("91c85c5a1061496d8796", 85.3),
}
register_family(
    "MLLA",
    MLLA,
    RULES,
    layouts=({"stage_norm": True},),
    top1={name: top1 for name, (_, top1) in _RELEASED.items()},
)


def _cfg(place: str = "", top1: float | None = None, **kwargs: Any) -> dict[str, Any]:
    weights = f"weights: https://cloud.tsinghua.edu.cn/f/{place}/, to be fetched by hand"
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "first_conv": "stem.conv1.conv",
        "classifier": "head.fc",
        "license": "mit" if top1 else None,
        "origin_url": "https://github.com/LeapLabTHU/MLLA",
        "paper_name": "Demystify Mamba in Vision: A Linear Attention Perspective",
        "paper_ids": "arXiv:2405.16605",
        "notes": (
            "family: MLLA",
            f"top-1: {top1 or 'untrained'}",
            *((weights,) if place else ()),
        ),
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        **{name: _cfg(*released) for name, released in _RELEASED.items()},
        "test_mlla.untrained": _cfg(input_size=(3, 96, 96), pool_size=(3, 3)),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> MLLA:
    return build_model(MLLA, variant, pretrained, **kwargs)


@register_model
def mlla_tiny(pretrained: bool = False, **kwargs: Any) -> MLLA:
    """MLLA-T: 24.4 M parameters."""
    return _create("mlla_tiny", pretrained, **{"depths": (2, 4, 8, 4), **kwargs})


@register_model
def mlla_small(pretrained: bool = False, **kwargs: Any) -> MLLA:
    """MLLA-S: 43.0 M parameters."""
    return _create("mlla_small", pretrained, **{"depths": (3, 6, 21, 6), **kwargs})


@register_model
def mlla_base(pretrained: bool = False, **kwargs: Any) -> MLLA:
    """MLLA-B: 96.0 M parameters."""
    args = {"depths": (3, 6, 21, 6), "dims": (96, 192, 384, 768), "heads": (3, 6, 12, 24)}
    return _create("mlla_base", pretrained, **{**args, **kwargs})


@register_model
def test_mlla(pretrained: bool = False, **kwargs: Any) -> MLLA:
    """A very small MLLA for tests; no weights."""
    args = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "heads": (1, 2, 3, 4)}
    return _create("test_mlla", pretrained, **{**args, "mlp_ratio": 2.0, **kwargs})
