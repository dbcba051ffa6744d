"""Adventurer (Wang et al. 2024, arXiv:2410.07599): causal Mamba-2 behind a token of the mean.

Patches are scanned in one direction, and the class token comes last. Each block starts with the
mean of all tokens, which tells the first patches about the rest. According to paper and comments,
every second pair of blocks scans backwards; in the code that trained the weights only blocks 2 and
3 do, and so they do here.

Official code: https://github.com/wangf3014/Adventurer (no license file)
Sizes: N batch, H and W image, L patches, C channels, D = 2 C, H heads of P channels, K paths,
S states.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import StateSpaceDuality, init_patches_
from vimamba.layers.own_gradients import RmsNorm
from vimamba.layers.ssm import init_step_bias_
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.models._builder import NO_LICENSE, build_model, make_cfgs
from vimamba.models._plain import PlainBackbone, PlainParts
from vimamba.timm_layers import SwiGLU

__all__ = ["Adventurer"]


def published_orders(depth: int) -> list[str]:
    """Forwards, except for blocks 2 and 3."""
    return ["raster(reverse=True)" if block in (2, 3) else "raster" for block in range(depth)]


class Mamba2Mixer(nn.Module):
    """Mamba-2 (Dao and Gu 2024, arXiv:2405.21060) along each path: convolution, scan, gated norm.

    Args:
        dim: C.
        num_paths: K.
        d_state: S.
        head_dim: P.
        d_conv: Taps of the causal convolution.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_paths: int = 1,
        d_state: int = 64,
        head_dim: int = 64,
        d_conv: int = 4,
        **dd: Any,
    ) -> None:
        super().__init__()
        inner = 2 * dim
        if inner % head_dim:
            raise ValueError(f"head_dim={head_dim} must divide the {inner} inner channels")
        self.num_paths, self.d_state, self.d_conv = num_paths, d_state, d_conv
        self.heads = inner // head_dim
        mixed = inner + 2 * d_state
        self.sizes = [inner, mixed, self.heads]
        self.in_proj = nn.Linear(dim, sum(self.sizes), bias=False, **dd)
        self.conv = nn.Conv1d(
            num_paths * mixed, num_paths * mixed, d_conv, groups=num_paths * mixed, **dd
        )
        self.scan = HeadScan(self.heads, head_dim, num_paths=num_paths, **dd)
        self.norm = RmsNorm(inner, eps=1e-5, **dd)
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)

    def forward(self, x: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, C) along paths (K, T) or (N, K, T) to (N, L, C)."""
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        gate, mixed, dt = self.in_proj(x).split(self.sizes, dim=-1)
        bias = self.conv.bias
        assert bias is not None
        mixed = torch.ops.vimamba.causal_conv_along_paths(
            mixed,
            self.conv.weight.view(self.num_paths, -1, self.d_conv),
            bias.view(self.num_paths, -1),
            paths,
            "silu",
            "auto",
        )
        u, B, C = mixed.split([self.sizes[0], self.d_state, self.d_state], dim=-1)
        dt = dt.unsqueeze(1).expand(-1, self.num_paths, -1, -1)
        y = self.scan(u.unflatten(-1, (self.heads, -1)), dt, B, C, paths).flatten(-2)
        return self.out_proj(self.norm(y * F.silu(gate)))


class HeadScan(StateSpaceDuality):
    """Mamba-2's own scan: one skip per head, and its initialization."""

    def __init__(self, heads: int, head_dim: int, *, num_paths: int, **dd: Any) -> None:
        super().__init__(heads, head_dim, num_paths=num_paths, **dd)
        self.D = nn.Parameter(torch.empty(num_paths, heads, **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize step sizes as in Mamba, decays uniformly in [1, 16], skips as 1."""
        init_step_bias_(self.dt_bias)
        with torch.no_grad():
            self.A_log.uniform_(1, 16).log_()
        nn.init.ones_(self.D)


class AdventurerBlock(nn.Module):
    """Pre-norm residual block: a causal mixer with the mean token in front, and an MLP."""

    def __init__(
        self, dim: int, *, mlp_ratio: float, drop_path: float, dd: dict[str, Any], **mixer: Any
    ) -> None:
        super().__init__()
        self.norm1 = RmsNorm(dim, eps=1e-5, **dd)
        self.mixer = Mamba2Mixer(dim, **mixer, **dd)
        self.norm2 = RmsNorm(dim, eps=1e-5, **dd)
        self.mlp = SwiGLU(dim, int(mlp_ratio * dim), **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L + 1, C) to the same shape; to paths (K, T) their mean is token L + 1."""
        u = self.norm1(x)
        u = torch.cat([u, u.mean(dim=1, keepdim=True)], dim=1)
        x = x + self.drop_path(self.mixer(u, paths)[:, :-1])
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Adventurer(PlainBackbone):
    """Adventurer backbone with a classifier.

    Args:
        img_size: Height and width that fix the position embedding.
        patch_size: Side of a patch.
        in_chans, num_classes, drop_rate, drop_path_rate: As in timm.
        global_pool: "token" (class token, the last), "avg" or "".
        embed_dim: C.
        depth: Blocks.
        mlp_ratio: Hidden channels of an MLP divided by C.
        d_state: S.
        head_dim: P.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn. None is the order of the
            published weights; the paper's is ["raster", "raster", "raster(reverse=True)",
            "raster(reverse=True)"].
        dynamic_img_size: Take any image size and resample the position embedding on the way.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 768,
        depth: int = 12,
        mlp_ratio: float = 2.5,
        d_state: int = 64,
        head_dim: int = 64,
        scan_order: str | Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        def block(_number: int, rate: float, paths: int, dd: dict[str, Any]) -> AdventurerBlock:
            mixer = {"num_paths": paths, "d_state": d_state, "head_dim": head_dim}
            return AdventurerBlock(embed_dim, mlp_ratio=mlp_ratio, drop_path=rate, dd=dd, **mixer)

        parts = PlainParts(
            depth=depth,
            dim=embed_dim,
            block=block,
            scan_order=published_orders(depth) if scan_order is None else scan_order,
            prefix="last",
        )
        super().__init__(parts, **options)
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Embeddings and classifier as in DeiT, small outputs of mixers, biases 0."""
        super().init_parameters()
        init_patches_(self.patch_embed)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            elif isinstance(module, Mamba2Mixer):
                nn.init.kaiming_uniform_(module.out_proj.weight, a=math.sqrt(5))
                with torch.no_grad():
                    module.out_proj.weight /= math.sqrt(len(self.blocks))

    def insert_prefix(self, paths: Tensor, places: list[int], num_patches: int) -> Tensor:
        """Let every path (K, T) start at the mean token, L + 1, and end at the class token, L."""
        begin = torch.full_like(paths[:, :1], num_patches + 1)
        end = torch.full_like(paths[:, :1], num_patches)
        return torch.cat([begin, paths, end], dim=1)

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and give the scans' parameters an axis of one path.

        Raises:
            CheckpointError: A key matches no rule.
        """
        state = super().from_official(state_dict)
        shared = (".A_log", ".D", ".dt_bias")
        return {k: v[None] if k.endswith(shared) else v for k, v in state.items()}


_LAYER = r"layers\.(\d+)\."
RULES = {
    r"(cls_token|pos_embed)": r"\1",
    r"(patch_embed\.proj|head)\.(weight|bias)": r"\1.\2",
    r"norm_f\.weight": "norm.weight",
    _LAYER + r"norm\.weight": r"blocks.\1.norm1.weight",
    _LAYER + r"norm_mlp\.weight": r"blocks.\1.norm2.weight",
    _LAYER + r"mlp\.w1\.(.*)": r"blocks.\1.mlp.fc1_g.\2",
    _LAYER + r"mlp\.w2\.(.*)": r"blocks.\1.mlp.fc1_x.\2",
    _LAYER + r"mlp\.w3\.(.*)": r"blocks.\1.mlp.fc2.\2",
    _LAYER + r"mixer\.(A_log|D|dt_bias)": r"blocks.\1.mixer.scan.\2",
    _LAYER + r"mixer\.conv1d\.(.*)": r"blocks.\1.mixer.conv.\2",
    _LAYER + r"mixer\.((?:norm|in_proj|out_proj)\.weight)": r"blocks.\1.mixer.\2",
}
_TOP1 = {
    "adventurer_tiny_patch16_224.in1k": 78.2,
    "adventurer_small_patch16_224.in1k": 81.8,
    "adventurer_base_patch16_224.in1k": 82.6,
    "adventurer_base_patch16_384.in1k": 84.2,
    "adventurer_base_patch16_448.in1k": 84.3,
    "adventurer_base_patch8_224.in1k": 83.9,
    "adventurer_base_patch8_448.in1k": 84.8,
    "adventurer_large_patch16_224.in1k": 83.4,
}
register_family("Adventurer", Adventurer, RULES, top1=_TOP1)


def _row(tagged: str) -> dict[str, Any]:
    size = int(tagged[-8:-5])
    is_fine = size > 224 or "patch8" in tagged
    file = f"{tagged.removesuffix('.in1k')}.pth"
    return {"file": file, "size": size, "crop_pct": 1.0 if is_fine else 0.875}


default_cfgs = make_cfgs(
    {
        **{tagged: _row(tagged) for tagged in _TOP1},
        "test_adventurer.untrained": {"size": 64},
    },
    hub="Wangf3014/Adventurer",
    license="unknown",
    cell=None,
    fixed_input_size=True,
    first_conv="patch_embed.proj",
    classifier="head",
    origin_url="https://github.com/wangf3014/Adventurer",
    paper_name="Adventurer: Optimizing Vision Mamba Architecture Designs for Efficiency",
    paper_ids="arXiv:2410.07599",
    notes=(NO_LICENSE,),
)


@register_model
def adventurer_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> Adventurer:
    """Adventurer-T: 11.6 M parameters, 197 tokens."""
    return build_model(Adventurer, "adventurer_tiny_patch16_224", pretrained, kwargs, embed_dim=256)


@register_model
def adventurer_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> Adventurer:
    """Adventurer-S: 44.5 M parameters, 197 tokens."""
    sizes = {"embed_dim": 512}
    return build_model(Adventurer, "adventurer_small_patch16_224", pretrained, kwargs, **sizes)


@register_model
def adventurer_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> Adventurer:
    """Adventurer-B: 98.7 M parameters, 197 tokens."""
    return build_model(Adventurer, "adventurer_base_patch16_224", pretrained, kwargs, embed_dim=768)


@register_model
def adventurer_base_patch16_384(pretrained: bool = False, **kwargs: Any) -> Adventurer:
    """Adventurer-B: 98.9 M parameters, 577 tokens."""
    sizes = {"embed_dim": 768, "img_size": 384}
    return build_model(Adventurer, "adventurer_base_patch16_384", pretrained, kwargs, **sizes)


@register_model
def adventurer_base_patch16_448(pretrained: bool = False, **kwargs: Any) -> Adventurer:
    """Adventurer-B: 99.1 M parameters, 785 tokens."""
    sizes = {"embed_dim": 768, "img_size": 448}
    return build_model(Adventurer, "adventurer_base_patch16_448", pretrained, kwargs, **sizes)


@register_model
def adventurer_base_patch8_224(pretrained: bool = False, **kwargs: Any) -> Adventurer:
    """Adventurer-B: 98.7 M parameters, 785 tokens."""
    sizes = {"embed_dim": 768, "patch_size": 8}
    return build_model(Adventurer, "adventurer_base_patch8_224", pretrained, kwargs, **sizes)


@register_model
def adventurer_base_patch8_448(pretrained: bool = False, **kwargs: Any) -> Adventurer:
    """Adventurer-B: 100.5 M parameters, 3,137 tokens."""
    sizes = {"embed_dim": 768, "patch_size": 8, "img_size": 448}
    return build_model(Adventurer, "adventurer_base_patch8_448", pretrained, kwargs, **sizes)


@register_model
def adventurer_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> Adventurer:
    """Adventurer-L: 346.2 M parameters, 197 tokens."""
    sizes = {"embed_dim": 1024, "depth": 24}
    return build_model(Adventurer, "adventurer_large_patch16_224", pretrained, kwargs, **sizes)


@register_model
def test_adventurer(pretrained: bool = False, **kwargs: Any) -> Adventurer:
    """A very small Adventurer for tests; no weights."""
    sizes = {"img_size": 64, "embed_dim": 32, "depth": 4, "d_state": 8, "head_dim": 4}
    return build_model(Adventurer, "test_adventurer", pretrained, kwargs, **sizes)
