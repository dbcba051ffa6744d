"""MLLA, also MILA (Han et al. 2024, arXiv:2405.16605): linear attention in Mamba's block.

The paper interprets Mamba as linear attention with a forget gate and keeps its block: a convolution
before the mixing and a gate after it. A rotary embedding and convolutions replace the forget gate,
so there is no scan and no scan order to choose.

The official code holds the rotary embedding in buffers of one size, for square images of 224
pixels; here it is computed for each image.

Official code: https://github.com/LeapLabTHU/MLLA (MIT)
Sizes: N batch, H and W image or grid, L tokens, C channels. Everything is channels-last.
"""

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import register_family
from vimamba.layers import DepthwiseConv, RotaryEmbed, mean_attention, positioned_rules
from vimamba.models._builder import build_model, make_cfgs
from vimamba.models._staged import StagedBackbone, positioned_parts

__all__ = ["MLLA"]


class GatedLinearAttention(nn.Module):
    """A convolution, linear attention of positive features with rotary positions, and a gate.

    Args:
        dim: C.
        heads: Attention heads.
        device, dtype: Device and dtype of the parameters.
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
        rotated_q, rotated_k = self.split(self.rotary(qk, angles)).unbind(0)
        values = self.split(v.flatten(1, 2).unsqueeze(2))[0]
        # a sum of the keys before rotation, which are positive
        total = (q * k.mean(-2, keepdim=True)).sum(-1, keepdim=True)
        y = mean_attention(rotated_q, rotated_k, values) / (total + 1e-6)
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
        heads: tuple[int, ...] = (2, 4, 8, 16),
        mlp_ratio: float = 4.0,
        **options: Any,
    ) -> None:
        def mixer(stage: int, dim: int, _orders: Iterator[str], **dd: Any) -> nn.Module:
            return GatedLinearAttention(dim, heads=heads[stage], **dd)

        super().__init__(positioned_parts(depths, dims, mixer, mlp_ratio), **options)
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

default_cfgs = make_cfgs(
    {
        **{
            name: {"by_hand": f"https://cloud.tsinghua.edu.cn/f/{place}/"}
            for name, (place, _) in _RELEASED.items()
        },
        "test_mlla.untrained": {"size": 96},
    },
    license="mit",
    first_conv="stem.conv1.conv",
    classifier="head.fc",
    origin_url="https://github.com/LeapLabTHU/MLLA",
    paper_name="Demystify Mamba in Vision: A Linear Attention Perspective",
    paper_ids="arXiv:2405.16605",
)


@register_model
def mlla_tiny(pretrained: bool = False, **kwargs: Any) -> MLLA:
    """MLLA-T: 24.4 M parameters."""
    return build_model(MLLA, "mlla_tiny", pretrained, kwargs, depths=(2, 4, 8, 4))


@register_model
def mlla_small(pretrained: bool = False, **kwargs: Any) -> MLLA:
    """MLLA-S: 43.0 M parameters."""
    return build_model(MLLA, "mlla_small", pretrained, kwargs, depths=(3, 6, 21, 6))


@register_model
def mlla_base(pretrained: bool = False, **kwargs: Any) -> MLLA:
    """MLLA-B: 96.0 M parameters."""
    sizes = {"depths": (3, 6, 21, 6), "dims": (96, 192, 384, 768), "heads": (3, 6, 12, 24)}
    return build_model(MLLA, "mlla_base", pretrained, kwargs, **sizes)


@register_model
def test_mlla(pretrained: bool = False, **kwargs: Any) -> MLLA:
    """A very small MLLA for tests; no weights."""
    sizes: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "heads": (1, 2, 3, 4)}
    sizes |= {"mlp_ratio": 2.0}
    return build_model(MLLA, "test_mlla", pretrained, kwargs, **sizes)
