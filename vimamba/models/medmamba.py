"""MedMamba (Yue and Li 2024, arXiv:2403.03849): VMamba's pyramid with two branches in a block.

Half of a block's channels pass through convolutions, the other half through a gated SS2D of the
first generation; a channel shuffle mixes the halves.

Official code: https://github.com/YubiaoYue/MedMamba (no license file)
Sizes: N batch, H and W image or grid, C channels of a stage. Everything is channels-last.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    GATED_SS2D,
    SS2D,
    PatchMerging,
    PatchStem,
    split_paths,
    ss2d_rules,
)
from vimamba.models._builder import NO_LICENSE, build_model, make_cfgs
from vimamba.models._staged import StagedBackbone, StagedParts
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
            sum; or a list of them, which the blocks take in turn.
        device, dtype: Device and dtype of the parameters.
    """

    unsupported = frozenset({"stage_norm"})
    dense: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (2, 2, 4, 2),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        scan_order: str | Sequence[str] = "cross",
        **options: Any,
    ) -> None:
        if any(dim % 2 for dim in dims):
            raise ValueError(f"dims={dims} must be even, for each branch takes a half")

        def block(
            _stage: int, _number: int, dim: int, rate: float, orders: Iterator[str], **dd: Any
        ) -> nn.Module:
            mixer = SS2D(dim // 2, scan_order=next(orders), **GATED_SS2D, **dd)
            return ConvScanBlock(dim, mixer, drop_path=rate, **dd)

        parts = StagedParts(
            depths=depths,
            dims=dims,
            stem=PatchStem,
            block=block,
            downsample=PatchMerging,
            scan_order=scan_order,
            norm=nn.Identity,
        )
        super().__init__(parts, **options)
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Linear layers and scans as in VMamba, convolutions by their fan-out."""
        super().init_parameters()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and split each path's parameters into an axis or a layer."""
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
    remarks="There is no ImageNet classifier, only a file for each of several medical data sets, "
    "on Baidu. The repository has no license file. With 6 classes, as in the original script, "
    "the models have 14.5, 18.6 and 39.9 M parameters.",
)

_OWN = {"note": "weights on Baidu only, one file per data set", "license": "unknown"}
default_cfgs = make_cfgs(
    {
        "medmamba_tiny.untrained": _OWN,
        "medmamba_small.untrained": _OWN,
        "medmamba_base.untrained": _OWN,
        "test_medmamba.untrained": {"size": 96},
    },
    license="unknown",
    crop_pct=1.0,
    crop_mode="squash",
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    first_conv="stem.conv1",
    classifier="head.fc",
    origin_url="https://github.com/YubiaoYue/MedMamba",
    paper_name="MedMamba: Vision Mamba for Medical Image Classification",
    paper_ids="arXiv:2403.03849",
    notes=(NO_LICENSE,),
)


@register_model
def medmamba_tiny(pretrained: bool = False, **kwargs: Any) -> MedMamba:
    """MedMamba-T: 14.5 M parameters with 6 classes; no weights at an address."""
    return build_model(MedMamba, "medmamba_tiny", pretrained, kwargs, depths=(2, 2, 4, 2))


@register_model
def medmamba_small(pretrained: bool = False, **kwargs: Any) -> MedMamba:
    """MedMamba-S: 18.6 M parameters with 6 classes; no weights at an address."""
    return build_model(MedMamba, "medmamba_small", pretrained, kwargs, depths=(2, 2, 8, 2))


@register_model
def medmamba_base(pretrained: bool = False, **kwargs: Any) -> MedMamba:
    """MedMamba-B: 39.9 M parameters with 6 classes; no weights at an address."""
    sizes = {"depths": (2, 2, 12, 2), "dims": (128, 256, 512, 1024)}
    return build_model(MedMamba, "medmamba_base", pretrained, kwargs, **sizes)


@register_model
def test_medmamba(pretrained: bool = False, **kwargs: Any) -> MedMamba:
    """A very small MedMamba for tests; no weights."""
    sizes = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)}
    return build_model(MedMamba, "test_medmamba", pretrained, kwargs, **sizes)
