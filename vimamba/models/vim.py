"""Vim, Vision Mamba (Zhu et al. 2024, arXiv:2401.09417): a plain stack of bidirectional Mamba.

Patches become tokens, the class token stands in their middle, and every block mixes them along a
path and its reverse. The residual stream is never normed; each block norms what it reads.

Official code: https://github.com/hustvl/Vim (Apache-2.0)
Sizes: N batch, H and W image, h and w grid, L = h * w patches, C channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import RmsNorm
from timm.models import checkpoint, generate_default_cfgs, register_model
from torch import Tensor

from vimamba.checkpoints import CheckpointError, StateDict, register_family
from vimamba.layers import (
    PatchEmbed,
    RotaryEmbed,
    SimplePyramid,
    init_patches_,
    init_vim_blocks_,
    join_branches,
    mamba_rules,
    to_pair,
    vim_blocks,
)
from vimamba.models._builder import build_model
from vimamba.models._plain import PlainBackbone, quarters
from vimamba.scan_orders import order_of_block

__all__ = ["VisionMamba"]


class VisionMamba(PlainBackbone):
    """Vim backbone with a classifier.

    Args:
        img_size: Height and width that fix the position embedding.
        patch_size, stride: Of the patch convolution; `stride` is `patch_size` if None.
        in_chans, num_classes, drop_rate, drop_path_rate: As in timm.
        global_pool: "token" (class token), "avg" or "".
        embed_dim: C.
        depth: Blocks.
        d_state: States per channel of the scan.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take by turns.
        class_token: "middle", "first" or "none".
        average_paths: Divide a mixer's sum over the paths by their number.
        rotary: Rotate the residual stream before every block (first generation, detection).
        pyramid: Four blocks whose outputs, without the residual stream, become maps of strides
            4, 8, 16 and 32: the published tiny segmentation backbone. It has no classifier.
        pyramid_residual: The maps come from the residual stream, as the next block reads it: the
            published small segmentation backbone, which is also `rotary`.
        dynamic_img_size: Take any image size and resample the position embedding on the way.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        *,
        embed_dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        scan_order: str | Sequence[str] = "bidirectional",
        class_token: str = "middle",
        average_paths: bool = True,
        rotary: bool = False,
        pyramid: tuple[int, ...] | None = None,
        pyramid_residual: bool = False,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if pyramid and (len(pyramid) != 4 or [*pyramid] != sorted({*pyramid} & {*range(depth)})):
            raise ValueError(f"pyramid={pyramid} must be four rising numbers of the {depth} blocks")
        if pyramid_residual and not pyramid:
            raise ValueError("pyramid_residual=True needs pyramid=(…), four of the blocks")
        dd = {"device": device, "dtype": dtype}
        stride = stride or patch_size
        mixer = {"d_state": d_state, "average_paths": average_paths}
        orders = [order_of_block(scan_order, block) for block in range(depth)]
        super().__init__(
            PatchEmbed(
                to_pair(img_size),
                patch_size,
                stride,
                in_chans,
                embed_dim,
                dynamic_img_size=dynamic_img_size,
                **dd,
            ),
            vim_blocks(embed_dim, orders, drop_path_rate, dd, **mixer),
            RmsNorm(embed_dim, eps=1e-5, **dd),
            scan_order=orders,
            prefix=class_token,
            in_chans=in_chans,
            num_classes=0 if pyramid else num_classes,
            global_pool=global_pool,
            embed_dim=embed_dim,
            drop_rate=drop_rate,
            taps=pyramid,
            dynamic_img_size=dynamic_img_size,
            **dd,
        )
        self.rotary = RotaryEmbed(embed_dim) if rotary else None
        self.pyramid_residual = pyramid_residual
        self.pyramid = SimplePyramid(embed_dim, **dd) if pyramid else None
        if pyramid:
            for level, info in enumerate(self.feature_info):
                info["reduction"] = stride * 2**level // 4
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Embeddings and classifier as DeiT's; only the first path gets the step sizes of Mamba."""
        init_patches_(self.patch_embed)
        super().init_parameters()
        init_vim_blocks_(self.blocks)

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and join what the two branches hold.

        Raises:
            CheckpointError: The file is of the other generation, or lacks a direction.
        """
        rotary = "rope.freqs_cos" in state_dict
        if rotary != (self.rotary is not None):
            raise CheckpointError(f"rotary embeddings {'' if rotary else 'not '}in the file only")
        state = join_branches(super().from_official(state_dict))
        return self._without_class_token(state, first=rotary)

    def adapt(self, state: StateDict) -> StateDict:
        """Leave the class token out where the model has none, resample the position embedding."""
        return super().adapt(self._without_class_token(state, first=False))

    def may_be_missing(self, state: StateDict) -> tuple[str, ...]:
        """The pyramid; and the norm, which dense backbones lack."""
        return ("pyramid.",) if "head.weight" in state else ("pyramid.", "norm.")

    def _without_class_token(self, state: StateDict, first: bool) -> StateDict:
        if "cls_token" not in state or self.cls_token is not None:
            return state
        rows = state["pos_embed"]
        p = 0 if first else (rows.shape[1] - 1) // 2
        patches = torch.cat([rows[:, :p], rows[:, p + 1 :]], dim=1)
        return {k: v for k, v in state.items() if k != "cls_token"} | {"pos_embed": patches}

    def _rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        """Rotate the patches' tokens, not the class token."""
        if self.rotary is None:
            return x
        if self.cls_token is None:
            return self.rotary(x, angles)
        p = self.places(x.shape[1] - 1)[0]
        before, after = self.rotary(x[:, :p], angles[:p]), self.rotary(x[:, p + 1 :], angles[p:])
        return torch.cat([before, x[:, p : p + 1], after], dim=1)

    def run_blocks(
        self, x: Tensor, take: list[int], last: int, norm: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens behind block `last`, and the features of the taps `take`.

        Those of a pyramid are what a block adds; with `pyramid_residual`, what the next one reads.
        """
        height, width = self.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3]))
        x, paths = self.embed(x)
        angles = x
        if self.rotary is not None:
            angles = self.rotary.angles(height, width, x)
        features: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i <= last:
                x = self._rotate(x, angles)
                table = paths[self.scan_orders[i]]
                feature = x
                if self.pyramid is not None and not self.pyramid_residual:
                    if self.grad_checkpointing and not torch.jit.is_scripting():
                        feature = checkpoint(block.update, x, table)
                    else:
                        feature = block.update(x, table)  # type: ignore[operator]
                    x = x + feature
                elif self.grad_checkpointing and not torch.jit.is_scripting():
                    feature = x = checkpoint(block, x, table)
                else:
                    feature = x = block(x, table)
                if self.pyramid_residual and i < len(self.blocks) - 1:
                    feature = self._rotate(x, angles)
                self.tap(i, feature, take, norm, features)
        return x, features

    def to_maps(
        self, features: list[Tensor], taps: list[int], height: int, width: int
    ) -> list[Tensor]:
        """Tokens (N, L, C) to maps, those of a pyramid at its levels."""
        maps: list[Tensor] = []
        for feature, level in zip(features, taps):  # noqa: B905  TorchScript knows no `strict`
            grid = feature.unflatten(1, (height, width)).permute(0, 3, 1, 2).contiguous()
            maps.append(grid if self.pyramid is None else self.pyramid(grid, level))
        return maps


# of all that are built on Vim's code
VIM_RULES = {
    r"(cls_token|pos_embed)": r"\1",
    r"(patch_embed\.proj|head)\.(weight|bias)": r"\1.\2",
    r"norm_f\.weight": "norm.weight",
    r"layers\.(\d+)\.norm\.weight": r"blocks.\1.norm.weight",
    **mamba_rules(r"layers\.(\d+)\.mixer\.", r"blocks.\1.mixer.", ("", "_b")),
}
RULES = {
    **VIM_RULES,
    r"fpn1\.(.*)": r"pyramid.levels.0.\1",
    r"fpn2\.(.*)": r"pyramid.levels.1.\1",
    r"rope\.freqs_(?:cos|sin)": None,
}
_DENSE = {"img_size": 512, "class_token": "none", "pyramid": (5, 11, 17, 23)}
_DENSE_ROTARY = {**_DENSE, "rotary": True, "pyramid_residual": True}
register_family(
    "Vim",
    VisionMamba,
    RULES,
    layouts=(_DENSE, _DENSE_ROTARY),
    top1={
        "vim_tiny_patch16_224.midclstok_in1k": 76.1,
        "vim_small_patch16_224.midclstok_in1k": 80.5,
        "vim_base_patch16_224.midclstok_in1k": 81.9,
        "vim_tiny_patch16_stride8_224.midclstok_ft_in1k": 78.3,
        "vim_small_patch16_stride8_224.midclstok_ft_in1k": 81.6,
        "vim_tiny_rope_patch16_224.in1k": 73.1,
    },
    remarks="With a stride of 8, patches of 16 pixels overlap without padding: 27 x 27 of them, "
    "not 28 x 28. The rotary model, of January 2024, was superseded by the one without.",
)


def _cfg(file: str = "", hub: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "hf_hub_id": f"hustvl/{hub}" if file else None,
        "hf_hub_filename": file or None,
        "custom_load": "hf" if file else False,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "origin_url": "https://github.com/hustvl/Vim",
        "paper_name": "Vision Mamba: Efficient Visual Representation Learning with Bidirectional "
        "State Space Model",
        "paper_ids": "arXiv:2401.09417",
        "notes": ("class token in the middle (February 2024)",),
        **kwargs,
    }


_TINY, _SMALL, _BASE = (f"Vim-{size}-midclstok" for size in ("tiny", "small", "base"))

default_cfgs = generate_default_cfgs(
    {
        "vim_tiny_patch16_224.midclstok_in1k": _cfg("vim_t_midclstok_76p1acc.pth", _TINY),
        "vim_small_patch16_224.midclstok_in1k": _cfg("vim_s_midclstok_80p5acc.pth", _SMALL),
        "vim_base_patch16_224.midclstok_in1k": _cfg("vim_b_midclstok_81p9acc.pth", _BASE),
        "vim_tiny_patch16_stride8_224.midclstok_ft_in1k": _cfg(
            "vim_t_midclstok_ft_78p3acc.pth", _TINY
        ),
        "vim_small_patch16_stride8_224.midclstok_ft_in1k": _cfg(
            "vim_s_midclstok_ft_81p6acc.pth", _SMALL
        ),
        "vim_tiny_rope_patch16_224.in1k": _cfg(
            notes=("rotary embedding, class token in front (January 2024)",)
        ),
        "test_vim.untrained": _cfg(input_size=(3, 96, 96), license=None, notes=()),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> VisionMamba:
    out_indices = (0, 1, 2, 3) if kwargs.get("pyramid") else quarters(kwargs.get("depth", 24))
    return build_model(VisionMamba, variant, pretrained, features=out_indices, **kwargs)


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti: 7.1 M parameters, 197 tokens."""
    return _create("vim_tiny_patch16_224", pretrained, **{"embed_dim": 192, **kwargs})


@register_model
def vim_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-S: 25.8 M parameters, 197 tokens."""
    return _create("vim_small_patch16_224", pretrained, **{"embed_dim": 384, **kwargs})


@register_model
def vim_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-B: 97.6 M parameters, 197 tokens."""
    return _create("vim_base_patch16_224", pretrained, **{"embed_dim": 768, **kwargs})


@register_model
def vim_tiny_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti+: patches overlap by half, 730 tokens."""
    args = {"embed_dim": 192, "stride": 8}
    return _create("vim_tiny_patch16_stride8_224", pretrained, **{**args, **kwargs})


@register_model
def vim_small_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-S+: patches overlap by half, 730 tokens."""
    args = {"embed_dim": 384, "stride": 8}
    return _create("vim_small_patch16_stride8_224", pretrained, **{**args, **kwargs})


@register_model
def vim_tiny_rope_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti of January 2024: rotary embedding, class token in front, paths summed."""
    args = {"embed_dim": 192, "rotary": True, "class_token": "first", "average_paths": False}
    return _create("vim_tiny_rope_patch16_224", pretrained, **{**args, **kwargs})


@register_model
def test_vim(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """A very small Vim for tests; no weights."""
    args = {"img_size": 96, "embed_dim": 48, "depth": 4, "d_state": 8}
    return _create("test_vim", pretrained, **{**args, **kwargs})
