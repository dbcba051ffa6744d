"""VideoMamba (Li et al. 2024, arXiv:2403.06977), its models of images: Vim with less around it.

The class token stands in front of the patches, the two paths of a block are summed, and every
linear layer starts as in a ViT, the step sizes' too.

Official code: https://github.com/OpenGVLab/VideoMamba (Apache-2.0)
Sizes: N batch, H and W image, h and w grid, L = h * w patches, C channels.
"""

from collections.abc import Sequence
from typing import Any

from timm.layers import RmsNorm, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    PatchEmbed,
    init_vim_blocks_,
    join_branches,
    to_pair,
    vim_blocks,
)
from vimamba.models._builder import build_model
from vimamba.models._plain import PlainBackbone, quarters
from vimamba.models.vim import VIM_RULES
from vimamba.scan_orders import order_of_block

__all__ = ["VideoMamba"]


class VideoMamba(PlainBackbone):
    """VideoMamba backbone of images with a classifier.

    Args:
        img_size: Height and width that fix the position embedding.
        patch_size: Side of a patch.
        in_chans, num_classes, drop_rate, drop_path_rate: As in timm.
        global_pool: "token" (class token), "avg" or "".
        embed_dim: C.
        depth: Blocks.
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
        global_pool: str = "token",
        *,
        embed_dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        scan_order: str | Sequence[str] = "bidirectional",
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        orders = [order_of_block(scan_order, block) for block in range(depth)]
        mixer = {"d_state": d_state, "average_paths": False}
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
            vim_blocks(embed_dim, orders, drop_path_rate, dd, **mixer),
            RmsNorm(embed_dim, eps=1e-5, **dd),
            scan_order=orders,
            prefix="first",
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
        """All linear layers as DeiT's, and the step sizes start at softplus(0)."""
        super().init_parameters()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
        for block in self.blocks:
            nn.init.zeros_(block.mixer.scan.dt_bias)  # type: ignore[union-attr]
        init_vim_blocks_(self.blocks)
        if self.cls_token is not None:
            nn.init.zeros_(self.cls_token)

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and join what the two branches hold.

        Raises:
            CheckpointError: A key matches no rule, or a direction is missing.
        """
        return join_branches(super().from_official(state_dict))


RULES = {
    **VIM_RULES,
    # what compares with a teacher in training
    r"distill_head\..*": None,
    # a file with rotary embeddings is Vim's; ours has no such name, and refuses it
    r"rope\.(.*)": r"rope.\1",
}
_TOP1 = {
    "videomamba_tiny_patch16_224.in1k": 76.9,
    "videomamba_tiny_patch16_448.in1k": 79.3,
    "videomamba_tiny_patch16_576.in1k": 79.6,
    "videomamba_small_patch16_224.in1k": 81.2,
    "videomamba_small_patch16_448.in1k": 83.2,
    "videomamba_small_patch16_576.in1k": 83.5,
    "videomamba_middle_patch16_224.in1k": 82.8,
    "videomamba_middle_patch16_448.in1k": 83.8,
    "videomamba_middle_patch16_576.in1k": 84.0,
    "videomamba_base_patch16_224.in1k": 82.7,
}
register_family("VideoMamba", VideoMamba, RULES, top1=_TOP1)


def _cfg(
    size: str = "", img_size: int = 224, resolutions: str = "224", **kwargs: Any
) -> dict[str, Any]:
    file = f"videomamba_{size}16_in1k_res{resolutions}.pth"
    return {
        "hf_hub_id": "OpenGVLab/VideoMamba" if size else None,
        "hf_hub_filename": file if size else None,
        "custom_load": "hf" if size else False,
        "num_classes": 1000,
        "input_size": (3, img_size, img_size),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0" if size else None,
        "origin_url": "https://github.com/OpenGVLab/VideoMamba",
        "paper_name": "VideoMamba: State Space Model for Efficient Video Understanding",
        "paper_ids": "arXiv:2403.06977",
        "notes": ("family: VideoMamba", "generation: image model"),
        **kwargs,
    }


_448, _576 = (448, "224to448"), (576, "224to448to576")

default_cfgs = generate_default_cfgs(
    {
        "videomamba_tiny_patch16_224.in1k": _cfg("t"),
        "videomamba_tiny_patch16_448.in1k": _cfg("t", *_448),
        "videomamba_tiny_patch16_576.in1k": _cfg("t", *_576),
        "videomamba_small_patch16_224.in1k": _cfg("s"),
        "videomamba_small_patch16_448.in1k": _cfg("s", *_448),
        "videomamba_small_patch16_576.in1k": _cfg("s", *_576),
        "videomamba_middle_patch16_224.in1k": _cfg("m"),
        "videomamba_middle_patch16_448.in1k": _cfg("m", *_448),
        "videomamba_middle_patch16_576.in1k": _cfg("m", *_576),
        "videomamba_base_patch16_224.in1k": _cfg("b"),
        "test_videomamba.untrained": _cfg(img_size=64),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> VideoMamba:
    features = quarters(kwargs.get("depth", 24))
    return build_model(VideoMamba, variant, pretrained, features=features, **kwargs)


@register_model
def videomamba_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-Ti: 7.1 M parameters, 197 tokens."""
    args = {"embed_dim": 192}
    return _create("videomamba_tiny_patch16_224", pretrained, **{**args, **kwargs})


@register_model
def videomamba_tiny_patch16_448(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-Ti: 7.3 M parameters, 785 tokens."""
    args = {"img_size": 448, "embed_dim": 192}
    return _create("videomamba_tiny_patch16_448", pretrained, **{**args, **kwargs})


@register_model
def videomamba_tiny_patch16_576(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-Ti: 7.4 M parameters, 1,297 tokens."""
    args = {"img_size": 576, "embed_dim": 192}
    return _create("videomamba_tiny_patch16_576", pretrained, **{**args, **kwargs})


@register_model
def videomamba_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-S: 25.8 M parameters, 197 tokens."""
    args = {"embed_dim": 384}
    return _create("videomamba_small_patch16_224", pretrained, **{**args, **kwargs})


@register_model
def videomamba_small_patch16_448(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-S: 26.0 M parameters, 785 tokens."""
    args = {"img_size": 448, "embed_dim": 384}
    return _create("videomamba_small_patch16_448", pretrained, **{**args, **kwargs})


@register_model
def videomamba_small_patch16_576(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-S: 26.2 M parameters, 1,297 tokens."""
    args = {"img_size": 576, "embed_dim": 384}
    return _create("videomamba_small_patch16_576", pretrained, **{**args, **kwargs})


@register_model
def videomamba_middle_patch16_224(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-M: 74.2 M parameters, 197 tokens."""
    args = {"embed_dim": 576, "depth": 32}
    return _create("videomamba_middle_patch16_224", pretrained, **{**args, **kwargs})


@register_model
def videomamba_middle_patch16_448(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-M: 74.6 M parameters, 785 tokens."""
    args = {"img_size": 448, "embed_dim": 576, "depth": 32}
    return _create("videomamba_middle_patch16_448", pretrained, **{**args, **kwargs})


@register_model
def videomamba_middle_patch16_576(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-M: 74.9 M parameters, 1,297 tokens."""
    args = {"img_size": 576, "embed_dim": 576, "depth": 32}
    return _create("videomamba_middle_patch16_576", pretrained, **{**args, **kwargs})


@register_model
def videomamba_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-B: 97.6 M parameters, 197 tokens."""
    args = {"embed_dim": 768}
    return _create("videomamba_base_patch16_224", pretrained, **{**args, **kwargs})


@register_model
def test_videomamba(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """A very small VideoMamba for tests; no weights."""
    args = {"img_size": 64, "embed_dim": 48, "depth": 4, "d_state": 8}
    return _create("test_videomamba", pretrained, **{**args, **kwargs})
