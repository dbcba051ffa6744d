"""Vim-F (Zhang et al. 2024, arXiv:2405.18679): Vim with a convolutional stem and Fourier spectra.

The first blocks add to the tokens that their mixer reads the amplitudes of these tokens' Fourier
transform, over sequence and channels. There is no position embedding.

Official code: https://github.com/yws-wxs/Vim-F (no license file), its second release
Sizes: N batch, H and W image, h and w grid, L = h * w patches, C channels.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.layers import LayerNorm2d, RmsNorm
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    GridEmbed,
    VimBlock,
    drop_path_rates,
    init_vim_blocks_,
    join_branches,
    to_pair,
)
from vimamba.models._builder import build_model
from vimamba.models._plain import PlainBackbone, quarters
from vimamba.models.vim import VIM_RULES
from vimamba.scan_orders import num_paths, order_of_block

__all__ = ["VimF"]


class ConvStem(GridEmbed):
    """Three convolutions, to an 1/4, 1/8 and 1/16 of the image's sides, to tokens."""

    def __init__(
        self, img_size: tuple[int, int], in_chans: int, dims: tuple[int, int, int], **dd: Any
    ) -> None:
        super().__init__(img_size, 16, 16, dynamic_img_size=True)
        self.conv = nn.Conv2d(in_chans, dims[0], 7, stride=4, padding=3, **dd)
        self.norm = LayerNorm2d(dims[0], eps=1e-6, **dd)
        self.downsamples = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(dim_in, dim, 2, stride=2, **dd),
                    LayerNorm2d(dim, eps=1e-6, **dd),
                    nn.Conv2d(dim, dim, 1, **dd),
                    nn.GELU(),
                )
                for dim_in, dim in pairwise(dims)
            )
        )

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Grid of an image of this size."""
        return (img_size[0] + 3) // 4 // 4, (img_size[1] + 3) // 4 // 4

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, h, w, C)."""
        return self.downsamples(self.norm(self.conv(x))).permute(0, 2, 3, 1)


# a symbolic trace keeps the call: it does not know the dtype
@torch.fx.wrap
def amplitudes(x: Tensor) -> Tensor:
    """Of the orthonormal Fourier transform of x (N, L, C) over tokens and channels."""
    # torch transforms no half precision
    wide = x if x.dtype == torch.float64 else x.float()
    return torch.fft.fft2(wide, norm="ortho").abs().to(x.dtype)


class FourierBlock(VimBlock):
    """A block of Vim whose mixer reads tokens and their spectrum, weighted and projected."""

    def __init__(self, dim: int, *, drop_path: float, dd: dict[str, Any], **mixer: Any) -> None:
        super().__init__(dim, drop_path=drop_path, dd=dd, **mixer)
        self.weights = nn.Parameter(torch.empty(2, **dd))
        self.mlp = nn.Linear(dim, dim, **dd)
        nn.init.ones_(self.weights)

    def reset_parameters(self) -> None:
        """Start with equal weights; the other layers start themselves."""
        nn.init.ones_(self.weights)

    def update(self, x: Tensor, paths: Tensor) -> Tensor:
        """What the block adds to the tokens (N, L, C)."""
        x = self.norm(x)
        x = self.mlp(self.weights[0] * x + self.weights[1] * amplitudes(x))
        return self.drop_path(self.mixer(x, paths))

    def forward(self, x: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, C) along paths (K, T) or (N, K, T) to (N, L, C)."""
        return x + self.update(x, paths)


class VimF(PlainBackbone):
    """Vim-F backbone with a classifier, for images of any size.

    Args:
        img_size: Height and width that `patch_embed` reports a grid for.
        in_chans, num_classes, drop_rate, drop_path_rate: As in timm.
        global_pool: "token" (class token, in the middle), "avg" or "".
        stem_dims: Channels after the first two convolutions of the stem.
        embed_dim: C.
        depth: Blocks.
        fourier_blocks: The first so many read spectra.
        d_state: States per channel of the scan.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take by turns.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        *,
        stem_dims: tuple[int, int] = (48, 96),
        embed_dim: int = 192,
        depth: int = 24,
        fourier_blocks: int = 8,
        d_state: int = 16,
        scan_order: str | Sequence[str] = "bidirectional",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        orders = [order_of_block(scan_order, block) for block in range(depth)]
        (rates,) = drop_path_rates(drop_path_rate, [depth])

        def make_block(block: int) -> VimBlock:
            kind = FourierBlock if block < fourier_blocks else VimBlock
            mixer = {"num_paths": num_paths(orders[block]), "d_state": d_state}
            return kind(embed_dim, drop_path=rates[block], dd=dd, **mixer)

        super().__init__(
            ConvStem(to_pair(img_size), in_chans, (*stem_dims, embed_dim), **dd),
            map(make_block, range(depth)),
            RmsNorm(embed_dim, eps=1e-5, **dd),
            scan_order=orders,
            prefix="middle",
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            embed_dim=embed_dim,
            drop_rate=drop_rate,
            pos_embed=False,
            dynamic_img_size=True,
            **dd,
        )
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Class token and classifier as DeiT's, blocks as Vim's."""
        super().init_parameters()
        init_vim_blocks_(self.blocks)
        for block in self.blocks:
            if isinstance(block, FourierBlock):
                nn.init.zeros_(block.mlp.bias)

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and join what the two branches hold.

        Raises:
            CheckpointError: A key matches no rule, or a direction is missing.
        """
        return join_branches(super().from_official(state_dict))


_STEM = r"patch_embed\.cnn_downsample_layers\."
RULES = {
    **VIM_RULES,
    _STEM + r"0\.0\.(.*)": r"patch_embed.conv.\1",
    _STEM + r"0\.1\.(.*)": r"patch_embed.norm.\1",
    _STEM + r"1\.(.*)": r"patch_embed.downsamples.0.\1",
    _STEM + r"2\.(.*)": r"patch_embed.downsamples.1.\1",
    r"layers\.(\d+)\.stack": r"blocks.\1.weights",
    r"layers\.(\d+)\.mlp\.(.*)": r"blocks.\1.mlp.\2",
}
register_family("Vim-F", VimF, RULES, top1={"vimf_tiny_patch16_224.in1k": 76.7})


def _cfg(file: str = "", **kwargs: Any) -> dict[str, Any]:
    releases = "https://github.com/yws-wxs/Vim-F/releases/download"
    return {
        "url": f"{releases}/v1.0.0.3/{file}" if file else "",
        "custom_load": "hf" if file else False,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "first_conv": "patch_embed.conv",
        "classifier": "head",
        "license": "unknown" if file else None,
        "origin_url": "https://github.com/yws-wxs/Vim-F",
        "paper_name": "Vim-F: Visual State Space Model Benefiting from Learning in the Frequency "
        "Domain",
        "paper_ids": "arXiv:2405.18679",
        "notes": (
            "family: Vim-F",
            "generation: second release (v2)",
            "licence: unstated, the official repository has no licence file",
        ),
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "vimf_tiny_patch16_224.in1k": _cfg("v2-ti-f-ckp.pth"),
        "test_vimf.untrained": _cfg(input_size=(3, 64, 64)),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> VimF:
    features = quarters(kwargs.get("depth", 24))
    return build_model(VimF, variant, pretrained, features=features, **kwargs)


@register_model
def vimf_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> VimF:
    """Vim-F(H)-Ti, second release: 7.4 M parameters, 197 tokens."""
    args = {"stem_dims": (48, 96), "embed_dim": 192}
    return _create("vimf_tiny_patch16_224", pretrained, **{**args, **kwargs})


@register_model
def test_vimf(pretrained: bool = False, **kwargs: Any) -> VimF:
    """A very small Vim-F for tests; no weights."""
    args = {"img_size": 64, "stem_dims": (12, 24), "embed_dim": 48, "depth": 4, "d_state": 8}
    return _create("test_vimf", pretrained, **{**args, "fourier_blocks": 2, **kwargs})
