"""Vim, Vision Mamba (Zhu et al. 2024, arXiv:2401.09417): a plain stack of bidirectional Mamba.

Patches become tokens, the class token stands in their middle, and every block mixes them along a
path and its reverse. The residual stream is never normalized; each block normalizes its input.

Official code: https://github.com/hustvl/Vim (Apache-2.0)
Sizes: N batch, H and W image, h and w grid, L = h * w patches, C channels.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from timm.models import register_model
from torch import Tensor

from vimamba.checkpoints import CheckpointError, StateDict, register_family
from vimamba.layers import (
    RotaryEmbed,
    SimplePyramid,
    init_patches_,
    init_vim_blocks_,
    join_branches,
    make_vim_block,
    mamba_rules,
)
from vimamba.models._builder import build_model, make_cfgs
from vimamba.models._plain import PlainBackbone, PlainParts, embed_patches, quarters
from vimamba.timm_layers import get_device_dtype

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
            sum; or a list of them, which the blocks take in turn.
        class_token: "middle", "first" or "none".
        average_paths: Divide a mixer's sum over the paths by their number.
        rotary: Rotate the residual stream before every block (first generation, detection).
        pyramid: Four blocks whose outputs, without the residual stream, become maps of strides 4,
            8, 16 and 32: the published tiny segmentation backbone. It has no classifier. True
            selects the last block of each quarter.
        pyramid_residual: The maps come from the residual stream, as the next block reads it: the
            published small segmentation backbone, which is also `rotary`.
        dynamic_img_size: Take any image size and resample the position embedding on the way.
        device, dtype: Device and dtype of the parameters.
    """

    dense: ClassVar[Mapping[str, Any]] = {
        "dynamic_img_size": True,
        "class_token": "none",
        "pyramid": True,
    }

    def __init__(
        self,
        *,
        stride: int | None = None,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        scan_order: str | Sequence[str] = "bidirectional",
        class_token: str = "middle",
        average_paths: bool = True,
        rotary: bool = False,
        pyramid: bool | tuple[int, ...] | None = None,
        pyramid_residual: bool = False,
        **options: Any,
    ) -> None:
        taps = tuple(quarters(depth)) if pyramid is True else pyramid or None
        if taps and (len(taps) != 4 or [*taps] != sorted({*taps} & {*range(depth)})):
            raise ValueError(f"pyramid={pyramid} must be four rising numbers of the {depth} blocks")
        if pyramid_residual and not taps:
            raise ValueError("pyramid_residual=True needs pyramid=(…), four of the blocks")
        mixer = {"d_state": d_state, "average_paths": average_paths}
        parts = PlainParts(
            depth=depth,
            dim=embed_dim,
            block=partial(make_vim_block, embed_dim, **mixer),
            scan_order=scan_order,
            embed=partial(embed_patches, stride=stride),
            prefix=class_token,
            taps=taps,
            shows_updates=bool(taps) and not pyramid_residual,
        )
        super().__init__(parts, num_classes=0 if taps else num_classes, **options)
        self.rotary = RotaryEmbed(embed_dim) if rotary else None
        self.pyramid_residual = pyramid_residual
        dd: dict[str, Any] = get_device_dtype(self.patch_embed)
        self.pyramid = SimplePyramid(embed_dim, **dd) if taps else None
        if taps:
            for level, info in enumerate(self.feature_info):
                info["reduction"] = self.patch_embed.stride[0] * 2**level // 4
        self.init_weights(needs_reset=False)

    @classmethod
    def default_features(cls, given: Mapping[str, Any]) -> Sequence[int]:
        """The last block of each quarter; the four levels of a pyramid."""
        return range(4) if given.get("pyramid") else super().default_features(given)

    def init_parameters(self) -> None:
        """Embeddings and classifier as in DeiT; only the first path gets Mamba's step sizes."""
        init_patches_(self.patch_embed)
        super().init_parameters()
        init_vim_blocks_(self.blocks)

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and join the parameters of the two branches.

        Raises:
            CheckpointError: The file is for the other generation, or lacks a direction.
        """
        rotary = "rope.freqs_cos" in state_dict
        if rotary != (self.rotary is not None):
            raise CheckpointError(f"rotary embeddings {'' if rotary else 'not '}in the file only")
        state = join_branches(super().from_official(state_dict))
        return self._without_class_token(state, first=rotary)

    def adapt(self, state: StateDict) -> StateDict:
        """Drop the class token if the model has none, resample the position embedding."""
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

    def _rotate(self, x: Tensor, context: list[Tensor]) -> Tensor:
        """Rotate the patches' tokens, not the class token."""
        if self.rotary is None:
            return x
        angles = context[0]
        if self.cls_token is None:
            return self.rotary(x, angles)
        p = self.places(x.shape[1] - 1)[0]
        before, after = self.rotary(x[:, :p], angles[:p]), self.rotary(x[:, p + 1 :], angles[p:])
        return torch.cat([before, x[:, p : p + 1], after], dim=1)

    def prepare(
        self, x: Tensor, paths: dict[str, Tensor], grid: tuple[int, int]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The angles of a rotary embedding."""
        context = torch.jit.annotate(list[Tensor], [])
        if self.rotary is not None:
            context.append(self.rotary.angles(grid[0], grid[1], x))
        return paths, context

    def enter_block(
        self,
        block: int,
        x: Tensor,
        paths: dict[str, Tensor],
        context: list[Tensor],
        grid: tuple[int, int],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The residual stream, rotated."""
        return self._rotate(x, context), paths

    def shown(self, block: int, feature: Tensor, context: list[Tensor]) -> Tensor:
        """With `pyramid_residual`, what the next block reads."""
        if self.pyramid_residual and block < len(self.blocks) - 1:
            return self._rotate(feature, context)
        return feature

    def to_maps(
        self, features: list[Tensor], taps: list[int], height: int, width: int
    ) -> list[Tensor]:
        """Tokens (N, L, C) to maps, those of a pyramid at its levels."""
        maps: list[Tensor] = []
        for feature, level in zip(features, taps):  # noqa: B905  TorchScript knows no `strict`
            grid = feature.unflatten(1, (height, width)).permute(0, 3, 1, 2).contiguous()
            maps.append(grid if self.pyramid is None else self.pyramid(grid, level))
        return maps


# for all models built on Vim's code
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
    "not 28 x 28. The rotary model, of January 2024, was superseded by the one without rotation.",
)


def _file(size: str, name: str) -> dict[str, Any]:
    note = "class token in the middle (February 2024)"
    return {"hub": f"hustvl/Vim-{size}-midclstok", "file": name, "note": note}


default_cfgs = make_cfgs(
    {
        "vim_tiny_patch16_224.midclstok_in1k": _file("tiny", "vim_t_midclstok_76p1acc.pth"),
        "vim_small_patch16_224.midclstok_in1k": _file("small", "vim_s_midclstok_80p5acc.pth"),
        "vim_base_patch16_224.midclstok_in1k": _file("base", "vim_b_midclstok_81p9acc.pth"),
        "vim_tiny_patch16_stride8_224.midclstok_ft_in1k": _file(
            "tiny", "vim_t_midclstok_ft_78p3acc.pth"
        ),
        "vim_small_patch16_stride8_224.midclstok_ft_in1k": _file(
            "small", "vim_s_midclstok_ft_81p6acc.pth"
        ),
        "vim_tiny_rope_patch16_224.in1k": {
            "note": "rotary embedding, class token in front (January 2024)"
        },
        "test_vim.untrained": {"size": 96},
    },
    license="apache-2.0",
    cell=None,
    fixed_input_size=True,
    first_conv="patch_embed.proj",
    classifier="head",
    origin_url="https://github.com/hustvl/Vim",
    paper_name="Vision Mamba: Efficient Visual Representation Learning with Bidirectional State "
    "Space Model",
    paper_ids="arXiv:2401.09417",
)


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti: 7.1 M parameters, 197 tokens."""
    return build_model(VisionMamba, "vim_tiny_patch16_224", pretrained, kwargs, embed_dim=192)


@register_model
def vim_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-S: 25.8 M parameters, 197 tokens."""
    return build_model(VisionMamba, "vim_small_patch16_224", pretrained, kwargs, embed_dim=384)


@register_model
def vim_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-B: 97.6 M parameters, 197 tokens."""
    return build_model(VisionMamba, "vim_base_patch16_224", pretrained, kwargs, embed_dim=768)


@register_model
def vim_tiny_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti+: patches overlap by half, 730 tokens."""
    sizes = {"embed_dim": 192, "stride": 8}
    return build_model(VisionMamba, "vim_tiny_patch16_stride8_224", pretrained, kwargs, **sizes)


@register_model
def vim_small_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-S+: patches overlap by half, 730 tokens."""
    sizes = {"embed_dim": 384, "stride": 8}
    return build_model(VisionMamba, "vim_small_patch16_stride8_224", pretrained, kwargs, **sizes)


@register_model
def vim_tiny_rope_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti of January 2024: rotary embedding, class token in front, paths summed."""
    sizes = {"embed_dim": 192, "rotary": True, "class_token": "first", "average_paths": False}
    return build_model(VisionMamba, "vim_tiny_rope_patch16_224", pretrained, kwargs, **sizes)


@register_model
def test_vim(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """A very small Vim for tests; no weights."""
    sizes = {"img_size": 96, "embed_dim": 48, "depth": 4, "d_state": 8}
    return build_model(VisionMamba, "test_vim", pretrained, kwargs, **sizes)
