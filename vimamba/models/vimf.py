"""Vim-F (Zhang et al. 2024, arXiv:2405.18679): Vim with a convolutional stem and Fourier spectra.

In the first blocks, the mixer's input is the tokens plus the amplitudes of their Fourier transform
over sequence and channels. There is no position embedding.

Official code: https://github.com/yws-wxs/Vim-F (no license file), its second release
Sizes: N batch, H and W image, h and w grid, L = h * w patches, C channels.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from timm.layers import LayerNorm2d
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import GridEmbed, VimBlock, init_vim_blocks_, join_branches, to_pair
from vimamba.models._builder import NO_LICENSE, build_model, make_cfgs
from vimamba.models._plain import PlainBackbone, PlainOptions, PlainParts
from vimamba.models.vim import VIM_RULES

__all__ = ["VimF"]


class ConvStem(GridEmbed):
    """Three convolutions, to 1/4, 1/8 and 1/16 of the image's sides, to tokens."""

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


# kept as a call in symbolic traces, which do not know the dtype
@torch.fx.wrap
def amplitudes(x: Tensor) -> Tensor:
    """Amplitudes of the orthonormal Fourier transform of x (N, L, C) over tokens and channels."""
    # torch's transform does not support half precision
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
        """Initialize with equal weights; other layers initialize themselves."""
        nn.init.ones_(self.weights)

    def update(self, x: Tensor, paths: Tensor) -> Tensor:
        """The update that the block adds to the tokens (N, L, C)."""
        x = self.norm(x)
        return self.mixer(self.mlp(self.weights[0] * x + self.weights[1] * amplitudes(x)), paths)


class VimF(PlainBackbone):
    """Vim-F backbone with a classifier, for images of any size.

    Args:
        img_size: Height and width that `patch_embed` reports a grid for.
        in_chans, num_classes, drop_rate, drop_path_rate: As in timm.
        global_pool: "token" (class token, in the middle), "avg" or "".
        stem_dims: Channels after the first two convolutions of the stem.
        embed_dim: C.
        depth: Blocks.
        fourier_blocks: Number of first blocks that read spectra.
        d_state: States per channel of the scan.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn.
        device, dtype: Device and dtype of the parameters.
    """

    unsupported = frozenset({"patch_size", "dynamic_img_size"})
    dense: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        *,
        stem_dims: tuple[int, int] = (48, 96),
        embed_dim: int = 192,
        depth: int = 24,
        fourier_blocks: int = 8,
        d_state: int = 16,
        scan_order: str | Sequence[str] = "bidirectional",
        **options: Any,
    ) -> None:
        def block(number: int, rate: float, paths: int, dd: dict[str, Any]) -> VimBlock:
            kind = FourierBlock if number < fourier_blocks else VimBlock
            mixer = {"num_paths": paths, "d_state": d_state}
            return kind(embed_dim, drop_path=rate, dd=dd, **mixer)

        def embed(given: PlainOptions, dim: int) -> GridEmbed:
            return ConvStem(to_pair(given.img_size), given.in_chans, (*stem_dims, dim), **given.dd)

        parts = PlainParts(
            depth=depth,
            dim=embed_dim,
            block=block,
            scan_order=scan_order,
            embed=embed,
            prefix="middle",
            pos_embed=False,
        )
        super().__init__(parts, **options)
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Class token and classifier as in DeiT, blocks as in Vim."""
        super().init_parameters()
        init_vim_blocks_(self.blocks)
        for block in self.blocks:
            if isinstance(block, FourierBlock):
                nn.init.zeros_(block.mlp.bias)

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and join the parameters of the two branches.

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

default_cfgs = make_cfgs(
    {
        "vimf_tiny_patch16_224.in1k": {"file": "v2-ti-f-ckp.pth"},
        "test_vimf.untrained": {"size": 64},
    },
    folder="https://github.com/yws-wxs/Vim-F/releases/download/v1.0.0.3",
    license="unknown",
    cell=None,
    first_conv="patch_embed.conv",
    classifier="head",
    origin_url="https://github.com/yws-wxs/Vim-F",
    paper_name="Vim-F: Visual State Space Model Benefiting from Learning in the Frequency Domain",
    paper_ids="arXiv:2405.18679",
    notes=("second release (v2)", NO_LICENSE),
)


@register_model
def vimf_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> VimF:
    """Vim-F(H)-Ti, second release: 7.4 M parameters, 197 tokens."""
    sizes = {"stem_dims": (48, 96), "embed_dim": 192}
    return build_model(VimF, "vimf_tiny_patch16_224", pretrained, kwargs, **sizes)


@register_model
def test_vimf(pretrained: bool = False, **kwargs: Any) -> VimF:
    """A very small Vim-F for tests; no weights."""
    sizes: dict[str, Any] = {"img_size": 64, "stem_dims": (12, 24), "embed_dim": 48, "depth": 4}
    sizes |= {"d_state": 8, "fourier_blocks": 2}
    return build_model(VimF, "test_vimf", pretrained, kwargs, **sizes)
