"""ARM (Ren et al. 2025, arXiv:2406.07537): a plain stack of Mamba along four paths, and MLPs.

The paper is about autoregressive pre-training; this is the resulting classifier. Each block scans
rows, columns and both reversed, each with its own convolution and scan, and averages. The class
token stands in the middle; the classifier reads the patches: the mean of those before the class
token and the mean of those after it, in equal parts.

Official code: https://github.com/OliverRensu/ARM (no license file). With an odd number of patches
its mixer takes one of them for the class token; here all agree on its position.
Sizes: N batch, H and W image, L patches, C channels, K paths.
"""

from collections.abc import Sequence
from typing import Any

from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    MambaMixer,
    init_patches_,
    init_vim_blocks_,
    join_branches,
    mamba_rules,
)
from vimamba.models._builder import NO_LICENSE, build_model, make_cfgs
from vimamba.models._plain import PlainBackbone, PlainParts
from vimamba.timm_layers import SwiGLU

__all__ = ["ARM"]


class ARMBlock(nn.Module):
    """Pre-norm residual block: a Mamba mixer that does not widen, and a gated MLP."""

    def __init__(
        self, dim: int, *, mlp_ratio: float, drop_path: float, dd: dict[str, Any], **mixer: Any
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.mixer = MambaMixer(dim, expand=1, **mixer, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = SwiGLU(dim, int(mlp_ratio * dim * 2 / 3), **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L + 1, C) along paths (K, L + 1) to the same shape."""
        x = x + self.drop_path(self.mixer(self.norm1(x), paths))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ARM(PlainBackbone):
    """ARM backbone with a classifier.

    Args:
        img_size: Height and width that fix the position embedding.
        patch_size: Side of a patch.
        in_chans, num_classes, drop_rate, drop_path_rate: As in timm.
        global_pool: "avg" (the patches, see above), "token" (class token) or "".
        embed_dim: C.
        depth: Blocks.
        mlp_ratio: Hidden channels of an MLP without a gate over C; the gated one has two thirds.
        d_state: States per channel of the scan.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn.
        dynamic_img_size: Take any image size and resample the position embedding on the way.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        *,
        global_pool: str = "avg",
        embed_dim: int = 768,
        depth: int = 12,
        mlp_ratio: float = 4.0,
        d_state: int = 16,
        scan_order: str | Sequence[str] = "cross",
        **options: Any,
    ) -> None:
        def block(_number: int, rate: float, paths: int, dd: dict[str, Any]) -> ARMBlock:
            mixer = {"num_paths": paths, "d_state": d_state}
            return ARMBlock(embed_dim, mlp_ratio=mlp_ratio, drop_path=rate, dd=dd, **mixer)

        parts = PlainParts(
            depth=depth,
            dim=embed_dim,
            block=block,
            scan_order=scan_order,
            norm=nn.LayerNorm,
            prefix="middle",
        )
        super().__init__(parts, global_pool=global_pool, **options)
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """As Vim; the biases of the MLPs are zero."""
        super().init_parameters()
        init_patches_(self.patch_embed)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        init_vim_blocks_(self.blocks)

    def average(self, patches: Tensor) -> Tensor:
        """Mean of the means on both sides of the class token: (N, L, C) to (N, C)."""
        count = patches.shape[1]
        half = count // 2
        # a single patch counts for both sides
        before, after = patches[:, : half + 1 // count], patches[:, half:]
        return (before.mean(dim=1) + after.mean(dim=1)) / 2

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and join the parameters of the four paths.

        Raises:
            CheckpointError: A key matches no rule, or the file lacks a path.
        """
        return join_branches(super().from_official(state_dict))


_LAYER = r"layers\.(\d+)\."
RULES = {
    r"(cls_token|pos_embed)": r"\1",
    r"(patch_embed\.proj|head)\.(weight|bias)": r"\1.\2",
    r"norm_f\.(weight|bias)": r"norm.\1",
    _LAYER + r"(norm[12])\.(weight|bias)": r"blocks.\1.\2.\3",
    _LAYER + r"mlp\.w1\.(weight|bias)": r"blocks.\1.mlp.fc1_g.\2",
    _LAYER + r"mlp\.w2\.(weight|bias)": r"blocks.\1.mlp.fc1_x.\2",
    _LAYER + r"mlp\.w3\.(weight|bias)": r"blocks.\1.mlp.fc2.\2",
    # in the order of "cross": columns before reversed rows
    **mamba_rules(_LAYER + r"mixer\.", r"blocks.\1.mixer.", ("", "_c", "_b", "_c_b")),
}
register_family(
    "ARM",
    ARM,
    RULES,
    top1={"arm_base_patch16_224.in1k": 83.2, "arm_huge_patch16_224.in1k": 85.0},
    remarks="These are the fine-tuned classifiers; files from pre-training alone, which hold "
    "one of the four paths, do not load.",
)

_WEIGHTS = {"by_hand": "https://huggingface.co/OliverRen/ARM, whose files the authors do not list"}
default_cfgs = make_cfgs(
    {
        "arm_base_patch16_224.in1k": _WEIGHTS,
        "arm_large_patch16_224.in1k": _WEIGHTS,
        "arm_huge_patch16_224.in1k": _WEIGHTS,
        "test_arm.untrained": {"size": 64},
    },
    license="unknown",
    cell=None,
    fixed_input_size=True,
    first_conv="patch_embed.proj",
    classifier="head",
    origin_url="https://github.com/OliverRensu/ARM",
    paper_name="Autoregressive Pretraining with Mamba in Vision",
    paper_ids="arXiv:2406.07537",
    notes=(NO_LICENSE,),
)


@register_model
def arm_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> ARM:
    """ARM-B: 85.0 M parameters, 197 tokens."""
    return build_model(ARM, "arm_base_patch16_224", pretrained, kwargs)


@register_model
def arm_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> ARM:
    """ARM-L: 297.0 M parameters, 197 tokens."""
    return build_model(ARM, "arm_large_patch16_224", pretrained, kwargs, embed_dim=1024, depth=24)


@register_model
def arm_huge_patch16_224(pretrained: bool = False, **kwargs: Any) -> ARM:
    """ARM-H: 662.7 M parameters, 197 tokens."""
    return build_model(ARM, "arm_huge_patch16_224", pretrained, kwargs, embed_dim=1536, depth=24)


@register_model
def test_arm(pretrained: bool = False, **kwargs: Any) -> ARM:
    """A very small ARM for tests; no weights."""
    sizes = {"img_size": 64, "embed_dim": 48, "depth": 3, "d_state": 8}
    return build_model(ARM, "test_arm", pretrained, kwargs, **sizes)
