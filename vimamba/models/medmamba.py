"""MedMamba (Yue and Li 2024, arXiv:2403.03849): VMamba's pyramid with two branches in a block.

Half of a block's channels go through convolutions, the other half through a gated SS2D of the first
generation; a channel shuffle mixes the halves.

Official code: https://github.com/YubiaoYue/MedMamba (no license file)
Sizes: N batch, H and W image or grid, C channels of a stage. Everything is channels-last.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    GATED_SS2D,
    SS2D,
    PatchMerging,
    PatchStem,
    drop_path_rates,
    split_paths,
    ss2d_rules,
)
from vimamba.models._builder import build_model
from vimamba.models._staged import StagedBackbone, make_stages
from vimamba.models.vmamba import next_stage

__all__ = ["MedMamba"]


class ConvScanBlock(nn.Module):
    """Convolutions on one half of the channels, a mixer on the other, shuffled and added."""

    def __init__(self, dim: int, mixer: nn.Module, *, drop_path: float, **dd: Any) -> None:
        super().__init__()
        half = dim // 2
        self.norm = nn.LayerNorm(half, **dd)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)
        self.conv = nn.Sequential(
            nn.BatchNorm2d(half, **dd),
            nn.Conv2d(half, half, 3, padding=1, **dd),
            nn.BatchNorm2d(half, **dd),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1, **dd),
            nn.BatchNorm2d(half, **dd),
            nn.ReLU(),
            nn.Conv2d(half, half, 1, **dd),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to (N, H, W, C)."""
        local, whole = x.chunk(2, dim=-1)
        local = self.conv(local.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        whole = self.drop_path(self.mixer(self.norm(whole)))
        return x + torch.stack([local, whole], dim=-1).flatten(-2)


class MedMamba(StagedBackbone):
    """MedMamba with a classifier.

    Args:
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: As in timm.
        depths: Blocks per stage.
        dims: Channels per stage, even.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take by turns.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        depths: tuple[int, ...] = (2, 2, 4, 2),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        scan_order: str | Sequence[str] = "cross",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if any(dim % 2 for dim in dims):
            raise ValueError(f"dims={dims} must be even, for each branch takes a half")
        dd = {"device": device, "dtype": dtype}

        def make_block(_stage: int, dim: int, rate: float, order: str) -> nn.Module:
            mixer = SS2D(dim // 2, scan_order=order, **GATED_SS2D, **dd)
            return ConvScanBlock(dim, mixer, drop_path=rate, **dd)

        rates = drop_path_rates(drop_path_rate, depths)
        super().__init__(
            PatchStem(in_chans, dims[0], **dd),
            make_stages(
                depths,
                dims,
                scan_order,
                rates,
                make_block=make_block,
                make_downsample=partial(PatchMerging, **dd),
            ),
            dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            norm=nn.Identity(),
            **dd,
        )
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Linear layers and scans as VMamba's, convolutions by their fan-out."""
        super().init_parameters()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and give each path's parameters an axis or a layer of its own."""
        return split_paths(super().from_official(state_dict))


_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
RULES = {
    r"patch_embed\.proj\.(.*)": r"stem.conv1.\1",
    r"patch_embed\.norm\.(.*)": r"stem.norm1.\1",
    **ss2d_rules(_BLOCK + r"self_attention\.", r"stages.\1.blocks.\2.mixer."),
    _BLOCK + r"ln_1\.(.*)": r"stages.\1.blocks.\2.norm.\3",
    _BLOCK + r"conv33conv33conv11\.(.*)": r"stages.\1.blocks.\2.conv.\3",
    r"layers\.(\d+)\.downsample\.(norm|reduction)\.(.*)": next_stage,
    r"head\.(weight|bias)": r"head.fc.\1",
}


register_family(
    "MedMamba",
    MedMamba,
    RULES,
    remarks="There is no classifier of ImageNet but a file for each of several medical data sets, "
    "on Baidu only. The repository has no licence file. With 6 classes, as in the original script, "
    "the models have 14.5, 18.6 and 39.9 M parameters.",
)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        "license": "unknown",
        "origin_url": "https://github.com/YubiaoYue/MedMamba",
        "paper_name": "MedMamba: Vision Mamba for Medical Image Classification",
        "paper_ids": "arXiv:2403.03849",
        "notes": (
            "licence unstated: the official repository has no licence file",
            "weights on Baidu only, one file per data set",
        ),
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "medmamba_tiny.untrained": _cfg(),
        "medmamba_small.untrained": _cfg(),
        "medmamba_base.untrained": _cfg(),
        "test_medmamba.untrained": _cfg(input_size=(3, 96, 96), pool_size=(3, 3), license=None),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> MedMamba:
    return build_model(MedMamba, variant, pretrained, **kwargs)


@register_model
def medmamba_tiny(pretrained: bool = False, **kwargs: Any) -> MedMamba:
    """MedMamba-T: 14.5 M parameters with 6 classes; no weights at an address."""
    return _create("medmamba_tiny", pretrained, **{"depths": (2, 2, 4, 2), **kwargs})


@register_model
def medmamba_small(pretrained: bool = False, **kwargs: Any) -> MedMamba:
    """MedMamba-S: 18.6 M parameters with 6 classes; no weights at an address."""
    return _create("medmamba_small", pretrained, **{"depths": (2, 2, 8, 2), **kwargs})


@register_model
def medmamba_base(pretrained: bool = False, **kwargs: Any) -> MedMamba:
    """MedMamba-B: 39.9 M parameters with 6 classes; no weights at an address."""
    args = {"depths": (2, 2, 12, 2), "dims": (128, 256, 512, 1024)}
    return _create("medmamba_base", pretrained, **{**args, **kwargs})


@register_model
def test_medmamba(pretrained: bool = False, **kwargs: Any) -> MedMamba:
    """A very small MedMamba for tests; no weights."""
    args = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)}
    return _create("test_medmamba", pretrained, **{**args, **kwargs})
