"""ARM (Ren et al. 2025, arXiv:2406.07537): a plain stack of Mamba along four paths, and MLPs.

Published for its autoregressive pre-training, of which this is what comes out: the classifier. Each
block reads rows, columns and both reversed, each with a convolution and a scan of its own, and
averages. The class token stands in the middle; what is classified are the patches, the mean of
those in front of it and the mean of those behind it in equal parts.

Official code: https://github.com/OliverRensu/ARM (no license file). With an odd number of patches
its mixer takes one of them for the class token; here all agree on where that stands.
Sizes: N batch, H and W image, L patches, C channels, K paths.
"""

from collections.abc import Sequence
from typing import Any

from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    MambaMixer,
    PatchEmbed,
    drop_path_rates,
    init_patches_,
    init_vim_blocks_,
    join_branches,
    mamba_rules,
    to_pair,
)
from vimamba.models._builder import build_model
from vimamba.models._plain import PlainBackbone, quarters
from vimamba.scan_orders import num_paths, order_of_block
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
            sum; or a list of them, which the blocks take by turns.
        dynamic_img_size: Take any image size and resample the position embedding on the way.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        embed_dim: int = 768,
        depth: int = 12,
        mlp_ratio: float = 4.0,
        d_state: int = 16,
        scan_order: str | Sequence[str] = "cross",
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        orders = [order_of_block(scan_order, block) for block in range(depth)]
        (rates,) = drop_path_rates(drop_path_rate, [depth])
        super().__init__(
            PatchEmbed(
                to_pair(img_size),
                patch_size,
                patch_size,
                in_chans,
                embed_dim,
                dynamic_img_size=dynamic_img_size,
                **dd,
            ),
            (
                ARMBlock(
                    embed_dim,
                    mlp_ratio=mlp_ratio,
                    num_paths=num_paths(order),
                    d_state=d_state,
                    drop_path=rate,
                    dd=dd,
                )
                for rate, order in zip(rates, orders, strict=True)
            ),
            nn.LayerNorm(embed_dim, **dd),
            scan_order=orders,
            prefix="middle",
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            embed_dim=embed_dim,
            drop_rate=drop_rate,
            dynamic_img_size=dynamic_img_size,
            **dd,
        )
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
        # a single patch stands on both sides, for lack of another
        before, after = patches[:, : half + 1 // count], patches[:, half:]
        return (before.mean(dim=1) + after.mean(dim=1)) / 2

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and join what the four paths hold.

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
    # in the order of "cross": the columns before the reverse of the rows
    **mamba_rules(_LAYER + r"mixer\.", r"blocks.\1.mixer.", ("", "_c", "_b", "_c_b")),
}
register_family(
    "ARM",
    ARM,
    RULES,
    top1={"arm_base_patch16_224.in1k": 83.2, "arm_huge_patch16_224.in1k": 85.0},
    remarks="These are the classifiers after fine-tuning; files of the pre-training alone, which "
    "hold one of the four paths, do not load.",
)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "unknown",
        "origin_url": "https://github.com/OliverRensu/ARM",
        "paper_name": "Autoregressive Pretraining with Mamba in Vision",
        "paper_ids": "arXiv:2406.07537",
        "notes": (
            "family: ARM",
            "weights: https://huggingface.co/OliverRen/ARM, whose files the authors do not list",
            "licence: unstated, the official repository has no licence file",
        ),
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "arm_base_patch16_224.in1k": _cfg(),
        "arm_large_patch16_224.in1k": _cfg(),
        "arm_huge_patch16_224.in1k": _cfg(),
        "test_arm.untrained": _cfg(input_size=(3, 64, 64), license=None, notes=()),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> ARM:
    features = quarters(kwargs.get("depth", 12))
    return build_model(ARM, variant, pretrained, features=features, **kwargs)


@register_model
def arm_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> ARM:
    """ARM-B: 85.0 M parameters, 197 tokens."""
    return _create("arm_base_patch16_224", pretrained, **kwargs)


@register_model
def arm_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> ARM:
    """ARM-L: 297.0 M parameters, 197 tokens."""
    args = {"embed_dim": 1024, "depth": 24}
    return _create("arm_large_patch16_224", pretrained, **{**args, **kwargs})


@register_model
def arm_huge_patch16_224(pretrained: bool = False, **kwargs: Any) -> ARM:
    """ARM-H: 662.7 M parameters, 197 tokens."""
    args = {"embed_dim": 1536, "depth": 24}
    return _create("arm_huge_patch16_224", pretrained, **{**args, **kwargs})


@register_model
def test_arm(pretrained: bool = False, **kwargs: Any) -> ARM:
    """A very small ARM for tests; no weights."""
    args = {"img_size": 64, "embed_dim": 48, "depth": 3, "d_state": 8}
    return _create("test_arm", pretrained, **{**args, **kwargs})
